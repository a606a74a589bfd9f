//! Launches of `kernels/philox.cu`.

use super::elementwise::{linear, sizes};
use super::launch::{Arg, Lowered, Place, Task, Unsupported};
use crate::engine::op::{Distribution, Op};

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let Op::Random { distribution, purpose } = task.op else {
        return Err(task.unsupported("is not random"));
    };
    let (images, len) = (task.out.shape.n(), task.out.shape.len());
    let per_image = len / images.max(1);
    let blocks_per_image = per_image.div_ceil(4);
    if u32::try_from(blocks_per_image).is_err() {
        return Err(task.unsupported("a stream has 2³² blocks of four numbers"));
    }
    let args = vec![
        Arg::Pointer(Place::Input(0)),
        Arg::Real(Place::Out),
        sizes(&[images]),
        sizes(&[per_image]),
        sizes(&[blocks_per_image]),
        Arg::U32(*purpose),
        Arg::I32(i32::from(*distribution == Distribution::Normal)),
    ];
    Ok(Lowered::one(linear("philox", "random", images * blocks_per_image, args)))
}

#[cfg(test)]
mod tests {
    use super::super::launch::{Limits, Typed};
    use super::super::simulator::gpu;
    use super::super::storage::Storage;
    use super::super::{Priority, Program};
    use super::*;
    use crate::engine::{Graph, Options, ParamStore, Shape, Threads, cpu};

    #[test]
    fn every_image_begins_a_block_of_its_own() {
        let op = Op::Random { distribution: Distribution::Uniform, purpose: 3 };
        let key = Typed { shape: Shape::vector(4), storage: Storage::U32 };
        let out = Typed { shape: Shape::new(3, 7, 1, 73), storage: Storage::F32 };
        let limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };
        let lowered = lower(&Task { op: &op, inputs: &[key], out, limits }).unwrap();
        // 511 numbers take 128 blocks of four, three images 384 threads.
        assert_eq!(lowered.launches[0].args[4], sizes(&[128]));
        assert_eq!(lowered.launches[0].grid[0], 2);
    }

    #[test]
    fn a_gpu_draws_the_numbers_that_the_cpu_draws() {
        // 35 numbers an image: the last block of each is used in part; 36: none is. The image's number
        // wraps around.
        for per_image in [35, 36] {
            let shape = Shape::new(3, 1, 1, per_image);
            let mut g = Graph::new();
            let key = g.index_input("key", Shape::vector(4));
            let uniform = g.random(key, shape, Distribution::Uniform, 3).unwrap();
            let normal = g.random(key, shape, Distribution::Normal, 4).unwrap();
            let outputs = [("uniform", uniform), ("normal", normal)];
            let (params, options, threads) = (ParamStore::new(), Options::default(), Threads::new(1));
            let mut cpu = cpu::Program::compile(&g, &outputs, &params, &threads, options).unwrap();
            let mut gpu = Program::compile(&g, &outputs, &params, &gpu(), Priority::High, options).unwrap();
            let words = [0xdead_beef, 0x1234_5678, 7, u32::MAX];
            cpu.set_indices("key", &words).unwrap();
            gpu.set_indices("key", &words).unwrap();
            cpu.run();
            gpu.run().unwrap();
            assert_eq!(cpu.output("uniform").unwrap(), gpu.output("uniform").unwrap());
            for (a, b) in cpu.output("normal").unwrap().iter().zip(gpu.output("normal").unwrap()) {
                // Logarithm, root, sine and two products, each within some 2⁻²⁴ on either side.
                assert!((a - b).abs() <= 1e-6 * a.abs(), "{a} and {b}");
            }
        }
    }
}
