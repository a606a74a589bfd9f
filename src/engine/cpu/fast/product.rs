//! A matrix product cut into blocks that fit the caches, and those into the micro-kernel's tiles.
//!
//! Blocking: a task owns a block of rows × a range of B's panels. For every block of k it gathers its
//! part of A into its lane's scratch (second-level cache), then runs each panel of B past it.
//! The order of additions depends on k alone, never on threads or timing: results are reproducible to
//! the bit for one instruction set.

use std::ops::Range;

use super::buffer::Shared;
use super::epilogue::{Act, act_in_place};
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
/// Floats of B up to which it is run past each tile, rather than each tile past it: 256 KB.
const RESIDENT_B: usize = 64 * 1024;
/// Tasks wanted per thread: the last one to finish keeps the others waiting for a fraction of 1/4.
pub(super) const TASKS_PER_THREAD: usize = 4;

/// Whether tiles of A may be read in place: its 14 rows must not crowd into a part of the first-level
/// cache's sets, as rows a multiple of 1 KB apart do.
fn lies_well(stride: usize) -> bool {
    !stride.is_multiple_of(256)
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
    pub act: Act,
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
                let (a, a_stride) = self.gather(rows.clone(), k0..k1, scratch);
                let step =
                    Step { rows: rows.clone(), tile: blocks.tile, ks: k0..k1, a, a_stride, first, last };
                self.run_step(&step, panels.clone());
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
                (Layout::Rows, Source::Matrix { data, stride }) if lies_well(stride) => {
                    (data.as_ptr().add(rows.start * stride + ks.start), stride)
                }
                (Layout::Rows, _) => {
                    self.a.gather(self.isa, rows, ks, scratch, A_STRIDE);
                    (scratch, A_STRIDE)
                }
            }
        }
    }

    unsafe fn run_step(&self, step: &Step, panels: Range<usize>) {
        let tiles = step.rows.clone().step_by(step.tile);
        let width = self.panels.columns(0).2;
        // SAFETY: passed on.
        unsafe {
            if step.ks.len() * panels.len() * width <= RESIDENT_B {
                // All of B stays in the second-level cache: finish rows of C one after the other, so
                // that memory sees whole lines and pages.
                for row in tiles {
                    let offsets = self.rows.offsets(row, step.tile.min(step.rows.end - row));
                    for panel in panels.clone() {
                        self.run_tile(step, row, &offsets, panel);
                    }
                }
            } else {
                for panel in panels {
                    for row in tiles.clone() {
                        let offsets = self.rows.offsets(row, step.tile.min(step.rows.end - row));
                        self.run_tile(step, row, &offsets, panel);
                    }
                }
            }
        }
    }

    #[inline]
    unsafe fn run_tile(&self, step: &Step, row: usize, offsets: &[usize; MAX_ROWS], panel: usize) {
        let (column, cols, width) = self.panels.columns(panel);
        let optional = |p: *const f32| {
            if step.last && !p.is_null() { p.wrapping_add(column) } else { std::ptr::null() }
        };
        let height = step.tile.min(step.rows.end - row);
        let done = row - step.rows.start;
        // SAFETY: the block of A has these rows; panel and k range are in bounds of the packed B;
        // column < n, and rows of C are n long. See also `Product`.
        unsafe {
            let tile = Tile {
                k: step.ks.len(),
                a: step.a.add(if self.layout == Layout::Rows { done * step.a_stride } else { done }),
                a_stride: step.a_stride,
                b: self.b.add(self.panels.offset(panel) + (step.ks.start - self.b_first) * width),
                c: self.c.add(column),
                rows: offsets,
                cols,
                load_c: self.accumulate || !step.first,
                bias: optional(self.bias),
                residual: optional(self.residual),
                act: if step.last { self.act.in_register() } else { Act::None },
            };
            kernel(self.isa, self.layout, height, width / self.isa.lanes())(&tile);
        }
    }
}

/// One block of k of one task.
struct Step {
    rows: Range<usize>,
    /// Rows of a tile.
    tile: usize,
    ks: Range<usize>,
    /// Element (rows.start, ks.start) of A.
    a: *const f32,
    a_stride: usize,
    /// First and last block of k: whether C holds partial sums, whether the epilogue applies.
    first: bool,
    last: bool,
}

/// Floats of scratch of all lanes, with room for alignment.
pub(super) fn lane_scratch(pool: &Pool) -> usize {
    pool.threads() * LANE_SCRATCH + 16
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_tile_once_and_fit_the_scratch() {
        let isas = [Isa::Avx512, Isa::Avx2, Isa::Portable];
        for isa in isas {
            for m in [1, 13, 14, 15, 64, 111, 112, 113, 256, 1000, 4096, 16384] {
                for n in [1, 16, 17, 32, 33, 96, 1024] {
                    for k in [0, 1, 147, 2304] {
                        for wanted in [1, 8, 16, 64] {
                            let panels = Panels::new(isa, k, n);
                            let b = Blocks::new(isa, m, &panels, wanted);
                            let what = format!("{isa:?} {m}×{n}×{k} for {wanted}: {b:?}");
                            assert!((1..=tile_rows(isa)).contains(&b.tile), "{what}");
                            assert!(
                                b.rows.is_multiple_of(b.tile) && b.rows <= TILES_PER_BLOCK * MAX_ROWS,
                                "{what}"
                            );
                            assert!((b.m_tasks - 1) * b.rows < m && m <= b.m_tasks * b.rows, "{what}");
                            assert!((b.n_tasks - 1) * b.panels < panels.count(), "{what}");
                            assert!(panels.count() <= b.n_tasks * b.panels, "{what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn layers_of_the_real_networks_are_cut_into_enough_tasks_for_two_threads() {
        // (pixels, output channels, depth): WideResNet50-2 at 256² from the first stage to the last, and
        // EfficientNet-Lite0's smallest maps.
        for (m, n, k) in
            [(4096, 128, 1152), (256, 512, 4608), (64, 1024, 9216), (64, 2048, 1024), (64, 192, 1152)]
        {
            let b = Blocks::new(Isa::Avx512, m, &Panels::new(Isa::Avx512, k, n), 2 * TASKS_PER_THREAD);
            assert!(b.tasks() >= 6, "{m}×{n}×{k}: {b:?}");
        }
    }

    #[test]
    fn rows_walk_lines_and_images() {
        // 2 lines of 3 pixels an image; pixels 10 apart, lines 100, images 1000, from 7 on.
        let rows = Rows { per_line: 3, lines: 2, first: 7, pixel: 10, line: 100, image: 1000 };
        let offsets = rows.offsets(4, 5);
        assert_eq!(&offsets[..5], &[117, 127, 1007, 1017, 1027]);
        assert_eq!(&Rows::linear(9).offsets(5, 3)[..3], &[45, 54, 63]);
    }
}
