//! The CPU executor: a plain reference for every operation, and a fast path for those that matter.

pub mod fast;
mod memory;
mod program;
pub mod reference;
mod step;
#[cfg(test)]
pub(super) mod tests;

pub use program::Program;
