//! Launches of `kernels/conv.cu`: convolution and its adjoint by the input, dense and grouped.
//!
//! Both are a product of m output pixels × n output channels over k = taps × input channels. The adjoint
//! with stride s splits into s² phases, one for each position of an output pixel within the stride: each
//! is a dense product with the taps that reach that position, so that no tap multiplies zeros.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Typed, Unsupported};
use super::storage::Storage;
use crate::engine::op::{Act, Conv, Epilogue, Op};
use crate::engine::shape::Shape;

const MODULE: &str = "conv";
const THREADS: u32 = 128;
/// Products summed between two barriers, `BK` of the kernel.
const SLICE: usize = 32;
/// Grid axes y and z end here.
const GRID_YZ: usize = 65535;
/// Partial sums of one convolution take at most this much scratch, bytes.
const MOST_PARTIAL: usize = 64 << 20;
const MOST_SPLITS: usize = 16;

/// Pixels × channels that a block computes, and the kernel that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub m: usize,
    pub n: usize,
    pub kernel: &'static str,
}

const fn tile(m: usize, n: usize, kernel: &'static str) -> Tile {
    Tile { m, n, kernel }
}

const DENSE: &[Tile] = &[
    tile(128, 64, "conv_128x64"),
    tile(64, 64, "conv_64x64"),
    tile(64, 32, "conv_64x32"),
    tile(32, 32, "conv_32x32"),
    tile(16, 64, "conv_16x64"),
];
/// Input channels not a multiple of 8: gathered one by one.
const GATHER: &[Tile] = &[tile(128, 64, "conv_gather_128x64"), tile(64, 32, "conv_gather_64x32")];
/// Output channels not a multiple of 8.
const RAGGED: &[Tile] = &[tile(64, 32, "conv_ragged_64x32"), tile(128, 8, "conv_ragged_128x8")];
const ANY: &[Tile] = &[tile(64, 32, "conv_any_64x32"), tile(128, 8, "conv_any_128x8")];
const TRANSPOSE: &[Tile] = &[
    tile(128, 64, "conv_transpose_128x64"),
    tile(64, 64, "conv_transpose_64x64"),
    tile(64, 32, "conv_transpose_64x32"),
    tile(32, 32, "conv_transpose_32x32"),
    tile(16, 64, "conv_transpose_16x64"),
    tile(128, 8, "conv_transpose_128x8"),
];
const TRANSPOSE_ANY: &[Tile] = &[tile(64, 32, "conv_transpose_any_64x32")];

/// Every tile there is.
#[cfg(test)]
pub(super) fn all_tiles() -> impl Iterator<Item = &'static Tile> {
    [DENSE, GATHER, RAGGED, ANY, TRANSPOSE, TRANSPOSE_ANY].into_iter().flatten()
}

/// The tiles that take these widths. Copies of 16 bytes need 8 | channels of a group: those summed over
/// for the pixels; for the weights those of their last axis, the written ones of a convolution.
fn tiles(transposed: bool, in_group: usize, out_group: usize) -> &'static [Tile] {
    match (transposed, in_group.is_multiple_of(8), out_group.is_multiple_of(8)) {
        (false, true, true) => DENSE,
        (false, false, true) => GATHER,
        (false, true, false) => RAGGED,
        (false, false, false) => ANY,
        (true, true, _) => TRANSPOSE,
        (true, false, _) => TRANSPOSE_ANY,
    }
}

/// Name of both kernels that add the parts of a split sum, without their width.
pub const SUM_SPLITS: &str = "conv_sum_splits";

/// What stands for all kernels between which a tile is chosen; `None` for kernels of other families.
pub fn general(kernel: &str) -> Option<&'static str> {
    if kernel.starts_with(SUM_SPLITS) {
        return Some(SUM_SPLITS);
    }
    [DENSE, GATHER, RAGGED, ANY, TRANSPOSE, TRANSPOSE_ANY]
        .into_iter()
        .find(|tiles| tiles.iter().any(|t| t.kernel == kernel))
        .map(|tiles| tiles[0].kernel)
}

/// The product that a tile is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Pixels of one phase, channels of one group, products summed.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Phases × groups: products of this size side by side.
    pub copies: usize,
}

impl Product {
    fn slices(&self) -> usize {
        self.k.div_ceil(SLICE).max(1)
    }

    fn results(&self) -> usize {
        self.m * self.n * self.copies
    }

    fn blocks(&self, tile: Tile) -> usize {
        self.m.div_ceil(tile.m) * self.n.div_ceil(tile.n) * self.copies
    }

    /// Parts into which the sum may be split at most.
    fn most_splits(&self) -> usize {
        let by_grid = GRID_YZ / self.copies.max(1);
        let by_scratch = MOST_PARTIAL / (4 * self.results()).max(1);
        MOST_SPLITS.min(self.slices().div_ceil(4)).min(by_grid).min(by_scratch).max(1)
    }
}

/// The tile of one launch of several products, and the number of parts into which the sum of each is
/// split, by a model of the time that the slowest multiprocessor takes. Its unit is roughly one 16×8×16
/// product's 2048 multiply-adds over 64:
///
/// * a block's slice costs its products (m·n) and its copies (24 a row, what makes 128×64 twice as good
///   as 32×32 per product), but never less than 6000, the latency of barrier, ldmatrix and mma; up to
///   three blocks on a multiprocessor hide it from each other;
/// * a block costs four slices besides, filling the pipeline and storing;
/// * blocks of all products share the multiprocessors, but none ends before its own slices are through;
/// * a split costs a launch and the way of the partial sums through memory.
pub fn pick_tile(tiles: &[Tile], products: &[Product], limits: &Limits) -> (Tile, Vec<usize>) {
    let processors = u64::from(limits.multiprocessors.max(1));
    // No product's part is longer than so many slices, the longest first.
    let mut lengths: Vec<usize> = products
        .iter()
        .flat_map(|p| (1..=p.most_splits()).map(|splits| p.slices().div_ceil(splits)))
        .collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    let mut best = (u64::MAX, tiles[0], vec![1; products.len()]);
    for &tile in tiles {
        let slice = (tile.m * tile.n + 24 * (tile.m + tile.n)) as u64;
        for most in &lengths {
            let splits: Vec<usize> =
                products.iter().map(|p| p.slices().div_ceil(*most).min(p.most_splits())).collect();
            let (mut blocks, mut work, mut longest, mut padded, mut partial) = (0, 0, 0, 0, 0);
            for (p, splits) in products.iter().zip(&splits) {
                let own = p.blocks(tile) as u64;
                let length = p.slices().div_ceil(*splits) as u64 + 4;
                blocks += own * *splits as u64;
                work += own * *splits as u64 * length;
                longest = longest.max(length);
                padded += own * (tile.m * tile.n * p.slices()) as u64;
                if *splits > 1 {
                    partial += (p.results() * splits) as u64;
                }
            }
            let per_processor = blocks.div_ceil(processors);
            let pace = (per_processor * slice).max(per_processor.div_ceil(3) * 6000);
            let mean = u128::from(pace) * u128::from(work) / u128::from(blocks.max(1));
            let mut cost = u64::try_from(mean).unwrap_or(u64::MAX / 2).max(longest * slice.max(6000));
            if partial > 0 {
                cost += 80_000 + partial * 30 / processors;
            }
            // Of two that take equally long the one that computes less padding.
            cost += padded / processors / 4;
            if cost < best.0 {
                best = (cost, tile, splits);
            }
        }
    }
    (best.1, best.2)
}

/// What is read and written, in the kernel's terms.
struct Geometry {
    transposed: bool,
    conv: Conv,
    epilogue: Epilogue,
    x: Shape,
    kernel: [usize; 2],
    out: Shape,
    in_group: usize,
    out_group: usize,
}

impl Geometry {
    fn of(task: &Task) -> Result<Self, Unsupported> {
        let (conv, epilogue, transposed) = match task.op {
            Op::Conv2d { conv, epilogue } => (*conv, *epilogue, false),
            Op::ConvTranspose { conv, epilogue, .. } => (*conv, *epilogue, true),
            _ => return Err(task.unsupported("is no convolution")),
        };
        let [Typed { shape: x, storage: x_storage }, Typed { shape: w, storage: w_storage }, rest @ ..] =
            task.inputs
        else {
            return Err(task.unsupported("has no weight"));
        };
        let [kh, kw, ci, co] = w.0;
        if *x_storage != Storage::F16 || *w_storage != Storage::F16 {
            return Err(task.unsupported("reads fp16 only"));
        }
        if rest.len() != usize::from(epilogue.bias) + usize::from(epilogue.residual) {
            return Err(task.unsupported("has inputs that its epilogue does not name"));
        }
        let (in_group, out_group) = if transposed { (co / conv.groups, ci) } else { (ci, co / conv.groups) };
        // Pixels and places on the summed axis are 32-bit in the kernel; half the range leaves room for the
        // padding and for what a tile reaches beyond the end.
        if [x.rows(), task.out.shape.rows(), kh * kw * in_group].iter().any(|n| *n > 1 << 30) {
            return Err(task.unsupported("has more than 2^30 pixels or products a result"));
        }
        Ok(Geometry {
            transposed,
            conv,
            epilogue,
            x: *x,
            kernel: [kh, kw],
            out: task.out.shape,
            in_group,
            out_group,
        })
    }

    fn tiles(&self) -> &'static [Tile] {
        tiles(self.transposed, self.in_group, self.out_group)
    }

    /// Phases along one axis of the output.
    fn phases(&self) -> usize {
        if self.transposed { self.conv.stride } else { 1 }
    }

    fn product(&self) -> Product {
        let phases = self.phases();
        let per_phase = |size: usize| size.div_ceil(phases);
        Product {
            m: self.out.n() * per_phase(self.out.h()) * per_phase(self.out.w()),
            n: self.out_group,
            k: per_phase(self.kernel[0]) * per_phase(self.kernel[1]) * self.in_group,
            copies: phases * phases * self.conv.groups,
        }
    }

    /// `Problem` of conv.cu.
    fn problem(&self, splits: usize, out: Storage) -> Option<Vec<u8>> {
        let act = match self.epilogue.act {
            Act::None => 0,
            Act::Relu => 1,
            Act::Relu6 => 2,
            Act::Silu => 3,
        };
        let [n, h, w, c] = self.x.0;
        let [_, out_h, out_w, out_c] = self.out.0;
        let [kernel_h, kernel_w] = self.kernel;
        let Conv { stride, pad: [top, left, ..], groups } = self.conv;
        let fields = [
            n,
            h,
            w,
            c,
            out_h,
            out_w,
            out_c,
            self.in_group,
            self.out_group,
            kernel_h,
            kernel_w,
            stride,
            top,
            left,
            groups,
            splits,
            act,
            usize::from(out == Storage::F32),
        ];
        let mut bytes = Vec::with_capacity(fields.len() * 4);
        for field in fields {
            bytes.extend(i32::try_from(field).ok()?.to_ne_bytes());
        }
        Some(bytes)
    }
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let geometry = Geometry::of(task)?;
    let (tile, splits) = pick_tile(geometry.tiles(), &[geometry.product()], &task.limits);
    launches(task, &geometry, tile, splits[0])
}

/// Convolutions that take the same tiles, all with the same one; `None` where they do not.
pub fn lower_together(tasks: &[Task]) -> Option<Vec<Lowered>> {
    let geometries = tasks.iter().map(|task| Geometry::of(task).ok()).collect::<Option<Vec<_>>>()?;
    let (first, task) = (geometries.first()?, tasks.first()?);
    if geometries.iter().any(|g| g.tiles()[0] != first.tiles()[0]) {
        return None;
    }
    let products: Vec<Product> = geometries.iter().map(Geometry::product).collect();
    let (tile, splits) = pick_tile(first.tiles(), &products, &task.limits);
    let each = tasks.iter().zip(&geometries).zip(splits);
    each.map(|((task, geometry), splits)| launches(task, geometry, tile, splits).ok()).collect()
}

fn launches(task: &Task, geometry: &Geometry, tile: Tile, splits: usize) -> Result<Lowered, Unsupported> {
    let product = geometry.product();
    let grid = [product.m.div_ceil(tile.m), product.n.div_ceil(tile.n), product.copies * splits];
    if grid[1] > GRID_YZ || grid[2] > GRID_YZ {
        return Err(task.unsupported("has too many channels, groups or a too large stride for one launch"));
    }
    let problem = geometry
        .problem(splits, task.out.storage)
        .ok_or_else(|| task.unsupported("has an axis beyond 2^31"))?;

    let Epilogue { bias, residual, .. } = geometry.epilogue;
    let tail = [
        if bias { Arg::Pointer(Place::Input(2)) } else { Arg::Null },
        if residual { Arg::Pointer(Place::Input(2 + usize::from(bias))) } else { Arg::Null },
    ];
    let launch = |kernel, grid: [usize; 3], args| Launch {
        module: MODULE,
        kernel,
        grid: grid.map(|n| n as u32),
        block: [THREADS, 1, 1],
        shared: 0,
        args,
    };
    let (x, weight) = (Arg::Pointer(Place::Input(0)), Arg::Pointer(Place::Input(1)));
    let [bias, residual] = tail;
    let (out, problem) = (Arg::Pointer(Place::Out), Arg::Struct(problem));
    if splits == 1 {
        return Ok(Lowered::one(launch(tile.kernel, grid, vec![x, weight, bias, residual, out, problem])));
    }
    let partial = Arg::Pointer(Place::Scratch(0));
    let (kernel, width) =
        if geometry.out.c().is_multiple_of(4) { ("conv_sum_splits_4", 4) } else { ("conv_sum_splits_1", 1) };
    let sums = geometry.out.len().div_ceil(width * THREADS as usize);
    Ok(Lowered {
        launches: vec![
            launch(
                tile.kernel,
                grid,
                vec![x, weight, Arg::Null, Arg::Null, partial.clone(), problem.clone()],
            ),
            launch(kernel, [sums, 1, 1], vec![partial, bias, residual, out, problem]),
        ],
        scratch_bytes: geometry.out.len() * splits * 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(shape: [usize; 4]) -> Typed {
        Typed { shape: Shape(shape), storage: Storage::F16 }
    }

    fn pick(m: usize, n: usize, k: usize) -> (Tile, usize) {
        pick_one(DENSE, Product { m, n, k, copies: 1 })
    }

    fn pick_one(tiles: &[Tile], product: Product) -> (Tile, usize) {
        let (tile, splits) = pick_tile(tiles, &[product], &A100);
        (tile, splits[0])
    }

    #[test]
    fn many_pixels_take_the_largest_tile_and_no_split() {
        let (tile, splits) = pick(8 * 56 * 56, 256, 576);
        assert_eq!((tile.kernel, splits), ("conv_128x64", 1));
    }

    #[test]
    fn a_small_grid_is_split_so_that_most_multiprocessors_have_work() {
        let (tile, splits) = pick(7 * 7, 512, 9 * 512);
        let blocks = 49usize.div_ceil(tile.m) * 512usize.div_ceil(tile.n) * splits;
        assert!(splits > 1 && blocks >= 54, "{tile:?} × {splits}");
    }

    #[test]
    fn few_products_are_not_split() {
        for k in [1, 8, 27, 64, 128] {
            assert_eq!(pick(49, 64, k).1, 1, "k = {k}");
        }
    }

    #[test]
    fn one_pixel_takes_the_flattest_tile() {
        assert_eq!(pick(1, 320, 960).0.m, 16);
    }

    #[test]
    fn a_head_of_two_channels_takes_the_narrow_tile() {
        let product = Product { m: 128 * 128, n: 2, k: 576, copies: 1 };
        assert_eq!(pick_one(RAGGED, product).0.n, 8);
    }

    #[test]
    fn no_split_is_longer_than_the_sum() {
        for (m, n, k) in [(1, 8, 8), (1, 8, 33), (4, 8, 4096), (100, 40, 360), (3136, 64, 147)] {
            for tiles in [DENSE, GATHER, RAGGED, ANY, TRANSPOSE, TRANSPOSE_ANY] {
                let (_, splits) = pick_one(tiles, Product { m, n, k, copies: 1 });
                assert!(splits >= 1 && splits <= k.div_ceil(SLICE), "{m}×{n}×{k}: {splits}");
            }
        }
    }

    #[test]
    fn a_stem_gathers_its_three_channels_and_adds_its_bias() {
        let op = Op::Conv2d {
            conv: Conv::new(2, 3),
            epilogue: Epilogue { bias: true, residual: false, act: Act::Relu },
        };
        let bias = Typed { shape: Shape::vector(64), storage: Storage::F32 };
        let task = Task {
            op: &op,
            inputs: &[half([1, 224, 224, 3]), half([7, 7, 3, 64]), bias],
            out: half([1, 112, 112, 64]),
            limits: A100,
        };
        let lowered = lower(&task).unwrap();
        let [launch] = &lowered.launches[..] else { panic!("{lowered:?}") };
        assert!(launch.kernel.starts_with("conv_gather_"), "{}", launch.kernel);
        assert_eq!(launch.args[2], Arg::Pointer(Place::Input(2)));
        assert_eq!(launch.args[3], Arg::Null);
        let Arg::Struct(problem) = &launch.args[5] else { panic!() };
        assert_eq!(problem.len(), 72);
    }

    #[test]
    fn a_strided_adjoint_has_one_phase_for_each_position_within_the_stride() {
        let op = Op::ConvTranspose { conv: Conv::new(2, 1), h: 63, w: 64, epilogue: Epilogue::default() };
        let task = Task {
            op: &op,
            inputs: &[half([2, 32, 32, 64]), half([3, 3, 32, 64])],
            out: half([2, 63, 64, 32]),
            limits: A100,
        };
        let launch = &lower(&task).unwrap().launches[0];
        let tile = TRANSPOSE.iter().find(|t| t.kernel == launch.kernel).unwrap();
        assert_eq!(launch.grid[0] as usize, (2 * 32 * 32usize).div_ceil(tile.m));
        assert_eq!(launch.grid[2] % 4, 0);
    }

    #[test]
    fn a_split_convolution_leaves_the_tail_to_the_sum() {
        let op = Op::Conv2d {
            conv: Conv::new(1, 1),
            epilogue: Epilogue { bias: true, residual: true, act: Act::Silu },
        };
        let bias = Typed { shape: Shape::vector(512), storage: Storage::F32 };
        let out = half([1, 7, 7, 512]);
        let task = Task {
            op: &op,
            inputs: &[half([1, 7, 7, 512]), half([3, 3, 512, 512]), bias, out],
            out,
            limits: A100,
        };
        let lowered = lower(&task).unwrap();
        let [first, second] = &lowered.launches[..] else { panic!("{lowered:?}") };
        assert_eq!(first.args[2..5], [Arg::Null, Arg::Null, Arg::Pointer(Place::Scratch(0))]);
        assert_eq!(second.kernel, "conv_sum_splits_4");
        assert_eq!(second.args[1..3], [Arg::Pointer(Place::Input(2)), Arg::Pointer(Place::Input(3))]);
        assert_eq!(lowered.scratch_bytes % (7 * 7 * 512 * 4), 0);
    }

    #[test]
    fn fp32_operands_are_refused() {
        let op = Op::Conv2d { conv: Conv::new(1, 0), epilogue: Epilogue::default() };
        let x = Typed { shape: Shape::new(1, 4, 4, 8), storage: Storage::F32 };
        let task = Task { op: &op, inputs: &[x, half([1, 1, 8, 8])], out: half([1, 4, 4, 8]), limits: A100 };
        assert!(lower(&task).is_err());
    }
}
