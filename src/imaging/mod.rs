//! Pixels: formats, files, the one definition of how a picture becomes a network's input, and the
//! pictures made from a heatmap. Knows nothing of networks, cameras or config.

pub mod pixel;

pub use pixel::{FrameView, PixelFormat, Plane, Roi};
