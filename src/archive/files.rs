//! Files of the archive, without what is in them: moved aside, cleaned up, named.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::store::StoreError;
use super::{DATABASE, IMAGES};

/// A picture that was being written when the process ended is under a name that nothing else has.
pub(super) fn remove_half_written(day: Option<&Path>) {
    let entries = day.and_then(|day| std::fs::read_dir(day).ok()).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if name.starts_with('.') && name.ends_with(".tmp") {
            // It is tried again with the next start.
            let _ = std::fs::remove_file(&path);
        }
    }
}

pub(super) fn immutable_uri(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = "file:".to_owned();
    for byte in absolute.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri.into()
}

pub(super) fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.ino())
}

/// Renames the database, what belongs to it, and the pictures; nothing is lost. Says the database's new name.
pub(super) fn set_aside(folder: &Path) -> Result<PathBuf, StoreError> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.3fZ").to_string();
    let aside = folder.join(format!("{DATABASE}.damaged-{time}"));
    let images = folder.join(format!("{IMAGES}.damaged-{time}"));
    let mut moves = vec![(folder.join(IMAGES), images)];
    for suffix in ["-wal", "-shm", ""] {
        let mut to = aside.clone().into_os_string();
        to.push(suffix);
        moves.push((folder.join(format!("{DATABASE}{suffix}")), to.into()));
    }
    for (from, to) in moves {
        if let Err(source) = std::fs::rename(&from, to)
            && source.kind() != std::io::ErrorKind::NotFound
        {
            return Err(StoreError::Aside { path: from, source });
        }
    }
    let made = std::fs::create_dir_all(folder.join(IMAGES));
    made.map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
    Ok(aside)
}
