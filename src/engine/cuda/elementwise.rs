//! Launches of `kernels/elementwise.cu`.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::storage::Storage;

const MODULE: &str = "elementwise";
const BLOCK: u32 = 256;

/// A one-dimensional launch of a thread for every `each` elements.
pub(super) fn linear(
    module: &'static str,
    kernel: &'static str,
    len: usize,
    each: usize,
    args: Vec<Arg>,
) -> Launch {
    let blocks = len.div_ceil(each * BLOCK as usize);
    debug_assert!(blocks <= i32::MAX as usize, "a grid has at most 2³¹−1 blocks along x");
    Launch { module, kernel, grid: [blocks as u32, 1, 1], block: [BLOCK, 1, 1], shared: 0, args }
}

/// `size_t` of the kernels.
pub(super) fn size(len: usize) -> Arg {
    Arg::Struct((len as u64).to_ne_bytes().to_vec())
}

/// The same numbers in another storage: input 0 to the output.
pub fn convert(from: Storage, to: Storage, len: usize, _limits: &Limits) -> Launch {
    let args = vec![Arg::Pointer(Place::Input(0)), Arg::Pointer(Place::Out), size(len)];
    let kernel = match (from, to) {
        (Storage::F32, Storage::F16) => "convert_f32_f16",
        (Storage::F16, Storage::F32) => "convert_f16_f32",
        _ => unreachable!("only real numbers of two storages are converted"),
    };
    linear(MODULE, kernel, len, 4, args)
}

/// One value everywhere in the output.
pub fn fill(value: f32, len: usize) -> Launch {
    linear(MODULE, "fill", len, 4, vec![Arg::Real(Place::Out), Arg::F32(value), size(len)])
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    Err(task.unsupported("has no kernel yet"))
}
