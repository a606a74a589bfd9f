//! Random draws, each for one purpose in one place: Philox streams keyed by (seed, step, image,
//! purpose).
//!
//! Nothing else in this room is random, so the same seed makes the same training pictures in whatever
//! order and on however many threads they are made.

pub use crate::engine::philox::Rng as Draw;
use crate::engine::philox::Stream;

/// What a stream is for. Two purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Which pictures are held out, in which order the others are cached.
    Split = 100,
    Textures,
    Normals,
    Select,
    Blend,
    Batch,
    Initial,
    Bank,
}

pub fn stream(seed: u64, step: u32, image: u32, purpose: Purpose) -> Draw {
    Stream::new(seed, step, image, purpose as u32).rng()
}

pub fn sign(draw: &mut Draw) -> f32 {
    if draw.chance(0.5) { 1.0 } else { -1.0 }
}
