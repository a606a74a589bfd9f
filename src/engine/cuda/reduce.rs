//! Launches of `kernels/reduce.cu`.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::rows;
use crate::engine::op::{Op, Reduce};
use crate::engine::shape::Shape;

const MODULE: &str = "reduce";
const BLOCK: usize = 256;
/// Blocks along y and z that a grid may have.
const MOST: usize = 65_535;
/// Elements that a slice has at least, so that its partial result costs next to nothing.
const SLICE: usize = 4096;

/// A shape with neighbouring axes merged that are both reduced or both kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// k1 × r1 × k2 × r2
    Inner([usize; 4]),
    /// r0 × k1 × r1 × k2
    Columns([usize; 4]),
}

impl Pattern {
    fn of(x: Shape, axes: [bool; 4]) -> Pattern {
        let mut groups: Vec<(bool, usize)> = Vec::with_capacity(4);
        for (len, reduced) in x.0.into_iter().zip(axes).filter(|(len, _)| *len != 1) {
            match groups.last_mut() {
                Some((last, product)) if *last == reduced => *product *= len,
                _ => groups.push((reduced, len)),
            }
        }
        let innermost_reduced = groups.last().is_none_or(|g| g.0);
        // Alternating from the innermost outwards; what is missing has size 1.
        let mut dims = [1; 4];
        for (i, (_, len)) in groups.iter().rev().enumerate() {
            dims[3 - i] = *len;
        }
        if innermost_reduced { Pattern::Inner(dims) } else { Pattern::Columns(dims) }
    }
}

/// Slices that outputs with `len` inputs each are cut into, where `blocks` blocks would do without.
fn slices(blocks: usize, len: usize, limits: &Limits) -> usize {
    let wanted = 4 * limits.multiprocessors as usize;
    if blocks >= wanted / 2 {
        return 1;
    }
    wanted.div_ceil(blocks).min(len / SLICE).clamp(1, MOST)
}

/// `enum`s of the kernels.
fn code(reduce: Reduce) -> i32 {
    match reduce {
        Reduce::Sum | Reduce::Mean => 0,
        Reduce::Max => 1,
        Reduce::Min => 2,
    }
}

/// Struct of four sizes, the number of slices and the factor at the end.
fn geometry(dims: [usize; 4], slices: usize, scale: f32) -> Arg {
    let mut bytes = rows::ints(&dims);
    bytes.extend(rows::ints(&[slices]));
    bytes.extend(scale.to_ne_bytes());
    Arg::Struct(bytes)
}

fn columns(x: Arg, y: Arg, dims: [usize; 4], slices: usize, scale: f32, kind: i32) -> Launch {
    let [_, k1, _, k2] = dims;
    let v = rows::vector(k2);
    let kernel = match v {
        8 => "reduce_columns_8",
        4 => "reduce_columns_4",
        _ => "reduce_columns_1",
    };
    let wide = columns_wide(k2);
    Launch {
        module: MODULE,
        kernel,
        grid: [(k2 / v).div_ceil(wide) as u32, k1.min(MOST) as u32, slices as u32],
        block: [wide as u32, (BLOCK / wide) as u32, 1],
        shared: 0,
        args: vec![x, y, geometry(dims, slices, scale), Arg::I32(kind)],
    }
}

/// Threads of a block that stand side by side.
fn columns_wide(k2: usize) -> usize {
    (k2 / rows::vector(k2)).next_power_of_two().min(32)
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    match task.op {
        Op::Reduce { reduce, axes } => reduction(task, *reduce, *axes),
        Op::SumSquares => Ok(sum_squares(task)),
        _ => Err(task.unsupported("is no reduction")),
    }
}

fn reduction(task: &Task, reduce: Reduce, axes: [bool; 4]) -> Result<Lowered, Unsupported> {
    let x = task.inputs[0].shape;
    let pattern = Pattern::of(x, axes);
    let (Pattern::Inner(dims) | Pattern::Columns(dims)) = pattern;
    if dims.iter().any(|d| *d >= 1 << 31) || task.out.shape.len() >= 1 << 26 {
        return Err(task.unsupported("has more elements than 32 bits count"));
    }
    let scale = match reduce {
        Reduce::Mean => (task.out.shape.len() as f64 / x.len() as f64) as f32,
        _ => 1.0,
    };
    let (from, to, kind) = (Arg::Real(Place::Input(0)), Arg::Real(Place::Out), code(reduce));
    Ok(match pattern {
        Pattern::Columns(dims) => {
            let [r0, k1, r1, k2] = dims;
            let blocks = (k2 / rows::vector(k2)).div_ceil(columns_wide(k2)) * k1;
            // A block's width of columns counts as one.
            let per_block = r0 * r1 * (columns_wide(k2) * rows::vector(k2)).min(k2);
            let slices = slices(blocks, per_block, &task.limits);
            sliced(slices, k1 * k2, scale, kind, to, |y, scale| {
                columns(from.clone(), y, dims, slices, scale, kind)
            })
        }
        Pattern::Inner(dims) => inner(task, dims, scale, kind, from, to),
    })
}

fn inner(task: &Task, dims: [usize; 4], scale: f32, kind: i32, from: Arg, to: Arg) -> Lowered {
    let [k1, r1, k2, r2] = dims;
    let (outputs, v) = (k1 * k2, rows::vector(r2));
    let per_output = r1 * r2 / v;
    // A block for an output pays where each of its threads has a few loads to do.
    if per_output < 4 * BLOCK {
        let lanes = per_output.next_power_of_two().min(32);
        let kernel = match v {
            8 => "reduce_lanes_8",
            4 => "reduce_lanes_4",
            _ => "reduce_lanes_1",
        };
        return Lowered::one(Launch {
            module: MODULE,
            kernel,
            grid: [(outputs * lanes).div_ceil(BLOCK) as u32, 1, 1],
            block: [BLOCK as u32, 1, 1],
            shared: 0,
            args: vec![from, to, geometry(dims, 1, scale), Arg::I32(kind), Arg::I32(lanes as i32)],
        });
    }
    let kernel = match v {
        8 => "reduce_block_8",
        4 => "reduce_block_4",
        _ => "reduce_block_1",
    };
    let slices = slices(outputs, r1 * r2, &task.limits);
    sliced(slices, outputs, scale, kind, to, |y, scale| Launch {
        module: MODULE,
        kernel,
        grid: [outputs as u32, slices as u32, 1],
        block: [BLOCK as u32, 1, 1],
        shared: 0,
        args: vec![from.clone(), y, geometry(dims, slices, scale), Arg::I32(kind)],
    })
}

/// `launch` to the output, or slice by slice to scratch, and the slices to the output.
fn sliced(
    slices: usize,
    outputs: usize,
    scale: f32,
    kind: i32,
    out: Arg,
    launch: impl Fn(Arg, f32) -> Launch,
) -> Lowered {
    if slices == 1 {
        return Lowered::one(launch(out, scale));
    }
    let parts = || Arg::Real(Place::Scratch(0));
    let last = columns(parts(), out, [slices, 1, 1, outputs], 1, scale, kind);
    Lowered { launches: vec![launch(parts(), 1.0), last], scratch_bytes: 4 * slices * outputs }
}

/// `TENSORS` and `CHUNK` of the kernels.
const TENSORS: usize = 8;
const CHUNK: usize = 16_384;

fn sum_squares(task: &Task) -> Lowered {
    let blocks: Vec<usize> = task.inputs.iter().map(|x| x.shape.len().div_ceil(CHUNK)).collect();
    let all: usize = blocks.iter().sum();
    // Partial sums lie one after the other; those of a launch start at a multiple of 256 bytes, and what
    // is between is filled by blocks that have nothing to add up.
    let mut launches = vec![];
    let mut offset = 0;
    for (batch, inputs) in task.inputs.chunks(TENSORS).enumerate() {
        let counts = &blocks[batch * TENSORS..][..inputs.len()];
        let mut args = vec![];
        let mut lengths = vec![];
        let mut first = vec![];
        let mut block = 0;
        for i in 0..TENSORS {
            // An absent tensor begins where no block is.
            let at = if i < inputs.len() { block } else { u32::MAX as usize };
            first.extend((at as u32).to_ne_bytes());
            let (input, len) = inputs.get(i).map_or((0, 0), |x| (i, x.shape.len()));
            lengths.extend((len as u64).to_ne_bytes());
            args.push(Arg::Real(Place::Input(batch * TENSORS + input)));
            block += counts.get(i).copied().unwrap_or(0);
        }
        lengths.extend(first);
        let padded = if offset + block == all { block } else { block.next_multiple_of(64) };
        args.extend([Arg::Struct(lengths), Arg::Pointer(Place::Scratch(4 * offset))]);
        launches.push(Launch {
            module: MODULE,
            kernel: "sum_squares",
            grid: [padded as u32, 1, 1],
            block: [BLOCK as u32, 1, 1],
            shared: 0,
            args,
        });
        offset += padded;
    }
    let (parts, out) = (Arg::Real(Place::Scratch(0)), Arg::Real(Place::Out));
    let v = rows::vector(offset);
    let kernel = match v {
        8 => "reduce_block_8",
        4 => "reduce_block_4",
        _ => "reduce_block_1",
    };
    launches.push(Launch {
        module: MODULE,
        kernel,
        grid: [1, 1, 1],
        block: [BLOCK as u32, 1, 1],
        shared: 0,
        args: vec![parts, out, geometry([1, 1, 1, offset], 1, 1.0), Arg::I32(0)],
    });
    Lowered { launches, scratch_bytes: 4 * offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::launch::Typed;
    use crate::engine::cuda::storage::Storage;

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(n: usize, h: usize, w: usize, c: usize) -> Typed {
        Typed { shape: Shape::new(n, h, w, c), storage: Storage::F16 }
    }

    fn scalar() -> Typed {
        Typed { shape: Shape::SCALAR, storage: Storage::F32 }
    }

    #[test]
    fn neighbouring_axes_of_one_kind_are_one() {
        let x = Shape::new(2, 3, 4, 5);
        let of = |axes: [u8; 4]| Pattern::of(x, axes.map(|a| a == 1));
        assert_eq!(of([1, 1, 1, 1]), Pattern::Inner([1, 1, 1, 120]));
        assert_eq!(of([0, 1, 1, 0]), Pattern::Columns([1, 2, 12, 5]));
        assert_eq!(of([1, 1, 1, 0]), Pattern::Columns([1, 1, 24, 5]));
        assert_eq!(of([1, 0, 1, 0]), Pattern::Columns([2, 3, 4, 5]));
        assert_eq!(of([0, 0, 0, 1]), Pattern::Inner([1, 1, 24, 5]));
        assert_eq!(of([0, 1, 0, 1]), Pattern::Inner([2, 3, 4, 5]));
        assert_eq!(of([0, 0, 0, 0]), Pattern::Columns([1, 1, 1, 120]));
        assert_eq!(Pattern::of(Shape::SCALAR, [true; 4]), Pattern::Inner([1; 4]));
        // Channels of size 1 do not count: rows of pixels are reduced along the innermost axis.
        assert_eq!(
            Pattern::of(Shape::new(2, 3, 4, 1), [false, true, true, false]),
            Pattern::Inner([1, 1, 2, 12])
        );
    }

    #[test]
    fn few_outputs_of_many_elements_are_reduced_in_slices() {
        let op = Op::Reduce { reduce: Reduce::Max, axes: [true; 4] };
        let big = lower(&Task { op: &op, inputs: &[half(1, 256, 256, 1)], out: scalar(), limits: LIMITS });
        let big = big.unwrap();
        assert_eq!(big.launches.len(), 2);
        assert_eq!(big.launches[0].grid, [1, 16, 1]);
        assert_eq!(big.scratch_bytes, 64);
        let small = lower(&Task { op: &op, inputs: &[half(1, 8, 8, 1)], out: scalar(), limits: LIMITS });
        assert_eq!(small.unwrap().launches.len(), 1);
    }

    #[test]
    fn the_squares_of_many_tensors_are_summed_in_few_launches() {
        let inputs: Vec<Typed> = (1..=300).map(|c| half(1, 1, 100, c)).collect();
        let lowered = lower(&Task { op: &Op::SumSquares, inputs: &inputs, out: scalar(), limits: LIMITS });
        let lowered = lowered.unwrap();
        assert_eq!(lowered.launches.len(), 300usize.div_ceil(TENSORS) + 1);
        for launch in &lowered.launches {
            for arg in &launch.args {
                if let Arg::Pointer(Place::Scratch(offset)) = arg {
                    assert_eq!(offset % 256, 0);
                }
            }
        }
    }
}
