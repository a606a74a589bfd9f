//! What a verdict drives: a JSON line in a file, a picture of what was found, a PLC, a broker, a web
//! server, the page for people and machines.
//!
//! | constraint | value |
//! |---|---|
//! | who waits for an output | nobody: queues are bounded, what does not fit is counted and lost |
//! | verdicts waiting for the disk | 1024 |
//! | pictures waiting to be drawn | 4; each holds a camera's slot and a map |
//! | pictures on disk | `heatmaps_keep` per line |
//! | verdicts waiting for the network | 8 per PLC, 256 per webhook, 1024 for the MQTT broker |
//! | disk full, folder gone | counted, logged at most every 10 s, tried again with the next part |
//!
//! Absent on purpose: cameras and models; pixels come as a trait.

pub mod access;
mod heatmaps;
pub mod http;
pub mod live;
mod modbus;
mod mqtt;
mod outlet;
mod outlets;
#[cfg(test)]
mod outlets_tests;
mod part;
#[cfg(test)]
mod plc;
mod record;
mod rules;
#[cfg(test)]
pub(crate) mod testing;
mod verdicts;
mod webhook;

use std::io;
use std::path::PathBuf;

pub use heatmaps::{HeatmapWriter, Job as HeatmapJob, Latest, Pixels};
pub use outlets::{LineStatus, Outlets, Staged};
pub use part::{NotAPartId, PartId};
pub use record::{FrameHash, Reason, Record};
pub use rules::{HeatmapFolder, Rules, VerdictFile};
pub use verdicts::VerdictWriter;

/// What a verdict drives by a queue and a thread of its own. The rules of a line hold its outlets; one that is in
/// nobody's rules any more sends what it has, within its own limit, and ends.
pub trait Outlet: std::fmt::Debug + Send + Sync {
    /// Takes a verdict. Never waits: what does not fit is counted and lost.
    fn submit(&self, record: &Record);
}

/// An output that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("the folder for heatmaps {path} cannot be made: {source}", path = path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{path} cannot be used: {source}", path = path.display())]
    Secret { path: PathBuf, source: io::Error },
    #[error("the thread for {name} cannot be started: {source}")]
    Thread { name: &'static str, source: io::Error },
    #[error("the file for verdicts {path} cannot be opened: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
}
