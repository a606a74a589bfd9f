//! Pointwise operations, stretching and reductions over the pool.

use super::epilogue::exp;
use super::split::{chunks, with_isa};
use super::threads::Pool;
use crate::engine::op::{Binary, Reduce, Unary};
use crate::engine::shape::Shape;

/// Elements of one task: 64 KiB, so that starting a task costs little beside it.
const CHUNK: usize = 16 * 1024;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// ln(1 + x) for x > −1 without branches or calls. With u = 1 + x = m·2^e, m in [√½, √2):
/// ln u = e·ln2 + 2·atanh((m−1)/(m+1)), the series to the 9th power (next term below 4e-9); the rounding
/// of u is undone by the factor x/(u−1) (Goldberg 1991, theorem 4).
#[inline(always)]
fn log1p(x: f32) -> f32 {
    let u = 1.0 + x;
    let bits = u.to_bits().wrapping_sub(0x3f35_04f3);
    let e = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = 2.0 + z * (2.0 / 3.0 + z * (2.0 / 5.0 + z * (2.0 / 7.0 + z * (2.0 / 9.0))));
    let ln = e * std::f32::consts::LN_2 + s * series;
    let d = u - 1.0;
    if d == 0.0 { x } else { ln * (x / d) }
}

#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x));
}

pub fn unary(pool: &Pool, unary: Unary, x: &[f32], y: &mut [f32]) {
    chunks(pool, y, CHUNK, &|start, y| {
        let x = &x[start..][..y.len()];
        with_isa(pool.isa(), || match unary {
            Unary::Relu => map(x, y, |x| if x > 0.0 { x } else { 0.0 }),
            Unary::Relu6 => map(x, y, |x| x.clamp(0.0, 6.0)),
            Unary::Silu => map(x, y, |x| x * sigmoid(x)),
            Unary::Sigmoid => map(x, y, sigmoid),
            Unary::QuickGelu => map(x, y, |x| x * sigmoid(1.702 * x)),
            Unary::Tanh => map(x, y, f32::tanh),
            Unary::Exp => map(x, y, exp),
            Unary::Log1p => map(x, y, log1p),
            Unary::Square => map(x, y, |x| x * x),
            Unary::Sqrt => map(x, y, f32::sqrt),
            Unary::Affine { factor, offset } => map(x, y, |x| factor * x + offset),
            Unary::Clamp { lo, hi } => map(x, y, |x| x.max(lo).min(hi)),
        });
    });
}

#[inline(always)]
fn map2(x: &[f32], d: &[f32], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    y.iter_mut().zip(x).zip(d).for_each(|((y, x), d)| *y = f(*x, *d));
}

pub fn unary_backward(pool: &Pool, unary: Unary, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    chunks(pool, dx, CHUNK, &|start, dx| {
        let (x, dy) = (&x[start..][..dx.len()], &dy[start..][..dx.len()]);
        with_isa(pool.isa(), || match unary {
            Unary::Relu => map2(x, dy, dx, |x, d| if x > 0.0 { d } else { 0.0 }),
            Unary::Relu6 => map2(x, dy, dx, |x, d| if x > 0.0 && x < 6.0 { d } else { 0.0 }),
            Unary::Silu => map2(x, dy, dx, |x, d| {
                let s = sigmoid(x);
                d * (s * (1.0 + x * (1.0 - s)))
            }),
            Unary::Sigmoid => map2(x, dy, dx, |x, d| {
                let s = sigmoid(x);
                d * (s * (1.0 - s))
            }),
            Unary::QuickGelu => map2(x, dy, dx, |x, d| {
                let s = sigmoid(1.702 * x);
                d * (s * (1.0 + 1.702 * x * (1.0 - s)))
            }),
            Unary::Tanh => map2(x, dy, dx, |x, d| d * (1.0 - x.tanh() * x.tanh())),
            Unary::Exp => map2(x, dy, dx, |x, d| d * exp(x)),
            Unary::Log1p => map2(x, dy, dx, |x, d| d / (1.0 + x)),
            Unary::Square => map2(x, dy, dx, |x, d| d * 2.0 * x),
            Unary::Sqrt => map2(x, dy, dx, |x, d| d * 0.5 / x.sqrt()),
            Unary::Affine { factor, .. } => map2(x, dy, dx, |_, d| d * factor),
            Unary::Clamp { lo, hi } => map2(x, dy, dx, |x, d| if x > lo && x < hi { d } else { 0.0 }),
        });
    });
}

#[inline(always)]
fn combine(binary: Binary, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, y: &mut [f32]) {
    let each = y.iter_mut().enumerate();
    match binary {
        Binary::Add => each.for_each(|(i, y)| *y = a(i) + b(i)),
        Binary::Sub => each.for_each(|(i, y)| *y = a(i) - b(i)),
        Binary::Mul => each.for_each(|(i, y)| *y = a(i) * b(i)),
        Binary::Div => each.for_each(|(i, y)| *y = a(i) / b(i)),
        Binary::Max => each.for_each(|(i, y)| *y = a(i).max(b(i))),
        Binary::Min => each.for_each(|(i, y)| *y = a(i).min(b(i))),
    }
}

/// Index of the row that `from` contributes to row `row` of `to` (rows = everything but channels).
fn row_of(from: Shape, to: Shape, row: usize) -> usize {
    let (w, rest) = (row % to.w(), row / to.w());
    let (h, n) = (rest % to.h(), rest / to.h());
    let pick = |axis: usize, i: usize| if from.0[axis] == 1 { 0 } else { i };
    (pick(0, n) * from.h() + pick(1, h)) * from.w() + pick(2, w)
}

pub fn binary(
    pool: &Pool,
    binary: Binary,
    (a_shape, a): (Shape, &[f32]),
    (b_shape, b): (Shape, &[f32]),
    to: Shape,
    y: &mut [f32],
) {
    if a_shape == to && b_shape == to {
        return chunks(pool, y, CHUNK, &|start, y| {
            let (a, b) = (&a[start..][..y.len()], &b[start..][..y.len()]);
            with_isa(pool.isa(), || combine(binary, |i| a[i], |i| b[i], y));
        });
    }
    if to.is_empty() {
        return;
    }
    let c = to.c();
    let rows = (CHUNK / c).max(1);
    chunks(pool, y, rows * c, &|start, y| {
        with_isa(pool.isa(), || {
            for (r, y) in y.chunks_exact_mut(c).enumerate() {
                let row = start / c + r;
                let a = &a[row_of(a_shape, to, row) * a_shape.c()..][..a_shape.c()];
                let b = &b[row_of(b_shape, to, row) * b_shape.c()..][..b_shape.c()];
                match (a.len() == c, b.len() == c) {
                    (true, true) => combine(binary, |i| a[i], |i| b[i], y),
                    (true, false) => combine(binary, |i| a[i], |_| b[0], y),
                    (false, true) => combine(binary, |_| a[0], |i| b[i], y),
                    (false, false) => combine(binary, |_| a[0], |_| b[0], y),
                }
            }
        });
    });
}

pub fn broadcast(pool: &Pool, (xs, x): (Shape, &[f32]), to: Shape, y: &mut [f32]) {
    if to.is_empty() {
        return;
    }
    let c = to.c();
    chunks(pool, y, (CHUNK / c).max(1) * c, &|start, y| {
        for (r, y) in y.chunks_exact_mut(c).enumerate() {
            let x = &x[row_of(xs, to, start / c + r) * xs.c()..][..xs.c()];
            if x.len() == c { y.copy_from_slice(x) } else { y.fill(x[0]) }
        }
    });
}

/// Rows of one partial sum. Within it numbers are added in fp32, so its relative error stays below
/// √256·6e-8; partial sums are added in f64.
const SUM_ROWS: usize = 256;

/// Floats of scratch for `reduce`.
pub fn reduce_scratch(xs: Shape, to: Shape) -> usize {
    let c = if to.c() == 1 { 1 } else { xs.c() };
    segments(xs, to).map_or(0, |(count, rows)| count * rows.div_ceil(SUM_ROWS) * c)
}

/// The rows of `x` as (number of segments, rows of a segment), where each segment reduces to one row of
/// `to`: every reduced axis must lie behind every kept one (channels aside).
fn segments(xs: Shape, to: Shape) -> Option<(usize, usize)> {
    let reduced: Vec3 = std::array::from_fn(|axis| to.0[axis] == 1 && xs.0[axis] != 1);
    let kept: Vec3 = std::array::from_fn(|axis| to.0[axis] != 1);
    let ordered = !(0..3).any(|i| reduced[i] && (i + 1..3).any(|j| kept[j]));
    ordered.then(|| (to.rows(), xs.rows() / to.rows().max(1)))
}

type Vec3 = [bool; 3];

/// Reductions whose reduced axes lie behind the kept ones run over the pool; others row by row.
pub fn reduce(
    pool: &Pool,
    reduce: Reduce,
    (xs, x): (Shape, &[f32]),
    to: Shape,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    let neutral = match reduce {
        Reduce::Sum | Reduce::Mean => 0.0,
        Reduce::Max => f32::NEG_INFINITY,
        Reduce::Min => f32::INFINITY,
    };
    let join = |a: f32, b: f32| match reduce {
        Reduce::Sum | Reduce::Mean => a + b,
        Reduce::Max => a.max(b),
        Reduce::Min => a.min(b),
    };
    let factor = if reduce == Reduce::Mean { to.len() as f32 / xs.len() as f32 } else { 1.0 };
    let (c, across) = (xs.c(), to.c() == 1 && xs.c() != 1);
    let width = if across { 1 } else { c };
    let Some((_, rows)) = segments(xs, to) else {
        y.fill(neutral);
        for row in 0..xs.rows() {
            let y = &mut y[row_of(to, xs, row) * to.c()..][..to.c()];
            for (i, x) in x[row * c..][..c].iter().enumerate() {
                let slot = &mut y[if across { 0 } else { i }];
                *slot = join(*slot, *x);
            }
        }
        y.iter_mut().for_each(|y| *y *= factor);
        return;
    };
    let parts = rows.div_ceil(SUM_ROWS);
    chunks(pool, scratch, width, &|start, partial| {
        let (segment, part) = (start / width / parts, start / width % parts);
        let first = segment * rows + part * SUM_ROWS;
        let last = (segment * rows + rows).min(first + SUM_ROWS);
        let x = &x[first * c..last * c];
        with_isa(pool.isa(), || {
            partial.fill(neutral);
            if across {
                partial[0] = match reduce {
                    Reduce::Sum | Reduce::Mean => lanes_sum(x),
                    _ => x.iter().fold(neutral, |a, b| join(a, *b)),
                };
                return;
            }
            for x in x.chunks_exact(c) {
                match reduce {
                    Reduce::Sum | Reduce::Mean => partial.iter_mut().zip(x).for_each(|(p, x)| *p += x),
                    Reduce::Max => partial.iter_mut().zip(x).for_each(|(p, x)| *p = p.max(*x)),
                    Reduce::Min => partial.iter_mut().zip(x).for_each(|(p, x)| *p = p.min(*x)),
                }
            }
        });
    });
    for (segment, y) in y.chunks_exact_mut(width).enumerate() {
        let partial = &scratch[segment * parts * width..][..parts * width];
        for (i, y) in y.iter_mut().enumerate() {
            let column = partial.iter().skip(i).step_by(width);
            *y = match reduce {
                Reduce::Sum | Reduce::Mean => {
                    (column.map(|v| f64::from(*v)).sum::<f64>() * f64::from(factor)) as f32
                }
                _ => column.fold(neutral, |a, b| join(a, *b)),
            };
        }
    }
}

/// A sum by 16 interleaved partial sums.
#[inline(always)]
fn lanes_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let blocks = x.chunks_exact(16);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(l, x)| *l += x);
    }
    lanes.iter().sum::<f32>() + rest
}

/// Σx² in f64 over blocks of fp32 partial sums.
pub fn squares(pool: &Pool, x: &[f32]) -> f64 {
    with_isa(pool.isa(), || {
        x.chunks(4096)
            .map(|x| {
                let mut lanes = [0.0f32; 16];
                let blocks = x.chunks_exact(16);
                let rest: f32 = blocks.remainder().iter().map(|v| v * v).sum();
                for block in blocks {
                    lanes.iter_mut().zip(block).for_each(|(l, x)| *l += x * x);
                }
                f64::from(lanes.iter().sum::<f32>() + rest)
            })
            .sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log1p_equals_the_library_within_six_roundings() {
        for i in 0..20_000 {
            let x = (i as f32 / 20_000.0 * 30.0 - 20.0).exp2();
            let (got, want) = (f64::from(log1p(x)), f64::from(x).ln_1p());
            // 1+x and its undoing, m's quotient, two products and e·ln2: six roundings of 6e-8.
            assert!((got - want).abs() <= 3.6e-7 * want.abs(), "ln(1+{x}) = {got}, not {want}");
        }
        assert_eq!(log1p(0.0), 0.0);
    }
}
