//! Depthwise convolution, NHWC: vectors run over channels, tasks over rows of the output.
//!
//! For a block of channels the kernel's k·k weight vectors are read once per strip of [`STRIP`] output
//! pixels; each input vector is loaded where it is used. 9 or 25 FMA per output vector against as many
//! loads: bound by the load ports and, for large images, by the second-level cache.

use super::buffer::Shared;
use super::epilogue::{Act, Epilogue, act_in_place, act_vector};
use super::geometry::ConvGeometry;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};
use super::threads::Pool;

/// Output pixels computed together: independent sums that hide the FMA's latency.
const STRIP: usize = 4;

/// One row of output.
struct Line<'a> {
    g: &'a ConvGeometry,
    x: &'a [f32],
    w: &'a [f32],
    y: *mut f32,
    residual: *const f32,
    bias: *const f32,
    accumulate: bool,
    act: Act,
    /// Row of all images: image·oh + oy.
    row: usize,
}

/// `w`: `[kh, kw, 1, c]`. Lengths were checked by `conv2d`.
pub(super) fn depthwise(pool: &Pool, g: &ConvGeometry, w: &[f32], x: &[f32], y: &mut [f32], e: &Epilogue) {
    let isa = pool.isa();
    let rows = g.n * g.oh();
    let row_len = g.ow() * g.cout;
    // About 8000 vector operations a task, at least one row.
    let work = row_len * g.kh * g.kw / 16;
    let per_task = (8000 / work.max(1)).clamp(1, rows.div_ceil(2 * pool.threads()).max(1));
    let out = Shared::new(y);
    let (bias, residual) = (Shared::from_const(e.bias), Shared::from_const(e.residual));
    pool.run(rows.div_ceil(per_task), &|task| {
        for row in task * per_task..((task + 1) * per_task).min(rows) {
            let offset = row * row_len;
            let y = out.ptr().wrapping_add(offset);
            let line = Line {
                g,
                x,
                w,
                y,
                residual: residual.offset(offset),
                bias: bias.ptr(),
                accumulate: e.accumulate,
                act: e.act.in_register(),
                row,
            };
            // SAFETY: lengths follow from the geometry; every row of y belongs to one task.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => line_avx512(&line),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => line_avx2(&line),
                    _ => line_body::<Portable>(&line),
                }
                if e.act.needs_pass() {
                    act_in_place(isa, e.act, std::slice::from_raw_parts_mut(y, row_len));
                }
            }
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn line_avx512(line: &Line) {
    // SAFETY: passed on.
    unsafe { line_body::<Avx512>(line) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn line_avx2(line: &Line) {
    // SAFETY: passed on.
    unsafe { line_body::<Avx2>(line) }
}

#[inline(always)]
unsafe fn line_body<S: Simd>(l: &Line) {
    // SAFETY: passed on. The common kernels get loops of constant length.
    unsafe {
        match (l.g.kh, l.g.kw) {
            (3, 3) => line_of::<S, 3, 3>(l),
            (5, 5) => line_of::<S, 5, 5>(l),
            _ => line_of::<S, 0, 0>(l),
        }
    }
}

#[inline(always)]
unsafe fn line_of<S: Simd, const KH: usize, const KW: usize>(l: &Line) {
    let g = l.g;
    let (kh, kw) = if KH > 0 { (KH, KW) } else { (g.kh, g.kw) };
    let (image, oy) = (l.row / g.oh(), l.row % g.oh());
    let top = (oy * g.stride) as isize - g.pad.top as isize;
    // Taps whose line exists.
    let ky = (-top).clamp(0, kh as isize) as usize..(g.h as isize - top).clamp(0, kh as isize) as usize;
    // Output pixels all of whose columns exist.
    let ow = g.ow();
    let inner_from = g.pad.left.div_ceil(g.stride).min(ow);
    let inner_to = if g.w + g.pad.left >= kw { ((g.w + g.pad.left - kw) / g.stride + 1).min(ow) } else { 0 };
    let inner_to = inner_to.max(inner_from);
    let mut c = 0;
    while c < g.cin {
        let lanes = (g.cin - c).min(S::LANES);
        // SAFETY: c + lanes ≤ channels; pixels and lines are clipped to those that exist.
        unsafe {
            let at = Place { image, top, c, lanes };
            for ox in (0..inner_from).chain(inner_to..ow) {
                let left = (ox * g.stride) as isize - g.pad.left as isize;
                let kx = (-left).clamp(0, kw as isize) as usize
                    ..(g.w as isize - left).clamp(0, kw as isize) as usize;
                pixels::<S, 1, false, 0, 0>(l, &at, ox, ky.clone(), kx);
            }
            let mut ox = inner_from;
            if lanes == S::LANES && ky.len() == kh && KH > 0 {
                while ox + STRIP <= inner_to {
                    pixels::<S, STRIP, true, KH, KW>(l, &at, ox, 0..kh, 0..kw);
                    ox += STRIP;
                }
            }
            while ox + STRIP <= inner_to {
                pixels::<S, STRIP, false, 0, 0>(l, &at, ox, ky.clone(), 0..kw);
                ox += STRIP;
            }
            while ox < inner_to {
                pixels::<S, 1, false, 0, 0>(l, &at, ox, ky.clone(), 0..kw);
                ox += 1;
            }
        }
        c += S::LANES;
    }
}

struct Place {
    image: usize,
    /// Input line of the kernel's first line.
    top: isize,
    c: usize,
    lanes: usize,
}

/// N neighbouring output pixels from `ox` on, over the taps given. With FULL all lanes are valid and the
/// kernel is KH×KW.
#[inline(always)]
unsafe fn pixels<S: Simd, const N: usize, const FULL: bool, const KH: usize, const KW: usize>(
    l: &Line,
    at: &Place,
    ox: usize,
    ky: std::ops::Range<usize>,
    kx: std::ops::Range<usize>,
) {
    let g = l.g;
    // SAFETY: the taps' pixels exist, and lanes are limited to channels that exist.
    unsafe {
        let load = |p: *const f32| if FULL { S::load(p) } else { S::load_first(p, at.lanes) };
        let start = if l.bias.is_null() { S::splat(0.0) } else { load(l.bias.add(at.c)) };
        let mut acc = [start; N];
        let step = g.stride * g.cin;
        let (ky, kx, kw) = if FULL { (0..KH, 0..KW, KW) } else { (ky, kx, g.kw) };
        let left = (ox * g.stride) as isize - g.pad.left as isize;
        for y in ky {
            let line = (at.image * g.h) as isize + at.top + y as isize;
            let row = l.x.as_ptr().offset((line * g.w as isize + left) * g.cin as isize + at.c as isize);
            for x in kx.clone() {
                let w = load(l.w.as_ptr().add((y * kw + x) * g.cin + at.c));
                let p = row.wrapping_add(x * g.cin);
                for (i, sum) in acc.iter_mut().enumerate() {
                    *sum = S::fma(load(p.add(i * step)), w, *sum);
                }
            }
        }
        for (i, &sum) in acc.iter().enumerate() {
            let offset = (ox + i) * g.cout + at.c;
            let mut v = sum;
            if l.accumulate {
                v = S::add(v, load(l.y.add(offset)));
            }
            if !l.residual.is_null() {
                v = S::add(v, load(l.residual.add(offset)));
            }
            let v = act_vector::<S>(l.act, v);
            if FULL {
                S::store(l.y.add(offset), v);
            } else {
                S::store_first(l.y.add(offset), v, at.lanes);
            }
        }
    }
}
