//! What can go wrong with pixels.

use std::path::PathBuf;

use super::pixel::{PixelFormat, Roi};

#[derive(Debug, thiserror::Error)]
pub enum ImagingError {
    #[error("a picture of {width}×{height} pixels cannot be used: {why}")]
    Size { width: usize, height: usize, why: &'static str },

    #[error(
        "the region x {}, y {}, {}×{} does not lie in a picture of {width}×{height}",
        roi.x, roi.y, roi.width, roi.height
    )]
    Region { roi: Roi, width: usize, height: usize },

    #[error("this was prepared for frames of {expected_width}×{expected_height}, not {width}×{height}")]
    FrameSize { width: usize, height: usize, expected_width: usize, expected_height: usize },

    #[error(
        "plane {plane} of a {} frame of {width}×{height} is too small: {have} bytes with a stride of \
         {stride}, {need} are needed",
        format.name()
    )]
    Plane {
        format: PixelFormat,
        plane: usize,
        width: usize,
        height: usize,
        stride: usize,
        have: usize,
        need: usize,
    },

    #[error("the output holds {have} values, {need} are needed")]
    Output { have: usize, need: usize },

    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },

    #[error("{} holds no pictures ({})", path.display(), super::files::EXTENSIONS.join(", "))]
    NoPictures { path: PathBuf },

    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error("{} is not a picture this can read ({why})", path.display())]
    NotAPicture { path: PathBuf, why: String },

    #[error("{} is corrupt or truncated: {why}", path.display())]
    Corrupt { path: PathBuf, why: String },

    #[error(
        "{} has {width}×{height} pixels; the limit is {} million",
        path.display(), super::files::MAX_PIXELS / 1_000_000
    )]
    TooLarge { path: PathBuf, width: usize, height: usize },

    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: std::io::Error },

    #[error("{} cannot be encoded as PNG: {why}", path.display())]
    Encode { path: PathBuf, why: String },
}

impl ImagingError {
    /// Whether the file is not there, as against being bad.
    pub fn is_missing(&self) -> bool {
        matches!(self, ImagingError::Missing { .. } | ImagingError::NoPictures { .. })
    }
}
