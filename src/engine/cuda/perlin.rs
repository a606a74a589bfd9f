//! Launches of `kernels/perlin.cu`: masks of noise, strokes and ellipses.

use bytemuck::{Pod, Zeroable};

use super::launch::{Arg, Launch};

const BLOCK: usize = 256;
const COLUMNS: usize = 128;

/// Cells of noise along an axis, at most; `LATTICE` of perlin.cu follows.
pub const MOST_CELLS: usize = 32;
pub(super) const LATTICE: usize = (MOST_CELLS + 1) * (MOST_CELLS + 1);
/// Segments or ellipses of a mask, at most.
pub const MOST_FIGURES: usize = 21;
/// The largest radius that `soften` knows.
pub const MOST_RADIUS: u32 = 3;

/// Half-open pixel ranges: x from, x to, y from, y to.
pub type Frame = [i32; 4];

/// `Figure` of perlin.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Figure {
    v: [f32; 6],
    frame: Frame,
}

impl Figure {
    /// All within √`square` of the segment from `a` along `v`, whose squared length is `norm`.
    pub fn segment(a: [f32; 2], v: [f32; 2], norm: f32, square: f32, frame: Frame) -> Self {
        Figure { v: [a[0], a[1], v[0], v[1], norm, square], frame }
    }

    pub fn ellipse(centre: [f32; 2], axes: [f32; 2], sin: f32, cos: f32, frame: Frame) -> Self {
        Figure { v: [centre[0], centre[1], axes[0], axes[1], sin, cos], frame }
    }
}

/// What a mask shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outline<'a> {
    /// Perlin's noise above one half: unit vectors at the corners of `cells` rows and columns, row by
    /// row; the pixel grid is turned by an angle of this sine and cosine.
    Noise {
        lattice: &'a [[f32; 2]],
        cells: [usize; 2],
        sin: f32,
        cos: f32,
    },
    Strokes(&'a [Figure]),
    Ellipses(&'a [Figure]),
}

/// `Plan` of perlin.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Plan {
    kind: u32,
    figures: u32,
    cells: [u32; 2],
    sin: f32,
    cos: f32,
    scale: [f32; 2],
}

impl Plan {
    pub const NOTHING: Plan =
        Plan { kind: 0, figures: 0, cells: [1; 2], sin: 0.0, cos: 1.0, scale: [0.0; 2] };

    pub fn of(outline: &Outline, size: usize) -> Self {
        match outline {
            Outline::Noise { cells, sin, cos, .. } => Plan {
                kind: 1,
                cells: cells.map(|n| n as u32),
                sin: *sin,
                cos: *cos,
                scale: cells.map(|n| n as f32 / size as f32),
                ..Self::NOTHING
            },
            Outline::Strokes(figures) => Plan { kind: 2, figures: figures.len() as u32, ..Self::NOTHING },
            Outline::Ellipses(figures) => Plan { kind: 3, figures: figures.len() as u32, ..Self::NOTHING },
        }
    }
}

/// Blocks of a picture, each of which counts.
pub(super) fn blocks(size: usize) -> usize {
    (size * size).div_ceil(BLOCK)
}

fn launch(kernel: &'static str, blocks: usize, batch: usize, block: usize, args: Vec<Arg>) -> Launch {
    let grid = [blocks as u32, batch as u32, 1];
    Launch { module: "perlin", kernel, grid, block: [block as u32, 1, 1], shared: 0, args }
}

/// Plans, lattice, figures, outlines and areas are `at`.
pub(super) fn outline(at: [Arg; 5], size: usize, batch: usize) -> Launch {
    let mut args = at.to_vec();
    args.push(Arg::U32(size as u32));
    launch("outline", blocks(size), batch, BLOCK, args)
}

/// Outlines, radii and masks are `at`.
pub(super) fn soften(at: [Arg; 3], size: usize, batch: usize) -> Launch {
    let mut args = at.to_vec();
    args.push(Arg::I32(size as i32));
    launch("soften", size.div_ceil(COLUMNS), batch, COLUMNS, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_and_every_column_has_a_thread() {
        let none = || Arg::Null;
        for (size, pixels, columns) in [(1, 1, 1), (16, 1, 1), (17, 2, 1), (129, 66, 2), (256, 256, 2)] {
            assert_eq!(outline(std::array::from_fn(|_| none()), size, 3).grid, [pixels, 3, 1], "{size}");
            assert_eq!(soften(std::array::from_fn(|_| none()), size, 3).grid, [columns, 3, 1], "{size}");
        }
    }

    #[test]
    fn noise_is_scaled_from_pixels_to_cells() {
        let lattice = [[1.0, 0.0]; 5 * 9];
        let plan = Plan::of(&Outline::Noise { lattice: &lattice, cells: [4, 8], sin: 0.5, cos: 0.25 }, 64);
        assert_eq!((plan.kind, plan.cells, plan.scale), (1, [4, 8], [4.0 / 64.0, 8.0 / 64.0]));
    }
}
