//! Launches of `kernels/blend.cu`: paint on a picture, under a mask.

use super::launch::{Arg, Launch};

const BLOCK: usize = 256;
/// Whole numbers that stand for 1 in the sums of `change`.
pub const UNIT: f32 = 16_777_216.0;

fn launch(kernel: &'static str, size: usize, batch: usize, args: Vec<Arg>) -> Launch {
    let grid = [blocks(size) as u32, batch as u32, 1];
    Launch { module: "blend", kernel, grid, block: [BLOCK as u32, 1, 1], shared: 0, args }
}

/// Blocks of a picture, each of which sums.
pub(super) fn blocks(size: usize) -> usize {
    (size * size).div_ceil(BLOCK)
}

/// Plans, pictures, the paint's two buffers, masks and sums are `at`.
pub(super) fn change(at: [Arg; 6], size: usize, batch: usize) -> Launch {
    let mut args = at.to_vec();
    args.push(Arg::U32((size * size) as u32));
    launch("change", size, batch, args)
}

/// Plans, pictures, the paint's two buffers, masks and the network's input are `at`.
pub(super) fn blend(at: [Arg; 6], mean: [f32; 3], deviation: [f32; 3], size: usize, batch: usize) -> Launch {
    let mut args = at.to_vec();
    let numbers = mean.iter().chain(&deviation).flat_map(|v| v.to_le_bytes());
    args.push(Arg::Struct(numbers.collect()));
    args.push(Arg::U32((size * size) as u32));
    launch("blend", size, batch, args)
}
