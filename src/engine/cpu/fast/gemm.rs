//! Packed matrix multiplication with a fused epilogue: `C = epilogue(A · B)`.
//!
//! ```text
//! pub fn gemm(pool, m, n, k, a: Mat, b: MatB, c: &mut [f32], c_stride, &Epilogue, scratch: &mut [f32])
//! pub fn gemm_batched(pool, m, n, k, batch: &Batch, a: Mat, b: Mat, c: &mut [f32], c_stride, &Epilogue, scratch)
//! gemm_scratch(pool, n, k, packed_b), gemm_batched_scratch(pool, n, k)      floats
//! PackedB::new(isa, k, n, Mat)                                    weights, once
//! ```

use super::buffer::{AlignedBuf, Shared, aligned};
use super::epilogue::Epilogue;
use super::kernel::Layout;
use super::pack::{Panels, Source};
use super::product::{Blocks, LANE_SCRATCH, Product, Rows, TASKS_PER_THREAD, lane_scratch, run_products};
use super::simd::Isa;
use super::threads::Pool;

/// A matrix in memory: element (i, j) at `i·stride + j`, or at `j·stride + i` if `transposed`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub transposed: bool,
}

impl<'a> Mat<'a> {
    /// Rows of `stride` floats.
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride, transposed: false }
    }

    /// The transpose of rows of `stride` floats: `Mat::transposed(x, k)` of an n×k array is k×n.
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride, transposed: true }
    }

    fn check(&self, rows: usize, columns: usize, offset: usize, name: &str) {
        let (outer, inner) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let need = if outer * inner == 0 { 0 } else { offset + (outer - 1) * self.stride + inner };
        assert!(self.data.len() >= need, "{name} has {} floats, needs {need}", self.data.len());
    }
}

/// The right operand: packed beforehand, or packed into scratch by the call.
#[derive(Debug, Clone, Copy)]
pub enum MatB<'a> {
    Packed(&'a PackedB),
    Raw(Mat<'a>),
}

/// A k × n matrix in the order in which one instruction set's kernel reads it.
#[derive(Debug, Clone)]
pub struct PackedB {
    isa: Isa,
    pub(super) panels: Panels,
    pub(super) data: AlignedBuf,
}

impl PackedB {
    /// # Panics
    /// If `b` has fewer elements than k × n asks for.
    pub fn new(isa: Isa, k: usize, n: usize, b: Mat) -> Self {
        b.check(k, n, 0, "B");
        let panels = Panels::new(isa, k, n);
        let mut data = AlignedBuf::zeroed(panels.len());
        for panel in 0..panels.count() {
            // SAFETY: `data` has the panels' length and is exclusively ours.
            unsafe { panels.fill(panel, 0, k, b.data, b.stride, b.transposed, data.as_mut_ptr()) };
        }
        Self { isa, panels, data }
    }
}

/// Floats of scratch that [`gemm`] and [`gemm_batched`] need.
pub fn gemm_scratch(pool: &Pool, n: usize, k: usize, packed_b: bool) -> usize {
    lane_scratch(pool) + if packed_b { 0 } else { Panels::new(pool.isa(), k, n).len() + 16 }
}

/// Floats of scratch of [`gemm_batched`]: every lane packs a B of its own.
pub fn gemm_batched_scratch(pool: &Pool, n: usize, k: usize) -> usize {
    pool.threads() * (LANE_SCRATCH + Panels::new(pool.isa(), k, n).len().next_multiple_of(16)) + 16
}

/// Packs a B into `dst` (of `panels.len()` floats), the panels spread over the pool.
pub(super) fn pack_parallel(pool: &Pool, panels: &Panels, b: Mat, dst: Shared<f32>) {
    pool.run(panels.count(), &|panel| {
        // SAFETY: each task writes its own panel of the caller's exclusive buffer.
        unsafe { panels.fill(panel, 0, panels.k, b.data, b.stride, b.transposed, dst.ptr()) };
    });
}

/// `C[m, n] = epilogue(A[m, k] · B[k, n])`, rows of C `c_stride` floats apart.
/// `scratch`: [`gemm_scratch`] floats, contents irrelevant.
///
/// # Panics
/// If an operand is too small for the geometry, or B was packed for another geometry or instruction set.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    pool: &Pool,
    m: usize,
    n: usize,
    k: usize,
    a: Mat,
    b: MatB,
    c: &mut [f32],
    c_stride: usize,
    epilogue: &Epilogue,
    scratch: &mut [f32],
) {
    if m == 0 || n == 0 {
        return;
    }
    let isa = pool.isa();
    a.check(m, k, 0, "A");
    assert!(c_stride >= n && c.len() >= (m - 1) * c_stride + n, "C is too small");
    epilogue.check(n, c.len());
    let panels = Panels::new(isa, k, n);
    let (lanes, rest) = aligned(scratch).split_at_mut(pool.threads() * LANE_SCRATCH);
    let b = match b {
        MatB::Packed(packed) => {
            assert!(packed.isa == isa && packed.panels == panels, "B was packed for another product");
            packed.data.as_ptr()
        }
        MatB::Raw(b) => {
            b.check(k, n, 0, "B");
            assert!(rest.len() >= panels.len(), "scratch is too small");
            pack_parallel(pool, &panels, b, Shared::new(rest));
            rest.as_ptr()
        }
    };
    let product = Product {
        isa,
        m,
        a: Source::Matrix { data: a.data, stride: a.stride },
        layout: if a.transposed { Layout::Cols } else { Layout::Rows },
        panels,
        b,
        b_first: 0,
        c: c.as_mut_ptr(),
        rows: Rows::linear(c_stride),
        bias: epilogue.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
        residual: epilogue.residual.map_or(std::ptr::null(), <[f32]>::as_ptr),
        accumulate: epilogue.accumulate,
        act: epilogue.act,
    };
    // SAFETY: operands checked above; C, bias and residual are borrowed for this call.
    unsafe { run_products(pool, &[product], Shared::new(lanes)) };
}

/// Strides of a two-level batch, e.g. (image, head), in floats.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    pub outer: usize,
    pub inner: usize,
    pub a: [usize; 2],
    pub b: [usize; 2],
    pub c: [usize; 2],
}

/// `C_i = epilogue(A_i · B_i)` for every i of the batch; B is packed by the thread that needs it.
/// Of the epilogue, `residual` isn't supported. `scratch`: [`gemm_batched_scratch`] floats.
///
/// # Panics
/// As [`gemm`]; and if the matrices of C could overlap.
#[allow(clippy::too_many_arguments)]
pub fn gemm_batched(
    pool: &Pool,
    m: usize,
    n: usize,
    k: usize,
    batch: &Batch,
    a: Mat,
    b: Mat,
    c: &mut [f32],
    c_stride: usize,
    epilogue: &Epilogue,
    scratch: &mut [f32],
) {
    let count = batch.outer * batch.inner;
    if m == 0 || n == 0 || count == 0 {
        return;
    }
    let isa = pool.isa();
    let last = |s: [usize; 2]| (batch.outer - 1) * s[0] + (batch.inner - 1) * s[1];
    a.check(m, k, last(batch.a), "A");
    b.check(k, n, last(batch.b), "B");
    let extent = (m - 1) * c_stride + n;
    assert!(c_stride >= n && c.len() >= last(batch.c) + extent, "C is too small");
    // Heads either follow each other, or interleave within a row of C.
    let inner_ok =
        batch.inner == 1 || batch.c[1] >= extent || batch.c[1] >= n && batch.inner * batch.c[1] <= c_stride;
    let inner_extent = (batch.inner - 1) * batch.c[1] + extent;
    assert!(inner_ok && (batch.outer == 1 || batch.c[0] >= inner_extent), "the matrices of C overlap");
    assert!(epilogue.residual.is_none(), "a batched product takes no residual");
    epilogue.check(n, c.len());
    let panels = Panels::new(isa, k, n);
    let per_lane = LANE_SCRATCH + panels.len().next_multiple_of(16);
    let scratch = aligned(scratch);
    assert!(scratch.len() >= pool.threads() * per_lane, "scratch is too small");
    let lanes = Shared::new(scratch);
    let out = Shared::new(c);
    let bias = Shared::from_const(epilogue.bias);
    let wanted = if pool.threads() == 1 { 1 } else { (pool.threads() * TASKS_PER_THREAD).div_ceil(count) };
    let blocks = Blocks::new(isa, m, &panels, wanted);
    // Tasks of one matrix along m only: each packs the whole B.
    let blocks = Blocks { panels: panels.count(), n_tasks: 1, ..blocks };
    pool.run_lanes(count * blocks.tasks(), &|task, lane| {
        let (i, task) = (task / blocks.tasks(), task % blocks.tasks());
        let at = |s: [usize; 2]| i / batch.inner * s[0] + i % batch.inner * s[1];
        // SAFETY: the lane's scratch is this thread's alone; blocks of C are disjoint by the checks above.
        unsafe {
            let scratch = lanes.ptr().add(lane * per_lane);
            let packed = scratch.add(LANE_SCRATCH);
            for panel in 0..panels.count() {
                panels.fill(panel, 0, k, &b.data[at(batch.b)..], b.stride, b.transposed, packed);
            }
            let product = Product {
                isa,
                m,
                a: Source::Matrix { data: &a.data[at(batch.a)..], stride: a.stride },
                layout: if a.transposed { Layout::Cols } else { Layout::Rows },
                panels,
                b: packed,
                b_first: 0,
                c: out.ptr().add(at(batch.c)),
                rows: Rows::linear(c_stride),
                bias: bias.ptr(),
                residual: std::ptr::null(),
                accumulate: epilogue.accumulate,
                act: epilogue.act,
            };
            product.run(&blocks, task, 0..k, scratch);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::epilogue::Act;
    use super::super::kernel::tile_rows;
    use super::super::naive::{Exact, Rng, poisoned};
    use super::super::product::{K_BLOCK, TILES_PER_BLOCK};
    use super::*;

    fn exact(m: usize, n: usize, k: usize, a: &Mat, b: &Mat) -> Exact {
        let at = |x: &Mat, i: usize, j: usize| {
            if x.transposed { x.data[j * x.stride + i] } else { x.data[i * x.stride + j] }
        };
        let mut c = Exact::zero(m * n, k);
        for i in 0..m {
            for p in 0..k {
                for j in 0..n {
                    c.add(i * n + j, at(a, i, p), at(b, p, j));
                }
            }
        }
        c
    }

    fn check(pool: &Pool, seed: u64, (m, n, k): (usize, usize, usize), options: u64) {
        let mut rng = Rng(seed);
        let (ta, tb) = (options & 1 > 0, options & 2 > 0);
        let mat = |rng: &mut Rng, rows: usize, columns: usize, t: bool, gap: usize| {
            let (outer, inner) = if t { (columns, rows) } else { (rows, columns) };
            (rng.vec(outer * (inner + gap)), inner + gap)
        };
        let (a, a_stride) = mat(&mut rng, m, k, ta, (options >> 2 & 1) as usize);
        let (b, b_stride) = mat(&mut rng, k, n, tb, (options >> 3 & 1) as usize * 5);
        let a = Mat { data: &a, stride: a_stride, transposed: ta };
        let b = Mat { data: &b, stride: b_stride, transposed: tb };
        let (bias, residual) = (rng.vec(n), rng.vec(m * n));
        let accumulate = options & 16 > 0;
        let e = Epilogue {
            bias: (options & 32 > 0).then_some(&bias[..]),
            residual: (options & 64 > 0).then_some(&residual[..]),
            accumulate,
            act: [Act::None, Act::Relu, Act::Relu6, Act::LeakyRelu(0.2), Act::Silu]
                [(options >> 7) as usize % 5],
        };
        let before = if accumulate { rng.vec(m * n) } else { poisoned(m * n) };
        let mut want = exact(m, n, k, &a, &b);
        want.finish(&e, &before, n);
        let packed = PackedB::new(pool.isa(), k, n, b);
        for b in [MatB::Packed(&packed), MatB::Raw(b)] {
            let mut c = before.clone();
            let mut scratch = poisoned(gemm_scratch(pool, n, k, matches!(b, MatB::Packed(_))));
            gemm(pool, m, n, k, a, b, &mut c, n, &e, &mut scratch);
            want.assert_close(&c, &format!("{:?} seed {seed} {m}×{n}×{k} options {options}", pool.isa()));
        }
    }

    #[test]
    fn products_equal_the_plain_loop_at_every_block_boundary_one_either_side() {
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let (mr, lanes) = (tile_rows(isa), isa.lanes());
            let ms = [1, mr - 1, mr, mr + 1, 2 * mr, 2 * mr + 1];
            let ns = [1, lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes, 2 * lanes + 1, 3 * lanes + 1];
            let mut seed = 0;
            for m in ms {
                for n in ns {
                    for k in [0, 1, 2, 17] {
                        seed += 1;
                        check(&pool, seed, (m, n, k), Rng(seed).next() >> 8);
                    }
                }
            }
            for k in [K_BLOCK - 1, K_BLOCK, K_BLOCK + 1, 2 * K_BLOCK + 1] {
                for options in [0, 1, 2, 3, 0x70 + 128, 0x71 + 256, 0x72 + 512] {
                    check(&pool, k as u64, (mr + 2, lanes + 3, k), options);
                }
            }
            let rows = TILES_PER_BLOCK * mr;
            for m in [rows - 1, rows, rows + 1, 2 * rows + 3] {
                check(&pool, m as u64, (m, 40, 33), 0x70);
                check(&pool, m as u64, (m, 3 * lanes, 300), 1);
            }
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let mut rng = Rng(7);
        let (m, n, k) = (131, 75, 530);
        let (a, b) = (rng.vec(m * k), rng.vec(k * n));
        let run = |threads: usize| {
            let pool = Pool::new(threads);
            let mut c = poisoned(m * n);
            let mut scratch = poisoned(gemm_scratch(&pool, n, k, false));
            let b = MatB::Raw(Mat::new(&b, n));
            gemm(&pool, m, n, k, Mat::new(&a, k), b, &mut c, n, &Epilogue::default(), &mut scratch);
            c
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }

    #[test]
    fn a_batch_of_attention_heads_equals_its_products_one_by_one() {
        // Two images, three heads of 20 channels interleaved in rows of 60: scores = q·kᵀ, then y = p·v.
        let (images, heads, hw, dim) = (2, 3, 37, 20);
        let width = heads * dim;
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let mut rng = Rng(11);
            let (q, keys) = (rng.vec(images * hw * width), rng.vec(images * hw * width));
            let mut scores = poisoned(images * heads * hw * hw);
            let mut scratch = poisoned(gemm_batched_scratch(&pool, hw, hw));
            let head = [hw * width, dim];
            let square = [heads * hw * hw, hw * hw];
            let e = Epilogue::default();
            let batch = Batch { outer: images, inner: heads, a: head, b: head, c: square };
            let (a, b) = (Mat::new(&q, width), Mat::transposed(&keys, width));
            gemm_batched(&pool, hw, hw, dim, &batch, a, b, &mut scores, hw, &e, &mut scratch);
            let mut y = poisoned(images * hw * width);
            let batch = Batch { outer: images, inner: heads, a: square, b: head, c: head };
            let (p, v) = (Mat::new(&scores, hw), Mat::new(&keys, width));
            gemm_batched(&pool, hw, dim, hw, &batch, p, v, &mut y, width, &e, &mut scratch);
            for i in 0..images {
                for h in 0..heads {
                    let at = i * head[0] + h * head[1];
                    let s = &scores[i * square[0] + h * square[1]..][..hw * hw];
                    let want =
                        exact(hw, hw, dim, &Mat::new(&q[at..], width), &Mat::transposed(&keys[at..], width));
                    want.assert_close(s, "scores");
                    let want = exact(hw, dim, hw, &Mat::new(s, hw), &Mat::new(&keys[at..], width));
                    let got: Vec<f32> = (0..hw * dim).map(|j| y[at + j / dim * width + j % dim]).collect();
                    want.assert_close(&got, "values");
                }
            }
        }
    }
}
