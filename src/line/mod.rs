//! (being built)

mod desk;
#[cfg(test)]
mod testing;

pub use desk::{Counts, Desk, FrameId, Picture, Terms};
