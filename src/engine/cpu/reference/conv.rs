//! Convolution, its two adjoints, and matrix products.

use crate::engine::op::{Act, Conv};
use crate::engine::shape::Shape;

use super::elementwise::activate;

/// What follows the sum: + bias, + residual, activation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tail<'a> {
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
    pub act: Act,
}

impl Tail<'_> {
    fn finish(&self, y: &mut [f32], channels: usize) {
        for (i, v) in y.iter_mut().enumerate() {
            let bias = self.bias.map_or(0.0, |b| b[i % channels]);
            let residual = self.residual.map_or(0.0, |r| r[i]);
            *v = activate(self.act, *v + bias + residual);
        }
    }
}

/// Calls `f(x index, w index, y index)` for every product of a convolution: the geometry that the three
/// functions below share. `x` is the input's shape, `w` kh×kw×(cin/groups)×cout, `y` the output's.
fn for_each_product(conv: &Conv, x: Shape, w: Shape, y: Shape, mut f: impl FnMut(usize, usize, usize)) {
    let [kh, kw, ci, co] = w.0;
    let per_group = co / conv.groups;
    for n in 0..x.n() {
        for oh in 0..y.h() {
            for ow in 0..y.w() {
                for r in 0..kh {
                    let Some(h) = (oh * conv.stride + r).checked_sub(conv.pad[0]).filter(|h| *h < x.h())
                    else {
                        continue;
                    };
                    for s in 0..kw {
                        let Some(wd) = (ow * conv.stride + s).checked_sub(conv.pad[1]).filter(|v| *v < x.w())
                        else {
                            continue;
                        };
                        let x_at = ((n * x.h() + h) * x.w() + wd) * x.c();
                        let y_at = ((n * y.h() + oh) * y.w() + ow) * co;
                        for i in 0..ci {
                            let w_at = ((r * kw + s) * ci + i) * co;
                            for o in 0..co {
                                f(x_at + o / per_group * ci + i, w_at + o, y_at + o);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `y[n,oh,ow,o] = Σ x[n, oh·s+r−pad, ow·s+q−pad, i]·w[r,q,i,o]`, then the tail.
pub fn conv2d(
    conv: &Conv,
    (xs, x): (Shape, &[f32]),
    (ws, w): (Shape, &[f32]),
    ys: Shape,
    y: &mut [f32],
    tail: Tail,
) {
    y.fill(0.0);
    for_each_product(conv, xs, ws, ys, |i, j, k| y[k] += x[i] * w[j]);
    tail.finish(y, ys.c());
}

/// The adjoint by the input: `dy` has the shape of the convolution's output, `dx` that of its input.
pub fn conv_transpose(
    conv: &Conv,
    (dys, dy): (Shape, &[f32]),
    (ws, w): (Shape, &[f32]),
    dxs: Shape,
    dx: &mut [f32],
    tail: Tail,
) {
    dx.fill(0.0);
    for_each_product(conv, dxs, ws, dys, |i, j, k| dx[i] += dy[k] * w[j]);
    tail.finish(dx, dxs.c());
}

/// The adjoint by the weight.
pub fn conv_backward_weight(
    conv: &Conv,
    (xs, x): (Shape, &[f32]),
    (dys, dy): (Shape, &[f32]),
    dws: Shape,
    dw: &mut [f32],
) {
    let mut sum = vec![0.0f64; dw.len()];
    for_each_product(conv, xs, dws, dys, |i, j, k| sum[j] += f64::from(x[i]) * f64::from(dy[k]));
    for (d, s) in dw.iter_mut().zip(sum) {
        *d = s as f32;
    }
}

/// c = alpha·op(a)·op(b) for every (axis 0, axis 1).
pub fn matmul(
    (a_shape, a): (Shape, &[f32]),
    b: &[f32],
    transpose: (bool, bool),
    alpha: f32,
    c_shape: Shape,
    c: &mut [f32],
) {
    let (m, n) = (c_shape.w(), c_shape.c());
    let k = if transpose.0 { a_shape.w() } else { a_shape.c() };
    for batch in 0..c_shape.n() * c_shape.h() {
        let a = &a[batch * m * k..][..m * k];
        let b = &b[batch * k * n..][..k * n];
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0f64;
                for p in 0..k {
                    let x = if transpose.0 { a[p * m + i] } else { a[i * k + p] };
                    let y = if transpose.1 { b[j * k + p] } else { b[p * n + j] };
                    sum += f64::from(x) * f64::from(y);
                }
                c[batch * m * n + i * n + j] = alpha * sum as f32;
            }
        }
    }
}
