//! Weights files, read as data: safetensors, and PyTorch's `.pth` in both its formats.
//!
//! * Nothing in a file is ever executed. A pickle is a program; the machine in `pickle` knows numbers,
//!   strings, containers and tensors, and refuses everything else by name.
//! * A hostile file can cost at most a small multiple of its own size in memory, and never a panic:
//!   lengths, offsets, strides, nesting and counts are checked before they are used.
//! * Files are written to a temporary name beside their destination, synced, then renamed.

mod pickle;
mod pth;
mod raw;
mod stored;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use raw::{DataType, RawData, RawTensor};
pub use write::{write_file_atomically, write_params, write_tensors};

/// Larger files are refused unread.
pub const MAX_FILE_BYTES: u64 = 16 << 30;
/// More tensors than this in one file are refused.
pub const MAX_TENSORS: usize = 100_000;

/// Why a weights file was not read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is no weights file: {what}; a .safetensors or a PyTorch .pth file is needed", path.display())]
    Format { path: PathBuf, what: String },
    #[error("{} is damaged: {what}; fetch or copy it again", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{}: this pickle would run `{global}`; nothing was executed. If you trust the file, save its \
         weights alone where it came from: torch.save(model.state_dict(), FILE)",
        path.display()
    )]
    Code { path: PathBuf, global: String },
    #[error("{}: {what}", path.display())]
    Unsupported { path: PathBuf, what: String },
    #[error("{} cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// What is wrong with a file's content, before its name is known.
#[derive(Debug, PartialEq)]
enum Fault {
    Format(String),
    Damaged(String),
    Code(String),
    Unsupported(String),
}

impl Fault {
    fn damaged(what: impl Into<String>) -> Self {
        Fault::Damaged(what.into())
    }

    fn unsupported(what: impl Into<String>) -> Self {
        Fault::Unsupported(what.into())
    }

    fn at(self, path: &Path) -> WeightsError {
        let path = path.to_owned();
        match self {
            Fault::Format(what) => WeightsError::Format { path, what },
            Fault::Damaged(what) => WeightsError::Damaged { path, what },
            Fault::Code(global) => WeightsError::Code { path, global },
            Fault::Unsupported(what) => WeightsError::Unsupported { path, what },
        }
    }
}

/// A file's tensors and, for safetensors, its metadata.
#[derive(Debug, Default)]
pub struct Content {
    pub tensors: BTreeMap<String, RawTensor>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads a safetensors or PyTorch file, told apart by content. Names of nested dictionaries are joined
/// by dots; a dictionary under `state_dict` (or `model_state_dict`, `model`) stands for the file, and a
/// `module.` before every name is dropped.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, RawTensor>, WeightsError> {
    read_content(path).map(|content| content.tensors)
}

/// As [`read_tensors`], with the metadata.
pub fn read_content(path: &Path) -> Result<Content, WeightsError> {
    let bytes = read_bytes(path)?;
    parse(&bytes).map_err(|fault| fault.at(path))
}

/// The whole file, if its size is sane.
fn read_bytes(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let fail = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => WeightsError::Missing { path: path.to_owned() },
        _ => WeightsError::Read { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(fail)?;
    let about = file.metadata().map_err(fail)?;
    if !about.is_file() {
        let what = if about.is_dir() { "it is a folder" } else { "it is not a regular file" };
        return Err(Fault::Format(what.into()).at(path));
    }
    if about.len() > MAX_FILE_BYTES {
        let what = format!("it has {} bytes, at most {MAX_FILE_BYTES} are read", about.len());
        return Err(Fault::Unsupported(what).at(path));
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    // A file that grows meanwhile is still held to the limit.
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// Reads a file's bytes by what they are.
fn parse(bytes: &[u8]) -> Result<Content, Fault> {
    match bytes {
        [] => Err(Fault::Format("it is empty".into())),
        // A safetensors header is JSON, after its length in 8 bytes. A length of 384 to 1535 looks like
        // the start of a pickle, so this comes first.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => stored::read(bytes),
        [b'P', b'K', 3, 4, ..] => pth::read_zip(bytes).map(Content::from),
        [0x80, 1..=5, ..] => pth::read_legacy(bytes).map(Content::from),
        [_, _, _, _, _, _, _, _, b'{', ..] => stored::read(bytes),
        _ if bytes.get(257..262) == Some(b"ustar") => Err(Fault::unsupported(
            "it is in PyTorch's tar format from before 0.1.10; load and save it again",
        )),
        _ if bytes.len() < 9 => Err(Fault::damaged(format!("it ends after {} bytes", bytes.len()))),
        // The oldest pickles have no header at all. They hold no tensors, but may hold an attack.
        [b'c' | b'(', ..] if let Err(Fault::Code(global)) = pickle::run(bytes) => Err(Fault::Code(global)),
        _ => Err(Fault::Format("its first bytes are neither safetensors nor PyTorch's".into())),
    }
}

impl From<BTreeMap<String, RawTensor>> for Content {
    fn from(tensors: BTreeMap<String, RawTensor>) -> Self {
        Content { tensors, metadata: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests;
