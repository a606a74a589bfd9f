//! Launches of `kernels/heatmap.cu`.

use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};
use super::resize::{axis, code};
use super::rows;
use crate::engine::op::{Op, Resize};

const MODULE: &str = "heatmap";
const BLOCK: usize = 256;
/// `TILE` of the kernels: windows that a block takes, each way.
const TILE: usize = 32;
/// Warps of a block.
const WARPS: usize = 8;
/// The largest window whose tile fits in what every GPU gives a block without being asked: 48 KiB.
const LARGEST_WINDOW: usize = 250;
/// Blocks along z that a grid may have.
const MOST_BLOCKS: usize = 65_535;

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    if !task.inputs.iter().chain([&task.out]).all(rows::countable) {
        return Err(task.unsupported("has more pixels than 32 bits count"));
    }
    match task.op {
        Op::LogitDifference => difference(task),
        Op::AnomalyMap { resize, .. } => map(task, *resize),
        Op::LargestMean { size } => largest_mean(task, *size),
        _ => Err(task.unsupported("is no part of a heatmap")),
    }
}

fn difference(task: &Task) -> Result<Lowered, Unsupported> {
    let count = task.out.shape.len();
    let Ok(counted) = u32::try_from(count + BLOCK) else {
        return Err(task.unsupported("has more pixels than 32 bits count"));
    };
    let args = vec![Arg::Real(Place::Input(0)), Arg::Pointer(Place::Out), Arg::U32(counted - BLOCK as u32)];
    let grid = [count.div_ceil(BLOCK) as u32, 1, 1];
    Ok(Lowered::one(launch("heatmap_difference", grid, 0, args)))
}

fn map(task: &Task, resize: Resize) -> Result<Lowered, Unsupported> {
    let (x, y) = (task.inputs[0].shape, task.out.shape);
    let count = [x, y].into_iter().map(|s| s.n() * s.h()).max().unwrap_or(0);
    if u32::try_from(count + MOST_BLOCKS * BLOCK).is_err() {
        return Err(task.unsupported("has more rows than 32 bits count"));
    }
    let mut geometry = rows::ints(&[y.n(), code(resize)]);
    geometry.extend(axis(resize, x.h(), y.h()));
    geometry.extend(axis(resize, x.w(), y.w()));
    let args = vec![Arg::Real(Place::Input(0)), Arg::Pointer(Place::Out), Arg::Struct(geometry)];
    Ok(Lowered::one(rows::launch(MODULE, "heatmap_map", y.w(), y.n() * y.h(), args)))
}

fn largest_mean(task: &Task, size: usize) -> Result<Lowered, Unsupported> {
    let x = task.inputs[0].shape;
    if size > LARGEST_WINDOW {
        return Err(task.unsupported("has windows of more than 250 × 250 pixels"));
    }
    if x.n() > MOST_BLOCKS {
        return Err(task.unsupported("has more pictures than a grid has layers"));
    }
    let across = (x.w() + 1 - size).div_ceil(TILE);
    let tiles = (x.h() + 1 - size).div_ceil(TILE) * across;
    let mut geometry = rows::ints(&[x.h(), x.w(), size, across]);
    geometry.extend((1.0 / (size * size) as f32).to_ne_bytes());
    let to = if tiles == 1 { Place::Out } else { Place::Scratch(0) };
    let shared = 4 * (TILE - 1 + size) * (WARPS + TILE);
    let args = vec![Arg::Pointer(Place::Input(0)), Arg::Pointer(to), Arg::Struct(geometry)];
    let mut launches =
        vec![launch("heatmap_largest_mean", [tiles as u32, 1, x.n() as u32], shared as u32, args)];
    if tiles > 1 {
        let args = vec![Arg::Pointer(Place::Scratch(0)), Arg::Pointer(Place::Out), Arg::I32(tiles as i32)];
        launches.push(launch("heatmap_score", [x.n() as u32, 1, 1], 0, args));
    }
    let scratch_bytes = if tiles > 1 { 4 * tiles * x.n() } else { 0 };
    Ok(Lowered { launches, scratch_bytes })
}

fn launch(kernel: &'static str, grid: [u32; 3], shared: u32, args: Vec<Arg>) -> Launch {
    Launch { module: MODULE, kernel, grid, block: [BLOCK as u32, 1, 1], shared, args }
}

#[cfg(test)]
mod tests {
    use super::super::Priority;
    use super::super::buffer::{DeviceBuffer, Pinned};
    use super::super::queue::{Queue, at};
    use super::super::simulator::gpu;
    use super::*;
    use crate::engine::{Device, Graph, Options, ParamStore, Program, Shape, Threads};
    use crate::imaging::heatmap;

    // The largest window fits what a block has unasked.
    const _: () = assert!(4 * (TILE - 1 + LARGEST_WINDOW) * (WARPS + TILE) + 4 * WARPS <= 48 << 10);

    #[test]
    fn a_logit_that_is_no_number_makes_a_score_that_is_none_on_every_device() {
        let mut g = Graph::new();
        let logits = g.input("logits", Shape::new(2, 40, 40, 2));
        let map = g.anomaly_map(logits, Resize::Bilinear, 80, 80).unwrap();
        let score = g.largest_mean(map, 16).unwrap();
        for device in [Device::from(Threads::new(1)), Device::on(gpu())] {
            let outputs = [("map", map), ("score", score)];
            let mut program =
                Program::compile(&g, &outputs, &ParamStore::new(), &device, Options::default()).unwrap();
            for at in [0, 1599, 3199] {
                let input = program.input_mut("logits").unwrap();
                input.fill(0.5);
                input[at] = f32::NAN;
                program.run().unwrap();
                let score = program.output("score").unwrap();
                assert!(score[0].is_nan() && score[1] == 0.5, "{}: {score:?}", device.name());
            }
        }
    }

    #[test]
    fn colours_are_the_overlays_own_to_the_byte() {
        let gpu = gpu();
        let ramp: Vec<u8> = (0..256).flat_map(|i| heatmap::colour(i as f32 / 255.0)).collect();
        // Every colour's own value, what lies just beside where two meet, and what is no probability.
        let mut p: Vec<f32> = (0..=510)
            .flat_map(|i| {
                let p = i as f32 / 510.0;
                [p.next_down(), p, p.next_up()]
            })
            .collect();
        p.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0]);
        for count in [p.len(), p.len() - 1, p.len() - 2, 3] {
            let values = &p[p.len() - count..];
            let (ramp_at, p_at, rgb_at) = (
                DeviceBuffer::new(&gpu, ramp.len()).unwrap(),
                DeviceBuffer::new(&gpu, 4 * count).unwrap(),
                DeviceBuffer::new(&gpu, 3 * count).unwrap(),
            );
            let mut queue = Queue::new(&gpu, Priority::Low).unwrap();
            queue.upload_now(&ramp_at, &ramp).unwrap();
            queue.upload_now(&p_at, values).unwrap();
            let mut rgb = Pinned::<u8>::new(&gpu, 3 * count).unwrap();
            let args = vec![at(&p_at), at(&ramp_at), at(&rgb_at), Arg::U32(count as u32)];
            let launch = launch("heatmap_colour", [count.div_ceil(4 * BLOCK) as u32, 1, 1], 0, args);
            queue
                .batch(|batch| {
                    batch.launch(&launch)?;
                    batch.download(&mut rgb, &rgb_at)
                })
                .unwrap();
            for (value, got) in values.iter().zip(rgb.as_slice().chunks_exact(3)) {
                assert_eq!(got, heatmap::colour(*value), "of {value}");
            }
        }
    }
}
