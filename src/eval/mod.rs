//! How good a model is: datasets in MVTec layout, figures by their standard definitions, and a report
//! page. Knows pictures and verdicts, but no network: whoever has one scores the pictures.

pub mod dataset;
pub mod metrics;
pub mod page;
pub mod pixels;
pub mod plots;
pub mod summary;

pub use dataset::{Dataset, Sample, teaching_images};
pub use metrics::{Roc, auroc, percentile};
pub use pixels::PixelScores;
pub use summary::{Scored, Summary};

use std::path::PathBuf;

use crate::imaging::ImagingError;

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },

    #[error("{} is not a dataset in MVTec layout: {why}", path.display())]
    Layout { path: PathBuf, why: String },

    #[error("{} holds several categories ({}); evaluate one of them", path.display(), names.join(", "))]
    Categories { path: PathBuf, names: Vec<String> },

    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error(transparent)]
    Imaging(#[from] ImagingError),
}
