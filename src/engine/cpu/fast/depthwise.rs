//! Depthwise convolution, NHWC: vectors run over channels, tasks over rows of the output.
//!
//! A strip of 8 output pixels runs through all channels before the next strip begins, so memory sees
//! contiguous rows (with channels outermost it sees one line per pixel, which took 4 times as long at
//! 64×64×144). Strips at the border and rests take fewer pixels and more channels at once, so that there are
//! always several independent sums to hide the FMA's latency. 9 or 25 FMA per output vector against as
//! many loads: bound by the load port.

use std::ops::Range;

use super::buffer::Shared;
use super::epilogue::{Act, Epilogue, act_in_place, act_vector};
use super::geometry::ConvGeometry;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};
use super::threads::Pool;

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
        match l.g.kw {
            3 => line_of::<S, 3>(l),
            5 => line_of::<S, 5>(l),
            _ => line_of::<S, 0>(l),
        }
    }
}

#[inline(always)]
unsafe fn line_of<S: Simd, const KW: usize>(l: &Line) {
    let g = l.g;
    let (kh, kw) = (g.kh, if KW > 0 { KW } else { g.kw });
    let (image, oy) = (l.row / g.oh(), l.row % g.oh());
    let top = (oy * g.stride) as isize - g.pad.top as isize;
    // Taps whose line exists.
    let ky = (-top).clamp(0, kh as isize) as usize..(g.h as isize - top).clamp(0, kh as isize) as usize;
    // Output pixels all of whose columns exist.
    let ow = g.ow();
    let inner_from = g.pad.left.div_ceil(g.stride).min(ow);
    let inner_to = if g.w + g.pad.left >= kw { ((g.w + g.pad.left - kw) / g.stride + 1).min(ow) } else { 0 };
    let inner_to = inner_to.max(inner_from);
    let at = Place { image, top, ky };
    let clipped = |ox: usize| {
        let left = (ox * g.stride) as isize - g.pad.left as isize;
        (-left).clamp(0, kw as isize) as usize..(g.w as isize - left).clamp(0, kw as isize) as usize
    };
    // SAFETY: pixels and lines are clipped to those that exist.
    unsafe {
        for ox in (0..inner_from).chain(inner_to..ow) {
            strip::<S, 1, 8, 0>(l, &at, ox, clipped(ox));
        }
        let mut ox = inner_from;
        while ox + 8 <= inner_to {
            strip::<S, 8, 1, KW>(l, &at, ox, 0..kw);
            ox += 8;
        }
        if ox + 4 <= inner_to {
            strip::<S, 4, 2, KW>(l, &at, ox, 0..kw);
            ox += 4;
        }
        while ox < inner_to {
            strip::<S, 1, 8, KW>(l, &at, ox, 0..kw);
            ox += 1;
        }
    }
}

struct Place {
    image: usize,
    /// Input line of the kernel's first line.
    top: isize,
    /// Taps whose line exists.
    ky: Range<usize>,
}

/// N output pixels from `ox` on, all channels, CB vectors of them at a time; `kx` are the taps whose
/// column exists for all of them. KW, unless 0, is the kernel's width and means that all do.
#[inline(always)]
unsafe fn strip<S: Simd, const N: usize, const CB: usize, const KW: usize>(
    l: &Line,
    at: &Place,
    ox: usize,
    kx: Range<usize>,
) {
    let channels = l.g.cin;
    let mut c = 0;
    // SAFETY: c + lanes ≤ channels; the rest is passed on.
    unsafe {
        while c + CB * S::LANES <= channels {
            pixels::<S, N, CB, true, KW>(l, at, ox, kx.clone(), c, S::LANES);
            c += CB * S::LANES;
        }
        while CB > 1 && c + S::LANES <= channels {
            pixels::<S, N, 1, true, KW>(l, at, ox, kx.clone(), c, S::LANES);
            c += S::LANES;
        }
        if c < channels {
            pixels::<S, N, 1, false, 0>(l, at, ox, kx, c, channels - c);
        }
    }
}

/// N neighbouring output pixels × CB vectors of channels from c on. With FULL all lanes are valid.
#[inline(always)]
unsafe fn pixels<S: Simd, const N: usize, const CB: usize, const FULL: bool, const KW: usize>(
    l: &Line,
    at: &Place,
    ox: usize,
    kx: Range<usize>,
    c: usize,
    lanes: usize,
) {
    let g = l.g;
    // SAFETY: the taps' pixels exist, and lanes are limited to channels that exist.
    unsafe {
        let load = |p: *const f32| if FULL { S::load(p) } else { S::load_first(p, lanes) };
        let mut acc = [[S::splat(0.0); CB]; N];
        if !l.bias.is_null() {
            for j in 0..CB {
                let bias = load(l.bias.add(c + j * S::LANES));
                for sums in &mut acc {
                    sums[j] = bias;
                }
            }
        }
        let step = g.stride * g.cin;
        let (kx, kw) = if KW > 0 { (0..KW, KW) } else { (kx, g.kw) };
        let left = (ox * g.stride) as isize - g.pad.left as isize;
        for y in at.ky.clone() {
            let line = (at.image * g.h) as isize + at.top + y as isize;
            let row =
                l.x.as_ptr().wrapping_offset((line * g.w as isize + left) * g.cin as isize + c as isize);
            let weights = l.w.as_ptr().add(y * kw * g.cin + c);
            for x in kx.clone() {
                let p = row.wrapping_add(x * g.cin);
                for j in 0..CB {
                    let w = load(weights.add(x * g.cin + j * S::LANES));
                    for (i, sums) in acc.iter_mut().enumerate() {
                        sums[j] = S::fma(load(p.wrapping_add(i * step + j * S::LANES)), w, sums[j]);
                    }
                }
            }
        }
        for (i, sums) in acc.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let offset = (ox + i) * g.cout + c + j * S::LANES;
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
                    S::store_first(l.y.add(offset), v, lanes);
                }
            }
        }
    }
}
