//! The archive: a row for every verdict in `inspectd.sqlite`, and pictures of the parts that matter.
//!
//! | constraint | value |
//! |---|---|
//! | order | a verdict is in the archive before any output hears of it, so it is there after `kill -9` |
//! | how long a verdict waits for that | `wait_ms`; then it goes out all the same, counted as `slow` |
//! | verdicts on their way to it | 1024; what does not fit goes straight to the outputs, counted as `full` |
//! | rows kept in memory while the disk takes none | 4096; then the oldest are lost, counted as `write` |
//! | pictures on their way | 4, each holds a camera's slot until it is copied |
//! | bytes of pictures and database | `keep_mb`; the oldest pictures go first, reviewed ones last |
//!
//! Threads: `archive relay` stands between the verdict thread and the outputs, `archive` owns the database,
//! `archive images` writes pictures. Readers (the page, `inspectd archive`) open the database for themselves:
//! in WAL mode nobody waits for a reader.
//!
//! Absent on purpose: cameras, models, HTTP.

mod files;
mod images;
mod query;
mod relay;
mod retention;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::outputs::Record;

pub use images::Still;
pub use query::{Filter, PartKey, Review, Row};
pub use relay::{Archive, ArchiveError, Handle, MAPS, Terms};
pub use store::{Store, StoreError};

/// The database's file in the archive's folder.
pub const DATABASE: &str = "inspectd.sqlite";

/// The folder of pictures in the archive's folder.
const IMAGES: &str = "images";

/// A verdict on its way into the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    pub record: Record,
    /// A picture of the part is on its way.
    pub image: bool,
}

/// Where pictures of a part go: `images/DAY/LINE_TIME_SEQUENCE`, with the ending left to the caller.
fn stem(folder: &Path, line: &str, captured_at: Timestamp, sequence: u64) -> PathBuf {
    let name = part_name(line, captured_at, sequence);
    folder.join(IMAGES).join(captured_at.strftime("%Y%m%d").to_string()).join(name)
}

/// A part's name, as in the names of its heatmaps: `LINE_TIME_SEQUENCE`.
pub fn part_name(line: &str, captured_at: Timestamp, sequence: u64) -> String {
    format!("{line}_{}_{sequence:08}", captured_at.strftime("%Y%m%dT%H%M%S%.3fZ"))
}

/// The picture as the camera gave it, and the one with the heatmap laid over it.
fn image_paths(folder: &Path, line: &str, captured_at: Timestamp, sequence: u64) -> [PathBuf; 2] {
    let stem = stem(folder, line, captured_at, sequence);
    ["", "_heatmap"].map(|suffix| {
        let mut name = stem.clone().into_os_string();
        name.push(suffix);
        name.push(".png");
        PathBuf::from(name)
    })
}
