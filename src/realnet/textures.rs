//! Pictures to take anomalies from where no folder of photographs is given: procedural stand-ins for
//! wood, stone, fabric, brushed metal, cells, fibres and dirt, made once when teaching starts.

use std::f32::consts::{PI, TAU};

use super::draw::{Draw, Purpose, stream};
use super::picture::{Picture, Stored};

/// Kinds of texture that `make` turns through.
const KINDS: usize = 9;

/// `count` textures of `size`×`size` pixels.
pub fn procedural(seed: u64, count: usize, size: usize) -> Vec<Stored> {
    (0..count)
        .map(|i| {
            let mut draw = stream(seed, 0, i as u32, Purpose::Textures);
            Stored::from_picture(&make(&mut draw, i % KINDS, size))
        })
        .collect()
}

fn make(draw: &mut Draw, kind: usize, size: usize) -> Picture {
    let height = match kind {
        0 => fractal(draw, size, [3.0, 3.0], 5),
        1 => wood(draw, size),
        2 => marble(draw, size),
        3 => cells(draw, size),
        4 => weave(draw, size),
        5 => {
            let grain = draw.range(24.0, 64.0);
            fractal(draw, size, [grain, 1.5], 3)
        }
        6 => dots(draw, size),
        7 => fibres(draw, size),
        _ => {
            let grain = draw.range(20.0, 60.0);
            fractal(draw, size, [grain, grain], 2)
        }
    };
    let fine = fractal(draw, size, [40.0, 40.0], 2);
    let share = draw.range(0.0, 0.3);
    let mixed: Vec<f32> = height.iter().zip(&fine).map(|(a, b)| a * (1.0 - share) + b * share).collect();
    coloured(draw, size, &mixed)
}

/// Maps a plane in [0, 1] through a gradient of three random colours, grey ones half the time.
fn coloured(draw: &mut Draw, size: usize, plane: &[f32]) -> Picture {
    let grey = draw.chance(0.5);
    let stops: [[f32; 3]; 3] = std::array::from_fn(|_| {
        let level = draw.uniform();
        let tint = if grey { 0.0 } else { 0.35 };
        std::array::from_fn(|_| (level + draw.range(-tint, tint)).clamp(0.0, 1.0))
    });
    let data = plane.iter().flat_map(|v| {
        let t = v.clamp(0.0, 1.0) * 2.0;
        let (from, to, f) = if t < 1.0 { (stops[0], stops[1], t) } else { (stops[1], stops[2], t - 1.0) };
        [0, 1, 2].map(|c| from[c] + (to[c] - from[c]) * f)
    });
    Picture { size, data: data.collect() }
}

/// Value noise summed over octaves, stretched to [0, 1]. `cells`: down and across, of the coarsest.
pub fn fractal(draw: &mut Draw, size: usize, cells: [f32; 2], octaves: usize) -> Vec<f32> {
    let mut plane = vec![0.0; size * size];
    let (mut amplitude, mut cells) = (1.0, cells);
    let decay = draw.range(0.45, 0.75);
    for _ in 0..octaves {
        let (rows, columns) = (cells[0].ceil().max(1.0) as usize, cells[1].ceil().max(1.0) as usize);
        let lattice: Vec<f32> = (0..(rows + 2) * (columns + 2)).map(|_| draw.range(-1.0, 1.0)).collect();
        let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
        for (y, line) in plane.chunks_exact_mut(size).enumerate() {
            let p = y as f32 / size as f32 * cells[0];
            let (i, fy) = (p as usize, smooth(p.fract()));
            for (x, v) in line.iter_mut().enumerate() {
                let q = x as f32 / size as f32 * cells[1];
                let (j, fx) = (q as usize, smooth(q.fract()));
                let at = i * (columns + 2) + j;
                let (a, b) = (lattice[at], lattice[at + 1]);
                let (c, d) = (lattice[at + columns + 2], lattice[at + columns + 3]);
                let (top, bottom) = (a + (b - a) * fx, c + (d - c) * fx);
                *v += amplitude * (top + (bottom - top) * fy);
            }
        }
        amplitude *= decay;
        cells = cells.map(|c| (c * 2.0).min(size as f32));
    }
    stretched(plane)
}

fn stretched(mut plane: Vec<f32>) -> Vec<f32> {
    let (lo, hi) = plane.iter().fold((f32::MAX, f32::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    let scale = if hi > lo { 1.0 / (hi - lo) } else { 0.0 };
    plane.iter_mut().for_each(|v| *v = (*v - lo) * scale);
    plane
}

/// A plane from a function of position in [0, 1)², row first.
fn plane(size: usize, mut f: impl FnMut(f32, f32, usize) -> f32) -> Vec<f32> {
    let step = 1.0 / size as f32;
    (0..size * size).map(|i| f((i / size) as f32 * step, (i % size) as f32 * step, i)).collect()
}

/// Rings around a distant centre, bent by noise.
fn wood(draw: &mut Draw, size: usize) -> Vec<f32> {
    let bend = fractal(draw, size, [2.0, 4.0], 3);
    let (cy, cx) = (draw.range(-1.0, 2.0), draw.range(-1.0, 2.0));
    let (rings, amount) = (draw.range(6.0, 22.0), draw.range(0.05, 0.3));
    let stretch = draw.range(0.15, 1.0);
    plane(size, |y, x, i| {
        let radius = ((y - cy).powi(2) * stretch + (x - cx).powi(2)).sqrt() + amount * bend[i];
        (radius * rings).fract()
    })
}

/// Sine stripes through turbulence.
fn marble(draw: &mut Draw, size: usize) -> Vec<f32> {
    let bend = fractal(draw, size, [4.0, 4.0], 5);
    let (sin, cos) = draw.range(0.0, PI).sin_cos();
    let (stripes, amount) = (draw.range(2.0, 9.0), draw.range(3.0, 10.0));
    plane(size, |y, x, i| 0.5 + 0.5 * ((cos * x + sin * y) * stripes * TAU + amount * bend[i]).sin())
}

/// Distance to the nearest of jittered centres, one a cell: pebbles, leather, grains.
fn cells(draw: &mut Draw, size: usize) -> Vec<f32> {
    let n = 5 + draw.below(16);
    let centres: Vec<[f32; 2]> = (0..n * n).map(|_| [draw.uniform(), draw.uniform()]).collect();
    let ridge = draw.chance(0.5);
    let distances = plane(size, |y, x, _| {
        let (y, x) = (y * n as f32, x * n as f32);
        let (mut first, mut second) = (f32::MAX, f32::MAX);
        for dy in -1..=1i32 {
            for dx in -1..=1i32 {
                let (cy, cx) = (y as i32 + dy, x as i32 + dx);
                let wrap = |c: i32| c.rem_euclid(n as i32) as usize;
                let [jy, jx] = centres[wrap(cy) * n + wrap(cx)];
                let d = (cy as f32 + jy - y).powi(2) + (cx as f32 + jx - x).powi(2);
                if d < first {
                    (first, second) = (d, first);
                } else {
                    second = second.min(d);
                }
            }
        }
        if ridge { second.sqrt() - first.sqrt() } else { first.sqrt() }
    });
    stretched(distances)
}

/// Two crossing sets of threads.
fn weave(draw: &mut Draw, size: usize) -> Vec<f32> {
    let (down, across) = (draw.range(8.0, 40.0), draw.range(8.0, 40.0));
    let (sin, cos) = draw.range(-PI / 4.0, PI / 4.0).sin_cos();
    let bend = fractal(draw, size, [3.0, 3.0], 2);
    let amount = draw.range(0.0, 0.05);
    let checks = draw.chance(0.4);
    plane(size, |y, x, i| {
        let (u, v) = (cos * x + sin * y + amount * bend[i], cos * y - sin * x + amount * bend[i]);
        let (a, b) = ((u * across * PI).sin(), (v * down * PI).sin());
        if checks { (a * b > 0.0) as u8 as f32 } else { 0.5 + 0.25 * (a.abs() + b.abs() - 1.0) + 0.2 * a * b }
    })
}

/// Dark or light spots of mixed sizes on noise.
fn dots(draw: &mut Draw, size: usize) -> Vec<f32> {
    let mut height = fractal(draw, size, [4.0, 4.0], 3);
    height.iter_mut().for_each(|v| *v = 0.35 + 0.3 * *v);
    for _ in 0..30 + draw.below(120) {
        let (cy, cx) = (draw.range(0.0, size as f32), draw.range(0.0, size as f32));
        let (radius, value) = (draw.range(0.004, 0.04) * size as f32, draw.uniform());
        let reach = |c: f32| {
            let (lo, hi) = ((c - radius).max(0.0) as usize, (c + radius + 1.0) as usize);
            lo..hi.min(size)
        };
        for y in reach(cy) {
            for x in reach(cx) {
                let d = ((y as f32 - cy).powi(2) + (x as f32 - cx).powi(2)).sqrt();
                let cover = (radius - d).clamp(0.0, 1.0);
                let v = &mut height[y * size + x];
                *v += (value - *v) * cover;
            }
        }
    }
    height
}

/// Many long thin lines in one main direction: hair, straw, scratches.
fn fibres(draw: &mut Draw, size: usize) -> Vec<f32> {
    let mut height = fractal(draw, size, [3.0, 3.0], 4);
    height.iter_mut().for_each(|v| *v = 0.3 + 0.4 * *v);
    let main = draw.range(0.0, TAU);
    let spread = draw.range(0.05, 1.5);
    for _ in 0..150 + draw.below(350) {
        let (mut y, mut x) = (draw.range(0.0, size as f32), draw.range(0.0, size as f32));
        let mut angle = main + draw.normal() * spread;
        let value = draw.uniform();
        let bend = draw.normal() * 0.02;
        for _ in 0..size / 6 + draw.below(size / 3 + 1) {
            angle += bend;
            y += angle.sin();
            x += angle.cos();
            let (i, j) = (y as isize, x as isize);
            if (0..size as isize).contains(&i) && (0..size as isize).contains(&j) {
                let v = &mut height[i as usize * size + j as usize];
                *v += (value - *v) * 0.7;
            }
        }
    }
    height
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_contrast_and_the_same_seed_makes_the_same_textures() {
        let textures = procedural(9, KINDS * 2, 64);
        for (i, texture) in textures.iter().enumerate() {
            let (lo, hi) = texture.data.iter().fold((255, 0), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
            assert!(hi - lo > 8, "texture {i} (kind {}) runs from {lo} to {hi}", i % KINDS);
        }
        assert_eq!(textures, procedural(9, KINDS * 2, 64));
        assert_ne!(textures, procedural(10, KINDS * 2, 64));
    }
}
