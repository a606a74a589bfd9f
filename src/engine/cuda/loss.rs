//! Launches of `kernels/loss.cu`.

use super::elementwise::sizes;
use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};
use crate::engine::op::Op;

const MODULE: &str = "loss";
const BLOCK: usize = 256;
/// Partial sums of the cross-entropy; more blocks would go round fewer rows each.
const MOST_PARTIALS: usize = 1024;

/// Threads that share a row of this many channels, in the order of the kernels of each operation.
fn pick_lanes(channels: usize) -> (usize, usize) {
    match channels {
        0..=32 => (4, 0),
        33..=256 => (32, 1),
        _ => (BLOCK, 2),
    }
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let x = task.inputs[0].shape;
    let (lanes, variant) = pick_lanes(x.c());
    let too_long = |_| task.unsupported("an axis exceeds 2³¹ elements");
    let channels = Arg::I32(i32::try_from(x.c()).map_err(too_long)?);
    let rows = x.rows();
    let blocks = rows.div_ceil(BLOCK / lanes);
    let launch = |kernels: [&'static str; 3], blocks: usize, mut args: Vec<Arg>| {
        args.extend([sizes(&[rows]), channels.clone()]);
        let grid = [blocks as u32, 1, 1];
        Launch {
            module: MODULE,
            kernel: kernels[variant],
            grid,
            block: [BLOCK as u32, 1, 1],
            shared: 0,
            args,
        }
    };
    let input = |i: usize| Arg::Real(Place::Input(i));
    let out = Arg::Real(Place::Out);
    Ok(match task.op {
        Op::Softmax => {
            let kernels = ["softmax_4", "softmax_32", "softmax_256"];
            Lowered::one(launch(kernels, blocks, vec![input(0), out]))
        }
        Op::SoftmaxBackward => {
            let kernels = ["softmax_backward_4", "softmax_backward_32", "softmax_backward_256"];
            Lowered::one(launch(kernels, blocks, vec![input(0), input(1), out]))
        }
        Op::CrossEntropy => {
            let kernels = ["cross_entropy_4", "cross_entropy_32", "cross_entropy_256"];
            let partials = blocks.min(MOST_PARTIALS);
            let partial = Arg::Pointer(Place::Scratch(0));
            let sums = launch(kernels, partials, vec![input(0), input(1), partial.clone()]);
            let args = vec![partial, Arg::Pointer(Place::Out), Arg::I32(partials as i32), sizes(&[rows])];
            let mean = Launch { kernel: "cross_entropy_mean", grid: [1; 3], args, ..sums.clone() };
            Lowered { launches: vec![sums, mean], scratch_bytes: partials * 4 }
        }
        Op::CrossEntropyBackward => {
            let kernels =
                ["cross_entropy_backward_4", "cross_entropy_backward_32", "cross_entropy_backward_256"];
            let dloss = Arg::Pointer(Place::Input(2));
            Lowered::one(launch(kernels, blocks, vec![input(0), input(1), dloss, out]))
        }
        _ => return Err(task.unsupported("is no loss")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::launch::{Limits, Typed};
    use super::super::simulator::gpu;
    use super::super::storage::Storage;
    use super::super::{Priority, Program};
    use super::*;
    use crate::engine::cpu::tests::norm_error;
    use crate::engine::{Graph, Options, ParamStore, Shape, Tensor, Threads, cpu};

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn lowered(op: &Op, x: Shape) -> Lowered {
        let typed = |shape| Typed { shape, storage: Storage::F16 };
        let (out, scalar) = if matches!(op, Op::CrossEntropy) { (Shape::SCALAR, true) } else { (x, false) };
        let storage = if scalar { Storage::F32 } else { Storage::F16 };
        let inputs = [typed(x), typed(x.with(3, 1))];
        lower(&Task { op, inputs: &inputs, out: Typed { shape: out, storage }, limits: LIMITS }).unwrap()
    }

    #[test]
    fn short_rows_share_a_warp_and_long_ones_take_a_block() {
        for (channels, kernel, blocks) in
            [(2, "softmax_4", 2), (32, "softmax_4", 2), (33, "softmax_32", 9), (257, "softmax_256", 65)]
        {
            let launch = &lowered(&Op::Softmax, Shape::new(1, 5, 13, channels)).launches[0];
            assert_eq!((launch.kernel, launch.grid), (kernel, [blocks, 1, 1]));
        }
    }

    #[test]
    fn the_mean_is_taken_of_one_partial_sum_a_block() {
        for (rows, partials) in [(1, 1), (65, 2), (64 * 1024 + 1, 1024)] {
            let lowered = lowered(&Op::CrossEntropy, Shape::new(1, 1, rows, 3));
            assert_eq!(lowered.launches[0].grid[0], partials);
            assert_eq!(lowered.launches[1].args[2], Arg::I32(partials as i32));
            assert_eq!(lowered.scratch_bytes, partials as usize * 4);
        }
    }
    #[test]
    fn a_gpus_cross_entropy_and_its_gradient_are_those_of_the_cpu() {
        // One size for each kernel.
        for classes in [5, 40, 300] {
            let x_shape = Shape::new(2, 5, 7, classes);
            let mut g = Graph::new();
            let (x, target) = (g.param("x", x_shape).unwrap(), g.input("target", x_shape.with(3, 1)));
            let loss = g.apply(Op::CrossEntropy, &[x, target]).unwrap();
            let weight = g.fill(Shape::SCALAR, 0.5);
            let dx = g.apply(Op::CrossEntropyBackward, &[x, target, weight]).unwrap();
            let mut params = ParamStore::new();
            let data = (0..x_shape.len()).map(|i| ((i * 7919) % 1021) as f32 / 128.0 - 4.0).collect();
            params.insert("x", Tensor::new(x_shape, data));
            let outputs = [("loss", loss), ("dx", dx)];
            let (options, threads) = (Options::default(), Threads::new(1));
            let mut cpu = cpu::Program::compile(&g, &outputs, &params, &threads, options).unwrap();
            let mut gpu = Program::compile(&g, &outputs, &params, &gpu(), Priority::High, options).unwrap();
            for input in [cpu.input_mut("target").unwrap(), gpu.input_mut("target").unwrap()] {
                // Below the first class and beyond the last as well.
                input.iter_mut().enumerate().for_each(|(i, t)| *t = (i * 13 % (classes + 2)) as f32 - 1.0);
            }
            cpu.run();
            gpu.run().unwrap();
            let (a, b) = (cpu.output("loss").unwrap()[0], gpu.output("loss").unwrap()[0]);
            // 70 terms, each of a sum of exponentials within some 2⁻²⁰.
            assert!((a - b).abs() < 2e-6 * a.abs(), "{classes} classes: {a} and {b}");
            let error = norm_error(gpu.output("dx").unwrap(), cpu.output("dx").unwrap());
            // One store as fp16 at most, 2⁻¹¹.
            assert!(error < 1e-3, "{classes} classes: the gradient differs by {error:.1e}");
        }
    }
}
