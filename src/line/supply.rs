//! Where lines get their judges and cameras from, when the daemon starts and when it reloads. A trait, so that
//! the daemon can be tested without a model and without GStreamer.

use std::path::Path;
use std::time::SystemTime;

use super::camera::Camera;
use super::reload::InForce;
use super::{Judge, Problem};
use crate::config::{Complaint, DaemonConfig, LineConfig, LineName};
use crate::model::Thresholds;

pub trait Supplier<P>: Send + Sync + 'static {
    /// A judge for each of `lines`, warm; a model that several share is read once. Takes seconds.
    fn judges(&self, daemon: &DaemonConfig, lines: &[&LineConfig]) -> Result<Vec<Made>, NoJudge>;

    /// Starts a line's camera. Its first frame has the number `first`.
    fn camera(&self, line: &LineConfig, first: u64) -> Result<Camera<P>, Problem>;

    /// What other rooms have against a line of a new configuration.
    fn examine(&self, line: &LineConfig) -> Vec<Complaint>;

    /// Hears what is in force, at the start and after each reload.
    fn in_force(&self, in_force: &InForce) {
        let _ = in_force;
    }
}

/// A judge and what is known of its model.
pub struct Made {
    pub hash: String,
    pub judge: Box<dyn Judge>,
}

/// A model that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: the model cannot be used: {source}")]
pub struct NoJudge {
    pub line: LineName,
    pub source: Problem,
}

/// What is known of a line's model.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    pub hash: String,
    /// The model's own.
    pub thresholds: Thresholds,
    /// Of the file, before it was read.
    pub stamp: Option<FileStamp>,
}

/// Tells whether a file was written anew, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    modified: SystemTime,
    length: u64,
}

impl FileStamp {
    /// `None` if the file is not there.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(FileStamp { modified: meta.modified().ok()?, length: meta.len() })
    }
}
