//! Input as a file in memory: what is fuzzed reads paths, as it does in use.

use std::path::PathBuf;

/// Writes `data` where nobody else does, and says where.
pub fn file(name: &str, data: &[u8]) -> PathBuf {
    let path = PathBuf::from(format!("/dev/shm/inspectd-fuzz-{}-{name}", std::process::id()));
    std::fs::write(&path, data).expect("/dev/shm takes a file");
    path
}
