//! Every convolution kernel against the specification, at the boundaries of its tile and one either side.

use std::collections::BTreeSet;

use half::f16;

use super::conv;
use super::launch::{Limits, Task, Typed};
use super::simulator::gpu;
use super::storage::Storage;
use super::{Gpu, Priority, Program};
use crate::engine::cpu::tests::norm_error;
use crate::engine::philox::Stream;
use crate::engine::{Act, Conv, Epilogue, Graph, Op, Options, ParamStore, Shape, Tensor, Threads, cpu};

/// A convolution of x (N×H×W×C) by kh×kw taps to `co` channels; the adjoint runs it backwards.
#[derive(Clone, Copy, Debug)]
struct Case {
    x: [usize; 4],
    taps: [usize; 2],
    co: usize,
    conv: Conv,
}

const fn case(x: [usize; 4], taps: [usize; 2], co: usize, conv: Conv) -> Case {
    Case { x, taps, co, conv }
}

const fn lopsided(stride: usize, pad: [usize; 4]) -> Conv {
    Conv { stride, pad, groups: 1 }
}

const CASES: &[Case] = &[
    // One pixel; sixteen and one more; rows of 32, 64, 128 and one either side.
    case([1, 1, 1, 40], [1, 1], 24, Conv::new(1, 0)),
    case([1, 4, 4, 8], [3, 3], 64, Conv::new(1, 1)),
    case([1, 1, 17, 16], [1, 1], 72, Conv::new(1, 0)),
    case([1, 31, 1, 24], [3, 1], 32, lopsided(1, [1, 0, 1, 0])),
    case([1, 8, 8, 32], [1, 1], 64, Conv::new(1, 0)),
    case([1, 5, 13, 40], [3, 3], 72, Conv::new(1, 1)),
    case([3, 43, 1, 64], [1, 1], 128, Conv::new(1, 0)),
    case([2, 8, 16, 72], [1, 1], 64, Conv::new(1, 0)),
    // Kernels, strides and padding of the networks, and lopsided ones.
    case([1, 15, 14, 3], [7, 7], 64, Conv::new(2, 3)),
    case([1, 12, 11, 3], [3, 3], 32, lopsided(2, [0, 0, 1, 1])),
    case([2, 9, 12, 16], [3, 3], 8, Conv::new(2, 1)),
    case([1, 10, 9, 24], [5, 5], 40, Conv::new(1, 2)),
    case([1, 8, 6, 64], [4, 4], 32, Conv::new(2, 1)),
    case([1, 6, 8, 16], [2, 2], 24, Conv::new(2, 0)),
    case([1, 7, 9, 8], [1, 1], 16, Conv::new(2, 0)),
    case([1, 11, 10, 8], [3, 4], 8, lopsided(3, [2, 0, 1, 3])),
    // Widths that no 16-byte copy takes, on either side.
    case([1, 9, 9, 64], [3, 3], 2, Conv::new(1, 1)),
    case([1, 7, 8, 1], [3, 3], 1, Conv::new(1, 1)),
    case([1, 6, 7, 5], [3, 3], 19, Conv::new(2, 1)),
    case([1, 5, 5, 3], [1, 1], 33, Conv::new(1, 0)),
    case([1, 12, 12, 2], [3, 3], 3, Conv::new(1, 1)),
    case([1, 8, 8, 8], [3, 3], 30, Conv::new(1, 1)),
    case([1, 16, 16, 3], [3, 3], 64, Conv::new(1, 1)),
    // A long sum of few results is split, whatever the width.
    case([1, 2, 2, 256], [3, 3], 64, Conv::new(1, 1)),
    case([1, 2, 2, 256], [3, 3], 3, Conv::new(1, 1)),
    case([1, 3, 3, 35], [7, 7], 30, Conv::new(1, 3)),
    // Groups that are not one channel each.
    case([1, 6, 6, 8], [3, 3], 12, Conv::grouped(1, 1, 4)),
    case([1, 7, 6, 48], [3, 3], 24, Conv::grouped(2, 1, 3)),
];

/// Values that fp16 holds exactly: what is compared is the arithmetic, not the rounding of operands.
fn random(shape: Shape, seed: usize) -> Tensor {
    let mut rng = Stream::new(seed as u64, 0, 0, 78).rng();
    Tensor::new(shape, (0..shape.len()).map(|_| f16::from_f32(rng.range(-1.0, 1.0)).to_f32()).collect())
}

/// The operation, shapes of its inputs and of its output.
fn operation(case: &Case, transposed: bool, epilogue: Epilogue) -> (Op, Vec<Shape>, Shape) {
    let Case { x, taps: [kh, kw], co, conv } = *case;
    let (x, w) = (Shape(x), Shape::new(kh, kw, x[3] / conv.groups, co));
    let y = Shape::new(x.n(), conv.out_h(x.h(), kh), conv.out_w(x.w(), kw), co);
    let (op, read, written) = match transposed {
        false => (Op::Conv2d { conv, epilogue }, x, y),
        true => (Op::ConvTranspose { conv, h: x.h(), w: x.w(), epilogue }, y, x),
    };
    let mut inputs = vec![read, w];
    inputs.extend(epilogue.bias.then(|| Shape::vector(written.c())));
    inputs.extend(epilogue.residual.then_some(written));
    (op, inputs, written)
}

fn check(
    gpu: &Gpu,
    case: &Case,
    transposed: bool,
    epilogue: Epilogue,
    multiprocessors: u32,
    seed: usize,
) -> Option<String> {
    let (op, shapes, _) = operation(case, transposed, epilogue);
    let (mut g, mut params) = (Graph::new(), ParamStore::new());
    let mut values = vec![];
    for (i, shape) in shapes.iter().enumerate() {
        let name = format!("p{i}");
        values.push(g.param(&name, *shape).unwrap());
        params.insert(name, random(*shape, seed * 8 + i));
    }
    let y = g.apply(op, &values).unwrap();
    let outputs = [("y", y)];
    let mut plain =
        cpu::Program::compile(&g, &outputs, &params, &Threads::new(1), Options::REFERENCE).unwrap();
    plain.run();
    let (limits, options) = (Limits { multiprocessors, ..gpu.limits() }, Options::default());
    let mut program =
        Program::compile_for(&g, &outputs, &params, gpu, limits, Priority::High, options).unwrap();
    program.poison().unwrap();
    if let Err(e) = program.run() {
        return Some(format!("{case:?}, transposed {transposed}, {multiprocessors}: {e}"));
    }
    let error = norm_error(program.output("y").unwrap(), plain.output("y").unwrap());
    // fp16 rounds each result by at most 2⁻¹¹ = 4.9e-4 of itself; sums are fp32.
    (error.is_nan() || error > 6e-4)
        .then(|| format!("{case:?}, transposed {transposed}, {multiprocessors}: off by {error:.1e}"))
}

/// Bias, residual and activation in every combination, in turn.
fn epilogue(i: usize) -> Epilogue {
    let act = [Act::None, Act::Relu, Act::Relu6, Act::Silu][i / 4 % 4];
    Epilogue { bias: i % 2 == 1, residual: i / 2 % 2 == 1, act }
}

/// Few multiprocessors are given large tiles and unsplit sums, many small tiles and splits.
const MULTIPROCESSORS: [u32; 4] = [1, 8, 108, 10_000];

#[test]
fn every_convolution_equals_the_specification_whatever_the_number_of_multiprocessors() {
    let (gpu, mut wrong) = (gpu(), vec![]);
    for (i, case) in CASES.iter().enumerate() {
        for (j, multiprocessors) in MULTIPROCESSORS.into_iter().enumerate() {
            for transposed in [false, true] {
                let epilogue = epilogue(i * 3 + j * 5 + usize::from(transposed));
                wrong.extend(check(&gpu, case, transposed, epilogue, multiprocessors, i));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_cases_run_every_convolution_kernel() {
    let mut run = BTreeSet::new();
    for case in CASES {
        for multiprocessors in MULTIPROCESSORS {
            for transposed in [false, true] {
                let (op, shapes, out) = operation(case, transposed, Epilogue::default());
                let half = |shape| Typed { shape, storage: Storage::F16 };
                let inputs: Vec<Typed> = shapes.into_iter().map(half).collect();
                let limits = Limits { arch: 80, multiprocessors, shared_bytes: 100 << 10 };
                let task = Task { op: &op, inputs: &inputs, out: half(out), limits };
                run.extend(conv::lower(&task).unwrap().launches.iter().map(|l| l.kernel));
            }
        }
    }
    let mut never: BTreeSet<&str> = conv::all_tiles().map(|t| t.kernel).collect();
    never.extend(["conv_sum_splits_1", "conv_sum_splits_4"]);
    let never: Vec<_> = never.difference(&run).collect();
    assert!(never.is_empty(), "not run: {never:?}");
}
