//! RealNet: masks and blends, feature selection, reconstruction, residual selection, scoring, training.

mod afs;
mod augment;
mod bank;
mod blend;
mod draw;
mod easel;
mod error;
mod frames;
mod initial;
mod inspector;
mod masks;
mod network;
#[cfg(test)]
mod on_gpu;
mod picture;
mod score;
mod sources;
mod spec;
mod survey;
mod teach;
mod textures;
mod train;

/// True from `until` on; without a limit never.
fn time_is_up(until: Option<std::time::Instant>) -> bool {
    until.is_some_and(|until| std::time::Instant::now() >= until)
}

pub use error::{MAX_INPUT, MIN_PICTURES, RealnetError};
pub use inspector::{Inspector, Judgement};
pub use spec::NetSpec;
pub use teach::{Lesson, Stage, Taught, teach};
pub use train::{Ended, Progress};
