//! Launches of `kernels/layout.cu`.

use super::elementwise::{linear, sizes, strided_copy};
use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};
use super::storage::Storage;
use crate::engine::op::Op;
use crate::engine::shape::Shape;

const MODULE: &str = "layout";
const BLOCK: u32 = 256;
/// Side of a transposed tile.
const TILE: usize = 32;
/// Channels and pixels that a block of `gather` covers.
const LANES: usize = 32;
const PIXELS: usize = 64;

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let x = |i: usize| task.inputs[i].shape;
    let y = task.out.shape;
    Ok(match task.op {
        Op::Concat { axis } => {
            let mut launches = Vec::with_capacity(task.inputs.len());
            let mut y_from = 0;
            for i in 0..task.inputs.len() {
                let (outer, run) = split(x(i), *axis);
                if outer * run > 0 {
                    let y_stride = split(y, *axis).1;
                    launches.push(copy(
                        task,
                        i,
                        Runs { outer, run, x_stride: run, y_stride, y_from, shift: 0 },
                    ));
                }
                y_from += run;
            }
            Lowered { launches, scratch_bytes: 0 }
        }
        Op::Slice { axis, start, .. } => part(task, *axis, *start as i64),
        Op::Pad { axis, before, .. } => part(task, *axis, -(*before as i64)),
        Op::Reshape { .. } => part(task, 0, 0),
        Op::Transpose { perm } => Lowered::one(transpose(task, *perm)),
        Op::TopK { k } => {
            let (rows, channels) = (x(0).n(), x(0).c());
            let (blocks, rows) = (grid(task, channels.div_ceil(BLOCK as usize))?, grid(task, rows)?);
            let (channels, k) = (int(task, channels)?, int(task, *k)?);
            let args = vec![Arg::Real(Place::Input(0)), Arg::Pointer(Place::Out), channels, k];
            Lowered::one(launch("top_k", [blocks, rows, 1], args))
        }
        Op::Gather => gather(task)?,
        Op::GatherBackward { channels } => gather_backward(task, *channels)?,
        _ => return Err(task.unsupported("does not move elements")),
    })
}

fn launch(kernel: &'static str, grid: [u32; 3], args: Vec<Arg>) -> Launch {
    Launch { module: MODULE, kernel, grid, block: [BLOCK, 1, 1], shared: 0, args }
}

/// An extent of a grid along y or z.
fn grid(task: &Task, blocks: usize) -> Result<u32, Unsupported> {
    match u32::try_from(blocks) {
        Ok(blocks) if blocks <= 65_535 => Ok(blocks),
        _ => Err(task.unsupported("has more rows than a grid")),
    }
}

fn int(task: &Task, value: usize) -> Result<Arg, Unsupported> {
    i32::try_from(value).map(Arg::I32).map_err(|_| task.unsupported("an axis exceeds 2³¹ elements"))
}

/// Elements before an axis (as one index) and the run of elements from it on.
fn split(s: Shape, axis: usize) -> (usize, usize) {
    (s.0[..axis].iter().product(), s.0[axis..].iter().product())
}

/// y[o][y_from + j] = x[o][j + shift] for j < run, 0 where that is outside x's run. In elements.
#[derive(Clone, Copy, Debug)]
struct Runs {
    outer: usize,
    run: usize,
    x_stride: usize,
    y_stride: usize,
    y_from: usize,
    shift: i64,
}

impl Runs {
    /// The most elements, at most `most`, that lie aligned at both ends of every move.
    fn each(&self, most: usize) -> usize {
        let strides = if self.outer == 1 { [0; 2] } else { [self.x_stride, self.y_stride] };
        let aligned = |v: usize| {
            let places = [strides[0], strides[1], self.y_from, self.shift.unsigned_abs() as usize];
            v <= most && places.iter().all(|place| place.is_multiple_of(v))
        };
        [8, 4].into_iter().find(|v| aligned(*v)).unwrap_or(1)
    }
}

fn copy(task: &Task, input: usize, runs: Runs) -> Launch {
    let halves = task.inputs[input].storage == Storage::F16 && task.out.storage == Storage::F16;
    let each = runs.each(if halves { 8 } else { 4 });
    let kernel = match each {
        8 => "copy_runs_8",
        4 => "copy_runs_4",
        _ => "copy_runs_1",
    };
    let per_run = runs.run / each + runs.run % each;
    let threads = runs.outer * per_run;
    // `shift` keeps its bits as a signed number of the same width.
    let geometry =
        [threads, per_run, runs.run, runs.x_stride, runs.y_stride, runs.y_from, runs.shift as usize];
    let args = vec![Arg::Real(Place::Input(input)), Arg::Real(Place::Out), sizes(&geometry)];
    linear(MODULE, kernel, threads, args)
}

/// The output's runs from an axis on out of those of input 0, which begin `from` units earlier.
fn part(task: &Task, axis: usize, from: i64) -> Lowered {
    let (x, y) = (task.inputs[0].shape, task.out.shape);
    let (outer, run) = split(y, axis);
    let unit: usize = y.0[axis + 1..].iter().product();
    let shift = from * unit as i64;
    let x_stride = split(x, axis).1;
    Lowered::one(copy(task, 0, Runs { outer, run, x_stride, y_stride: run, y_from: 0, shift }))
}

/// An axis of the output: its size, its stride in the input and in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    x: usize,
    y: usize,
}

/// The output's axes longer than 1, the innermost first, merged where the input goes on without a jump.
fn merged(x: Shape, y: Shape, perm: [usize; 4]) -> Vec<Axis> {
    let (xs, ys) = (x.strides(), y.strides());
    let mut axes: Vec<Axis> = Vec::with_capacity(4);
    for i in (0..4).rev().filter(|i| y.0[*i] != 1) {
        let next = Axis { size: y.0[i], x: xs[perm[i]], y: ys[i] };
        match axes.last_mut() {
            Some(inner) if next.x == inner.x * inner.size => inner.size *= next.size,
            _ => axes.push(next),
        }
    }
    axes
}

fn transpose(task: &Task, perm: [usize; 4]) -> Launch {
    let (x, y) = (task.inputs[0].shape, task.out.shape);
    let mut axes = merged(x, y, perm);
    let column = axes.iter().position(|axis| axis.x == 1).unwrap_or(0);
    if column == 0 {
        let strides = x.strides();
        return strided_copy(task, perm.map(|axis| strides[axis]));
    }
    let columns = axes.remove(column);
    let rows = axes.remove(0);
    let mut rest = axes.into_iter();
    let mut other = || rest.next().unwrap_or(Axis { size: 1, x: 0, y: 0 });
    let (inner, outer) = (other(), other());
    let (row_tiles, column_tiles) = (rows.size.div_ceil(TILE), columns.size.div_ceil(TILE));
    let geometry = [
        rows.size,
        columns.size,
        row_tiles,
        column_tiles,
        inner.size,
        rows.x,
        columns.y,
        outer.x,
        outer.y,
        inner.x,
        inner.y,
    ];
    let blocks = row_tiles * column_tiles * inner.size * outer.size;
    let args = vec![Arg::Real(Place::Input(0)), Arg::Real(Place::Out), sizes(&geometry)];
    linear(MODULE, "transpose", blocks * BLOCK as usize, args)
}

fn gather(task: &Task) -> Result<Lowered, Unsupported> {
    let (x, indices) = (task.inputs[0].shape, task.inputs[1].shape);
    let (pixels, k) = (x.h() * x.w(), indices.c());
    let grid = [pixels.div_ceil(PIXELS) as u32, grid(task, k.div_ceil(LANES))?, grid(task, x.n())?];
    let args = vec![
        Arg::Real(Place::Input(0)),
        Arg::Pointer(Place::Input(1)),
        Arg::Real(Place::Out),
        int(task, pixels)?,
        int(task, x.c())?,
        int(task, k)?,
        int(task, if indices.n() == 1 { 0 } else { k })?,
    ];
    Ok(Lowered::one(launch("gather", grid, args)))
}

fn gather_backward(task: &Task, channels: usize) -> Result<Lowered, Unsupported> {
    let (indices, dy) = (task.inputs[0].shape, task.inputs[1].shape);
    let (rows, k) = (indices.n(), indices.c());
    let (pixels, images) = (dy.h() * dy.w(), grid(task, dy.n())?);
    // Lists of equal indices: the first of each channel, then for each the next.
    let heads = (rows * channels * 4).next_multiple_of(256);
    let (head, next) = (Place::Scratch(0), Place::Scratch(heads));
    let links = launch(
        "links",
        [(channels + k).div_ceil(BLOCK as usize) as u32, grid(task, rows)?, 1],
        vec![
            Arg::Pointer(Place::Input(0)),
            Arg::Pointer(head),
            Arg::Pointer(next),
            int(task, channels)?,
            int(task, k)?,
        ],
    );
    let sums = launch(
        "gather_backward",
        [pixels.div_ceil(PIXELS) as u32, grid(task, channels.div_ceil(LANES))?, images],
        vec![
            Arg::Pointer(head),
            Arg::Pointer(next),
            Arg::Real(Place::Input(1)),
            Arg::Real(Place::Out),
            int(task, pixels)?,
            int(task, channels)?,
            int(task, k)?,
            Arg::I32(i32::from(rows == 1)),
        ],
    );
    Ok(Lowered { launches: vec![links, sums], scratch_bytes: heads + rows * k * 4 })
}

#[cfg(test)]
mod tests {
    use super::super::launch::{Limits, Typed};
    use super::*;

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(n: usize, h: usize, w: usize, c: usize) -> Typed {
        Typed { shape: Shape::new(n, h, w, c), storage: Storage::F16 }
    }

    fn kernels(op: Op, inputs: &[Typed], out: Typed) -> Vec<&'static str> {
        let lowered = lower(&Task { op: &op, inputs, out, limits: LIMITS }).unwrap();
        lowered.launches.iter().map(|l| l.kernel).collect()
    }

    #[test]
    fn moves_are_as_wide_as_both_ends_are_aligned() {
        let wide = [half(1, 2, 2, 64), half(1, 2, 2, 32)];
        assert_eq!(kernels(Op::Concat { axis: 3 }, &wide, half(1, 2, 2, 96)), ["copy_runs_8"; 2]);
        let odd = [half(1, 2, 2, 64), half(1, 2, 2, 1)];
        assert_eq!(kernels(Op::Concat { axis: 3 }, &odd, half(1, 2, 2, 65)), ["copy_runs_1"; 2]);
        let four = Op::Slice { axis: 3, start: 4, len: 16 };
        assert_eq!(kernels(four, &[half(1, 2, 2, 24)], half(1, 2, 2, 16)), ["copy_runs_4"]);
        // One run may end anywhere.
        let flat = Op::Reshape { shape: Shape::vector(27) };
        assert_eq!(kernels(flat, &[half(1, 3, 3, 3)], half(1, 1, 1, 27)), ["copy_runs_8"]);
        let wide = Typed { storage: Storage::F32, ..half(1, 1, 1, 64) };
        let pad = Op::Pad { axis: 3, before: 8, after: 0 };
        assert_eq!(kernels(pad, &[wide], half(1, 1, 1, 72)), ["copy_runs_4"]);
    }

    #[test]
    fn an_empty_operand_of_a_concatenation_launches_nothing() {
        let parts = [half(1, 2, 2, 8), half(1, 2, 2, 0), half(1, 2, 2, 8)];
        assert_eq!(kernels(Op::Concat { axis: 3 }, &parts, half(1, 2, 2, 16)).len(), 2);
    }

    #[test]
    fn only_a_moving_innermost_axis_goes_through_shared_memory() {
        let x = half(2, 3, 4, 8);
        let to = |perm: [usize; 4]| Typed { shape: Shape(perm.map(|i| x.shape.0[i])), ..x };
        for (perm, kernel) in [
            ([0, 1, 2, 3], "binary_8"),
            ([0, 2, 1, 3], "binary_8"),
            ([0, 3, 1, 2], "transpose"),
            ([3, 2, 1, 0], "transpose"),
        ] {
            assert_eq!(kernels(Op::Transpose { perm }, &[x], to(perm)), [kernel]);
        }
        // Axes of size 1 move nothing.
        let flat = half(2, 1, 1, 8);
        assert_eq!(kernels(Op::Transpose { perm: [0, 3, 1, 2] }, &[flat], half(2, 8, 1, 1)), ["binary_8"]);
    }

    #[test]
    fn axes_that_stay_together_are_one() {
        let axes = merged(Shape::new(2, 3, 4, 8), Shape::new(2, 8, 3, 4), [0, 3, 1, 2]);
        assert_eq!(
            axes,
            [Axis { size: 12, x: 8, y: 1 }, Axis { size: 8, x: 1, y: 12 }, Axis { size: 2, x: 96, y: 96 }]
        );
    }

    #[test]
    fn the_lists_of_a_gathers_gradient_fit_their_scratch() {
        let indices = Typed { shape: Shape::new(2, 1, 1, 5), storage: Storage::U32 };
        let op = Op::GatherBackward { channels: 70 };
        let inputs = [indices, half(2, 3, 3, 5)];
        let lowered = lower(&Task { op: &op, inputs: &inputs, out: half(2, 3, 3, 70), limits: LIMITS });
        let lowered = lowered.unwrap();
        assert_eq!(
            lowered.launches.iter().map(|l| l.kernel).collect::<Vec<_>>(),
            ["links", "gather_backward"]
        );
        // 2·70 heads take 560 bytes, rounded up to 768; then 2·5 links.
        assert_eq!(lowered.launches[0].args[2], Arg::Pointer(Place::Scratch(768)));
        assert_eq!(lowered.scratch_bytes, 768 + 40);
    }
}
