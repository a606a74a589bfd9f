//! Launches of `kernels/conv_grad.cu`: the gradient of a convolution by its weight, dense and grouped.
//!
//! A product of m = taps × input channels by n = output channels, summed over the k pixels of dy. As k is
//! long and m·n short, the sum is split over blocks, and a second launch adds the parts.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::storage::Storage;
use crate::engine::op::{Conv, Op};

const MODULE: &str = "conv_grad";
const THREADS: u32 = 128;
/// Pixels summed between two barriers, `BK` of the kernel.
const SLICE: usize = 32;
const GRID_YZ: usize = 65535;
/// Partial sums take at most this much scratch, bytes.
const MOST_PARTIAL: usize = 64 << 20;
/// A part sums at least this many slices: filling the pipeline and storing cost about four.
const LEAST_SLICES: usize = 8;
/// Results and threads of a block of `conv_grad_sum`.
const SUM: [usize; 2] = [32, 256];

/// Rows × columns of the gradient that a block computes, and the kernel that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub m: usize,
    pub n: usize,
    pub kernel: &'static str,
}

const fn tile(m: usize, n: usize, kernel: &'static str) -> Tile {
    Tile { m, n, kernel }
}

const DENSE: &[Tile] =
    &[tile(128, 64, "conv_grad_128x64"), tile(64, 64, "conv_grad_64x64"), tile(64, 32, "conv_grad_64x32")];
/// Channels of x not a multiple of 8.
const GATHER: &[Tile] = &[tile(64, 64, "conv_grad_gather_64x64")];
/// Channels of dy not a multiple of 8.
const RAGGED: &[Tile] = &[tile(64, 32, "conv_grad_ragged_64x32")];
const ANY: &[Tile] = &[tile(64, 32, "conv_grad_any_64x32")];

/// The tiles that take these channels of a group.
fn tiles(in_group: usize, out_group: usize) -> &'static [Tile] {
    match (in_group.is_multiple_of(8), out_group.is_multiple_of(8)) {
        (true, true) => DENSE,
        (false, true) => GATHER,
        (true, false) => RAGGED,
        (false, false) => ANY,
    }
}

/// The product of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Taps × input channels, output channels, pixels summed.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub groups: usize,
}

/// The tile and the number of parts into which the pixels are split, by the time that the slowest
/// multiprocessor takes, in the unit of conv.rs: a block's slice costs its products and its copies (24 a
/// row) but at least 6000 for latency, which three blocks hide from each other; a block four slices more;
/// a part the way of its sums through memory.
pub fn pick_tile(tiles: &[Tile], product: &Product, limits: &Limits) -> (Tile, usize) {
    let processors = limits.multiprocessors.max(1) as usize;
    let slices = product.k.div_ceil(SLICE).max(1);
    let results = product.m * product.n * product.groups;
    let most = (slices / LEAST_SLICES)
        .min(MOST_PARTIAL / (results * 4).max(1))
        .min(GRID_YZ / product.groups.max(1))
        .max(1);
    let mut best = (usize::MAX, tiles[0], 1);
    for &tile in tiles {
        let blocks = product.m.div_ceil(tile.m) * product.n.div_ceil(tile.n) * product.groups;
        let slice = tile.m * tile.n + 24 * (tile.m + tile.n);
        // One, two or three blocks on each multiprocessor, or no split.
        for wanted in [1, processors, 2 * processors, 3 * processors, 6 * processors] {
            let splits = (wanted / blocks).clamp(1, most);
            let per_processor = (blocks * splits).div_ceil(processors);
            let pace = (per_processor * slice).max(per_processor.div_ceil(3) * 6000);
            let mut cost = pace * (slices.div_ceil(splits) + 4);
            if splits > 1 {
                cost += 80_000 + results * splits * 30 / processors;
            }
            cost += blocks * tile.m * tile.n * slices / processors / 4;
            if cost < best.0 {
                best = (cost, tile, splits);
            }
        }
    }
    (best.1, best.2)
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let Op::ConvBackwardWeight { conv: Conv { stride, pad: [top, left, ..], groups }, kh, kw } = task.op
    else {
        return Err(task.unsupported("is no gradient of a convolution by its weight"));
    };
    let [x, dy] = task.inputs else { return Err(task.unsupported("has not two inputs")) };
    if x.storage != Storage::F16 || dy.storage != Storage::F16 || task.out.storage != Storage::F32 {
        return Err(task.unsupported("reads fp16 and writes fp32 only"));
    }
    let (xs, ys) = (x.shape, dy.shape);
    let (in_group, out_group) = (xs.c() / groups, ys.c() / groups);
    let product =
        Product { m: kh * kw * in_group, n: out_group, k: ys.n() * ys.h() * ys.w(), groups: *groups };
    // Half the range of an int: pixels reach beyond the image by the padding, slices beyond the end.
    if [xs.n() * xs.h() * xs.w(), product.k, product.m].iter().any(|v| *v > 1 << 30) {
        return Err(task.unsupported("has more than 2^30 pixels or weights a channel"));
    }
    let (tile, splits) = pick_tile(tiles(in_group, out_group), &product, &task.limits);
    let grid = [product.m.div_ceil(tile.m), product.n.div_ceil(tile.n), groups * splits];
    if grid[1] > GRID_YZ || grid[2] > GRID_YZ {
        return Err(task.unsupported("has too many channels or groups for one launch"));
    }
    let fields = [
        xs.n(),
        xs.h(),
        xs.w(),
        xs.c(),
        ys.h(),
        ys.w(),
        ys.c(),
        in_group,
        out_group,
        *kh,
        *kw,
        *stride,
        *top,
        *left,
        *groups,
        splits,
    ];
    let mut problem = Vec::with_capacity(fields.len() * 4);
    for field in fields {
        let field = i32::try_from(field).map_err(|_| task.unsupported("has an axis beyond 2^31"))?;
        problem.extend(field.to_ne_bytes());
    }
    let len = task.out.shape.len();
    let to = if splits == 1 { Place::Out } else { Place::Scratch(0) };
    let product = Launch {
        module: MODULE,
        kernel: tile.kernel,
        grid: grid.map(|n| n as u32),
        block: [THREADS, 1, 1],
        shared: 0,
        args: vec![
            Arg::Pointer(Place::Input(0)),
            Arg::Pointer(Place::Input(1)),
            Arg::Pointer(to),
            Arg::Struct(problem),
        ],
    };
    if splits == 1 {
        return Ok(Lowered::one(product));
    }
    Ok(Lowered { launches: vec![product, sum(len, splits)], scratch_bytes: len * splits * 4 })
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

#[cfg(test)]
mod tests {
    use super::super::launch::Typed;
    use super::*;
    use crate::engine::shape::Shape;

    const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn pick(m: usize, n: usize, k: usize) -> (Tile, usize) {
        pick_tile(DENSE, &Product { m, n, k, groups: 1 }, &A100)
    }

    fn gradient(x: [usize; 4], out: [usize; 4], conv: Conv) -> Lowered {
        let op = Op::ConvBackwardWeight { conv, kh: out[0], kw: out[1] };
        let half = |shape| Typed { shape: Shape(shape), storage: Storage::F16 };
        let dy = [x[0], conv.out_h(x[1], out[0]), conv.out_w(x[2], out[1]), out[3]];
        let out = Typed { shape: Shape(out), storage: Storage::F32 };
        lower(&Task { op: &op, inputs: &[half(x), half(dy)], out, limits: A100 }).unwrap()
    }

    #[test]
    fn many_pixels_are_split_so_that_every_multiprocessor_has_work() {
        let (tile, splits) = pick(576, 64, 8 * 128 * 128);
        let blocks = 576usize.div_ceil(tile.m) * 64usize.div_ceil(tile.n) * splits;
        assert!((108..=108 * 6).contains(&blocks), "{tile:?} × {splits}");
    }

    #[test]
    fn few_pixels_are_not_split() {
        assert_eq!(pick(64, 64, 49).1, 1);
        assert_eq!(pick(4608, 512, 64).1, 1);
    }

    #[test]
    fn partial_sums_keep_to_their_scratch_and_every_part_has_slices() {
        for (m, n, k) in [(27, 8, 1 << 24), (9 * 1024, 1024, 1 << 14), (64, 64, 300), (1, 8, 1)] {
            let (_, splits) = pick(m, n, k);
            assert!(splits == 1 || m * n * splits * 4 <= MOST_PARTIAL, "{m}×{n}×{k}: {splits}");
            assert!(splits <= k.div_ceil(SLICE), "{m}×{n}×{k}: {splits}");
        }
    }

    #[test]
    fn channels_decide_between_whole_and_single_copies() {
        let kernel = |ci, co| tiles(ci, co)[0].kernel;
        assert_eq!(kernel(64, 64), "conv_grad_128x64");
        assert_eq!(kernel(3, 64), "conv_grad_gather_64x64");
        assert_eq!(kernel(64, 2), "conv_grad_ragged_64x32");
        assert_eq!(kernel(1, 1), "conv_grad_any_64x32");
    }

    #[test]
    fn a_split_gradient_is_summed_into_the_output() {
        let lowered = gradient([8, 64, 64, 64], [3, 3, 64, 64], Conv::new(1, 1));
        let [product, sum] = &lowered.launches[..] else { panic!("{lowered:?}") };
        assert_eq!(product.args[2], Arg::Pointer(Place::Scratch(0)));
        assert_eq!(sum.args[1], Arg::Pointer(Place::Out));
        assert_eq!(lowered.scratch_bytes, 9 * 64 * 64 * 4 * product.grid[2] as usize);
    }

    #[test]
    fn a_small_gradient_is_one_launch_with_its_groups_side_by_side() {
        let lowered = gradient([1, 7, 7, 64], [3, 3, 16, 64], Conv::grouped(1, 1, 4));
        let [product] = &lowered.launches[..] else { panic!("{lowered:?}") };
        assert_eq!(product.args[2], Arg::Pointer(Place::Out));
        assert_eq!(product.grid[2], 4);
        let Arg::Struct(problem) = &product.args[3] else { panic!() };
        assert_eq!(problem.len(), 64);
    }
}
