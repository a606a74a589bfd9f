//! Launches of `kernels/resize.cu`.

use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};
use super::rows;
use crate::engine::op::{Op, Resize};
use crate::engine::shape::Shape;

const MODULE: &str = "resize";

/// From this many pixels of one axis for a pixel of the other side on, rows and columns are resized one
/// after the other.
const SEPARATE: usize = 4;

/// `enum` of taps.cuh.
pub(super) fn code(resize: Resize) -> usize {
    match resize {
        Resize::Nearest => 0,
        Resize::Bilinear => 1,
        Resize::BilinearAligned => 2,
        Resize::Area => 3,
    }
}

/// `struct ResizedAxis` of taps.cuh, whose ratio is rounded as the specification rounds it.
pub(super) fn axis(resize: Resize, from: usize, to: usize) -> Vec<u8> {
    let ratio = match resize {
        Resize::BilinearAligned if to > 1 => (from - 1) as f32 / (to - 1) as f32,
        Resize::BilinearAligned => 0.0,
        _ => from as f32 / to as f32,
    };
    let mut bytes = rows::ints(&[from, to]);
    bytes.extend(ratio.to_ne_bytes());
    bytes
}

/// Sizes before and after, `h` and `w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    n: usize,
    c: usize,
    from: [usize; 2],
    to: [usize; 2],
}

impl Geometry {
    fn of(x: Shape, y: Shape) -> Geometry {
        Geometry { n: x.n(), c: x.c(), from: [x.h(), x.w()], to: [y.h(), y.w()] }
    }

    fn arg(&self, resize: Resize) -> Arg {
        let mut bytes = rows::ints(&[self.n, self.c, code(resize)]);
        bytes.extend(axis(resize, self.from[0], self.to[0]));
        bytes.extend(axis(resize, self.from[1], self.to[1]));
        Arg::Struct(bytes)
    }
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let x = task.inputs[0];
    let counts = |a: usize, b: usize| a.saturating_add(1).saturating_mul(b.saturating_add(1)) < 1 << 32;
    let (xs, ys) = (x.shape, task.out.shape);
    let fits = counts(xs.h(), ys.h()) && counts(xs.w(), ys.w());
    if !fits || !rows::countable(&x) || !rows::countable(&task.out) {
        return Err(task.unsupported("has more pixels than 32 bits count"));
    }
    match task.op {
        Op::Resize { resize, .. } => Ok(forward(*resize, Geometry::of(xs, ys))),
        Op::ResizeBackward { resize, .. } => Ok(backward(*resize, Geometry::of(ys, xs))),
        _ => Err(task.unsupported("is no resizing")),
    }
}

/// Launches from input 0 to the output; `sides` are the two shapes of the picture.
fn passes(
    n: usize,
    c: usize,
    read: [usize; 2],
    written: [usize; 2],
    separate: bool,
    pass: impl Fn([[usize; 2]; 2], [Arg; 2]) -> Launch,
) -> Lowered {
    let (from, to) = (Arg::Real(Place::Input(0)), Arg::Real(Place::Out));
    if !separate {
        return Lowered::one(pass([read, written], [from, to]));
    }
    // Rows first: fewer or more pixels, then columns.
    let between = [read[0], written[1]];
    let middle = || Arg::Real(Place::Scratch(0));
    Lowered {
        launches: vec![pass([read, between], [from, middle()]), pass([between, written], [middle(), to])],
        scratch_bytes: 4 * n * between[0] * between[1] * c,
    }
}

/// True where a pixel of `fine` sides goes into one of `coarse` sides so often that two passes pay.
fn uneven(fine: [usize; 2], coarse: [usize; 2]) -> bool {
    (0..2).all(|i| fine[i] >= SEPARATE * coarse[i])
}

fn forward(resize: Resize, g: Geometry) -> Lowered {
    let kernel = match rows::vector(g.c) {
        8 => "resize_8",
        4 => "resize_4",
        _ => "resize_1",
    };
    let separate = resize == Resize::Area && uneven(g.from, g.to);
    passes(g.n, g.c, g.from, g.to, separate, |[from, to], [x, y]| {
        let per_row = to[1] * (g.c / rows::vector(g.c));
        let geometry = Geometry { from, to, ..g };
        rows::launch(MODULE, kernel, per_row, g.n * to[0], vec![x, y, geometry.arg(resize)])
    })
}

fn backward(resize: Resize, g: Geometry) -> Lowered {
    let kernel = match rows::vector(g.c) {
        8 => "resize_backward_8",
        4 => "resize_backward_4",
        _ => "resize_backward_1",
    };
    passes(g.n, g.c, g.to, g.from, uneven(g.to, g.from), |[dy, dx], [from, to]| {
        let per_row = dx[1] * (g.c / rows::vector(g.c));
        let geometry = Geometry { from: dx, to: dy, ..g };
        rows::launch(MODULE, kernel, per_row, g.n * dx[0], vec![from, to, geometry.arg(resize)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::launch::{Limits, Typed};
    use crate::engine::cuda::storage::Storage;

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(h: usize, w: usize, c: usize) -> Typed {
        Typed { shape: Shape::new(1, h, w, c), storage: Storage::F16 }
    }

    fn kernels(op: &Op, x: Typed, out: Typed) -> (Vec<&'static str>, usize) {
        let lowered = lower(&Task { op, inputs: &[x], out, limits: LIMITS }).unwrap();
        (lowered.launches.iter().map(|l| l.kernel).collect(), lowered.scratch_bytes)
    }

    #[test]
    fn the_gradient_of_a_large_step_goes_along_rows_and_then_along_columns() {
        let op = |h, w| Op::ResizeBackward { resize: Resize::Bilinear, h, w };
        let once = kernels(&op(32, 32), half(64, 64, 8), half(32, 32, 8));
        assert_eq!(once, (vec!["resize_backward_8"], 0));
        let twice = kernels(&op(8, 8), half(64, 64, 12), half(8, 8, 12));
        assert_eq!(twice, (vec!["resize_backward_4"; 2], 4 * 64 * 8 * 12));
    }

    #[test]
    fn bilinear_resizing_is_one_launch_whatever_the_step() {
        let op = Op::Resize { resize: Resize::Bilinear, h: 256, w: 256 };
        assert_eq!(kernels(&op, half(64, 64, 1), half(256, 256, 1)), (vec!["resize_1"], 0));
        let op = Op::Resize { resize: Resize::Area, h: 4, w: 4 };
        let two = kernels(&op, half(64, 64, 3), half(4, 4, 3));
        assert_eq!(two, (vec!["resize_1"; 2], 4 * 64 * 4 * 3));
    }

    #[test]
    fn ratios_are_rounded_like_the_specifications() {
        let ratio = |bytes: Vec<u8>| f32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        assert_eq!(ratio(axis(Resize::Bilinear, 8, 64)), 0.125);
        assert_eq!(ratio(axis(Resize::BilinearAligned, 8, 64)), 7.0 / 63.0);
        assert_eq!(ratio(axis(Resize::BilinearAligned, 8, 1)), 0.0);
    }
}
