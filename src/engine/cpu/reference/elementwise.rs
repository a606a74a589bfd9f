//! Pointwise operations, reductions and stretching.

use crate::engine::op::{Act, Binary, Reduce, Unary};
use crate::engine::shape::Shape;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub fn activate(act: Act, x: f32) -> f32 {
    match act {
        Act::None => x,
        Act::Relu => x.max(0.0),
        Act::Relu6 => x.clamp(0.0, 6.0),
        Act::Silu => x * sigmoid(x),
    }
}

pub fn value(unary: Unary, x: f32) -> f32 {
    match unary {
        Unary::Relu => x.max(0.0),
        Unary::Relu6 => x.clamp(0.0, 6.0),
        Unary::Silu => x * sigmoid(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::QuickGelu => x * sigmoid(1.702 * x),
        Unary::Tanh => x.tanh(),
        Unary::Exp => x.exp(),
        Unary::Log1p => x.ln_1p(),
        Unary::Square => x * x,
        Unary::Sqrt => x.sqrt(),
        Unary::Affine { factor, offset } => factor * x + offset,
        Unary::Clamp { lo, hi } => x.max(lo).min(hi),
    }
}

/// f′(x). At the corners of ReLU, ReLU6 and clamp the gradient is 0.
pub fn derivative(unary: Unary, x: f32) -> f32 {
    let step = |inside: bool| if inside { 1.0 } else { 0.0 };
    match unary {
        Unary::Relu => step(x > 0.0),
        Unary::Relu6 => step(x > 0.0 && x < 6.0),
        Unary::Silu => {
            let s = sigmoid(x);
            s * (1.0 + x * (1.0 - s))
        }
        Unary::Sigmoid => {
            let s = sigmoid(x);
            s * (1.0 - s)
        }
        Unary::QuickGelu => {
            let s = sigmoid(1.702 * x);
            s * (1.0 + 1.702 * x * (1.0 - s))
        }
        Unary::Tanh => 1.0 - x.tanh() * x.tanh(),
        Unary::Exp => x.exp(),
        Unary::Log1p => 1.0 / (1.0 + x),
        Unary::Square => 2.0 * x,
        Unary::Sqrt => 0.5 / x.sqrt(),
        Unary::Affine { factor, .. } => factor,
        Unary::Clamp { lo, hi } => step(x > lo && x < hi),
    }
}

pub fn unary(unary: Unary, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = value(unary, *x);
    }
}

pub fn unary_backward(unary: Unary, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * derivative(unary, *x);
    }
}

pub fn combine(binary: Binary, a: f32, b: f32) -> f32 {
    match binary {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
    }
}

/// Strides of a tensor of shape `from` read at the positions of `to`: 0 along stretched axes.
fn stretched(from: Shape, to: Shape) -> [usize; 4] {
    let strides = from.strides();
    std::array::from_fn(|axis| if from.0[axis] == 1 && to.0[axis] != 1 { 0 } else { strides[axis] })
}

/// Calls `f(linear index)` with the four coordinates of every element.
pub fn for_each(shape: Shape, mut f: impl FnMut(usize, [usize; 4])) {
    let mut i = 0;
    for n in 0..shape.n() {
        for h in 0..shape.h() {
            for w in 0..shape.w() {
                for c in 0..shape.c() {
                    f(i, [n, h, w, c]);
                    i += 1;
                }
            }
        }
    }
}

fn offset(at: [usize; 4], strides: [usize; 4]) -> usize {
    at.iter().zip(strides).map(|(i, s)| i * s).sum()
}

pub fn binary(
    binary: Binary,
    (a_shape, a): (Shape, &[f32]),
    (b_shape, b): (Shape, &[f32]),
    to: Shape,
    y: &mut [f32],
) {
    let (sa, sb) = (stretched(a_shape, to), stretched(b_shape, to));
    for_each(to, |i, at| y[i] = combine(binary, a[offset(at, sa)], b[offset(at, sb)]));
}

pub fn broadcast((xs, x): (Shape, &[f32]), to: Shape, y: &mut [f32]) {
    let strides = stretched(xs, to);
    for_each(to, |i, at| y[i] = x[offset(at, strides)]);
}

pub fn reduce(reduce: Reduce, (xs, x): (Shape, &[f32]), to: Shape, y: &mut [f32]) {
    let strides = stretched(to, xs);
    let start = match reduce {
        Reduce::Sum | Reduce::Mean => 0.0,
        Reduce::Max => f64::NEG_INFINITY,
        Reduce::Min => f64::INFINITY,
    };
    let mut sums = vec![start; to.len()];
    for_each(xs, |i, at| {
        let sum = &mut sums[offset(at, strides)];
        let v = f64::from(x[i]);
        match reduce {
            Reduce::Sum | Reduce::Mean => *sum += v,
            Reduce::Max => *sum = sum.max(v),
            Reduce::Min => *sum = sum.min(v),
        }
    });
    let count = if reduce == Reduce::Mean { (xs.len() / to.len()) as f64 } else { 1.0 };
    for (y, sum) in y.iter_mut().zip(sums) {
        *y = (sum / count) as f32;
    }
}

/// Adds Σx² to `sum`.
pub fn add_squares(x: &[f32], sum: &mut f64) {
    *sum += x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
}
