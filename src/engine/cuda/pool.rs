//! Launches of `kernels/pool.cu`.

use super::launch::{Arg, Limits, Lowered, Place, Task, Unsupported};
use super::rows;
use super::tile::{self, Tiling, Wanted};
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

    /// Most windows of an axis that cover so many of its pixels.
    fn windows(axis: &Axis, pixels: usize) -> usize {
        ((pixels + axis.window.size - 2) / axis.window.stride + 1).min(axis.to)
    }

    /// Pixels that so many neighbouring windows cover.
    fn covered(axis: &Axis, windows: usize) -> usize {
        (windows.max(1) - 1) * axis.window.stride + axis.window.size
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
    let bytes = |i: usize| task.inputs[i].storage.bytes();
    let limits = &task.limits;
    match task.op {
        Op::Pool { pool, window } => {
            let g = Geometry::of(task.inputs[0].shape, task.out.shape, *window);
            Ok(forward(*pool, g, window.size, bytes(0), limits))
        }
        Op::PoolBackward { pool, window } => {
            let g = Geometry::of(task.out.shape, task.inputs[1].shape, *window);
            Ok(match pool {
                Pool::Avg => mean_backward(g, window.size, bytes(1), limits),
                Pool::Max => max_backward(g, [bytes(0), bytes(1)], limits),
            })
        }
        _ => Err(task.unsupported("is no pooling")),
    }
}

/// Bytes of the fp32 numbers between two launches.
const MIDDLE: usize = 4;

fn between(n: usize, h: usize, w: usize, c: usize) -> usize {
    MIDDLE * n * h * w * c
}

/// The one of three kernels that takes so many channels at once.
fn by_vector(c: usize, kernels: [&'static str; 3]) -> &'static str {
    match rows::vector(c) {
        8 => kernels[0],
        4 => kernels[1],
        _ => kernels[2],
    }
}

/// Tiles of y, whose source is x, of `bytes` an element.
fn forward_tiles(g: &Geometry, bytes: usize, limits: &Limits) -> Option<Tiling> {
    let wanted = Wanted {
        source: Shape::new(g.n, g.h.from, g.w.from, g.c),
        out: Shape::new(g.n, g.h.to, g.w.to, g.c),
        per_tile: 0,
        overhead: tile::OVERHEAD,
        channels: usize::MAX,
        strip: 1,
        rows_before: 0,
        rows: &|n| Geometry::covered(&g.h, n),
        columns: &|n| Geometry::covered(&g.w, n),
        bytes: &|h, w| bytes * Geometry::covered(&g.h, h) * Geometry::covered(&g.w, w),
    };
    tile::pick(&wanted, limits)
}

/// Tiles of dx, whose source is dy.
fn mean_tiles(g: &Geometry, bytes: usize, limits: &Limits) -> Option<Tiling> {
    let wanted = Wanted {
        source: Shape::new(g.n, g.h.to, g.w.to, g.c),
        out: Shape::new(g.n, g.h.from, g.w.from, g.c),
        per_tile: 0,
        overhead: tile::OVERHEAD,
        channels: usize::MAX,
        strip: 1,
        rows_before: 0,
        rows: &|n| Geometry::windows(&g.h, n),
        columns: &|n| Geometry::windows(&g.w, n),
        bytes: &|h, w| bytes * Geometry::windows(&g.h, h) * Geometry::windows(&g.w, w),
    };
    tile::pick(&wanted, limits)
}

/// Tiles of dx, whose source is all that the windows over a tile cover, with those windows' gradients and
/// the places of their maxima.
fn max_tiles(g: &Geometry, [x, dy]: [usize; 2], limits: &Limits) -> Option<Tiling> {
    let windows = |h: usize, w: usize| [Geometry::windows(&g.h, h), Geometry::windows(&g.w, w)];
    let wanted = Wanted {
        source: Shape::new(g.n, g.h.from, g.w.from, g.c),
        out: Shape::new(g.n, g.h.from, g.w.from, g.c),
        per_tile: 0,
        overhead: tile::OVERHEAD,
        channels: usize::MAX,
        strip: 1,
        rows_before: 0,
        rows: &|n| Geometry::covered(&g.h, Geometry::windows(&g.h, n)),
        columns: &|n| Geometry::covered(&g.w, Geometry::windows(&g.w, n)),
        bytes: &|h, w| {
            let [i, j] = windows(h, w);
            x * Geometry::covered(&g.h, i) * Geometry::covered(&g.w, j) + (2 + dy) * i * j
        },
    };
    tile::pick(&wanted, limits)
}

fn forward(pool: Pool, g: Geometry, size: usize, bytes: usize, limits: &Limits) -> Lowered {
    let kind = match pool {
        Pool::Max => 0,
        Pool::Avg => 1,
    };
    let pass = |g: Geometry, bytes: usize, [from, to]: [Arg; 2]| {
        let args = vec![from, to, g.arg(), Arg::I32(kind)];
        match forward_tiles(&g, bytes, limits) {
            Some(tiles) => tiles.launch(MODULE, by_vector(g.c, ["pool_8", "pool_4", "pool_1"]), args),
            None => rows::launch(MODULE, "pool_direct_1", g.w.to * g.c, g.n * g.h.to, args),
        }
    };
    let (x, y) = (Arg::Real(Place::Input(0)), Arg::Real(Place::Out));
    if size < SEPARATE {
        return Lowered::one(pass(g, bytes, [x, y]));
    }
    let [along_rows, along_columns] = g.separated();
    let middle = || Arg::Real(Place::Scratch(0));
    let launches = vec![pass(along_rows, bytes, [x, middle()]), pass(along_columns, MIDDLE, [middle(), y])];
    Lowered { launches, scratch_bytes: between(g.n, g.h.from, g.w.to, g.c) }
}

fn mean_backward(g: Geometry, size: usize, bytes: usize, limits: &Limits) -> Lowered {
    let kernels = ["pool_backward_mean_8", "pool_backward_mean_4", "pool_backward_mean_1"];
    let pass = |g: Geometry, bytes: usize, [from, to]: [Arg; 2]| {
        let args = vec![from, to, g.arg()];
        match mean_tiles(&g, bytes, limits) {
            Some(tiles) => tiles.launch(MODULE, by_vector(g.c, kernels), args),
            None => rows::launch(MODULE, "pool_backward_mean_direct_1", g.w.from * g.c, g.n * g.h.from, args),
        }
    };
    let [from, to] = [Arg::Real(Place::Input(1)), Arg::Real(Place::Out)];
    if size < SEPARATE {
        return Lowered::one(pass(g, bytes, [from, to]));
    }
    // The adjoint of rows first, columns last is columns first, rows last; both orders are right, and
    // this one gives the smaller tensor in between.
    let rows_only = Geometry { h: Axis::kept(g.h.to), ..g };
    let columns_only = Geometry { w: Axis::kept(g.w.from), ..g };
    let launches = vec![
        pass(rows_only, bytes, [from, Arg::Real(Place::Scratch(0))]),
        pass(columns_only, MIDDLE, [Arg::Real(Place::Scratch(0)), to]),
    ];
    Lowered { launches, scratch_bytes: between(g.n, g.h.to, g.w.from, g.c) }
}

fn max_backward(g: Geometry, bytes: [usize; 2], limits: &Limits) -> Lowered {
    let (x, dy, dx) = (Arg::Real(Place::Input(0)), Arg::Real(Place::Input(1)), Arg::Real(Place::Out));
    let kernels = ["pool_backward_max_8", "pool_backward_max_4", "pool_backward_max_1"];
    if let Some(tiles) = max_tiles(&g, bytes, limits) {
        return Lowered::one(tiles.launch(MODULE, by_vector(g.c, kernels), vec![x, dy, dx, g.arg()]));
    }
    let first = || Arg::Pointer(Place::Scratch(0));
    let launches = vec![
        rows::launch(MODULE, "pool_first_maximum", g.w.to * g.c, g.n * g.h.to, vec![x, first(), g.arg()]),
        rows::launch(
            MODULE,
            "pool_backward_max_direct",
            g.w.from * g.c,
            g.n * g.h.from,
            vec![first(), dy, dx, g.arg()],
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
    fn the_maximums_gradient_is_one_launch_unless_its_windows_do_not_fit_a_block() {
        let window = Window { size: 3, stride: 2, pad: 1 };
        let op = Op::PoolBackward { pool: Pool::Max, window };
        let x = half(2, 8, 8, 4);
        assert_eq!(kernels(&op, &[x, half(2, 4, 4, 4)], x), (vec!["pool_backward_max_4"], 0));
    }
}
