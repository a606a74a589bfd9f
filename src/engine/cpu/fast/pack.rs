//! Copies operands into the order in which the micro-kernel reads them.
//!
//! A: a block of rows × columns of a [`Source`], row by row with a fixed distance. A source is a plain
//! matrix, or the patches of an NHWC image: row = output pixel, column = (ky, kx, channel). Since a patch's line of
//! kw pixels is contiguous in NHWC, a row is kh runs of kw·cin floats, clipped at the borders.
//!
//! B: panels of NV·LANES columns, contiguous in k; the last panel is one vector wide if that suffices.

use std::ops::Range;

use super::kernel::tile_vectors;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};

/// The patches that a convolution sees, as a matrix of `n·out_h·out_w` rows and `kh·kw·channels` columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patches<'a> {
    pub x: &'a [f32],
    pub h: usize,
    pub w: usize,
    /// Floats from one pixel to the next.
    pub pixel: usize,
    /// First channel used and how many (a group).
    pub first: usize,
    pub channels: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    /// Output pixel (0, 0) looks at input from (-top, -left); may be negative.
    pub top: isize,
    pub left: isize,
    pub out_h: usize,
    pub out_w: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// Row r starts at `r·stride`.
    Matrix {
        data: &'a [f32],
        stride: usize,
    },
    Patches(Patches<'a>),
}

impl Source<'_> {
    /// Copies a block to `dst`, row i of it at `i·dst_stride`; what lies outside an image is zero.
    ///
    /// # Safety
    /// `dst` is exclusively writable for `(rows - 1)·dst_stride + columns` floats; the machine has `isa`.
    ///
    /// # Panics
    /// If the block reaches beyond a matrix.
    pub unsafe fn gather(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => gather_avx512(self, rows, columns, dst, dst_stride),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => gather_avx2(self, rows, columns, dst, dst_stride),
                _ => gather::<Portable>(self, rows, columns, dst, dst_stride),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn gather_avx512(s: &Source, rows: Range<usize>, columns: Range<usize>, dst: *mut f32, stride: usize) {
    // SAFETY: passed on.
    unsafe { gather::<Avx512>(s, rows, columns, dst, stride) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn gather_avx2(s: &Source, rows: Range<usize>, columns: Range<usize>, dst: *mut f32, stride: usize) {
    // SAFETY: passed on.
    unsafe { gather::<Avx2>(s, rows, columns, dst, stride) }
}

#[inline(always)]
unsafe fn gather<S: Simd>(
    source: &Source,
    rows: Range<usize>,
    columns: Range<usize>,
    dst: *mut f32,
    dst_stride: usize,
) {
    match source {
        Source::Matrix { data, stride } => {
            if rows.is_empty() || columns.is_empty() {
                return;
            }
            assert!((rows.end - 1) * stride + columns.end <= data.len(), "block beyond the matrix");
            for (i, r) in rows.enumerate() {
                // SAFETY: the assertion covers the source, the caller the destination.
                unsafe {
                    let from = data.as_ptr().add(r * stride + columns.start);
                    copy::<S>(from, dst.add(i * dst_stride), columns.len());
                }
            }
        }
        // SAFETY: passed on.
        Source::Patches(p) => unsafe { gather_patches::<S>(p, rows, columns, dst, dst_stride) },
    }
}

#[inline(always)]
unsafe fn gather_patches<S: Simd>(
    p: &Patches,
    rows: Range<usize>,
    columns: Range<usize>,
    dst: *mut f32,
    dst_stride: usize,
) {
    let images = if p.h * p.w == 0 { 0 } else { p.x.len() / (p.h * p.w * p.pixel) };
    assert!(rows.end <= images * p.out_h * p.out_w, "rows beyond the images");
    assert!(columns.end <= p.kh * p.kw * p.channels && p.first + p.channels <= p.pixel);
    if rows.is_empty() {
        return;
    }
    // All channels: the kw pixels of a line are one run. A group: one run per pixel.
    let dense = p.channels == p.pixel;
    let run = if dense { p.kw * p.channels } else { p.channels };
    let (image0, rest) = (rows.start / (p.out_h * p.out_w), rows.start % (p.out_h * p.out_w));
    let (oy0, ox0) = (rest / p.out_w, rest % p.out_w);
    let mut column = columns.start;
    while column < columns.end {
        let index = column / run;
        let (ky, kx) = if dense { (index, 0) } else { (index / p.kw, index % p.kw) };
        let from = column - index * run;
        let to = (columns.end - index * run).min(run);
        // SAFETY: `columns` is within the caller's promise.
        let mut out = unsafe { dst.add(column - columns.start) };
        let (mut image, mut oy, mut ox) = (image0, oy0, ox0);
        for _ in rows.clone() {
            let iy = (oy * p.stride + ky) as isize - p.top;
            let ix = (ox * p.stride + kx) as isize - p.left;
            // The part lo..hi of the run 0..`run` that lies inside the line.
            let (lo, hi) = if iy < 0 || iy >= p.h as isize {
                (to, to)
            } else {
                let lo = (-ix).max(0) as usize * p.pixel;
                let hi = (p.w as isize - ix).max(0) as usize * p.pixel;
                let (lo, hi) = if dense { (lo, hi) } else { (if lo > 0 { run } else { 0 }, hi) };
                (lo.clamp(from, to), hi.clamp(from, to))
            };
            let hi = hi.max(lo);
            // SAFETY: lo..hi are floats of line iy of the image, by the clipping above (a non-dense run
            // is one pixel, inside or outside as a whole); from..to lies in the caller's destination.
            unsafe {
                if lo > from {
                    zero::<S>(out, lo - from);
                }
                if hi > lo {
                    let line = (image * p.h + iy as usize) * p.w * p.pixel;
                    let start = line as isize + ix * p.pixel as isize + (p.first + lo) as isize;
                    copy::<S>(p.x.as_ptr().offset(start), out.add(lo - from), hi - lo);
                }
                if to > hi {
                    zero::<S>(out.add(hi - from), to - hi);
                }
                out = out.wrapping_add(dst_stride);
            }
            ox += 1;
            if ox == p.out_w {
                ox = 0;
                oy += 1;
                if oy == p.out_h {
                    oy = 0;
                    image += 1;
                }
            }
        }
        column = index * run + to;
    }
}

/// `len` floats; the last vector overlaps its predecessor, so that nothing beyond is touched.
#[inline(always)]
unsafe fn copy<S: Simd>(from: *const f32, to: *mut f32, len: usize) {
    // SAFETY: every access lies in 0..len of both, which the caller vouches for.
    unsafe {
        if len < S::LANES {
            S::store_first(to, S::load_first(from, len), len);
            return;
        }
        let mut i = 0;
        while i + S::LANES <= len {
            S::store(to.add(i), S::load(from.add(i)));
            i += S::LANES;
        }
        if i < len {
            let last = len - S::LANES;
            S::store(to.add(last), S::load(from.add(last)));
        }
    }
}

#[inline(always)]
unsafe fn zero<S: Simd>(to: *mut f32, len: usize) {
    // SAFETY: as in `copy`.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= len {
            S::store(to.add(i), S::splat(0.0));
            i += S::LANES;
        }
        if i < len {
            S::store_first(to.add(i), S::splat(0.0), len - i);
        }
    }
}

/// Where the panels of a k × n matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panels {
    pub k: usize,
    pub n: usize,
    lanes: usize,
    wide: usize,
}

impl Panels {
    pub fn new(isa: Isa, k: usize, n: usize) -> Self {
        Self { k, n, lanes: isa.lanes(), wide: isa.lanes() * tile_vectors(isa) }
    }

    pub fn count(&self) -> usize {
        self.n.div_ceil(self.wide)
    }

    /// First column, valid columns and width with padding of a panel.
    pub fn columns(&self, panel: usize) -> (usize, usize, usize) {
        let first = panel * self.wide;
        let valid = (self.n - first).min(self.wide);
        (first, valid, valid.next_multiple_of(self.lanes))
    }

    /// Offset of a panel from the start, in floats.
    pub fn offset(&self, panel: usize) -> usize {
        panel * self.wide * self.k
    }

    /// Floats of all panels.
    pub fn len(&self) -> usize {
        self.k * self.n.next_multiple_of(self.lanes)
    }

    /// Writes rows `k0..k0 + rows` of one panel, from a matrix whose (row, column) is at
    /// `row·stride + column`, or at `column·stride + row` if `transposed`. Padding columns are zero.
    ///
    /// # Safety
    /// `dst` is the start of all panels, and this panel's part of it is exclusively writable.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn fill(
        &self,
        panel: usize,
        k0: usize,
        rows: usize,
        src: &[f32],
        stride: usize,
        transposed: bool,
        dst: *mut f32,
    ) {
        assert!(k0 + rows <= self.k);
        let (first, valid, width) = self.columns(panel);
        // SAFETY: rows k0..k0+rows of `width` floats each lie inside the panel.
        let out =
            unsafe { std::slice::from_raw_parts_mut(dst.add(self.offset(panel) + k0 * width), rows * width) };
        if transposed {
            // Blocks of 16 rows: the lines of `src` that a block touches stay in cache over its columns.
            for p0 in (0..rows).step_by(16) {
                let p1 = (p0 + 16).min(rows);
                for j in 0..width {
                    if j < valid {
                        let line = &src[(first + j) * stride + p0..(first + j) * stride + p1];
                        for (p, &value) in (p0..p1).zip(line) {
                            out[p * width + j] = value;
                        }
                    } else {
                        for p in p0..p1 {
                            out[p * width + j] = 0.0;
                        }
                    }
                }
            }
        } else {
            for (p, row) in out.chunks_exact_mut(width).enumerate() {
                row[..valid].copy_from_slice(&src[p * stride + first..p * stride + first + valid]);
                row[valid..].fill(0.0);
            }
        }
    }
}
