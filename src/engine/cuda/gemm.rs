//! Launches of `kernels/gemm.cu`: batched matrix products.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::storage::Storage;
use crate::engine::op::Op;

const MODULE: &str = "gemm";
const THREADS: u32 = 128;
const GRID_YZ: usize = 65535;

/// Rows × columns of a block, and its kernels by what is transposed: nothing, b, a, both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub m: usize,
    pub n: usize,
    kernels: [&'static str; 4],
}

const VECTOR: &[Tile] = &[
    Tile { m: 128, n: 64, kernels: ["gemm_nn_128x64", "gemm_nt_128x64", "gemm_tn_128x64", "gemm_tt_128x64"] },
    Tile { m: 64, n: 64, kernels: ["gemm_nn_64x64", "gemm_nt_64x64", "gemm_tn_64x64", "gemm_tt_64x64"] },
    Tile { m: 32, n: 32, kernels: ["gemm_nn_32x32", "gemm_nt_32x32", "gemm_tn_32x32", "gemm_tt_32x32"] },
];
const ANY: &[Tile] =
    &[Tile { m: 64, n: 64, kernels: ["gemm_nn_any", "gemm_nt_any", "gemm_tn_any", "gemm_tt_any"] }];

/// What is multiplied: `batches` times m×k by k×n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    pub batches: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// The tile that takes the slowest multiprocessor the least time. A block's slice of k costs its products
/// and its copies (24 a row, as for convolutions), but never less than 6000, the latency of barrier,
/// ldmatrix and mma, which up to three blocks on a multiprocessor hide from each other.
pub fn pick_tile(tiles: &[Tile], product: &Product, limits: &Limits) -> Tile {
    let processors = limits.multiprocessors.max(1) as usize;
    let cost = |tile: &&Tile| {
        let blocks = product.m.div_ceil(tile.m) * product.n.div_ceil(tile.n) * product.batches;
        let per_processor = blocks.div_ceil(processors);
        let slice = tile.m * tile.n + 24 * (tile.m + tile.n);
        // Of two that take equally long the one that computes less padding.
        ((per_processor * slice).max(per_processor.div_ceil(3) * 6000), blocks * tile.m * tile.n)
    };
    tiles.iter().min_by_key(cost).copied().unwrap_or(VECTOR[1])
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let Op::MatMul { transpose_a, transpose_b, alpha } = task.op else {
        return Err(task.unsupported("is no matrix product"));
    };
    let [a, b] = task.inputs else { return Err(task.unsupported("has not two inputs")) };
    if a.storage != Storage::F16 || b.storage != Storage::F16 {
        return Err(task.unsupported("reads fp16 only"));
    }
    let out = task.out.shape;
    let product = Product {
        batches: out.n() * out.h(),
        m: out.w(),
        n: out.c(),
        k: if *transpose_a { a.shape.w() } else { a.shape.c() },
    };
    // Copies of 16 bytes run along the last axis of each operand.
    let vector = a.shape.c().is_multiple_of(8) && b.shape.c().is_multiple_of(8);
    let tile = pick_tile(if vector { VECTOR } else { ANY }, &product, &task.limits);
    let grid = [product.m.div_ceil(tile.m), product.n.div_ceil(tile.n), product.batches.min(GRID_YZ)];
    // Half the range of an int: positions in a tile reach beyond the end.
    if [product.batches, product.m, product.n, product.k].iter().any(|v| *v > 1 << 30) || grid[1] > GRID_YZ {
        return Err(task.unsupported("has an axis too long for one launch"));
    }
    let mut problem = Vec::with_capacity(20);
    for field in [product.batches, product.m, product.n, product.k] {
        problem.extend((field as i32).to_ne_bytes());
    }
    problem.extend(alpha.to_ne_bytes());
    Ok(Lowered::one(Launch {
        module: MODULE,
        kernel: tile.kernels[usize::from(*transpose_a) * 2 + usize::from(*transpose_b)],
        grid: grid.map(|n| n as u32),
        block: [THREADS, 1, 1],
        shared: 0,
        args: vec![
            Arg::Pointer(Place::Input(0)),
            Arg::Pointer(Place::Input(1)),
            Arg::Real(Place::Out),
            Arg::Struct(problem),
        ],
    }))
}

#[cfg(test)]
mod tests {
    use super::super::launch::Typed;
    use super::*;
    use crate::engine::shape::Shape;

    const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn pick(batches: usize, m: usize, n: usize, k: usize) -> (usize, usize) {
        let tile = pick_tile(VECTOR, &Product { batches, m, n, k }, &A100);
        (tile.m, tile.n)
    }

    fn launch(a: [usize; 4], b: [usize; 4], out: [usize; 4], transpose: (bool, bool)) -> Launch {
        let op = Op::MatMul { transpose_a: transpose.0, transpose_b: transpose.1, alpha: 0.5 };
        let half = |shape| Typed { shape: Shape(shape), storage: Storage::F16 };
        let task = Task { op: &op, inputs: &[half(a), half(b)], out: half(out), limits: A100 };
        lower(&task).unwrap().launches.remove(0)
    }

    #[test]
    fn a_large_product_takes_the_large_tile_and_a_small_one_the_small() {
        assert_eq!(pick(1, 4096, 4096, 512), (128, 64));
        assert_eq!(pick(1, 256, 256, 512), (32, 32));
        assert_eq!(pick(1, 1, 1, 8), (32, 32));
    }

    #[test]
    fn many_batches_share_the_third_axis_of_the_grid() {
        let l = launch([2, 70_000, 8, 8], [2, 70_000, 8, 8], [2, 70_000, 8, 8], (false, false));
        assert_eq!(l.grid[2], 65535);
        let Arg::Struct(problem) = &l.args[3] else { panic!() };
        assert_eq!(problem[..4], 140_000i32.to_ne_bytes());
        assert_eq!(problem.len(), 20);
    }

    #[test]
    fn the_kernel_is_named_by_what_is_transposed() {
        let shapes = [[1, 1, 24, 16], [1, 1, 16, 24], [1, 1, 24, 24]];
        let l = launch(shapes[0], shapes[1], shapes[2], (false, false));
        assert!(l.kernel.starts_with("gemm_nn_"));
        let l = launch(shapes[1], shapes[1], shapes[2], (true, false));
        assert!(l.kernel.starts_with("gemm_tn_"));
        let l = launch(shapes[0], shapes[0], shapes[2], (false, true));
        assert!(l.kernel.starts_with("gemm_nt_"));
    }

    #[test]
    fn a_contiguous_axis_that_is_no_multiple_of_eight_is_copied_by_elements() {
        // op(a) is 16×9: its contiguous axis has 9 elements, or 16 where it is transposed.
        let l = launch([1, 1, 16, 9], [1, 1, 9, 8], [1, 1, 16, 8], (false, false));
        assert_eq!(l.kernel, "gemm_nn_any");
        let l = launch([1, 1, 9, 16], [1, 1, 9, 8], [1, 1, 16, 8], (true, false));
        assert_eq!(l.kernel, "gemm_tn_32x32");
    }
}
