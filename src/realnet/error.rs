//! What can go wrong while teaching and judging.

use std::path::PathBuf;

use crate::engine::{GraphError, ProgramError};
use crate::imaging::ImagingError;
use crate::model::ModelError;
use crate::nets::NetError;

/// Fewer good pictures teach nothing and leave none to hold out.
pub const MIN_PICTURES: usize = 10;

/// Largest side of a network's input, pixels: what a model file claims decides how much memory is taken.
pub const MAX_INPUT: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum RealnetError {
    #[error("too few good pictures: {found}, at least {MIN_PICTURES} are needed (50 or more are better)")]
    TooFewPictures { found: usize },
    #[error("every good picture is of one colour ({} and all others): there is nothing to learn", first.display())]
    OneColour { first: PathBuf },
    #[error("teaching was stopped before there was anything to save")]
    StoppedEarly,
    #[error("teaching failed: the loss became {loss} in iteration {iteration}")]
    Diverged { iteration: usize, loss: f32 },
    #[error(
        "the model's input is {width}×{height} pixels; it must be square, a multiple of 32 and at most \
         {MAX_INPUT}: the model was not made by `inspectd teach`"
    )]
    InputSize { width: usize, height: usize },
    #[error("the frame was not judged; this is a fault of inspectd")]
    NotJudged,
    #[error(transparent)]
    Imaging(#[from] ImagingError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the network cannot be compiled: {0}")]
    Compile(#[from] ProgramError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl RealnetError {
    /// Whether the device is at fault rather than what it was given.
    pub fn is_device(&self) -> bool {
        matches!(self, RealnetError::Compile(ProgramError::Device(_)))
    }
}

impl From<GraphError> for RealnetError {
    fn from(error: GraphError) -> Self {
        RealnetError::Net(NetError::Graph(error))
    }
}
