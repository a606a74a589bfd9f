//! RealNet: masks and blends, feature selection, reconstruction, residual selection, scoring, training.

mod inspector;

pub use inspector::{Inspector, Judgement, RealnetError};
