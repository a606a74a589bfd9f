//! The model file, its thresholds, and what a score means.

use serde::{Deserialize, Serialize};

/// What is said of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// Between the two thresholds: a person should look.
    Unsure,
    Bad,
    /// Not judged within the line's deadline; fail-safe.
    Late,
}

/// Score bands: below `unsure` is good, from `bad` on is bad, between them unsure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    pub unsure: f32,
    pub bad: f32,
}

impl Thresholds {
    /// A score that is not a number is bad: the fail-safe side.
    pub fn verdict(&self, score: f32) -> Verdict {
        if score < self.unsure {
            Verdict::Good
        } else if score < self.bad {
            Verdict::Unsure
        } else {
            Verdict::Bad
        }
    }
}

/// A taught model: what is known about it, and its weights.
#[derive(Clone, Debug)]
pub struct Model {
    pub thresholds: Thresholds,
}

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{} is not a model this version can read", path.display())]
    Unreadable { path: std::path::PathBuf },
}

impl Model {
    pub fn load(path: &std::path::Path) -> Result<Self, ModelError> {
        Err(ModelError::Unreadable { path: path.into() })
    }
}
