//! The CUDA executor: fp16 storage, fp32 accumulation, one CUDA graph per compiled program.
//!
//! `storage` says how values lie in memory, one file per kernel family (the same stem as in `kernels/`)
//! lowers operations to launches, `lower` dispatches, `join` makes one launch of several. All of that is
//! pure. `device` and `program` talk to the driver.

pub mod attention;
pub mod augment;
pub mod blend;
mod buffer;
pub mod conv;
pub mod conv_grad;
#[cfg(test)]
mod conv_tests;
pub mod counters;
pub mod depthwise;
pub mod device;
mod draft;
pub mod elementwise;
pub mod feed;
pub mod gemm;
pub mod heatmap;
pub mod join;
pub mod launch;
pub mod layout;
pub mod loss;
mod lower;
pub mod norm;
pub mod optim;
pub mod painter;
pub mod peak;
pub mod perlin;
pub mod philox;
pub mod pool;
pub mod preprocess;
mod program;
mod queue;
pub mod reduce;
pub mod residual;
pub mod resize;
mod rows;
pub mod schedule;
#[cfg(test)]
pub(crate) mod simulator;
mod sources;
pub mod storage;
#[cfg(test)]
mod tests;
mod tile;
pub mod traffic;

pub use buffer::PinnedPages;
pub use device::{DeviceError, Gpu, Priority};
pub use lower::lower;
pub use program::Program;
