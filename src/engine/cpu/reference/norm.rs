//! Batch, group and layer norm by explicit moments.

use crate::engine::op::{Act, Norm};
use crate::engine::shape::Shape;

use super::elementwise::{activate, for_each};

/// Which (set, number of sets) an element belongs to, and where that set's mean lies in the moments; the
/// variance lies `sets` numbers after it.
struct Sets {
    norm: Norm,
    x: Shape,
}

impl Sets {
    fn mean_at(&self, [n, h, w, c]: [usize; 4]) -> usize {
        match self.norm {
            Norm::Batch => c,
            Norm::Group(groups) => n * 2 * groups + c / (self.x.c() / groups),
            Norm::Layer => (n * self.x.h() * self.x.w() + h * self.x.w() + w) * 2,
        }
    }

    /// Distance from a set's mean to its variance in the moments.
    fn to_variance(&self) -> usize {
        match self.norm {
            Norm::Batch => self.x.c(),
            Norm::Group(groups) => groups,
            Norm::Layer => 1,
        }
    }

    fn size(&self) -> usize {
        match self.norm {
            Norm::Batch => self.x.rows(),
            Norm::Group(groups) => self.x.h() * self.x.w() * (self.x.c() / groups),
            Norm::Layer => self.x.c(),
        }
    }
}

/// mean = Σx/n, variance = Σ(x−mean)²/n over each set.
pub fn moments(norm: Norm, (xs, x): (Shape, &[f32]), out: &mut [f32]) {
    let sets = Sets { norm, x: xs };
    let (gap, count) = (sets.to_variance(), sets.size() as f64);
    let mut sums = vec![0.0f64; out.len()];
    for_each(xs, |i, at| sums[sets.mean_at(at)] += f64::from(x[i]) / count);
    for_each(xs, |i, at| {
        let m = sets.mean_at(at);
        let d = f64::from(x[i]) - sums[m];
        sums[m + gap] += d * d / count;
    });
    for (o, s) in out.iter_mut().zip(sums) {
        *o = s as f32;
    }
}

pub fn normalize(
    norm: Norm,
    eps: f32,
    (xs, x): (Shape, &[f32]),
    moments: &[f32],
    affine: Option<(&[f32], &[f32])>,
    act: Act,
    y: &mut [f32],
) {
    let sets = Sets { norm, x: xs };
    let gap = sets.to_variance();
    for_each(xs, |i, at| {
        let m = sets.mean_at(at);
        let hat = (x[i] - moments[m]) / (moments[m + gap] + eps).sqrt();
        let v = affine.map_or(hat, |(gamma, beta)| hat * gamma[at[3]] + beta[at[3]]);
        y[i] = activate(act, v);
    });
}

/// With g = dy·gamma and x̂ the normalised value: dx = (g − mean(g) − x̂·mean(g·x̂))/√(var+eps) where the
/// moments were taken of x itself, dx = g/√(var+eps) where they are constants.
#[allow(clippy::too_many_arguments)]
pub fn normalize_backward(
    norm: Norm,
    eps: f32,
    through_moments: bool,
    (xs, x): (Shape, &[f32]),
    moments: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    dx: &mut [f32],
) {
    let sets = Sets { norm, x: xs };
    let (gap, count) = (sets.to_variance(), sets.size() as f64);
    let hat = |i: usize, m: usize| (x[i] - moments[m]) / (moments[m + gap] + eps).sqrt();
    let g = |i: usize, c: usize| dy[i] * gamma.map_or(1.0, |gamma| gamma[c]);
    let mut means = vec![0.0f64; moments.len()];
    if through_moments {
        for_each(xs, |i, at| {
            let m = sets.mean_at(at);
            means[m] += f64::from(g(i, at[3])) / count;
            means[m + gap] += f64::from(g(i, at[3]) * hat(i, m)) / count;
        });
    }
    for_each(xs, |i, at| {
        let m = sets.mean_at(at);
        let inner = f64::from(g(i, at[3])) - means[m] - f64::from(hat(i, m)) * means[m + gap];
        dx[i] = (inner / f64::from(moments[m + gap] + eps).sqrt()) as f32;
    });
}

/// Row 0: Σ dy·x̂ per channel, row 1: Σ dy.
pub fn normalize_param_grad(
    norm: Norm,
    eps: f32,
    (xs, x): (Shape, &[f32]),
    moments: &[f32],
    dy: &[f32],
    out: &mut [f32],
) {
    let sets = Sets { norm, x: xs };
    let gap = sets.to_variance();
    let mut sums = vec![0.0f64; 2 * xs.c()];
    for_each(xs, |i, at| {
        let m = sets.mean_at(at);
        let hat = (x[i] - moments[m]) / (moments[m + gap] + eps).sqrt();
        sums[at[3]] += f64::from(dy[i] * hat);
        sums[xs.c() + at[3]] += f64::from(dy[i]);
    });
    for (o, s) in out.iter_mut().zip(sums) {
        *o = s as f32;
    }
}
