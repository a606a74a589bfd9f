//! Launches of `kernels/optim.cu`.

use super::elementwise::{linear, sizes};
use super::launch::{Arg, Lowered, Place, Task, Unsupported};
use crate::engine::op::Op;

const MODULE: &str = "optim";

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let len = task.inputs[0].shape.len();
    let input = |i: usize| Arg::Pointer(Place::Input(i));
    let shadow = Arg::Pointer(Place::Shadow(0));
    Ok(Lowered::one(match task.op {
        Op::Adam(adam) => {
            let numbers = [adam.beta1, adam.beta2, adam.eps, adam.weight_decay];
            let mut args: Vec<Arg> = (0..6).map(input).collect();
            args.extend([
                shadow,
                sizes(&[len]),
                Arg::Struct(numbers.iter().flat_map(|v| v.to_ne_bytes()).collect()),
            ]);
            linear(MODULE, "adam", len.div_ceil(4), args)
        }
        Op::MovingAverage { momentum, variance_factor } => {
            let numbers = [Arg::F32(*momentum), Arg::F32(*variance_factor)];
            let args = [input(0), input(1), shadow, sizes(&[len])].into_iter().chain(numbers).collect();
            linear(MODULE, "moving_average", len, args)
        }
        _ => return Err(task.unsupported("writes no parameter")),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::launch::{Limits, Typed};
    use super::super::simulator::gpu;
    use super::super::storage::Storage;
    use super::super::{Priority, Program};
    use super::*;
    use crate::engine::{Adam, Conv, Graph, Options, ParamStore, Shape, Tensor, Threads, cpu};

    #[test]
    fn adam_writes_the_fp16_copy_with_the_parameter() {
        let op = Op::Adam(Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 });
        let typed = |shape| Typed { shape, storage: Storage::F32 };
        let p = typed(Shape::new(3, 3, 7, 21));
        let inputs = [p, p, p, p, typed(Shape::vector(3)), typed(Shape::SCALAR)];
        let limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };
        let lowered = lower(&Task { op: &op, inputs: &inputs, out: typed(Shape::EMPTY), limits }).unwrap();
        let launch = &lowered.launches[0];
        assert_eq!(launch.args[6], Arg::Pointer(Place::Shadow(0)));
        // 1323 elements, four a thread.
        assert_eq!((launch.kernel, launch.grid[0]), ("adam", 2));
        assert_eq!(launch.args.len(), 9);
    }

    #[test]
    fn a_gpu_takes_the_steps_that_the_cpu_takes_and_skips_the_same() {
        let (w_shape, x_shape) = (Shape::new(1, 1, 5, 7), Shape::new(1, 2, 3, 5));
        let mut g = Graph::new();
        let x = g.input("x", x_shape);
        let w = g.param("w", w_shape).unwrap();
        // Reads the fp16 copy that Adam has to keep up.
        let y = g.conv2d(x, w, None, Conv::new(1, 0)).unwrap();
        let (grad, rate) = (g.input("grad", w_shape), g.input("rate", Shape::vector(3)));
        let scale = g.input("scale", Shape::SCALAR);
        let adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
        g.adam(w, grad, rate, scale, adam, "adam").unwrap();
        let halves =
            |n: usize, k: usize| -> Vec<f32> { (0..n).map(|i| ((i * k) % 17) as f32 / 8.0 - 1.0).collect() };
        let mut params = ParamStore::new();
        params.insert("w", Tensor::new(w_shape, halves(35, 5)));
        for name in ["adam.m.w", "adam.v.w"] {
            params.insert(name, Tensor::zeros(w_shape));
        }
        let (options, threads) = (Options::default(), Threads::new(1));
        let mut cpu = cpu::Program::compile(&g, &[("y", y)], &params, &threads, options).unwrap();
        let mut gpu = Program::compile(&g, &[("y", y)], &params, &gpu(), Priority::High, options).unwrap();
        for (step, scale) in [0.5, f32::INFINITY, f32::NAN, 0.0, 0.25, 1.0].into_iter().enumerate() {
            let mut grad = halves(35, 3 + step);
            grad[step] = f32::NAN;
            let rate = [0.1, 0.1 * (step + 1) as f32, 0.01 * (step + 1) as f32];
            for (name, values) in
                [("x", halves(30, 7)), ("grad", grad), ("rate", rate.to_vec()), ("scale", vec![scale])]
            {
                cpu.input_mut(name).unwrap().copy_from_slice(&values);
                gpu.input_mut(name).unwrap().copy_from_slice(&values);
            }
            cpu.run();
            gpu.run().unwrap();
            let y = cpu.output("y").unwrap().iter().zip(gpu.output("y").unwrap());
            // Five products of fp16 weights below 4, stored as fp16.
            y.for_each(|(a, b)| assert!((a - b).abs() < 1e-2, "step {step}: y {a} and {b}"));
        }
        let trained = gpu.export_params().unwrap();
        for (name, tensor) in trained.iter() {
            for (i, (a, b)) in cpu.param(name).unwrap().iter().zip(&tensor.data).enumerate() {
                // Three steps of a dozen fp32 roundings on numbers of size 2.
                assert!((a - b).abs() < 5e-6, "{name}[{i}]: {a} and {b}");
            }
        }
        assert_ne!(cpu.param("w").unwrap(), halves(35, 5), "no step was taken");
    }
}
