//! Launches of `kernels/elementwise.cu`.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Typed, Unsupported};
use super::storage::Storage;
use crate::engine::op::{Binary, Op, Unary};
use crate::engine::shape::Shape;

const MODULE: &str = "elementwise";
const BLOCK: u32 = 256;

/// A one-dimensional launch of this many threads.
pub(super) fn linear(module: &'static str, kernel: &'static str, threads: usize, args: Vec<Arg>) -> Launch {
    let blocks = threads.div_ceil(BLOCK as usize);
    debug_assert!(blocks <= i32::MAX as usize, "a grid has at most 2³¹−1 blocks along x");
    Launch { module, kernel, grid: [blocks as u32, 1, 1], block: [BLOCK, 1, 1], shared: 0, args }
}

/// `size_t`s of the kernels, one after the other.
pub(super) fn sizes(values: &[usize]) -> Arg {
    Arg::Struct(values.iter().flat_map(|v| (*v as u64).to_ne_bytes()).collect())
}

/// The same numbers in another storage: input 0 to the output.
pub fn convert(from: Storage, to: Storage, len: usize, _limits: &Limits) -> Launch {
    let args = vec![Arg::Pointer(Place::Input(0)), Arg::Pointer(Place::Out), sizes(&[len])];
    let kernel = match (from, to) {
        (Storage::F32, Storage::F16) => "convert_f32_f16",
        (Storage::F16, Storage::F32) => "convert_f16_f32",
        _ => unreachable!("only real numbers of two storages are converted"),
    };
    linear(MODULE, kernel, len.div_ceil(4), args)
}

/// One value everywhere in the output.
pub fn fill(value: f32, len: usize) -> Launch {
    linear(MODULE, "fill", len.div_ceil(4), vec![Arg::Real(Place::Out), Arg::F32(value), sizes(&[len])])
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    Ok(Lowered::one(match task.op {
        Op::Unary(unary) => pointwise(task, *unary, ["unary_f16", "unary_real"]),
        Op::UnaryBackward(unary) => pointwise(task, *unary, ["unary_backward_f16", "unary_backward_real"]),
        Op::Binary(binary) => stretch(task, &task.inputs[0], &task.inputs[1], binary_code(*binary)),
        Op::Broadcast { .. } => {
            // The kernel does not read its second operand.
            let x = task.inputs[0];
            stretch(task, &x, &x, FIRST)
        }
        _ => return Err(task.unsupported("is not elementwise")),
    }))
}

/// `enum Unary` of the kernels, and the two numbers some functions take.
fn unary_code(unary: Unary) -> (i32, f32, f32) {
    match unary {
        Unary::Relu => (0, 0.0, 0.0),
        Unary::Relu6 => (1, 0.0, 0.0),
        Unary::Silu => (2, 0.0, 0.0),
        Unary::Sigmoid => (3, 0.0, 0.0),
        Unary::QuickGelu => (4, 0.0, 0.0),
        Unary::Tanh => (5, 0.0, 0.0),
        Unary::Exp => (6, 0.0, 0.0),
        Unary::Log1p => (7, 0.0, 0.0),
        Unary::Square => (8, 0.0, 0.0),
        Unary::Sqrt => (9, 0.0, 0.0),
        Unary::Affine { factor, offset } => (10, factor, offset),
        Unary::Clamp { lo, hi } => (11, lo, hi),
    }
}

/// `enum Binary` of the kernels.
fn binary_code(binary: Binary) -> i32 {
    match binary {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
        Binary::Max => 4,
        Binary::Min => 5,
    }
}

/// `a` alone.
const FIRST: i32 = 6;

fn pointwise(task: &Task, unary: Unary, [f16, real]: [&'static str; 2]) -> Launch {
    let halves = task.inputs.iter().chain([&task.out]).all(|x| x.storage == Storage::F16);
    let len = task.out.shape.len();
    let (kernel, each) = if halves { (f16, 8) } else { (real, 4) };
    let places = (0..task.inputs.len()).map(Place::Input).chain([Place::Out]);
    let mut args: Vec<Arg> =
        places.map(|place| if halves { Arg::Pointer(place) } else { Arg::Real(place) }).collect();
    let (kind, a, b) = unary_code(unary);
    let mut function = kind.to_ne_bytes().to_vec();
    function.extend(a.to_ne_bytes());
    function.extend(b.to_ne_bytes());
    args.extend([sizes(&[len]), Arg::Struct(function)]);
    linear(MODULE, kernel, len.div_ceil(each), args)
}

/// The output's axes with neighbours merged where both operands go on without a jump; the innermost
/// last, missing ones of size 1 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axes {
    size: [usize; 4],
    /// Strides of both operands in elements, 0 where they stretch.
    stride: [[usize; 4]; 2],
}

impl Axes {
    fn merge(out: Shape, operands: [Shape; 2]) -> Axes {
        Axes::merge_strides(
            out,
            operands.map(|x| {
                let strides = x.strides();
                std::array::from_fn(|i| if x.0[i] == 1 { 0 } else { strides[i] })
            }),
        )
    }

    fn merge_strides(out: Shape, strides: [[usize; 4]; 2]) -> Axes {
        // From the innermost outwards.
        let mut merged: Vec<(usize, [usize; 2])> = Vec::with_capacity(4);
        for axis in (0..4).rev().filter(|i| out.0[*i] != 1) {
            let stride = strides.map(|s| s[axis]);
            match merged.last_mut() {
                Some((size, inner)) if stride == inner.map(|s| s * *size) => *size *= out.0[axis],
                _ => merged.push((out.0[axis], stride)),
            }
        }
        let mut axes = Axes { size: [1; 4], stride: [[0; 4]; 2] };
        for (i, (size, stride)) in merged.into_iter().enumerate() {
            axes.size[3 - i] = size;
            axes.stride[0][3 - i] = stride[0];
            axes.stride[1][3 - i] = stride[1];
        }
        axes
    }

    fn runs(&self) -> usize {
        self.size[..3].iter().product()
    }

    /// Elements a thread takes: 16 bytes of the largest operands' wider storage, but never across runs.
    fn each(&self, out: Typed, operands: [Typed; 2]) -> usize {
        let wide = |x: &Typed| x.storage == Storage::F32 && x.shape.len() == out.shape.len();
        let most = if [out, operands[0], operands[1]].iter().any(wide) { 4 } else { 8 };
        if self.runs() == 1 {
            return most;
        }
        [8, 4].into_iter().find(|v| *v <= most && self.size[3].is_multiple_of(*v)).unwrap_or(1)
    }
}

fn stretch(task: &Task, a: &Typed, b: &Typed, kind: i32) -> Launch {
    let axes = Axes::merge(task.out.shape, [a.shape, b.shape]);
    launch(axes, axes.each(task.out, [*a, *b]), kind)
}

/// Input 0 read with these strides at the output's positions; the innermost axis longer than 1 has
/// stride 1.
pub(super) fn strided_copy(task: &Task, strides: [usize; 4]) -> Launch {
    let axes = Axes::merge_strides(task.out.shape, [strides; 2]);
    launch(axes, axes.each(task.out, [task.inputs[0]; 2]), FIRST)
}

fn launch(axes: Axes, each: usize, kind: i32) -> Launch {
    let kernel = match each {
        8 => "binary_8",
        4 => "binary_4",
        _ => "binary_1",
    };
    let per_run = axes.size[3].div_ceil(each);
    let threads = axes.runs() * per_run;
    let mut geometry = vec![threads, axes.size[3], per_run, axes.size[1], axes.size[2]];
    geometry.extend(axes.stride.iter().flatten());
    let second = if kind == FIRST { 0 } else { 1 };
    let args = vec![
        Arg::Real(Place::Input(0)),
        Arg::Real(Place::Input(second)),
        Arg::Real(Place::Out),
        sizes(&geometry),
        Arg::I32(kind),
    ];
    linear(MODULE, kernel, threads, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(n: usize, h: usize, w: usize, c: usize) -> Typed {
        Typed { shape: Shape::new(n, h, w, c), storage: Storage::F16 }
    }

    fn kernel_of(op: &Op, inputs: &[Typed], out: Typed) -> (&'static str, u32) {
        let lowered = lower(&Task { op, inputs, out, limits: LIMITS }).unwrap();
        assert_eq!(lowered.launches.len(), 1);
        (lowered.launches[0].kernel, lowered.launches[0].grid[0])
    }

    #[test]
    fn tensors_of_one_shape_are_a_single_run() {
        let x = Shape::new(2, 3, 4, 5);
        let axes = Axes::merge(x, [x, x]);
        assert_eq!(axes, Axes { size: [1, 1, 1, 120], stride: [[0, 0, 0, 1]; 2] });
    }

    #[test]
    fn axes_merge_only_where_neither_operand_stretches_anew() {
        let out = Shape::new(2, 3, 4, 5);
        let axes = Axes::merge(out, [out, Shape::new(2, 1, 1, 5)]);
        assert_eq!(axes.size, [1, 2, 12, 5]);
        assert_eq!(axes.stride, [[0, 60, 5, 1], [0, 5, 0, 1]]);
        let axes = Axes::merge(out, [Shape::new(2, 1, 4, 1), Shape::new(1, 3, 1, 5)]);
        assert_eq!(axes.size, [2, 3, 4, 5]);
        assert_eq!(axes.stride, [[4, 0, 1, 0], [0, 5, 0, 1]]);
        assert_eq!(Axes::merge(Shape::SCALAR, [Shape::SCALAR; 2]).size, [1; 4]);
    }

    #[test]
    fn a_thread_takes_sixteen_bytes_but_never_across_runs() {
        let (odd, even) = (half(2, 3, 4, 5), half(2, 3, 4, 24));
        let add = Op::Binary(Binary::Add);
        assert_eq!(kernel_of(&add, &[odd, odd], odd), ("binary_8", 1));
        assert_eq!(kernel_of(&add, &[odd, half(1, 1, 1, 5)], odd), ("binary_1", 1));
        assert_eq!(kernel_of(&add, &[half(1, 1, 1, 24), even], even), ("binary_8", 1));
        assert_eq!(kernel_of(&add, &[even, half(2, 3, 4, 1)], even), ("binary_8", 1));
        let twelve = half(2, 3, 4, 12);
        assert_eq!(kernel_of(&add, &[twelve, half(1, 1, 1, 12)], twelve), ("binary_4", 1));
        let wide = Typed { storage: Storage::F32, ..even };
        assert_eq!(kernel_of(&add, &[even, wide], even), ("binary_4", 1));
        // A small fp32 operand costs next to nothing.
        let bias = Typed { shape: Shape::vector(24), storage: Storage::F32 };
        assert_eq!(kernel_of(&add, &[even, bias], even), ("binary_8", 1));
        let to = Op::Broadcast { shape: even.shape };
        assert_eq!(kernel_of(&to, &[half(1, 1, 1, 24)], even), ("binary_8", 1));
    }

    #[test]
    fn every_block_has_work() {
        let relu = Op::Unary(Unary::Relu);
        for (c, blocks) in [(1, 1), (2047, 1), (2048, 1), (2049, 2)] {
            let x = half(1, 1, 1, c);
            assert_eq!(kernel_of(&relu, &[x], x), ("unary_f16", blocks));
            let y = Typed { storage: Storage::F32, ..x };
            assert_eq!(kernel_of(&relu, &[x], y), ("unary_real", c.div_ceil(1024) as u32));
        }
    }
}
