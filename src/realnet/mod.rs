//! RealNet: masks and blends, feature selection, reconstruction, residual selection, scoring, training.

mod augment;
mod blend;
mod draw;
mod inspector;
mod masks;
mod picture;
mod sources;
mod textures;

pub use inspector::{Inspector, Judgement, RealnetError};
