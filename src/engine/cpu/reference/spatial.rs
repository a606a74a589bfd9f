//! Pooling and resizing.

use crate::engine::op::{Pool, Resize, Window};
use crate::engine::shape::Shape;

fn at(s: Shape, n: usize, h: usize, w: usize) -> usize {
    ((n * s.h() + h) * s.w() + w) * s.c()
}

/// The part of a window that lies inside the image: first row or column, one past the last.
fn clip(window: &Window, out: usize, size: usize) -> (usize, usize) {
    let start = out * window.stride;
    (start.saturating_sub(window.pad), (start + window.size).saturating_sub(window.pad).min(size))
}

pub fn pool(pool: Pool, window: &Window, (xs, x): (Shape, &[f32]), ys: Shape, y: &mut [f32]) {
    for n in 0..ys.n() {
        for oh in 0..ys.h() {
            let (h0, h1) = clip(window, oh, xs.h());
            for ow in 0..ys.w() {
                let (w0, w1) = clip(window, ow, xs.w());
                for c in 0..ys.c() {
                    let inside = (h0..h1).flat_map(|h| (w0..w1).map(move |w| (h, w)));
                    let values = inside.map(|(h, w)| x[at(xs, n, h, w) + c]);
                    y[at(ys, n, oh, ow) + c] = match pool {
                        Pool::Max => values.fold(f32::NEG_INFINITY, f32::max),
                        Pool::Avg => values.sum::<f32>() / ((h1 - h0) * (w1 - w0)) as f32,
                    };
                }
            }
        }
    }
}

/// Max: the gradient goes to the first maximum in row-major order, as PyTorch does.
pub fn pool_backward(
    pool: Pool,
    window: &Window,
    (xs, x): (Shape, &[f32]),
    (dys, dy): (Shape, &[f32]),
    dx: &mut [f32],
) {
    dx.fill(0.0);
    for n in 0..dys.n() {
        for oh in 0..dys.h() {
            let (h0, h1) = clip(window, oh, xs.h());
            for ow in 0..dys.w() {
                let (w0, w1) = clip(window, ow, xs.w());
                for c in 0..dys.c() {
                    let d = dy[at(dys, n, oh, ow) + c];
                    let mut best = at(xs, n, h0, w0) + c;
                    for h in h0..h1 {
                        for w in w0..w1 {
                            let i = at(xs, n, h, w) + c;
                            match pool {
                                Pool::Avg => dx[i] += d / ((h1 - h0) * (w1 - w0)) as f32,
                                Pool::Max if x[i] > x[best] => best = i,
                                Pool::Max => {}
                            }
                        }
                    }
                    if pool == Pool::Max {
                        dx[best] += d;
                    }
                }
            }
        }
    }
}

/// One source pixel's share in a destination pixel along one axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    pub source: usize,
    pub weight: f32,
}

/// The source pixels of destination pixel `out` along an axis of `from` pixels resized to `to`. Nearest
/// and area by whole pixels, bilinear by two taps (the second weighs 0 at the far edge).
pub fn taps(resize: Resize, from: usize, to: usize, out: usize) -> impl Iterator<Item = Tap> {
    let (first, last, weights) = match resize {
        Resize::Nearest => {
            let i = (out * from / to).min(from - 1);
            (i, i, [1.0, 0.0])
        }
        Resize::Bilinear | Resize::BilinearAligned => {
            let src = if resize == Resize::Bilinear {
                ((out as f32 + 0.5) * (from as f32 / to as f32) - 0.5).max(0.0)
            } else if to > 1 {
                out as f32 * ((from - 1) as f32 / (to - 1) as f32)
            } else {
                0.0
            };
            let i = (src as usize).min(from - 1);
            let fraction = (src - i as f32).clamp(0.0, 1.0);
            (i, (i + 1).min(from - 1), [1.0 - fraction, fraction])
        }
        Resize::Area => {
            let (a, b) = (out * from / to, ((out + 1) * from).div_ceil(to));
            (a, b - 1, [1.0 / (b - a) as f32; 2])
        }
    };
    let area = resize == Resize::Area;
    let nearest = resize == Resize::Nearest;
    let count = match resize {
        Resize::Nearest => 1,
        Resize::Area => last - first + 1,
        Resize::Bilinear | Resize::BilinearAligned => 2,
    };
    (0..count).map(move |i| {
        let source = if area {
            first + i
        } else if i == 0 || nearest {
            first
        } else {
            last
        };
        Tap { source, weight: weights[i.min(1)] }
    })
}

pub fn resize(resize: Resize, (xs, x): (Shape, &[f32]), ys: Shape, y: &mut [f32]) {
    y.fill(0.0);
    for_each_tap(resize, xs, ys, |i, j, weight| {
        for c in 0..xs.c() {
            y[j + c] += x[i + c] * weight;
        }
    });
}

/// The adjoint: `dxs` is the forward input's shape.
pub fn resize_backward(resize: Resize, (dys, dy): (Shape, &[f32]), dxs: Shape, dx: &mut [f32]) {
    dx.fill(0.0);
    for_each_tap(resize, dxs, dys, |i, j, weight| {
        for c in 0..dxs.c() {
            dx[i + c] += dy[j + c] * weight;
        }
    });
}

/// Calls `f(source pixel, destination pixel, weight)` with offsets of the pixels' first channels.
fn for_each_tap(resize: Resize, from: Shape, to: Shape, mut f: impl FnMut(usize, usize, f32)) {
    for n in 0..to.n() {
        for oh in 0..to.h() {
            for ow in 0..to.w() {
                for v in taps(resize, from.h(), to.h(), oh) {
                    for u in taps(resize, from.w(), to.w(), ow) {
                        f(at(from, n, v.source, u.source), at(to, n, oh, ow), v.weight * u.weight);
                    }
                }
            }
        }
    }
}
