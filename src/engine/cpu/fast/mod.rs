//! Hand-tuned CPU kernels: pure functions over slices, geometry in, no allocation.
//!
//! Activations are NHWC, convolution weights HWIO `[kh, kw, cin/groups, cout]`, all f32. Every function takes the
//! [`Pool`] whose threads and instruction set it uses, and, where it needs memory, a scratch slice whose
//! length a function of the geometry tells (`*_scratch`, in floats); scratch contents never matter.
//! Geometry is the caller's promise: a slice of another length is a bug and panics.
//!
//! | file | what |
//! |---|---|
//! | `threads` | the pool |
//! | `simd`, `kernel` | vector vocabulary of each instruction set; the register tile |
//! | `pack`, `product`, `gemm` | operands in the kernel's order; cache blocking; products and batches of them |
//! | `geometry`, `conv`, `depthwise` | convolution |
//! | `conv_grad`, `depthwise_grad` | its gradients, and the transposed convolution |
//! | `epilogue` | bias, residual, activation on the way out |
//!
//! ```text
//! let pool = Pool::new(2);
//! let packed = PackedConv::new(pool.isa(), &geometry, weights);             // at compile time
//! let scratch_len = conv2d_scratch(&pool, &geometry, true);                 // into the memory plan
//! conv2d(&pool, &geometry, ConvWeights::Packed(&packed), x, y, &Epilogue::bias_act(bias, Act::Relu), scratch);
//! ```

pub mod attention;
mod buffer;
mod conv;
mod conv_grad;
mod depthwise;
mod depthwise_grad;
mod epilogue;
mod gemm;
mod geometry;
mod kernel;
#[cfg(test)]
mod naive;
pub mod norm;
mod pack;
mod peak;
pub mod pointwise;
mod product;
mod simd;
pub mod spatial;
pub mod split;
mod threads;

pub use buffer::AlignedBuf;
pub use conv::{ConvWeights, PackedConv, conv2d, conv2d_scratch};
pub use conv_grad::{
    PackedTransposed, TransposedWeights, conv2d_backward_input, conv2d_backward_input_scratch,
    conv2d_backward_weight, conv2d_backward_weight_scratch,
};
pub use epilogue::{Act, Epilogue, act_in_place};
pub use gemm::{Batch, Mat, MatB, PackedB, gemm, gemm_batched, gemm_batched_scratch, gemm_scratch};
pub use geometry::{Algo, ConvGeometry, Padding, pick_algo};
pub use peak::peak_gflops;
pub use simd::Isa;
pub use threads::Pool;
