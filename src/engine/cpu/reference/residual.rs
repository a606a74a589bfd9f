//! Residual planes that are ranked and chosen without being stacked.

use super::spatial::{Tap, taps};
use crate::engine::op::Residual;
use crate::engine::shape::Shape;

fn error(log: bool, f: f32, r: f32) -> f32 {
    let e = (f - r) * (f - r);
    if log { e.ln_1p() } else { e }
}

/// The taps of a grid point that weigh anything: source pixel and weight.
fn corners(residual: &Residual, s: Shape, i: usize, j: usize) -> impl Iterator<Item = (usize, f32)> {
    taps(residual.resize, s.h(), residual.h, i).flat_map(move |v: Tap| {
        taps(residual.resize, s.w(), residual.w, j)
            .map(move |u| (v.source * s.w() + u.source, v.weight * u.weight))
    })
}

/// Floats of scratch: the errors of one picture, then a sum for each channel.
pub fn rank_scratch_len(s: Shape) -> usize {
    s.h() * s.w() * s.c() + 2 * s.c()
}

pub fn rank(residual: &Residual, (s, f): (Shape, &[f32]), r: &[f32], y: &mut [f32], scratch: &mut [f32]) {
    let c = s.c();
    let picture = s.h() * s.w() * c;
    let (errors, rest) = scratch.split_at_mut(picture);
    let (point, row) = rest.split_at_mut(c);
    let pictures = f.chunks_exact(picture).zip(r.chunks_exact(picture));
    for ((f, r), y) in pictures.zip(y.chunks_exact_mut(2 * c)) {
        for ((e, f), r) in errors.iter_mut().zip(f).zip(r) {
            *e = error(residual.log, *f, *r);
        }
        let (largest, mean) = y.split_at_mut(c);
        largest.fill(f32::NEG_INFINITY);
        mean.fill(0.0);
        for i in 0..residual.h {
            // A sum of sums of rows: long sums lose what is small.
            row[..c].fill(0.0);
            for j in 0..residual.w {
                point.fill(0.0);
                for (pixel, weight) in corners(residual, s, i, j).filter(|(_, weight)| *weight != 0.0) {
                    for (v, e) in point.iter_mut().zip(&errors[pixel * c..][..c]) {
                        *v += e * weight;
                    }
                }
                for ((v, largest), sum) in point.iter().zip(largest.iter_mut()).zip(row.iter_mut()) {
                    *largest = largest.max(*v);
                    *sum += v;
                }
            }
            for (mean, sum) in mean.iter_mut().zip(row.iter()) {
                *mean += sum;
            }
        }
        let points = (residual.h * residual.w) as f32;
        mean.iter_mut().for_each(|mean| *mean /= points);
    }
}

/// `scale(i)` is features and reconstruction of scale `i` of `scales`.
pub fn gather<'a>(
    residual: &Residual,
    (index_shape, indices): (Shape, &[u32]),
    scales: usize,
    scale: impl Fn(usize) -> (Shape, &'a [f32], &'a [f32]),
    y: &mut [f32],
) {
    let k = index_shape.c();
    let mut first = 0;
    for (s, f, r) in (0..scales).map(scale) {
        let c = s.c();
        for n in 0..s.n() {
            let chosen = &indices[if index_shape.n() == 1 { 0 } else { n * k }..][..k];
            if !chosen.iter().any(|index| (first..first + c).contains(&(*index as usize))) {
                continue;
            }
            for i in 0..residual.h {
                for j in 0..residual.w {
                    let out = &mut y[((n * residual.h + i) * residual.w + j) * k..][..k];
                    for (v, index) in out.iter_mut().zip(chosen) {
                        let index = *index as usize;
                        if !(first..first + c).contains(&index) {
                            continue;
                        }
                        *v = corners(residual, s, i, j)
                            .map(|(pixel, weight)| {
                                let at = (n * s.h() * s.w() + pixel) * c + index - first;
                                error(residual.log, f[at], r[at]) * weight
                            })
                            .sum();
                    }
                }
            }
        }
        first += c;
    }
}
