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
    use super::super::storage::Storage;
    use super::*;
    use crate::engine::shape::Shape;

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
}
