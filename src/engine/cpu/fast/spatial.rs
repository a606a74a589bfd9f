//! Pooling and resizing over the pool: a task is an output row, or an image where rows would collide.

use super::split::{chunks, with_isa};
use super::threads::Pool as Threads;
use crate::engine::cpu::reference::spatial::{Tap, taps};
use crate::engine::op::{Pool, Resize, Window};
use crate::engine::shape::Shape;

/// Pixels of a window that lie inside the image along one axis.
fn clip(window: &Window, out: usize, size: usize) -> std::ops::Range<usize> {
    let start = out * window.stride;
    start.saturating_sub(window.pad)..(start + window.size).saturating_sub(window.pad).min(size)
}

pub fn pool(
    threads: &Threads,
    pool: Pool,
    window: &Window,
    (xs, x): (Shape, &[f32]),
    ys: Shape,
    y: &mut [f32],
) {
    let c = ys.c();
    let row = ys.w() * c;
    chunks(threads, y, row, &|start, y| {
        let (n, oh) = (start / row / ys.h(), start / row % ys.h());
        let rows = clip(window, oh, xs.h());
        with_isa(threads.isa(), || {
            for (ow, y) in y.chunks_exact_mut(c).enumerate() {
                let columns = clip(window, ow, xs.w());
                y.fill(if pool == Pool::Max { f32::NEG_INFINITY } else { 0.0 });
                for h in rows.clone() {
                    for w in columns.clone() {
                        let x = &x[((n * xs.h() + h) * xs.w() + w) * c..][..c];
                        match pool {
                            Pool::Max => y.iter_mut().zip(x).for_each(|(y, x)| *y = y.max(*x)),
                            Pool::Avg => y.iter_mut().zip(x).for_each(|(y, x)| *y += x),
                        }
                    }
                }
                if pool == Pool::Avg {
                    let share = 1.0 / (rows.len() * columns.len()) as f32;
                    y.iter_mut().for_each(|y| *y *= share);
                }
            }
        });
    });
}

/// Two taps of the separable filters: (source row, weight) pairs with at most two entries.
#[derive(Clone, Copy)]
struct Pair([Tap; 2]);

fn pair(resize: Resize, from: usize, to: usize, out: usize) -> Pair {
    let mut found = [Tap { source: 0, weight: 0.0 }; 2];
    for (slot, tap) in found.iter_mut().zip(taps(resize, from, to, out)) {
        *slot = tap;
    }
    if found[1].weight == 0.0 {
        found[1].source = found[0].source;
    }
    Pair(found)
}

pub fn resize(threads: &Threads, resize: Resize, (xs, x): (Shape, &[f32]), ys: Shape, y: &mut [f32]) {
    let c = ys.c();
    let row = ys.w() * c;
    chunks(threads, y, row, &|start, y| {
        let (n, oh) = (start / row / ys.h(), start / row % ys.h());
        let at = |h: usize, w: usize| ((n * xs.h() + h) * xs.w() + w) * c;
        with_isa(threads.isa(), || {
            for (ow, y) in y.chunks_exact_mut(c).enumerate() {
                match resize {
                    Resize::Nearest => {
                        let source = |r: &[Tap; 2]| r[0].source;
                        let h = source(&pair(resize, xs.h(), ys.h(), oh).0);
                        let w = source(&pair(resize, xs.w(), ys.w(), ow).0);
                        y.copy_from_slice(&x[at(h, w)..][..c]);
                    }
                    Resize::Area => {
                        y.fill(0.0);
                        for v in taps(resize, xs.h(), ys.h(), oh) {
                            for u in taps(resize, xs.w(), ys.w(), ow) {
                                let (x, weight) = (&x[at(v.source, u.source)..][..c], v.weight * u.weight);
                                y.iter_mut().zip(x).for_each(|(y, x)| *y += x * weight);
                            }
                        }
                    }
                    Resize::Bilinear | Resize::BilinearAligned => {
                        let Pair([top, bottom]) = pair(resize, xs.h(), ys.h(), oh);
                        let Pair([left, right]) = pair(resize, xs.w(), ys.w(), ow);
                        let corner =
                            |v: Tap, u: Tap| (&x[at(v.source, u.source)..][..c], v.weight * u.weight);
                        let (a, wa) = corner(top, left);
                        let (b, wb) = corner(top, right);
                        let (d, wd) = corner(bottom, left);
                        let (e, we) = corner(bottom, right);
                        for i in 0..c {
                            y[i] = a[i] * wa + b[i] * wb + d[i] * wd + e[i] * we;
                        }
                    }
                }
            }
        });
    });
}

pub fn resize_backward(
    threads: &Threads,
    resize: Resize,
    (dys, dy): (Shape, &[f32]),
    dxs: Shape,
    dx: &mut [f32],
) {
    let c = dxs.c();
    let image = dxs.h() * dxs.w() * c;
    chunks(threads, dx, image, &|start, dx| {
        let n = start / image;
        with_isa(threads.isa(), || {
            dx.fill(0.0);
            for oh in 0..dys.h() {
                for v in taps(resize, dxs.h(), dys.h(), oh) {
                    for ow in 0..dys.w() {
                        let dy = &dy[((n * dys.h() + oh) * dys.w() + ow) * c..][..c];
                        for u in taps(resize, dxs.w(), dys.w(), ow) {
                            let weight = v.weight * u.weight;
                            let dx = &mut dx[(v.source * dxs.w() + u.source) * c..][..c];
                            dx.iter_mut().zip(dy).for_each(|(x, d)| *x += d * weight);
                        }
                    }
                }
            }
        });
    });
}

pub fn pool_backward(
    threads: &Threads,
    pool: Pool,
    window: &Window,
    (xs, x): (Shape, &[f32]),
    (dys, dy): (Shape, &[f32]),
    dx: &mut [f32],
) {
    let image = xs.h() * xs.w() * xs.c();
    let dy_image = dys.h() * dys.w() * dys.c();
    chunks(threads, dx, image, &|start, dx| {
        let n = start / image;
        let (x, dy) = (&x[start..][..image], &dy[n * dy_image..][..dy_image]);
        let one = |s: Shape| s.with(0, 1);
        crate::engine::cpu::reference::spatial::pool_backward(pool, window, (one(xs), x), (one(dys), dy), dx);
    });
}
