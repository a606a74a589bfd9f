//! Batch, group and layer norm over the pool.
//!
//! A norm's sets are cut into segments of rows (batch: all rows; group: the rows of an image; layer: each
//! row alone). Sums are taken per segment and channel first, groups of channels joined after, so all
//! three share their passes over memory.

use super::epilogue::exp;
use super::split::{chunks, with_isa};
use super::threads::Pool;
use crate::engine::op::{Act, Norm};
use crate::engine::shape::Shape;

/// Rows of one partial sum: see `pointwise::SUM_ROWS`.
const SUM_ROWS: usize = 256;

#[derive(Clone, Copy)]
struct Cut {
    segments: usize,
    rows: usize,
    c: usize,
    groups: usize,
    parts: usize,
}

fn cut(norm: Norm, x: Shape) -> Cut {
    let (segments, groups) = match norm {
        Norm::Batch => (1, x.c()),
        Norm::Group(groups) => (x.n(), groups),
        Norm::Layer => (x.rows(), 1),
    };
    let rows = x.rows() / segments.max(1);
    Cut { segments, rows, c: x.c(), groups, parts: rows.div_ceil(SUM_ROWS) }
}

impl Cut {
    fn mean(&self, moments: &[f32], segment: usize, channel: usize) -> f32 {
        moments[segment * 2 * self.groups + channel / (self.c / self.groups)]
    }

    fn variance(&self, moments: &[f32], segment: usize, channel: usize) -> f32 {
        moments[(segment * 2 + 1) * self.groups + channel / (self.c / self.groups)]
    }

    /// Rows of `x` of one partial sum.
    fn part<'a>(&self, x: &'a [f32], task: usize) -> (usize, &'a [f32]) {
        let (segment, part) = (task / self.parts, task % self.parts);
        let first = segment * self.rows + part * SUM_ROWS;
        let last = ((segment + 1) * self.rows).min(first + SUM_ROWS);
        (segment, &x[first * self.c..last * self.c])
    }

    fn size(&self) -> f64 {
        (self.rows * (self.c / self.groups)) as f64
    }
}

/// Floats of scratch for every function here.
pub fn scratch(norm: Norm, x: Shape) -> usize {
    let cut = cut(norm, x);
    2 * cut.segments * cut.parts * cut.c + 3 * cut.segments * cut.c
}

pub fn moments(pool: &Pool, norm: Norm, (xs, x): (Shape, &[f32]), out: &mut [f32], scratch: &mut [f32]) {
    let cut = cut(norm, xs);
    let (c, groups) = (cut.c, cut.groups);
    let partial = &mut scratch[..cut.segments * cut.parts * c];
    chunks(pool, partial, c, &|start, sums| {
        let (_, x) = cut.part(x, start / c);
        with_isa(pool.isa(), || {
            sums.fill(0.0);
            x.chunks_exact(c).for_each(|x| sums.iter_mut().zip(x).for_each(|(s, x)| *s += x));
        });
    });
    join(cut, partial, out, 0);
    let means = &*out;
    chunks(pool, partial, c, &|start, sums| {
        let (segment, x) = cut.part(x, start / c);
        let (mean, per) = (&means[segment * 2 * groups..][..groups], c / groups);
        with_isa(pool.isa(), || {
            sums.fill(0.0);
            if per == 1 {
                for x in x.chunks_exact(c) {
                    sums.iter_mut().zip(x).zip(mean).for_each(|((s, x), m)| *s += (x - m) * (x - m));
                }
                return;
            }
            for x in x.chunks_exact(c) {
                for (g, m) in mean.iter().enumerate() {
                    let (s, x) = (&mut sums[g * per..][..per], &x[g * per..][..per]);
                    s.iter_mut().zip(x).for_each(|(s, x)| *s += (x - m) * (x - m));
                }
            }
        });
    });
    join(cut, partial, out, 1);
}

/// Sums partial sums per group, divides by the set's size, and writes row `row` of the moments.
fn join(cut: Cut, partial: &[f32], out: &mut [f32], row: usize) {
    let per = cut.c / cut.groups;
    for segment in 0..cut.segments {
        let partial = &partial[segment * cut.parts * cut.c..][..cut.parts * cut.c];
        for g in 0..cut.groups {
            let sum: f64 = (0..cut.parts)
                .flat_map(|p| &partial[p * cut.c + g * per..][..per])
                .map(|v| f64::from(*v))
                .sum();
            out[(segment * 2 + row) * cut.groups + g] = (sum / cut.size()) as f32;
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub fn normalize(
    pool: &Pool,
    norm: Norm,
    eps: f32,
    (xs, x): (Shape, &[f32]),
    moments: &[f32],
    affine: Option<(&[f32], &[f32])>,
    act: Act,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    let cut = cut(norm, xs);
    let c = cut.c;
    let (scale, shift) = scratch[..2 * cut.segments * c].split_at_mut(cut.segments * c);
    for segment in 0..cut.segments {
        for i in 0..c {
            let (gamma, beta) = affine.map_or((1.0, 0.0), |(g, b)| (g[i], b[i]));
            let s = gamma / (cut.variance(moments, segment, i) + eps).sqrt();
            scale[segment * c + i] = s;
            shift[segment * c + i] = beta - cut.mean(moments, segment, i) * s;
        }
    }
    let (scale, shift) = (&*scale, &*shift);
    chunks(pool, y, 64 * c, &|start, y| {
        let x = &x[start..][..y.len()];
        with_isa(pool.isa(), || {
            for (r, (y, x)) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                let segment = (start / c + r) / cut.rows;
                let (a, b) = (&scale[segment * c..][..c], &shift[segment * c..][..c]);
                let each = y.iter_mut().zip(x).zip(a).zip(b);
                match act {
                    Act::None => each.for_each(|(((y, x), a), b)| *y = x * a + b),
                    Act::Relu => each.for_each(|(((y, x), a), b)| *y = (x * a + b).max(0.0)),
                    Act::Relu6 => each.for_each(|(((y, x), a), b)| *y = (x * a + b).clamp(0.0, 6.0)),
                    Act::Silu => each.for_each(|(((y, x), a), b)| {
                        let v = x * a + b;
                        *y = v / (1.0 + exp(-v));
                    }),
                }
            }
        });
    });
}

/// Per segment and channel: Σ dy and Σ dy·(x − mean), joined over parts into the first two thirds of the
/// returned scratch.
fn gradient_sums<'a>(
    pool: &Pool,
    cut: Cut,
    x: &[f32],
    moments: &[f32],
    dy: &[f32],
    scratch: &'a mut [f32],
) -> (&'a mut [f32], &'a mut [f32]) {
    let c = cut.c;
    let (sums, rest) = scratch.split_at_mut(2 * cut.segments * c);
    let (means, partial) = rest.split_at_mut(cut.segments * c);
    for segment in 0..cut.segments {
        for i in 0..c {
            means[segment * c + i] = cut.mean(moments, segment, i);
        }
    }
    let means = &*means;
    let partial = &mut partial[..2 * cut.segments * cut.parts * c];
    chunks(pool, partial, 2 * c, &|start, both| {
        let task = start / (2 * c);
        let ((segment, x), (_, dy)) = (cut.part(x, task), cut.part(dy, task));
        let mean = &means[segment * c..][..c];
        let (a, b) = both.split_at_mut(c);
        with_isa(pool.isa(), || {
            a.fill(0.0);
            b.fill(0.0);
            for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
                a.iter_mut().zip(dy).for_each(|(a, d)| *a += d);
                b.iter_mut().zip(dy).zip(x).zip(mean).for_each(|(((b, d), x), m)| *b += d * (x - m));
            }
        });
    });
    for segment in 0..cut.segments {
        for row in 0..2 {
            for i in 0..c {
                let at = |p: usize| (segment * cut.parts + p) * 2 * c + row * c + i;
                let sum: f64 = (0..cut.parts).map(|p| f64::from(partial[at(p)])).sum();
                sums[(row * cut.segments + segment) * c + i] = sum as f32;
            }
        }
    }
    sums.split_at_mut(cut.segments * c)
}

/// dx = a·dy + b·x + d with per-segment, per-channel a, b, d: the reference's formula with x̂ written out.
#[allow(clippy::too_many_arguments)]
pub fn normalize_backward(
    pool: &Pool,
    norm: Norm,
    eps: f32,
    through_moments: bool,
    (xs, x): (Shape, &[f32]),
    moments: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    dx: &mut [f32],
    scratch: &mut [f32],
) {
    let cut = cut(norm, xs);
    let (c, per) = (cut.c, cut.c / cut.groups);
    let gamma_of = |i: usize| gamma.map_or(1.0, |g| g[i]);
    if through_moments {
        let (sum_dy, sum_dyx) = gradient_sums(pool, cut, x, moments, dy, scratch);
        for segment in 0..cut.segments {
            for g in 0..cut.groups {
                let channels = g * per..(g + 1) * per;
                let of = |sums: &[f32]| -> f64 {
                    channels.clone().map(|i| f64::from(gamma_of(i) * sums[segment * c + i])).sum::<f64>()
                        / cut.size()
                };
                let (m1, m2) = (of(sum_dy), of(sum_dyx));
                let variance = f64::from(cut.variance(moments, segment, g * per) + eps);
                let mean = f64::from(cut.mean(moments, segment, g * per));
                let rstd = 1.0 / variance.sqrt();
                // x̂·mean(g·x̂) = (x − mean)·rstd²·m2
                let b = -rstd * rstd * rstd * m2;
                let d = -rstd * m1 - b * mean;
                for i in channels {
                    sum_dy[segment * c + i] = b as f32;
                    sum_dyx[segment * c + i] = d as f32;
                }
            }
        }
    } else {
        scratch[..2 * cut.segments * c].fill(0.0);
    }
    let (b, rest) = scratch.split_at_mut(cut.segments * c);
    let (d, rest) = rest.split_at_mut(cut.segments * c);
    let a = &mut rest[..cut.segments * c];
    for segment in 0..cut.segments {
        for i in 0..c {
            a[segment * c + i] = gamma_of(i) / (cut.variance(moments, segment, i) + eps).sqrt();
        }
    }
    let (a, b, d) = (&*a, &*b, &*d);
    chunks(pool, dx, 64 * c, &|start, dx| {
        let (x, dy) = (&x[start..][..dx.len()], &dy[start..][..dx.len()]);
        with_isa(pool.isa(), || {
            let rows = dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c));
            for (r, ((dx, x), dy)) in rows.enumerate() {
                let at = (start / c + r) / cut.rows * c;
                let (a, b, d) = (&a[at..][..c], &b[at..][..c], &d[at..][..c]);
                for i in 0..c {
                    dx[i] = dy[i] * a[i] + x[i] * b[i] + d[i];
                }
            }
        });
    });
}

#[allow(clippy::too_many_arguments)]
pub fn normalize_param_grad(
    pool: &Pool,
    norm: Norm,
    eps: f32,
    (xs, x): (Shape, &[f32]),
    moments: &[f32],
    dy: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let cut = cut(norm, xs);
    let c = cut.c;
    let (sum_dy, sum_dyx) = gradient_sums(pool, cut, x, moments, dy, scratch);
    for i in 0..c {
        let (mut gamma, mut beta) = (0.0f64, 0.0f64);
        for segment in 0..cut.segments {
            let rstd = 1.0 / f64::from(cut.variance(moments, segment, i) + eps).sqrt();
            gamma += f64::from(sum_dyx[segment * c + i]) * rstd;
            beta += f64::from(sum_dy[segment * c + i]);
        }
        out[i] = gamma as f32;
        out[c + i] = beta as f32;
    }
}
