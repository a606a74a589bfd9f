//! Pixels: formats, files, the one definition of how a picture becomes a network's input, and the
//! pictures made from a heatmap. Knows nothing of networks, cameras or config.

pub mod bayer;
mod error;
pub mod files;
pub mod heatmap;
pub mod pixel;
pub mod preprocess;
pub mod resize;
pub mod statistics;
pub mod yuv;

pub use bayer::Mosaic;
pub use error::ImagingError;
pub use files::{RgbImage, list_images, read_image};
pub use heatmap::Heatmap;
pub use pixel::{FrameView, PixelFormat, Plane, Roi};
pub use preprocess::{Preprocessor, normalisation};
pub use resize::Axis;
pub use statistics::{ImageHealth, ImageStatistics};
