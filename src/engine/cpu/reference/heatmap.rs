//! From the head's logits to a map and a score.

use super::elementwise::unary;
use super::spatial;
use crate::engine::op::{Pool, Resize, Unary, Window};
use crate::engine::shape::Shape;

/// y = the second logit less the first.
pub fn difference(logits: &[f32], y: &mut [f32]) {
    for (y, l) in y.iter_mut().zip(logits.chunks_exact(2)) {
        *y = l[1] - l[0];
    }
}

/// `scratch` holds twice the logits' pixels.
pub fn map(resize: Resize, (s, logits): (Shape, &[f32]), ys: Shape, y: &mut [f32], scratch: &mut [f32]) {
    let small = s.with(3, 1);
    let (differences, rest) = scratch.split_at_mut(small.len());
    let probabilities = &mut rest[..small.len()];
    difference(logits, differences);
    // The softmax of two logits is the sigmoid of their difference.
    unary(Unary::Sigmoid, differences, probabilities);
    spatial::resize(resize, (small, probabilities), ys, y);
}

/// Windows that lie inside the map.
pub fn windows(s: Shape, size: usize) -> Shape {
    Shape::new(s.n(), s.h() + 1 - size, s.w() + 1 - size, 1)
}

/// `scratch` holds a number for each window.
pub fn largest_mean(size: usize, (s, x): (Shape, &[f32]), y: &mut [f32], scratch: &mut [f32]) {
    let means = windows(s, size);
    spatial::pool(Pool::Avg, &Window { size, stride: 1, pad: 0 }, (s, x), means, scratch);
    largest(means, scratch, y);
}

/// The largest of each picture; not a number where any is none.
pub fn largest(s: Shape, means: &[f32], y: &mut [f32]) {
    for (y, means) in y.iter_mut().zip(means.chunks_exact(s.h() * s.w())) {
        *y = means.iter().fold(f32::NEG_INFINITY, |a, b| if a > *b || a.is_nan() { a } else { *b });
    }
}
