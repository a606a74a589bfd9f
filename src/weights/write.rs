//! Writing safetensors, whole or not at all.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::WeightsError;
use crate::engine::ParamStore;

/// Writes a file under a temporary name beside `path`, syncs it, and renames it: whoever opens `path`
/// sees the old content or the new, never a part.
pub fn write_file_atomically(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), WeightsError> {
    let fail = |source| WeightsError::Write { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if path.is_dir() {
        return Err(fail(std::io::ErrorKind::IsADirectory.into()));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".inspectd-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // tempfile's own 0600 would keep a service user from reading what an engineer taught.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder).map_err(fail)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    content(&mut out).map_err(fail)?;
    let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    // The rename itself lives in the folder; without this a power cut could undo it.
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Writes fp32 tensors of any rank (name, shape, elements) with string metadata, in the given order.
/// The same content gives the same bytes.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: &[(&'a str, Vec<usize>, &'a [f32])],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let header = header(tensors, metadata);
    write_file_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, _, data) in tensors {
            write_reals(out, data)?;
        }
        Ok(())
    })
}

/// Writes parameters under their own names, each with its four axes.
pub fn write_params(
    path: &Path,
    params: &ParamStore,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let tensors: Vec<_> =
        params.iter().map(|(name, tensor)| (name, tensor.shape.0.to_vec(), tensor.data.as_slice())).collect();
    write_tensors(path, &tensors, metadata)
}

fn header(tensors: &[(&str, Vec<usize>, &[f32])], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (name, shape, data) in tensors {
        let start = end;
        end += data.len() * 4;
        map.insert((*name).into(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    // Data that starts at a multiple of 8 can be mapped and used in place.
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

fn write_reals(out: &mut dyn Write, data: &[f32]) -> std::io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(bytemuck::cast_slice(data));
    }
    data.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
}
