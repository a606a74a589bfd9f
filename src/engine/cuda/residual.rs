//! Launches of `kernels/residual.cu`.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::resize::{axis, code};
use super::rows;
use crate::engine::op::{Op, Residual};
use crate::engine::shape::Shape;

const MODULE: &str = "residual";
const BLOCK: usize = 256;
/// `CHANNELS` and `MOST` of the kernels: channels that a block takes, source pixels that it stages.
const CHANNELS: usize = 16;
const MOST: usize = 640;
/// `TILE`, `PLANES` and `SCALES` of the kernels.
const TILE: usize = 16;
const PLANES: usize = 32;
const SCALES: usize = 4;
/// Blocks along y and z that a grid may have.
const MOST_BLOCKS: usize = 65_535;

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    if !task.inputs.iter().chain([&task.out]).all(rows::countable) {
        return Err(task.unsupported("has more pixels than 32 bits count"));
    }
    if task.out.shape.n() > MOST_BLOCKS {
        return Err(task.unsupported("has more pictures than a grid has layers"));
    }
    match task.op {
        Op::ResidualRank(residual) => rank(task, residual),
        Op::ResidualGather(residual) => gather(task, residual),
        _ => Err(task.unsupported("is no residual")),
    }
}

/// Source pixels that `points` neighbours of an axis read at most.
fn reach(from: usize, to: usize, points: usize) -> usize {
    if from == to {
        return points;
    }
    // Between the first and the last point lie points − 1 steps; either end may touch one pixel more.
    let steps = ((points - 1) * from).div_ceil(if to > 1 { to - 1 } else { 1 });
    (steps + 3).min(from)
}

/// Points of the grid, down and across, that a block takes.
fn pick_tile(x: Shape, residual: &Residual, limits: &Limits) -> [usize; 2] {
    let mut tile = [residual.h, residual.w];
    let pixels = |[h, w]: [usize; 2]| reach(x.h(), residual.h, h) * reach(x.w(), residual.w, w);
    let blocks = |[h, w]: [usize; 2]| {
        residual.h.div_ceil(h) * residual.w.div_ceil(w) * x.c().div_ceil(CHANNELS) * x.n()
    };
    loop {
        // Whole rows where they fit: then only rows are read twice.
        let fits = pixels(tile) <= MOST;
        let busy = blocks(tile) >= limits.multiprocessors as usize || tile[0] < 32;
        match tile {
            _ if fits && busy => return tile,
            [h, w] if h > 1 => tile = [h.div_ceil(2), w],
            [h, w] if w > 1 => tile = [h, w.div_ceil(2)],
            // One point reads four pixels.
            _ => return tile,
        }
    }
}

fn rank(task: &Task, residual: &Residual) -> Result<Lowered, Unsupported> {
    let x = task.inputs[0].shape;
    let tile = pick_tile(x, residual, &task.limits);
    let tiles = residual.h.div_ceil(tile[0]) * residual.w.div_ceil(tile[1]);
    if tiles > MOST_BLOCKS {
        return Err(task.unsupported("has a grid of too many tiles"));
    }
    let mean = 1.0 / (residual.h * residual.w) as f32;
    let (to, scale) = if tiles == 1 { (Place::Out, mean) } else { (Place::Scratch(0), 1.0) };
    let mut geometry = rows::ints(&[x.n(), x.c(), code(residual.resize), usize::from(residual.log)]);
    geometry.extend(axis(residual.resize, x.h(), residual.h));
    geometry.extend(axis(residual.resize, x.w(), residual.w));
    geometry.extend(rows::ints(&tile));
    geometry.extend(scale.to_ne_bytes());
    let first = Launch {
        module: MODULE,
        kernel: if x.c().is_multiple_of(8) { "residual_rank_8" } else { "residual_rank_1" },
        grid: [x.c().div_ceil(CHANNELS) as u32, tiles as u32, x.n() as u32],
        block: [BLOCK as u32, 1, 1],
        shared: 0,
        args: vec![
            Arg::Real(Place::Input(0)),
            Arg::Real(Place::Input(1)),
            Arg::Pointer(to),
            Arg::Struct(geometry),
        ],
    };
    if tiles == 1 {
        return Ok(Lowered::one(first));
    }
    let finish = Launch {
        module: MODULE,
        kernel: "residual_rank_finish",
        grid: [(x.n() * x.c()).div_ceil(BLOCK) as u32, 1, 1],
        block: [BLOCK as u32, 1, 1],
        shared: 0,
        args: vec![
            Arg::Pointer(Place::Scratch(0)),
            Arg::Pointer(Place::Out),
            Arg::I32(x.n() as i32),
            Arg::I32(x.c() as i32),
            Arg::I32(tiles as i32),
            Arg::F32(mean),
        ],
    };
    Ok(Lowered { launches: vec![first, finish], scratch_bytes: 4 * tiles * task.out.shape.len() })
}

fn gather(task: &Task, residual: &Residual) -> Result<Lowered, Unsupported> {
    let y = task.out.shape;
    let indices = task.inputs[0].shape;
    let scales: Vec<Shape> = task.inputs[1..].iter().step_by(2).map(|x| x.shape).collect();
    // A tile of the grid stands for few pixels only where the grid is the finer one.
    let staged = scales.iter().all(|s| s.h() <= residual.h && s.w() <= residual.w);
    let tiles = residual.h.div_ceil(TILE) * residual.w.div_ceil(TILE);
    let (kernel, grid) = if staged {
        let planes = y.c().div_ceil(PLANES);
        if planes > MOST_BLOCKS {
            return Err(task.unsupported("chooses too many planes"));
        }
        ("residual_gather", [tiles as u32, planes as u32, y.n() as u32])
    } else {
        let blocks = y.len().div_ceil(BLOCK);
        if blocks >= 1 << 31 {
            return Err(task.unsupported("has more elements than a grid has threads"));
        }
        ("residual_gather_direct", [blocks as u32, 1, 1])
    };
    let mut geometry = rows::ints(&[
        y.n(),
        y.c(),
        usize::from(indices.n() > 1),
        code(residual.resize),
        usize::from(residual.log),
    ]);
    geometry.extend(rows::ints(&[y.h(), y.w()]));

    let mut launches = vec![];
    let mut start = 0;
    // Each launch writes the planes of its scales.
    for (batch, group) in scales.chunks(SCALES).enumerate() {
        let mut maps = vec![];
        let mut args = vec![Arg::Pointer(Place::Input(0))];
        for i in 0..SCALES {
            let known = i < group.len();
            let s = group[i.min(group.len() - 1)];
            let at = 1 + 2 * (batch * SCALES + i.min(group.len() - 1));
            args.extend([Arg::Real(Place::Input(at)), Arg::Real(Place::Input(at + 1))]);
            let channels = if known { s.c() } else { 0 };
            let mut map = axis(residual.resize, s.h(), residual.h);
            map.extend(axis(residual.resize, s.w(), residual.w));
            map.extend(rows::ints(&[start, channels]));
            maps.push(Arg::Struct(map));
            start += channels;
        }
        args.extend(maps);
        args.extend([Arg::Real(Place::Out), Arg::Struct(geometry.clone())]);
        launches.push(Launch { module: MODULE, kernel, grid, block: [BLOCK as u32, 1, 1], shared: 0, args });
    }
    Ok(Lowered { launches, scratch_bytes: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::launch::Typed;
    use crate::engine::cuda::storage::Storage;
    use crate::engine::op::Resize;

    const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn grid(side: usize) -> Residual {
        Residual { log: false, resize: Resize::BilinearAligned, h: side, w: side }
    }

    #[test]
    fn a_tile_fits_what_a_block_stages_whatever_the_shapes() {
        for (from, to, c) in
            [(64, 64, 256), (32, 64, 512), (8, 64, 256), (300, 10, 3), (5000, 2, 1), (1, 1, 1)]
        {
            let tile = pick_tile(Shape::new(1, from, from, c), &grid(to), &LIMITS);
            let pixels = tile.map(|points| reach(from, to, points)).iter().product::<usize>();
            assert!(pixels <= MOST, "{from} to {to}: {tile:?} reads {pixels}");
        }
        let of = |side, c| pick_tile(Shape::new(1, side, side, c), &grid(64), &LIMITS);
        assert_eq!(of(64, 256), [8, 64]);
        assert_eq!(of(8, 256), [16, 64]);
    }

    #[test]
    fn reach_covers_every_tap_of_any_run_of_points() {
        use crate::engine::cpu::reference::spatial::taps;
        for resize in [Resize::Nearest, Resize::Bilinear, Resize::BilinearAligned] {
            for (from, to) in [(5, 9), (9, 5), (8, 64), (64, 8), (7, 7), (1, 4), (4, 1), (3, 2)] {
                for points in 1..=to {
                    for first in 0..=to - points {
                        let sources =
                            |i| taps(resize, from, to, i).filter(|t| t.weight != 0.0).map(|t| t.source);
                        let low = sources(first).min().unwrap();
                        let high = sources(first + points - 1).max().unwrap();
                        assert!(
                            high - low < reach(from, to, points),
                            "{resize:?} {from} to {to}, {points} from {first}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn more_scales_than_a_launch_takes_are_several_launches() {
        let half = |c| Typed { shape: Shape::new(1, 4, 4, c), storage: Storage::F16 };
        let mut inputs = vec![Typed { shape: Shape::vector(7), storage: Storage::U32 }];
        inputs.extend((0..12).map(|i| half(8 + i / 2)));
        let out = Typed { shape: Shape::new(1, 8, 8, 7), storage: Storage::F16 };
        let op = Op::ResidualGather(grid(8));
        let lowered = lower(&Task { op: &op, inputs: &inputs, out, limits: LIMITS }).unwrap();
        assert_eq!(lowered.launches.len(), 2);
        assert!(lowered.launches[1].args.contains(&Arg::Real(Place::Input(12))));
    }
}
