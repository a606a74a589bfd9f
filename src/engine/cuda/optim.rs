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
    use super::super::storage::Storage;
    use super::*;
    use crate::engine::op::Adam;
    use crate::engine::shape::Shape;

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
}
