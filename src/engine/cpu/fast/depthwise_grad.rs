//! Gradients of the depthwise convolution: plain loops, channels innermost, so that the compiler
//! vectorises them. The depthwise nets here are frozen backbones; nothing trains through them in a hurry.

use super::buffer::Shared;
use super::epilogue::{Epilogue, act_in_place};
use super::geometry::ConvGeometry;
use super::threads::Pool;

/// Tasks are rows of dx, each gathered from the rows of dy that saw it.
pub(super) fn depthwise_backward_input(
    pool: &Pool,
    g: &ConvGeometry,
    w: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    e: &Epilogue,
) {
    let c = g.cin;
    let row_len = g.w * c;
    let out = Shared::new(dx);
    pool.run(g.n * g.h, &|row| {
        let (image, iy) = (row / g.h, row % g.h);
        // SAFETY: each task has its own row of dx.
        let out = unsafe { std::slice::from_raw_parts_mut(out.ptr().add(row * row_len), row_len) };
        if !e.accumulate {
            out.fill(0.0);
        }
        for ky in 0..g.kh {
            let Some(up) = (iy + g.pad.top).checked_sub(ky) else { continue };
            let oy = up / g.stride;
            if !up.is_multiple_of(g.stride) || oy >= g.oh() {
                continue;
            }
            for ox in 0..g.ow() {
                let dy = &dy[((image * g.oh() + oy) * g.ow() + ox) * c..][..c];
                for kx in 0..g.kw {
                    let Some(ix) = (ox * g.stride + kx).checked_sub(g.pad.left).filter(|&ix| ix < g.w) else {
                        continue;
                    };
                    let w = &w[(ky * g.kw + kx) * c..][..c];
                    let dx = &mut out[ix * c..][..c];
                    for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
                        *dx += dy * w;
                    }
                }
            }
        }
        if let Some(bias) = e.bias {
            for pixel in out.chunks_exact_mut(c) {
                pixel.iter_mut().zip(bias).for_each(|(x, &b)| *x += b);
            }
        }
        if let Some(residual) = e.residual {
            out.iter_mut().zip(&residual[row * row_len..]).for_each(|(x, &r)| *x += r);
        }
        act_in_place(pool.isa(), e.act, out);
    });
}

/// Tasks are taps, each summing over all pixels in their order.
pub(super) fn depthwise_backward_weight(
    pool: &Pool,
    g: &ConvGeometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    accumulate: bool,
) {
    let c = g.cin;
    let out = Shared::new(dw);
    pool.run(g.kh * g.kw, &|tap| {
        let (ky, kx) = (tap / g.kw, tap % g.kw);
        // SAFETY: each task has its own tap of dw.
        let dw = unsafe { std::slice::from_raw_parts_mut(out.ptr().add(tap * c), c) };
        if !accumulate {
            dw.fill(0.0);
        }
        for line in 0..g.n * g.oh() {
            let (image, oy) = (line / g.oh(), line % g.oh());
            let Some(iy) = (oy * g.stride + ky).checked_sub(g.pad.top).filter(|&iy| iy < g.h) else {
                continue;
            };
            for ox in 0..g.ow() {
                let Some(ix) = (ox * g.stride + kx).checked_sub(g.pad.left).filter(|&ix| ix < g.w) else {
                    continue;
                };
                let x = &x[((image * g.h + iy) * g.w + ix) * c..][..c];
                let dy = &dy[(line * g.ow() + ox) * c..][..c];
                for ((dw, &x), &dy) in dw.iter_mut().zip(x).zip(dy) {
                    *dw += x * dy;
                }
            }
        }
    });
}
