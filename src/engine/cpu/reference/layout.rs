//! Moving elements: concatenation, slices, padding, transposition, selection; and filling with numbers.

use crate::engine::op::Distribution;
use crate::engine::philox::{Stream, normal_pair, uniform};
use crate::engine::shape::Shape;

use super::elementwise::for_each;

/// Elements before an axis (as one index) and the run of elements from it on.
fn split(s: Shape, axis: usize) -> (usize, usize) {
    let outer = s.0[..axis].iter().product();
    let inner = s.0[axis..].iter().product();
    (outer, inner)
}

/// Copies `x` into `y` at `start` along `axis`; the rest of `y` stays.
pub fn place(axis: usize, start: usize, (xs, x): (Shape, &[f32]), ys: Shape, y: &mut [f32]) {
    let (outer, run) = split(xs, axis);
    let (_, stride) = split(ys, axis);
    let unit: usize = xs.0[axis + 1..].iter().product();
    for o in 0..outer {
        y[o * stride + start * unit..][..run].copy_from_slice(&x[o * run..][..run]);
    }
}

/// The part of `x` from `start` along `axis` that has the shape of `y`.
pub fn slice(axis: usize, start: usize, (xs, x): (Shape, &[f32]), ys: Shape, y: &mut [f32]) {
    let (outer, run) = split(ys, axis);
    let (_, stride) = split(xs, axis);
    let unit: usize = xs.0[axis + 1..].iter().product();
    for o in 0..outer {
        y[o * run..][..run].copy_from_slice(&x[o * stride + start * unit..][..run]);
    }
}

pub fn transpose(perm: [usize; 4], (xs, x): (Shape, &[f32]), ys: Shape, y: &mut [f32]) {
    let strides = xs.strides();
    for_each(ys, |i, at| {
        let from: usize = (0..4).map(|axis| at[axis] * strides[perm[axis]]).sum();
        y[i] = x[from];
    });
}

/// The k largest of each row, ties by lower index first; a number that is not one counts as the
/// smallest. `order` is scratch of one row.
pub fn top_k(channels: usize, k: usize, keys: &[f32], order: &mut [u32], out: &mut [u32]) {
    for (keys, out) in keys.chunks_exact(channels).zip(out.chunks_exact_mut(k)) {
        for (i, o) in order.iter_mut().enumerate() {
            *o = i as u32;
        }
        let key = |i: &u32| {
            let v = keys[*i as usize];
            if v.is_nan() { f32::NEG_INFINITY } else { v }
        };
        order.sort_unstable_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
        out.copy_from_slice(&order[..k]);
    }
}

/// An index beyond the channels reads the last one: indices come from `top_k` or a checked model file.
pub fn gather((xs, x): (Shape, &[f32]), (is, indices): (Shape, &[u32]), y: &mut [f32]) {
    let (pixels, k) = (xs.h() * xs.w(), is.c());
    for n in 0..xs.n() {
        let row = if is.n() == 1 { 0 } else { n };
        let chosen = &indices[row * k..][..k];
        for p in 0..pixels {
            let at = n * pixels + p;
            for (y, i) in y[at * k..][..k].iter_mut().zip(chosen) {
                *y = x[at * xs.c() + (*i as usize).min(xs.c() - 1)];
            }
        }
    }
}

pub fn gather_backward(
    (is, indices): (Shape, &[u32]),
    (dys, dy): (Shape, &[f32]),
    channels: usize,
    dx: &mut [f32],
) {
    dx.fill(0.0);
    let (pixels, k) = (dys.h() * dys.w(), is.c());
    for n in 0..dys.n() {
        let row = if is.n() == 1 { 0 } else { n };
        let chosen = &indices[row * k..][..k];
        for p in 0..pixels {
            let at = n * pixels + p;
            for (d, i) in dy[at * k..][..k].iter().zip(chosen) {
                dx[at * channels + (*i as usize).min(channels - 1)] += d;
            }
        }
    }
}

/// `key`: seed low, seed high, step, first image. Each image of axis 0 is a stream of its own.
pub fn random(distribution: Distribution, purpose: u32, key: &[u32], shape: Shape, y: &mut [f32]) {
    let seed = u64::from(key[0]) | u64::from(key[1]) << 32;
    let per_image = shape.len() / shape.n().max(1);
    for (n, image) in y.chunks_mut(per_image.max(1)).enumerate() {
        let stream = Stream::new(seed, key[2], key[3].wrapping_add(n as u32), purpose);
        for (block, four) in image.chunks_mut(4).enumerate() {
            let [a, b, c, d] = stream.block(block as u32);
            let numbers = match distribution {
                Distribution::Uniform => [uniform(a), uniform(b), uniform(c), uniform(d)],
                Distribution::Normal => {
                    let ([p, q], [r, s]) = (normal_pair(a, b), normal_pair(c, d));
                    [p, q, r, s]
                }
            };
            four.copy_from_slice(&numbers[..four.len()]);
        }
    }
}
