//! Tensors, the static graph, autodiff, passes, the memory plan, and the executors. Knows nothing of
//! anomaly detection.
//!
//! A network is built once (`Graph`), differentiated (`gradients`), simplified (`passes`), compiled for
//! a device (`cpu::Program`) and run for ever without allocating.

mod autodiff;
pub mod cpu;
pub mod cuda;
mod graph;
mod infer;
mod op;
pub mod passes;
pub mod philox;
pub mod plan;
mod program;
mod shape;
mod tensor;

pub use autodiff::gradients;
pub use cpu::fast::Pool as Threads;
pub use cuda::{DeviceError, Gpu, PinnedPages, Priority};
pub use graph::{Graph, GraphError, GraphResult, Node, Value};
pub use op::{
    Act, Adam, Attention, Binary, Conv, Distribution, Epilogue, Norm, Op, Pool, QkvLayout, Reduce, Residual,
    Resize, Unary, Window,
};
pub use program::{Device, DeviceName, Options, Program, ProgramError};
pub use shape::{DType, Shape};
pub use tensor::{ParamStore, Tensor};
