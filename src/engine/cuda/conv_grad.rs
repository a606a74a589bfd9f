//! Launches of `kernels/conv_grad.cu`.

use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};

const MODULE: &str = "conv_grad";
/// Results and threads of a block of `conv_grad_sum`.
const SUM: [usize; 2] = [32, 256];

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    Err(task.unsupported("has no kernel yet"))
}

/// Adds `splits` partial results of `len` fp32 elements each, at the beginning of the scratch, into the
/// output.
pub(super) fn sum(len: usize, splits: usize) -> Launch {
    Launch {
        module: MODULE,
        kernel: "conv_grad_sum",
        grid: [len.div_ceil(SUM[0]) as u32, 1, 1],
        block: [SUM[1] as u32, 1, 1],
        shared: 0,
        args: vec![
            Arg::Pointer(Place::Scratch(0)),
            Arg::Pointer(Place::Out),
            Arg::U32(len as u32),
            Arg::U32(splits as u32),
        ],
    }
}
