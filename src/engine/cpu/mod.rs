//! The CPU executor: a plain reference for every op, and a fast path for those that matter.

pub mod fast;
