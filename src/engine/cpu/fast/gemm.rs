//! Packed matrix multiplication with a fused epilogue: `C = epilogue(A · B)`.
//!
//! ```text
//! pub fn gemm(pool, m, n, k, a: Mat, b: MatB, c: &mut [f32], c_stride, &Epilogue, scratch: &mut [f32])
//! pub fn gemm_batched(pool, m, n, k, batch: &Batch, a: Mat, b: Mat, c: &mut [f32], c_stride, &Epilogue, scratch)
//! pub fn gemm_scratch(pool, m, n, k, packed_b: bool) -> usize     floats, for both
//! PackedB::new(isa, k, n, Mat)                                    weights, once
//! ```
//!
//! Blocking: a task owns a block of rows × a range of B's panels. For every block of k it gathers its
//! part of A into its lane's scratch (second-level cache), then runs each panel of B past it.
//! The order of additions depends on k alone, never on threads or timing: results are reproducible to
//! the bit for one instruction set.

use std::ops::Range;

use super::buffer::{AlignedBuf, Shared, aligned};
use super::epilogue::{Epilogue, act_in_place};
use super::kernel::{Layout, MAX_ROWS, Tile, kernel, tile_rows};
use super::pack::{Panels, Source};
use super::simd::Isa;
use super::threads::Pool;

/// Longest block of k. A panel of A (14 rows) is then 14 KB, a panel of B 32 KB.
pub(super) const K_BLOCK: usize = 256;
/// Distance of rows in a gathered block: an odd number of cache lines, so rows don't share sets.
const A_STRIDE: usize = K_BLOCK + 16;
/// Tiles of one block of rows: 8·14 rows · 1 KB = 120 KB of the second-level cache.
pub(super) const TILES_PER_BLOCK: usize = 8;
/// Floats of scratch of one lane.
pub(super) const LANE_SCRATCH: usize = TILES_PER_BLOCK * MAX_ROWS * A_STRIDE;
/// Tasks wanted per thread: the last one to finish keeps the others waiting for a fraction of 1/4.
const TASKS_PER_THREAD: usize = 4;

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

/// Where the rows of C lie: row m is pixel (image, line, x); a plain matrix is one long line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub per_line: usize,
    pub lines: usize,
    pub first: usize,
    pub pixel: usize,
    pub line: usize,
    pub image: usize,
}

impl Rows {
    pub fn linear(stride: usize) -> Self {
        Self { per_line: usize::MAX, lines: 1, first: 0, pixel: stride, line: 0, image: 0 }
    }

    fn offsets(&self, row: usize, count: usize) -> [usize; MAX_ROWS] {
        let mut offsets = [0; MAX_ROWS];
        let (line, mut x) = (row / self.per_line, row % self.per_line);
        let (mut image, mut y) = (line / self.lines, line % self.lines);
        for offset in &mut offsets[..count] {
            *offset = self.first + image * self.image + y * self.line + x * self.pixel;
            x += 1;
            if x == self.per_line {
                x = 0;
                y += 1;
                if y == self.lines {
                    y = 0;
                    image += 1;
                }
            }
        }
        offsets
    }
}

/// A multiplication ready to be cut into blocks.
///
/// # Safety of its use
/// `b` points to panels as `panels` says; `c` is writable at every row offset + 0..n, and whoever runs a
/// block has exclusive use of that block of C; `bias` and `residual` are null or valid likewise.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub isa: Isa,
    pub m: usize,
    pub a: Source<'a>,
    /// Rows: the source's rows are A's rows. Cols: the source's rows are A's columns.
    pub layout: Layout,
    pub panels: Panels,
    pub b: *const f32,
    /// Which row of B `b`'s panels begin with.
    pub b_first: usize,
    pub c: *mut f32,
    pub rows: Rows,
    pub bias: *const f32,
    pub residual: *const f32,
    pub accumulate: bool,
    pub act: super::epilogue::Act,
}

/// How a product is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Rows of a tile.
    pub tile: usize,
    /// Rows of a task.
    pub rows: usize,
    /// Panels of a task.
    pub panels: usize,
    /// Tasks along m and n.
    pub m_tasks: usize,
    pub n_tasks: usize,
}

impl Blocks {
    /// Cuts m rows × `panels` so that about `wanted` tasks come out if the work is worth it.
    pub fn new(isa: Isa, m: usize, panels: &Panels, wanted: usize) -> Self {
        // Tiles of equal height rather than full ones and a rest: 64 rows are 5 tiles of 13, not 4 of 14
        // and one of 8.
        let tiles = m.div_ceil(tile_rows(isa)).max(1);
        let tile = m.div_ceil(tiles).max(1);
        let count = panels.count().max(1);
        // Below some 100 000 multiplications (about 1 µs) a task costs more than it brings.
        let worth = (m * panels.n * panels.k.max(1) / 100_000).clamp(1, wanted.max(1));
        let mut per_block = TILES_PER_BLOCK.min(tiles);
        while per_block > 4 && tiles.div_ceil(per_block) < worth {
            per_block -= 1;
        }
        let m_tasks = tiles.div_ceil(per_block);
        // Again of equal height.
        let per_block = tiles.div_ceil(m_tasks);
        let m_tasks = tiles.div_ceil(per_block);
        let n_tasks = worth.div_ceil(m_tasks).min(count);
        let per_task = count.div_ceil(n_tasks);
        Self { tile, rows: per_block * tile, panels: per_task, m_tasks, n_tasks: count.div_ceil(per_task) }
    }

    pub fn tasks(&self) -> usize {
        self.m_tasks * self.n_tasks
    }
}

impl Product<'_> {
    /// Runs one task over the range `ks` of k.
    ///
    /// # Safety
    /// See [`Product`]; `scratch` is exclusively this call's, [`LANE_SCRATCH`] floats.
    pub unsafe fn run(&self, blocks: &Blocks, task: usize, ks: Range<usize>, scratch: *mut f32) {
        // Neighbouring tasks share their rows' part of A in the third-level cache.
        let (mt, nt) = (task / blocks.n_tasks, task % blocks.n_tasks);
        let rows = mt * blocks.rows..((mt + 1) * blocks.rows).min(self.m);
        let panels = nt * blocks.panels..((nt + 1) * blocks.panels).min(self.panels.count());
        let steps = ks.len().div_ceil(K_BLOCK).max(1);
        let step = ks.len().div_ceil(steps);
        for i in 0..steps {
            let k0 = ks.start + i * step;
            let k1 = (k0 + step).min(ks.end);
            let (first, last) = (i == 0, i + 1 == steps);
            // SAFETY: passed on.
            unsafe {
                let (a, stride) = self.gather(rows.clone(), k0..k1, scratch);
                for panel in panels.clone() {
                    self.run_panel(blocks, rows.clone(), panel, k0..k1, a, stride, first, last);
                }
            }
        }
        if self.act.needs_pass() {
            let (first, _, _) = self.panels.columns(panels.start);
            let (start, valid, _) = self.panels.columns(panels.end - 1);
            let columns = start + valid - first;
            for row in rows {
                let offset = self.rows.offsets(row, 1)[0] + first;
                // SAFETY: this part of C is this task's own.
                let y = unsafe { std::slice::from_raw_parts_mut(self.c.add(offset), columns) };
                act_in_place(self.isa, self.act, y);
            }
        }
    }

    /// The block's first element and stride: in place where it lies well, else gathered.
    unsafe fn gather(&self, rows: Range<usize>, ks: Range<usize>, scratch: *mut f32) -> (*const f32, usize) {
        // SAFETY: a block has at most TILES_PER_BLOCK tiles and K_BLOCK columns, so it fits the scratch.
        unsafe {
            match (self.layout, self.a) {
                (Layout::Cols, Source::Matrix { data, stride }) => {
                    (data.as_ptr().add(ks.start * stride + rows.start), stride)
                }
                (Layout::Cols, _) => {
                    let stride = rows.len();
                    self.a.gather(self.isa, ks, rows, scratch, stride);
                    (scratch, stride)
                }
                (Layout::Rows, _) => {
                    self.a.gather(self.isa, rows, ks, scratch, A_STRIDE);
                    (scratch, A_STRIDE)
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    unsafe fn run_panel(
        &self,
        blocks: &Blocks,
        rows: Range<usize>,
        panel: usize,
        ks: Range<usize>,
        a: *const f32,
        a_stride: usize,
        first: bool,
        last: bool,
    ) {
        let (column, valid, width) = self.panels.columns(panel);
        let vectors = width / self.isa.lanes();
        // SAFETY: panel and k range are in bounds of the packed B.
        let b = unsafe { self.b.add(self.panels.offset(panel) + (ks.start - self.b_first) * width) };
        let optional =
            |p: *const f32| if last && !p.is_null() { p.wrapping_add(column) } else { std::ptr::null() };
        let mut tile = Tile {
            k: ks.len(),
            a,
            a_stride,
            b,
            // SAFETY: column < n, and rows of C are n long.
            c: unsafe { self.c.add(column) },
            rows: [0; MAX_ROWS],
            cols: valid,
            load_c: self.accumulate || !first,
            bias: optional(self.bias),
            residual: optional(self.residual),
            act: if last { self.act.in_register() } else { super::epilogue::Act::None },
        };
        let full = kernel(self.isa, self.layout, blocks.tile, vectors);
        let mut row = rows.start;
        while row < rows.end {
            let height = blocks.tile.min(rows.end - row);
            let run =
                if height == blocks.tile { full } else { kernel(self.isa, self.layout, height, vectors) };
            let done = row - rows.start;
            // SAFETY: the block of A has these rows; see also `Product`.
            unsafe {
                tile.a = match self.layout {
                    Layout::Rows => a.add(done * a_stride),
                    Layout::Cols => a.add(done),
                };
                tile.rows = self.rows.offsets(row, height);
                run(&tile);
            }
            row += height;
        }
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

pub(super) fn lane_scratch(pool: &Pool) -> usize {
    pool.threads() * LANE_SCRATCH + 16
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

/// Runs products (of equal cost, on disjoint C) over the pool.
///
/// # Safety
/// See [`Product`]; `lanes` has [`LANE_SCRATCH`] floats for every lane.
pub(super) unsafe fn run_products(pool: &Pool, products: &[Product], lanes: Shared<f32>) {
    struct Ready<'a>(&'a [Product<'a>]);
    // SAFETY: the pointers in a product are used by tasks on disjoint blocks of C, see `Product`.
    unsafe impl Sync for Ready<'_> {}
    impl<'a> Ready<'a> {
        fn get(&self, i: usize) -> &'a Product<'a> {
            &self.0[i]
        }
    }
    let Some(first) = products.first() else { return };
    let wanted = if pool.threads() == 1 { 1 } else { pool.threads() * TASKS_PER_THREAD };
    let wanted = wanted.div_ceil(products.len());
    // All products have the same m or nearly so: cut by the largest.
    let m = products.iter().map(|p| p.m).max().unwrap_or(0);
    let blocks = Blocks::new(first.isa, m, &first.panels, wanted);
    let ready = Ready(products);
    pool.run_lanes(products.len() * blocks.tasks(), &|task, lane| {
        let product = ready.get(task / blocks.tasks());
        let task = task % blocks.tasks();
        if task / blocks.n_tasks * blocks.rows < product.m {
            // SAFETY: disjoint blocks of C; the lane's scratch is this thread's alone.
            unsafe { product.run(&blocks, task, 0..product.panels.k, lanes.ptr().add(lane * LANE_SCRATCH)) };
        }
    });
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
    use super::super::naive::{Exact, Rng, poisoned};
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
