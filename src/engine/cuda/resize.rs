//! Launches of `kernels/resize.cu`.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::rows;
use super::tile::{self, Wanted};
use crate::engine::op::{Op, Resize};
use crate::engine::shape::Shape;

const MODULE: &str = "resize";

/// From this many pixels of one axis for a pixel of the other side on, rows and columns are resized one
/// after the other.
const SEPARATE: usize = 4;

/// Bytes of the numbers between two passes.
const MIDDLE: usize = 4;

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
    let limits = &task.limits;
    match task.op {
        Op::Resize { resize, .. } => Ok(forward(*resize, Geometry::of(xs, ys), x.storage.bytes(), limits)),
        Op::ResizeBackward { resize, .. } => {
            Ok(backward(*resize, Geometry::of(ys, xs), x.storage.bytes(), limits))
        }
        _ => Err(task.unsupported("is no resizing")),
    }
}

/// Most pixels before that so many neighbouring ones after read.
fn read_by(resize: Resize, from: usize, to: usize, n: usize) -> usize {
    let span = match resize {
        Resize::Nearest | Resize::Area => (n * from).div_ceil(to) + 1,
        // The first of two taps, the second, and one for the rounding of the place.
        Resize::Bilinear => (n - 1) * from / to + 4,
        Resize::BilinearAligned if to > 1 => (n - 1) * from.saturating_sub(1) / (to - 1) + 4,
        Resize::BilinearAligned => 2,
    };
    span.min(from)
}

/// Most pixels after that read one of so many neighbouring ones before.
fn readers(resize: Resize, from: usize, to: usize, n: usize) -> usize {
    let span = match resize {
        Resize::Nearest | Resize::Area => (n * to).div_ceil(from) + 2,
        Resize::Bilinear => ((n + 1) * to).div_ceil(from) + 2,
        Resize::BilinearAligned if from > 1 => ((n + 1) * (to - 1)).div_ceil(from - 1) + 2,
        Resize::BilinearAligned => to,
    };
    span.min(to)
}

/// Launches from input 0 to the output; `sides` are the two shapes of the picture.
fn passes(
    n: usize,
    c: usize,
    read: [usize; 2],
    written: [usize; 2],
    separate: bool,
    bytes: usize,
    pass: impl Fn([[usize; 2]; 2], usize, [Arg; 2]) -> Launch,
) -> Lowered {
    let (from, to) = (Arg::Real(Place::Input(0)), Arg::Real(Place::Out));
    if !separate {
        return Lowered::one(pass([read, written], bytes, [from, to]));
    }
    // Rows first: fewer or more pixels, then columns.
    let between = [read[0], written[1]];
    let middle = || Arg::Real(Place::Scratch(0));
    Lowered {
        launches: vec![
            pass([read, between], bytes, [from, middle()]),
            pass([between, written], MIDDLE, [middle(), to]),
        ],
        scratch_bytes: MIDDLE * n * between[0] * between[1] * c,
    }
}

/// True where a pixel of `fine` sides goes into one of `coarse` sides so often that two passes pay.
fn uneven(fine: [usize; 2], coarse: [usize; 2]) -> bool {
    (0..2).all(|i| fine[i] >= SEPARATE * coarse[i])
}

/// One pass over tiles of the result; `covers` is how much of the source an axis' part covers.
fn pass(
    [tiled, direct]: [&'static str; 2],
    shapes: [Shape; 2],
    covers: [&dyn Fn(usize) -> usize; 2],
    bytes: usize,
    limits: &Limits,
    args: Vec<Arg>,
) -> Launch {
    let [source, out] = shapes;
    let wanted = Wanted {
        source,
        out,
        per_tile: 0,
        overhead: tile::OVERHEAD,
        channels: usize::MAX,
        strip: 1,
        rows_before: 0,
        rows: covers[0],
        columns: covers[1],
        bytes: &|h, w| bytes * covers[0](h) * covers[1](w),
    };
    match tile::pick(&wanted, limits) {
        Some(tiles) => tiles.launch(MODULE, tiled, args),
        None => rows::launch(MODULE, direct, out.w() * out.c(), out.n() * out.h(), args),
    }
}

fn by_vector(c: usize, kernels: [&'static str; 3]) -> &'static str {
    match rows::vector(c) {
        8 => kernels[0],
        4 => kernels[1],
        _ => kernels[2],
    }
}

fn forward(resize: Resize, g: Geometry, bytes: usize, limits: &Limits) -> Lowered {
    let kernel = by_vector(g.c, ["resize_8", "resize_4", "resize_1"]);
    let separate = resize == Resize::Area && uneven(g.from, g.to);
    passes(g.n, g.c, g.from, g.to, separate, bytes, |[from, to], bytes, [x, y]| {
        let shapes = [Shape::new(g.n, from[0], from[1], g.c), Shape::new(g.n, to[0], to[1], g.c)];
        let covers = |axis: usize| move |n: usize| read_by(resize, from[axis], to[axis], n);
        let args = vec![x, y, Geometry { from, to, ..g }.arg(resize)];
        pass([kernel, "resize_direct_1"], shapes, [&covers(0), &covers(1)], bytes, limits, args)
    })
}

fn backward(resize: Resize, g: Geometry, bytes: usize, limits: &Limits) -> Lowered {
    let kernel = by_vector(g.c, ["resize_backward_8", "resize_backward_4", "resize_backward_1"]);
    let separate = uneven(g.to, g.from);
    passes(g.n, g.c, g.to, g.from, separate, bytes, |[dy, dx], bytes, [from, to]| {
        let shapes = [Shape::new(g.n, dy[0], dy[1], g.c), Shape::new(g.n, dx[0], dx[1], g.c)];
        let covers = |axis: usize| move |n: usize| readers(resize, dx[axis], dy[axis], n);
        let args = vec![from, to, Geometry { from: dx, to: dy, ..g }.arg(resize)];
        pass([kernel, "resize_backward_direct_1"], shapes, [&covers(0), &covers(1)], bytes, limits, args)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::reference::spatial::taps;
    use crate::engine::cuda::launch::Typed;
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

    /// What pixels `first` of `n` read, by the specification.
    fn span(resize: Resize, from: usize, to: usize, first: usize, n: usize) -> usize {
        let of = |out| taps(resize, from, to, out).filter(|t| t.weight != 0.0).map(|t| t.source);
        let (low, high) = (of(first).min().unwrap(), of(first + n - 1).max().unwrap());
        high - low + 1
    }

    #[test]
    fn a_tiles_source_is_never_larger_than_what_is_kept_for_it() {
        for resize in [Resize::Nearest, Resize::Bilinear, Resize::BilinearAligned, Resize::Area] {
            for (from, to) in
                [(32, 64), (7, 20), (20, 7), (64, 61), (1, 9), (9, 1), (5, 5), (3, 100), (28, 56)]
            {
                for n in [1, 2, 3, 7, to].into_iter().filter(|n| *n <= to) {
                    for first in 0..=to - n {
                        let most = read_by(resize, from, to, n);
                        assert!(
                            span(resize, from, to, first, n) <= most,
                            "{resize:?} {from} {to} {first} {n}"
                        );
                    }
                }
                for n in [1, 2, 3, from].into_iter().filter(|n| *n <= from) {
                    for first in 0..=from - n {
                        let reads = |out: &usize| {
                            taps(resize, from, to, *out)
                                .any(|t| t.weight != 0.0 && (first..first + n).contains(&t.source))
                        };
                        let all: Vec<usize> = (0..to).filter(reads).collect();
                        let count = all.last().map_or(0, |last| last + 1 - all[0]);
                        let most = readers(resize, from, to, n);
                        assert!(count <= most, "{resize:?} {from} {to} {first} {n}: {count} of {most}");
                    }
                }
            }
        }
    }

    #[test]
    fn ratios_are_rounded_like_the_specifications() {
        let ratio = |bytes: Vec<u8>| f32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        assert_eq!(ratio(axis(Resize::Bilinear, 8, 64)), 0.125);
        assert_eq!(ratio(axis(Resize::BilinearAligned, 8, 64)), 7.0 / 63.0);
        assert_eq!(ratio(axis(Resize::BilinearAligned, 8, 1)), 0.0);
    }
}
