//! Launches of `kernels/augment.cu`: what is painted with.

use bytemuck::{Pod, Zeroable};

use super::launch::{Arg, Launch};

const BLOCK: usize = 256;
const LEVEL_BLOCK: u32 = 512;
const LINE_BLOCK: usize = 64;

/// Steps of one paint, at most.
pub const MOST_STEPS: usize = 3;
/// A table per channel, from levels 0 … 255 to values.
pub type Tables = [[f32; 256]; 3];
pub(super) const TABLE: usize = 3 * 256;
/// `STATS` of augment.cu, of three channels.
pub(super) const STATS: usize = 3 * 258;

/// A turn by an angle of this sine and cosine (divided by a scale), then a shift in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    pub sin: f32,
    pub cos: f32,
    pub shift: [f32; 2],
}

impl Warp {
    fn numbers(&self) -> [f32; 4] {
        [self.sin, self.cos, self.shift[0], self.shift[1]]
    }
}

/// What paint starts as. `source` is a picture, three bytes a pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Base<'a> {
    /// Moved by so many pixels around its edges, after being mirrored along x and along y.
    Rolled {
        source: &'a [u8],
        shift: [usize; 2],
        mirror: [bool; 2],
    },
    Warped {
        source: &'a [u8],
        warp: Warp,
    },
    Flat([f32; 3]),
    /// Through the tables.
    Toned {
        source: &'a [u8],
        tables: &'a Tables,
    },
    /// One of the planes that the painter was made with, read from an offset; level and contrast of each
    /// channel.
    Cloud {
        plane: usize,
        offset: usize,
        colours: [(f32, f32); 3],
    },
}

/// One change of the paint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<'a> {
    Tables(&'a Tables),
    Brightness {
        factor: f32,
        offset: f32,
    },
    Sharpness(f32),
    /// Hue in turns and saturation, both added.
    Colour {
        hue: f32,
        saturation: f32,
    },
    /// Inverts what is not below.
    Solarise(f32),
    /// To so many levels.
    Posterise(f32),
    Invert,
    Contrast,
    Equalise,
    Rotate(Warp),
}

impl Step<'_> {
    pub(super) fn needs_levels(&self) -> bool {
        matches!(self, Step::Contrast | Step::Equalise)
    }

    pub(super) fn is_sharpness(&self) -> bool {
        matches!(self, Step::Sharpness(_))
    }
}

/// `Step` of paint.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RawStep {
    kind: u32,
    table: u32,
    v: [f32; 4],
}

/// `Plan` of paint.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Plan {
    base: u32,
    steps: u32,
    grey: u32,
    opacity: f32,
    i: [u32; 4],
    v: [f32; 6],
    step: [RawStep; MOST_STEPS],
}

impl Plan {
    /// The paint stays as it is, in whichever buffer it is.
    pub fn rest(&mut self) {
        self.base = 0;
    }

    /// At most `MOST_STEPS` steps. Fills the tables that steps and base name: steps' tables from the
    /// front; a toned base, which has no steps, the first.
    pub fn new(base: &Base, steps: &[Step], grey: bool, opacity: f32, tables: &mut [f32]) -> Self {
        let mut plan = Plan::zeroed();
        (plan.steps, plan.grey, plan.opacity) = (steps.len() as u32, u32::from(grey), opacity);
        let mut fill = |index: usize, from: &Tables| {
            let to = tables.chunks_exact_mut(256).skip(3 * index);
            to.zip(from).for_each(|(to, from)| to.copy_from_slice(from));
        };
        match base {
            Base::Rolled { shift, mirror, .. } => {
                plan.base = 1;
                plan.i = [shift[0] as u32, shift[1] as u32, u32::from(mirror[0]), u32::from(mirror[1])];
            }
            Base::Warped { warp, .. } => {
                plan.base = 2;
                plan.v[..4].copy_from_slice(&warp.numbers());
            }
            Base::Flat(colour) => {
                plan.base = 3;
                plan.v[..3].copy_from_slice(colour);
            }
            Base::Toned { tables, .. } => {
                plan.base = 4;
                fill(0, tables);
            }
            Base::Cloud { plane, offset, colours } => {
                plan.base = 5;
                plan.i[..2].copy_from_slice(&[*plane as u32, *offset as u32]);
                plan.v = std::array::from_fn(|i| {
                    let (level, contrast) = colours[i / 2];
                    if i % 2 == 0 { level } else { contrast }
                });
            }
        }
        for (index, (raw, step)) in plan.step.iter_mut().zip(steps).enumerate() {
            let (kind, v) = match step {
                Step::Tables(tables) => {
                    fill(index, tables);
                    (1, [0.0; 4])
                }
                Step::Brightness { factor, offset } => (2, [*factor, *offset, 0.0, 0.0]),
                Step::Sharpness(amount) => (3, [*amount, 0.0, 0.0, 0.0]),
                Step::Colour { hue, saturation } => (4, [*hue, *saturation, 0.0, 0.0]),
                Step::Solarise(threshold) => (5, [*threshold, 0.0, 0.0, 0.0]),
                Step::Posterise(levels) => (6, [*levels, 0.0, 0.0, 0.0]),
                Step::Invert => (7, [0.0; 4]),
                Step::Contrast => (8, [0.0; 4]),
                Step::Equalise => (9, [0.0; 4]),
                Step::Rotate(warp) => (10, warp.numbers()),
            };
            *raw = RawStep { kind, table: index as u32, v };
        }
        plan
    }
}

fn launch(kernel: &'static str, grid: [u32; 3], block: u32, args: Vec<Arg>) -> Launch {
    Launch { module: "augment", kernel, grid, block: [block, 1, 1], shared: 0, args }
}

fn pixel_grid(size: usize, batch: usize) -> [u32; 3] {
    [(size * size).div_ceil(BLOCK) as u32, batch as u32, 1]
}

/// Plans, sources, tables, clouds and the paint are `at`.
pub(super) fn base(at: [Arg; 5], size: usize, batch: usize) -> Launch {
    let mut args = at.to_vec();
    args.push(Arg::U32(size as u32));
    launch("base", pixel_grid(size, batch), BLOCK as u32, args)
}

/// Of step `index`; plans, paint and stats are `at`.
pub(super) fn levels(at: [Arg; 3], index: usize, size: usize, batch: usize) -> Launch {
    let [plans, paint, stats] = at;
    let args = vec![plans, Arg::U32(index as u32), paint, stats, Arg::U32((size * size) as u32)];
    launch("levels", [3, batch as u32, 1], LEVEL_BLOCK, args)
}

/// Of step `index`: rows, then columns; plans, paint and the box mean are `at`.
pub(super) fn box_mean(at: [Arg; 3], index: usize, size: usize, batch: usize) -> [Launch; 2] {
    let [plans, paint, soft] = at;
    let (index, n) = (Arg::U32(index as u32), Arg::U32(size as u32));
    let grid = [(3 * size).div_ceil(LINE_BLOCK) as u32, batch as u32, 1];
    let rows = vec![plans.clone(), index.clone(), paint, soft.clone(), n.clone()];
    [
        launch("rows", grid, LINE_BLOCK as u32, rows),
        launch("columns", grid, LINE_BLOCK as u32, vec![plans, index, soft, n]),
    ]
}

/// Step `index`; plans, paint, its box mean, stats, tables and the changed paint are `at`.
pub(super) fn step(at: [Arg; 6], index: usize, size: usize, batch: usize) -> Launch {
    let mut args = at.to_vec();
    args.insert(1, Arg::U32(index as u32));
    args.push(Arg::U32(size as u32));
    launch("step", pixel_grid(size, batch), BLOCK as u32, args)
}
