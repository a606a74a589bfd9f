//! Shapes of training anomalies: Perlin islands (RealNet, section 3.1, as the reference code draws
//! them), polyline strokes and ellipses.
//!
//! The reference draws Perlin noise on the pixel grid and rotates the picture of it; here the noise is
//! evaluated at the rotated coordinates, which is the same field without the resampling.

use std::f32::consts::{PI, SQRT_2, TAU};

use super::draw::Draw;
use super::picture::Mask;

/// Anomalies smaller than this are drawn again: nothing to learn from.
pub const MIN_AREA: usize = 16;
/// Of a soft edge's box mean.
const MOST_RADIUS: usize = 3;

/// How often each kind of shape is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShapeMix {
    pub strokes: f32,
    pub ellipses: f32,
    /// Share of masks whose edge is blurred.
    pub soft: f32,
}

impl ShapeMix {
    /// The paper's: Perlin only, hard edges.
    pub const PERLIN: ShapeMix = ShapeMix { strokes: 0.0, ellipses: 0.0, soft: 0.0 };
    pub const INDUSTRIAL: ShapeMix = ShapeMix { strokes: 0.2, ellipses: 0.2, soft: 0.3 };
}

/// A kind of shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Noise,
    Strokes,
    Ellipses,
}

impl ShapeMix {
    pub fn draw(&self, draw: &mut Draw) -> Kind {
        let kind = draw.uniform();
        if kind < self.strokes {
            Kind::Strokes
        } else if kind < self.strokes + self.ellipses {
            Kind::Ellipses
        } else {
            Kind::Noise
        }
    }

    /// Radius of the box mean that blurs the edge; 0 for a hard one.
    pub fn draw_radius(&self, draw: &mut Draw) -> usize {
        if draw.chance(self.soft) { 1 + draw.below(MOST_RADIUS) } else { 0 }
    }
}

/// Pixels from x, to x, from y, to y that may belong to a figure; half-open.
pub type Frame = [usize; 4];

/// Everything random about a mask; the rest is arithmetic, on whatever device.
#[derive(Clone, Debug, PartialEq)]
pub enum Shapes {
    Noise(Noise),
    Strokes(Vec<Segment>),
    Ellipses(Vec<Ellipse>),
}

/// One octave of gradient noise, rotated, above 0.5.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// Unit vectors at the corners of `cells` rows and columns, row by row; the first component along rows.
    pub lattice: Vec<[f32; 2]>,
    pub cells: [usize; 2],
    pub sin: f32,
    pub cos: f32,
}

/// All within a radius of the segment from `a` along `v`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    pub a: [f32; 2],
    pub v: [f32; 2],
    /// |v|², not quite zero.
    pub norm: f32,
    /// The radius' square.
    pub square: f32,
    pub frame: Frame,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ellipse {
    pub centre: [f32; 2],
    pub axes: [f32; 2],
    pub sin: f32,
    pub cos: f32,
    pub frame: Frame,
}

impl Shapes {
    pub fn draw(draw: &mut Draw, kind: Kind, size: usize) -> Self {
        match kind {
            Kind::Noise => Shapes::Noise(noise(draw)),
            Kind::Strokes => Shapes::Strokes(strokes(draw, size)),
            Kind::Ellipses => Shapes::Ellipses(ellipses(draw, size)),
        }
    }

    /// 1 inside, 0 elsewhere.
    pub fn fill(&self, mask: &mut Mask) {
        mask.data.fill(0.0);
        match self {
            Shapes::Noise(noise) => noise.fill(mask),
            Shapes::Strokes(segments) => segments.iter().for_each(|s| s.fill(mask)),
            Shapes::Ellipses(ellipses) => ellipses.iter().for_each(|e| e.fill(mask)),
        }
    }
}

fn fade(t: f32) -> f32 {
    t * t * t * (t * (t * 6.0 - 15.0) + 10.0)
}

/// 1…32 cells an axis, turned by up to ±90°.
fn noise(draw: &mut Draw) -> Noise {
    let (rows, columns) = (1usize << draw.below(6), 1usize << draw.below(6));
    let lattice = (0..(rows + 1) * (columns + 1))
        .map(|_| {
            let (sin, cos) = (draw.uniform() * TAU).sin_cos();
            [cos, sin]
        })
        .collect();
    let (sin, cos) = draw.range(-PI / 2.0, PI / 2.0).sin_cos();
    Noise { lattice, cells: [rows, columns], sin, cos }
}

impl Noise {
    fn fill(&self, mask: &mut Mask) {
        let Noise { lattice, cells: [rows, columns], sin, cos } = self;
        let size = mask.size as f32;
        let centre = (size - 1.0) / 2.0;
        let (scale_p, scale_q) = (*rows as f32 / size, *columns as f32 / size);
        let inside = 0.0..size;
        for (y, line) in mask.data.chunks_exact_mut(mask.size).enumerate() {
            let dy = y as f32 - centre;
            for (x, out) in line.iter_mut().enumerate() {
                let dx = x as f32 - centre;
                let (p, q) = (cos * dy - sin * dx + centre, sin * dy + cos * dx + centre);
                if !inside.contains(&p) || !inside.contains(&q) {
                    continue;
                }
                let (p, q) = (p * scale_p, q * scale_q);
                // Rounding may reach the far edge, where no cell begins.
                let (i, j) = ((p as usize).min(rows - 1), (q as usize).min(columns - 1));
                let (u, w) = (p - i as f32, q - j as f32);
                let at = i * (columns + 1) + j;
                let (g00, g01) = (lattice[at], lattice[at + 1]);
                let (g10, g11) = (lattice[at + columns + 1], lattice[at + columns + 2]);
                let n00 = g00[0] * u + g00[1] * w;
                let n10 = g10[0] * (u - 1.0) + g10[1] * w;
                let n01 = g01[0] * u + g01[1] * (w - 1.0);
                let n11 = g11[0] * (u - 1.0) + g11[1] * (w - 1.0);
                let fu = fade(u);
                let (left, right) = (n00 + (n10 - n00) * fu, n01 + (n11 - n01) * fu);
                if SQRT_2 * (left + (right - left) * fade(w)) > 0.5 {
                    *out = 1.0;
                }
            }
        }
    }
}

/// One to three bent lines, 1–4 px wide at 256 px.
fn strokes(draw: &mut Draw, size: usize) -> Vec<Segment> {
    let side = size as f32;
    let mut all = vec![];
    for _ in 0..1 + draw.below(3) {
        let (mut x, mut y) = (draw.range(0.0, side), draw.range(0.0, side));
        let mut angle = draw.range(0.0, TAU);
        let radius = draw.range(0.5, 2.0) * (side / 256.0).max(0.5);
        for _ in 0..2 + draw.below(6) {
            angle += draw.normal() * 0.5;
            let length = draw.range(0.03, 0.18) * side;
            let (nx, ny) = (x + angle.cos() * length, y + angle.sin() * length);
            all.push(Segment::new([x, y], [nx, ny], radius, size));
            (x, y) = (nx, ny);
        }
    }
    all
}

impl Segment {
    fn new(a: [f32; 2], b: [f32; 2], radius: f32, size: usize) -> Self {
        let (x0, x1) = window(a[0].min(b[0]) - radius, a[0].max(b[0]) + radius, size);
        let (y0, y1) = window(a[1].min(b[1]) - radius, a[1].max(b[1]) + radius, size);
        let v = [b[0] - a[0], b[1] - a[1]];
        let norm = (v[0] * v[0] + v[1] * v[1]).max(1e-6);
        Segment { a, v, norm, square: radius * radius, frame: [x0, x1, y0, y1] }
    }

    fn fill(&self, mask: &mut Mask) {
        let ([ax, ay], [vx, vy], [x0, x1, y0, y1]) = (self.a, self.v, self.frame);
        for y in y0..y1 {
            for x in x0..x1 {
                let (px, py) = (x as f32 - ax, y as f32 - ay);
                let t = ((px * vx + py * vy) / self.norm).clamp(0.0, 1.0);
                let (ex, ey) = (px - t * vx, py - t * vy);
                if ex * ex + ey * ey <= self.square {
                    mask.data[y * mask.size + x] = 1.0;
                }
            }
        }
    }
}

/// One to three ellipses with half axes of 1.5–12 % of the picture.
fn ellipses(draw: &mut Draw, size: usize) -> Vec<Ellipse> {
    let side = size as f32;
    (0..1 + draw.below(3))
        .map(|_| {
            let centre = [draw.range(0.0, side), draw.range(0.0, side)];
            let axes = [draw.range(0.015, 0.12) * side, draw.range(0.015, 0.12) * side];
            let (sin, cos) = draw.range(0.0, PI).sin_cos();
            let reach = axes[0].max(axes[1]);
            let (x0, x1) = window(centre[0] - reach, centre[0] + reach, size);
            let (y0, y1) = window(centre[1] - reach, centre[1] + reach, size);
            Ellipse { centre, axes, sin, cos, frame: [x0, x1, y0, y1] }
        })
        .collect()
}

impl Ellipse {
    fn fill(&self, mask: &mut Mask) {
        let Ellipse { centre: [cx, cy], axes: [a, b], sin, cos, frame: [x0, x1, y0, y1] } = *self;
        for y in y0..y1 {
            for x in x0..x1 {
                let (dx, dy) = (x as f32 - cx, y as f32 - cy);
                let (u, v) = ((cos * dx + sin * dy) / a, (cos * dy - sin * dx) / b);
                if u * u + v * v <= 1.0 {
                    mask.data[y * mask.size + x] = 1.0;
                }
            }
        }
    }
}

/// Pixels that [lo, hi] touches.
fn window(lo: f32, hi: f32, size: usize) -> (usize, usize) {
    (lo.floor().max(0.0) as usize, (hi.ceil().max(-1.0) as isize + 1).clamp(0, size as isize) as usize)
}

#[cfg(test)]
mod tests {
    use super::super::draw::{Purpose, stream};
    use super::*;

    fn areas(draws: u32, kind: Kind) -> Vec<f32> {
        let mut mask = Mask::empty(256);
        let mut areas: Vec<f32> = (0..draws)
            .map(|i| {
                Shapes::draw(&mut stream(11, 0, i, Purpose::Blend), kind, 256).fill(&mut mask);
                mask.area() as f32 / 65536.0
            })
            .collect();
        areas.sort_by(f32::total_cmp);
        areas
    }

    /// Reference statistics over 1500 draws of the original code: mean 5.05 %, median 4.6 %, quartiles
    /// 3.8 % and 5.6 %, 4.8 % empty. With 600 draws of deviation about 3.3 % the mean's standard error
    /// is 0.13 %; four of them are allowed, and for the share of empty masks 4·√(.048·.952/600) = 3.5 %.
    #[test]
    fn perlin_masks_cover_what_the_reference_code_covers() {
        let areas = areas(600, Kind::Noise);
        let mean = areas.iter().sum::<f32>() / 600.0;
        assert!((mean - 0.0505).abs() < 0.0053, "mean {mean}");
        assert!((areas[300] - 0.046).abs() < 0.004, "median {}", areas[300]);
        assert!((areas[150] - 0.038).abs() < 0.005, "lower quartile {}", areas[150]);
        assert!((areas[450] - 0.056).abs() < 0.005, "upper quartile {}", areas[450]);
        let empty = areas.iter().filter(|a| **a == 0.0).count() as f32 / 600.0;
        assert!((empty - 0.048).abs() < 0.035, "empty {empty}");
    }

    #[test]
    fn strokes_are_thin_and_ellipses_are_compact() {
        let thin = areas(200, Kind::Strokes);
        assert!(thin[100] > 0.001 && thin[199] < 0.05, "{} {}", thin[100], thin[199]);
        let compact = areas(200, Kind::Ellipses);
        assert!(compact[100] > 0.005 && compact[199] < 0.15, "{} {}", compact[100], compact[199]);
    }
}
