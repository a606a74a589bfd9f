//! The specification: every operation in its plainest form, one loop nest per formula, in fp32 with
//! sums in f64 where a long sum would hide an error of the fast path. Slow on purpose; the fast path and
//! the CUDA kernels are held against it.
//!
//! All functions take row-major slices and the shapes that go with them; lengths agree by construction
//! of the graph (`op::infer`).

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod heatmap;
pub mod layout;
pub mod loss;
pub mod norm;
pub mod optim;
pub mod residual;
pub mod spatial;
