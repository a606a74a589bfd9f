//! Shapes and element types.

use std::fmt;

/// Every tensor has four axes. Activations are N·H·W·C (channels last), convolution weights
/// kh·kw·(cin/groups)·cout, vectors 1·1·1·C, scalars 1·1·1·1, matrices batch·head·rows·columns.
/// Elements lie row-major, the last axis fastest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape(pub [usize; 4]);

impl Shape {
    /// What operations that only write state yield.
    pub const EMPTY: Shape = Shape([0; 4]);
    pub const SCALAR: Shape = Shape([1; 4]);

    pub const fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Shape([n, h, w, c])
    }

    pub const fn vector(c: usize) -> Self {
        Shape([1, 1, 1, c])
    }

    pub const fn n(self) -> usize {
        self.0[0]
    }

    pub const fn h(self) -> usize {
        self.0[1]
    }

    pub const fn w(self) -> usize {
        self.0[2]
    }

    pub const fn c(self) -> usize {
        self.0[3]
    }

    /// Number of elements.
    pub const fn len(self) -> usize {
        self.0[0] * self.0[1] * self.0[2] * self.0[3]
    }

    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Positions: everything but channels.
    pub const fn rows(self) -> usize {
        self.0[0] * self.0[1] * self.0[2]
    }

    /// Row-major strides in elements.
    pub const fn strides(self) -> [usize; 4] {
        let [_, h, w, c] = self.0;
        [h * w * c, w * c, c, 1]
    }

    pub fn with(self, axis: usize, size: usize) -> Self {
        let mut s = self;
        s.0[axis] = size;
        s
    }

    /// The shape of `self op other` where an axis of size 1 stretches, or None.
    pub fn broadcast(self, other: Shape) -> Option<Shape> {
        let mut out = [0; 4];
        for (out, pair) in out.iter_mut().zip(self.0.into_iter().zip(other.0)) {
            *out = match pair {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            };
        }
        Some(Shape(out))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [n, h, w, c] = self.0;
        write!(f, "{n}×{h}×{w}×{c}")
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Element type of a value. Indices are 32-bit integers; everything else is a real number, stored as
/// the executor stores reals (fp32 on the CPU).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    Real,
    Index,
}
