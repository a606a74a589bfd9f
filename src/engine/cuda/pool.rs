//! Launches of `kernels/pool.cu`.

use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};
use super::rows;
use crate::engine::op::{Op, Pool, Window};
use crate::engine::shape::Shape;

const MODULE: &str = "pool";

/// Windows from this size on are taken along rows first, then along columns: `2·size` numbers are read
/// instead of `size²`, for one more pass over memory.
const SEPARATE: usize = 6;

/// `struct Axis` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    from: usize,
    to: usize,
    window: Window,
}

impl Axis {
    /// An axis that stays as it is.
    fn kept(len: usize) -> Axis {
        Axis { from: len, to: len, window: Window { size: 1, stride: 1, pad: 0 } }
    }
}

/// `struct Geometry` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    n: usize,
    c: usize,
    h: Axis,
    w: Axis,
}

impl Geometry {
    fn of(x: Shape, y: Shape, window: Window) -> Geometry {
        let axis = |from, to| Axis { from, to, window };
        Geometry { n: x.n(), c: x.c(), h: axis(x.h(), y.h()), w: axis(x.w(), y.w()) }
    }

    /// Along rows, then along columns.
    fn separated(self) -> [Geometry; 2] {
        [Geometry { h: Axis::kept(self.h.from), ..self }, Geometry { w: Axis::kept(self.w.to), ..self }]
    }

    fn arg(&self) -> Arg {
        let axis = |a: &Axis| [a.from, a.to, a.window.size, a.window.stride, a.window.pad];
        let mut bytes = rows::ints(&[self.n, self.c]);
        bytes.extend(rows::ints(&axis(&self.h)));
        bytes.extend(rows::ints(&axis(&self.w)));
        Arg::Struct(bytes)
    }
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    if !task.inputs.iter().chain([&task.out]).all(rows::countable) {
        return Err(task.unsupported("has more pixels than 32 bits count"));
    }
    match task.op {
        Op::Pool { pool, window } => {
            let g = Geometry::of(task.inputs[0].shape, task.out.shape, *window);
            Ok(forward(*pool, g, window.size))
        }
        Op::PoolBackward { pool, window } => {
            let g = Geometry::of(task.out.shape, task.inputs[1].shape, *window);
            Ok(match pool {
                Pool::Avg => mean_backward(g, window.size),
                Pool::Max => max_backward(g),
            })
        }
        _ => Err(task.unsupported("is no pooling")),
    }
}

/// fp32 numbers between two launches.
fn between(n: usize, h: usize, w: usize, c: usize) -> usize {
    4 * n * h * w * c
}

fn forward(pool: Pool, g: Geometry, size: usize) -> Lowered {
    let kernel = match rows::vector(g.c) {
        8 => "pool_8",
        4 => "pool_4",
        _ => "pool_1",
    };
    let kind = match pool {
        Pool::Max => 0,
        Pool::Avg => 1,
    };
    let pass = |g: Geometry, [from, to]: [Arg; 2]| {
        let per_row = g.w.to * (g.c / rows::vector(g.c));
        rows::launch(MODULE, kernel, per_row, g.n * g.h.to, vec![from, to, g.arg(), Arg::I32(kind)])
    };
    let (x, y) = (Arg::Real(Place::Input(0)), Arg::Real(Place::Out));
    two_passes(g, size, between(g.n, g.h.from, g.w.to, g.c), pass, [x, y])
}

fn mean_backward(g: Geometry, size: usize) -> Lowered {
    let kernel = match rows::vector(g.c) {
        8 => "pool_backward_mean_8",
        4 => "pool_backward_mean_4",
        _ => "pool_backward_mean_1",
    };
    let pass = |g: Geometry, [from, to]: [Arg; 2]| {
        let per_row = g.w.from * (g.c / rows::vector(g.c));
        rows::launch(MODULE, kernel, per_row, g.n * g.h.from, vec![from, to, g.arg()])
    };
    let ends = [Arg::Real(Place::Input(1)), Arg::Real(Place::Out)];
    if size < SEPARATE {
        return Lowered::one(pass(g, ends));
    }
    // The adjoint of rows first, columns last is columns first, rows last; both orders are right, and
    // this one gives the smaller tensor in between.
    let [from, to] = ends;
    let rows_only = Geometry { h: Axis::kept(g.h.to), ..g };
    let columns_only = Geometry { w: Axis::kept(g.w.from), ..g };
    let launches = vec![
        pass(rows_only, [from, Arg::Real(Place::Scratch(0))]),
        pass(columns_only, [Arg::Real(Place::Scratch(0)), to]),
    ];
    Lowered { launches, scratch_bytes: between(g.n, g.h.to, g.w.from, g.c) }
}

/// `pass` once, or for large windows along rows and then along columns.
fn two_passes(
    g: Geometry,
    size: usize,
    scratch_bytes: usize,
    pass: impl Fn(Geometry, [Arg; 2]) -> Launch,
    [from, to]: [Arg; 2],
) -> Lowered {
    if size < SEPARATE {
        return Lowered::one(pass(g, [from, to]));
    }
    let [along_rows, along_columns] = g.separated();
    let middle = || Arg::Real(Place::Scratch(0));
    let launches = vec![pass(along_rows, [from, middle()]), pass(along_columns, [middle(), to])];
    Lowered { launches, scratch_bytes }
}

fn max_backward(g: Geometry) -> Lowered {
    let first = || Arg::Pointer(Place::Scratch(0));
    let launches = vec![
        rows::launch(
            MODULE,
            "pool_first_maximum",
            g.w.to * g.c,
            g.n * g.h.to,
            vec![Arg::Real(Place::Input(0)), first(), g.arg()],
        ),
        rows::launch(
            MODULE,
            "pool_backward_max",
            g.w.from * g.c,
            g.n * g.h.from,
            vec![first(), Arg::Real(Place::Input(1)), Arg::Real(Place::Out), g.arg()],
        ),
    ];
    Lowered { launches, scratch_bytes: between(g.n, g.h.to, g.w.to, g.c) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::launch::{Limits, Typed};
    use crate::engine::cuda::storage::Storage;

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(n: usize, h: usize, w: usize, c: usize) -> Typed {
        Typed { shape: Shape::new(n, h, w, c), storage: Storage::F16 }
    }

    fn kernels(op: &Op, inputs: &[Typed], out: Typed) -> (Vec<&'static str>, usize) {
        let lowered = lower(&Task { op, inputs, out, limits: LIMITS }).unwrap();
        (lowered.launches.iter().map(|l| l.kernel).collect(), lowered.scratch_bytes)
    }

    #[test]
    fn large_windows_go_along_rows_and_then_along_columns() {
        let window = |size| Window { size, stride: 1, pad: 0 };
        let op = |size| Op::Pool { pool: Pool::Avg, window: window(size) };
        let x = half(1, 20, 20, 8);
        assert_eq!(kernels(&op(3), &[x], half(1, 18, 18, 8)), (vec!["pool_8"], 0));
        assert_eq!(kernels(&op(16), &[x], half(1, 5, 5, 8)), (vec!["pool_8", "pool_8"], 4 * 20 * 5 * 8));
        let back = Op::PoolBackward { pool: Pool::Avg, window: window(16) };
        let dy = half(1, 5, 5, 3);
        assert_eq!(
            kernels(&back, &[half(1, 20, 20, 3), dy], half(1, 20, 20, 3)),
            (vec!["pool_backward_mean_1"; 2], 4 * 5 * 20 * 3)
        );
    }

    #[test]
    fn the_maximums_gradient_finds_the_places_first() {
        let window = Window { size: 3, stride: 2, pad: 1 };
        let op = Op::PoolBackward { pool: Pool::Max, window };
        let x = half(2, 8, 8, 4);
        assert_eq!(
            kernels(&op, &[x, half(2, 4, 4, 4)], x),
            (vec!["pool_first_maximum", "pool_backward_max"], 4 * 2 * 4 * 4 * 4)
        );
    }
}
