//! PyTorch's `.pth`: the zip archive of today, and the stream of pickles from before 1.6.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::pickle::{self, MAX_PROGRAM_BYTES, Object, Storage, TensorRef};
use super::raw::{RawTensor, element_count};
use super::{DataType, Fault};

/// First object of a legacy file.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;

/// `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the storages, uncompressed.
pub(super) fn read_zip(bytes: &[u8]) -> Result<BTreeMap<String, RawTensor>, Fault> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(zip_fault)?;
    let index = archive
        .file_names_raw()
        .filter_map(|name| std::str::from_utf8(name).ok())
        .find_map(|name| name.strip_suffix("data.pkl").map(str::to_owned))
        .filter(|folder| folder.is_empty() || folder.ends_with('/'))
        .ok_or_else(|| Fault::Format("it is a zip archive without PyTorch's data.pkl".into()))?;
    if let Some(order) = optional_entry(&mut archive, &format!("{index}byteorder"), 16)?
        && order.trim_ascii() != b"little"
    {
        return Err(Fault::unsupported("it was written on a big-endian machine"));
    }
    let program = entry(&mut archive, &format!("{index}data.pkl"), MAX_PROGRAM_BYTES)?;
    let (machine, root, _) = pickle::run(&program)?;
    let tensors = machine.flatten(root)?;
    check_growth(&tensors, bytes.len())?;
    // One storage at a time stays in memory beside the file: tensors in file order, the last one kept.
    let mut by_storage: Vec<_> = tensors.into_iter().collect();
    by_storage.sort_by(|a, b| a.1.storage.key.cmp(&b.1.storage.key));
    let mut kept: Option<(Rc<str>, Vec<u8>)> = None;
    let mut found = BTreeMap::new();
    for (name, tensor) in by_storage {
        let key = &tensor.storage.key;
        if kept.as_ref().is_none_or(|(k, _)| k != key) {
            let storage = entry(&mut archive, &format!("{index}data/{key}"), bytes.len())?;
            kept = Some((key.clone(), storage));
        }
        let storage = kept.as_ref().map(|(_, storage)| storage.as_slice()).unwrap_or_default();
        found.insert(name, build(tensor, storage)?);
    }
    Ok(found)
}

fn zip_fault(error: ZipError) -> Fault {
    match error {
        ZipError::UnsupportedArchive(what) => Fault::unsupported(format!("its zip archive uses {what}")),
        error => Fault::damaged(format!("its zip archive is wrong: {error}")),
    }
}

fn optional_entry(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    name: &str,
    limit: usize,
) -> Result<Option<Vec<u8>>, Fault> {
    let file = match archive.by_name(name) {
        Ok(file) => file,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(error) => return Err(zip_fault(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Fault::damaged(format!("`{name}` in its zip archive: {error}")))?;
    if bytes.len() > limit {
        return Err(Fault::unsupported(format!("`{name}` in its zip archive has more than {limit} bytes")));
    }
    Ok(Some(bytes))
}

fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str, limit: usize) -> Result<Vec<u8>, Fault> {
    optional_entry(archive, name, limit)?
        .ok_or_else(|| Fault::damaged(format!("its zip archive lacks `{}`", name.escape_debug())))
}

/// Five pickles (magic number, protocol, the writer's machine, the object, storage keys), then per key
/// the number of elements in 8 bytes and the elements.
pub(super) fn read_legacy(bytes: &[u8]) -> Result<BTreeMap<String, RawTensor>, Fault> {
    let mut rest = bytes;
    if next_integer(&mut rest, true)? != MAGIC {
        return Err(Fault::Format("it is a pickle, but not one of PyTorch's".into()));
    }
    let protocol = next_integer(&mut rest, false)?;
    if protocol != LEGACY_PROTOCOL {
        return Err(Fault::unsupported(format!("it has PyTorch's legacy protocol {protocol}, not 1001")));
    }
    let (machine, about, length) = pickle::run(rest)?;
    rest = &rest[length..];
    if let Object::Dict(entries) = machine.object(about)
        && entries.iter().any(|&(key, value)| {
            *machine.object(key) == Object::Str("little_endian".into())
                && *machine.object(value) == Object::Bool(false)
        })
    {
        return Err(Fault::unsupported("it was written on a big-endian machine"));
    }

    let (machine, root, length) = pickle::run(rest)?;
    rest = &rest[length..];
    let tensors = machine.flatten(root)?;
    check_growth(&tensors, bytes.len())?;
    let mut types: HashMap<&str, DataType> = HashMap::new();
    for Storage { key, dtype, .. } in machine.storages() {
        if *types.entry(key).or_insert(*dtype) != *dtype {
            return Err(Fault::damaged(format!("the storage `{key}` has two types")));
        }
    }

    let (keys_machine, keys, length) = pickle::run(rest)?;
    rest = &rest[length..];
    let Object::List(keys) = keys_machine.object(keys) else {
        return Err(Fault::damaged("its list of storages is no list"));
    };
    let mut storages: HashMap<&str, &[u8]> = HashMap::new();
    for &key in keys {
        let Object::Str(key) = keys_machine.object(key) else {
            return Err(Fault::damaged("a storage's key is no string"));
        };
        let dtype = types
            .get(key.as_str())
            .ok_or_else(|| Fault::damaged(format!("no tensor uses storage `{key}`")))?;
        let cut = || Fault::damaged(format!("it ends within the storage `{key}`"));
        let (count, data) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let length = usize::try_from(u64::from_le_bytes(*count))
            .ok()
            .and_then(|count| count.checked_mul(dtype.bytes()))
            .ok_or_else(cut)?;
        let (storage, after) = data.split_at_checked(length).ok_or_else(cut)?;
        storages.insert(key, storage);
        rest = after;
    }

    let mut found = BTreeMap::new();
    for (name, tensor) in tensors {
        let key = &*tensor.storage.key;
        let storage =
            storages.get(key).ok_or_else(|| Fault::damaged(format!("it lacks the storage `{key}`")))?;
        found.insert(name, build(tensor, storage)?);
    }
    Ok(found)
}

fn next_integer(rest: &mut &[u8], first: bool) -> Result<i128, Fault> {
    let (machine, id, length) = pickle::run(rest)?;
    *rest = &rest[length..];
    match machine.object(id) {
        Object::Int(n) => Ok(*n),
        _ if first => Ok(0),
        _ => Err(Fault::damaged("a number is missing at its start")),
    }
}

/// Strides of 0 and shared storages let a small file describe huge tensors: refuse before allocating.
fn check_growth(tensors: &BTreeMap<String, &TensorRef>, file_bytes: usize) -> Result<(), Fault> {
    let limit = file_bytes.saturating_mul(4).saturating_add(1 << 20);
    let mut total = 0usize;
    for tensor in tensors.values() {
        total = total.saturating_add(element_count(&tensor.shape)?);
    }
    if total > limit {
        return Err(Fault::unsupported(format!(
            "its {file_bytes} bytes describe {total} elements; save it with contiguous tensors"
        )));
    }
    Ok(())
}

fn build(tensor: &TensorRef, storage: &[u8]) -> Result<RawTensor, Fault> {
    let TensorRef { storage: Storage { dtype, offset: view, .. }, offset, shape, strides } = tensor;
    let offset = offset.checked_add(*view).ok_or_else(|| Fault::damaged("an absurd offset"))?;
    RawTensor::from_strided(*dtype, storage, offset, shape.clone(), strides)
}
