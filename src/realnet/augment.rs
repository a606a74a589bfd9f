//! Strong augmentations, so that a piece of a good picture no longer looks good where it is pasted.
//! The ten of RealNet's texture option (three drawn without replacement, applied in that order).

use super::draw::{Draw, sign};
use super::picture::{Picture, blur_plane};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augmentation {
    /// γ of 0.5–2.0 per channel.
    Gamma,
    /// ×0.8–1.2, then ±30/255.
    Brightness,
    /// Unsharp mask or a slight blur.
    Sharpness,
    /// ±50/255 on hue and saturation.
    Colour,
    /// Inverts what is above a threshold of 32–128 (of 255), every second time.
    Solarise,
    /// Keeps two to five bits.
    Posterise,
    Invert,
    /// Stretches each channel to [0, 1].
    AutoContrast,
    Equalise,
    /// ±45°.
    Rotate,
}

impl Augmentation {
    pub const ALL: [Augmentation; 10] = [
        Augmentation::Gamma,
        Augmentation::Brightness,
        Augmentation::Sharpness,
        Augmentation::Colour,
        Augmentation::Solarise,
        Augmentation::Posterise,
        Augmentation::Invert,
        Augmentation::AutoContrast,
        Augmentation::Equalise,
        Augmentation::Rotate,
    ];

    /// Draws what is random about it; `None` where it happens to do nothing.
    pub fn draw(self, draw: &mut Draw) -> Option<Step> {
        Some(match self {
            Augmentation::Gamma => {
                // Even in log γ: darker and lighter are as likely.
                let tables = [0; 3].map(|_| {
                    let gamma = draw.range(-1.0, 1.0).exp2();
                    table(|v| v.powf(gamma))
                });
                Step::Tables(Box::new(tables))
            }
            Augmentation::Brightness => {
                let (factor, offset) = (draw.range(0.8, 1.2), draw.range(-30.0, 30.0) / 255.0);
                Step::Brightness { factor, offset }
            }
            Augmentation::Sharpness => Step::Sharpness(draw.range(-0.7, 1.5)),
            Augmentation::Colour => {
                let (hue, saturation) = (draw.range(-50.0, 50.0) / 255.0, draw.range(-50.0, 50.0) / 255.0);
                Step::Colour { hue, saturation }
            }
            Augmentation::Solarise => {
                let threshold = draw.range(32.0, 128.0) / 255.0;
                if !draw.chance(0.5) {
                    return None;
                }
                Step::Solarise(threshold)
            }
            Augmentation::Posterise => Step::Posterise((1 << (2 + draw.below(4))) as f32),
            Augmentation::Invert => Step::Invert,
            Augmentation::AutoContrast => Step::Contrast,
            Augmentation::Equalise => Step::Equalise,
            Augmentation::Rotate => {
                let angle = draw.range(-45.0f32, 45.0).to_radians();
                Step::Rotate(Warp::new(angle, 1.0, [0.0, 0.0]))
            }
        })
    }
}

/// An augmentation with its random numbers drawn: the rest is arithmetic, on whatever device.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Tables(Box<[Table; 3]>),
    Brightness {
        factor: f32,
        offset: f32,
    },
    /// Positive sharpens by that share of (picture − blurred), negative blurs.
    Sharpness(f32),
    /// Both are added.
    Colour {
        hue: f32,
        saturation: f32,
    },
    Solarise(f32),
    /// To so many levels.
    Posterise(f32),
    Invert,
    Contrast,
    Equalise,
    Rotate(Warp),
}

impl Step {
    pub fn apply(&self, picture: &mut Picture) {
        match self {
            Step::Tables(tables) => by_table(picture, tables),
            Step::Brightness { factor, offset } => {
                picture.data.iter_mut().for_each(|v| *v = (*v * factor + offset).clamp(0.0, 1.0));
            }
            Step::Sharpness(amount) => sharpness(picture, *amount),
            Step::Colour { hue, saturation } => {
                picture.pixels_mut().for_each(|p| *p = shift_hue(*p, *hue, *saturation));
            }
            Step::Solarise(threshold) => {
                let above = |v: &f32| *v >= *threshold;
                picture.data.iter_mut().filter(|v| above(v)).for_each(|v| *v = 1.0 - *v);
            }
            Step::Posterise(levels) => {
                picture.data.iter_mut().for_each(|v| *v = (*v * levels).floor().min(levels - 1.0) / levels);
            }
            Step::Invert => picture.data.iter_mut().for_each(|v| *v = 1.0 - *v),
            Step::Contrast => auto_contrast(picture),
            Step::Equalise => equalise(picture),
            Step::Rotate(warp) => *picture = warp.apply(picture),
        }
    }
}

/// Three of the ten, in this order; those that do nothing are left out.
pub fn strong(draw: &mut Draw) -> Vec<Step> {
    let mut left = Augmentation::ALL.to_vec();
    (0..3).filter_map(|_| left.swap_remove(draw.below(left.len())).draw(draw)).collect()
}

/// A picture rolled around its edges, mirrored half the time each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll {
    /// Along x and y.
    pub shift: [usize; 2],
    pub mirror: [bool; 2],
}

impl Roll {
    pub fn draw(draw: &mut Draw, size: usize) -> Self {
        Roll { shift: [draw.below(size), draw.below(size)], mirror: [draw.chance(0.5), draw.chance(0.5)] }
    }

    pub fn apply(&self, picture: &Picture) -> Picture {
        let n = picture.size;
        let Roll { shift: [dx, dy], mirror: [mirror_x, mirror_y] } = *self;
        let mut out = Picture { size: n, data: Vec::with_capacity(n * n * 3) };
        for y in 0..n {
            let from_y = (if mirror_y { n - 1 - y } else { y } + dy) % n;
            let row = &picture.data[from_y * n * 3..][..n * 3];
            if mirror_x {
                for x in 0..n {
                    let from_x = (n - 1 - x + dx) % n;
                    out.data.extend_from_slice(&row[from_x * 3..][..3]);
                }
            } else {
                out.data.extend_from_slice(&row[dx * 3..]);
                out.data.extend_from_slice(&row[..dx * 3]);
            }
        }
        out
    }
}

/// A turn about the centre and a scale, then a shift in pixels; edges mirror, so no black corners give
/// the anomaly away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    /// Of the angle, divided by the scale.
    pub sin: f32,
    pub cos: f32,
    pub shift: [f32; 2],
}

impl Warp {
    /// `scale` above 1 makes larger.
    pub fn new(angle: f32, scale: f32, shift: [f32; 2]) -> Self {
        let (sin, cos) = angle.sin_cos();
        Warp { sin: sin / scale, cos: cos / scale, shift }
    }

    pub fn apply(&self, picture: &Picture) -> Picture {
        let n = picture.size;
        let centre = (n as f32 - 1.0) / 2.0;
        let Warp { sin, cos, shift } = *self;
        let mut out = Picture { size: n, data: Vec::with_capacity(n * n * 3) };
        for y in 0..n {
            let dy = y as f32 - centre;
            for x in 0..n {
                let dx = x as f32 - centre;
                let u = mirrored(cos * dx + sin * dy + centre + shift[0], n);
                let v = mirrored(cos * dy - sin * dx + centre + shift[1], n);
                out.data.extend_from_slice(&bilinear(picture, u, v));
            }
        }
        out
    }
}

/// Folds a coordinate into [0, n − 1] by mirroring at both ends.
fn mirrored(x: f32, n: usize) -> f32 {
    let last = n as f32 - 1.0;
    if (0.0..=last).contains(&x) {
        return x;
    }
    let period = (2.0 * last).max(1.0);
    let folded = x.rem_euclid(period);
    if folded > last { (period - folded).max(0.0) } else { folded }
}

fn bilinear(picture: &Picture, u: f32, v: f32) -> [f32; 3] {
    let last = picture.size - 1;
    let (x, y) = ((u as usize).min(last), (v as usize).min(last));
    let (x1, y1) = ((x + 1).min(last), (y + 1).min(last));
    let (fx, fy) = (u - x as f32, v - y as f32);
    let (a, b) = (picture.pixel(x, y), picture.pixel(x1, y));
    let (c, d) = (picture.pixel(x, y1), picture.pixel(x1, y1));
    [0, 1, 2].map(|i| {
        let (top, bottom) = (a[i] + (b[i] - a[i]) * fx, c[i] + (d[i] - c[i]) * fx);
        top + (bottom - top) * fy
    })
}

/// From levels 0 … 255 to values.
pub type Table = [f32; 256];

fn table(f: impl Fn(f32) -> f32) -> Table {
    std::array::from_fn(|i| f(i as f32 / 255.0))
}

fn level(v: f32) -> usize {
    (v * 255.0 + 0.5) as usize & 255
}

pub fn by_table(picture: &mut Picture, tables: &[Table; 3]) {
    for p in picture.pixels_mut() {
        for (v, table) in p.iter_mut().zip(tables) {
            *v = table[level(v.min(1.0))];
        }
    }
}

fn sharpness(picture: &mut Picture, amount: f32) {
    let n = picture.size;
    let mut plane = vec![0.0; n * n];
    for channel in 0..3 {
        for (to, from) in plane.iter_mut().zip(picture.data.iter().skip(channel).step_by(3)) {
            *to = *from;
        }
        blur_plane(&mut plane, n, 1);
        for (v, soft) in picture.data.iter_mut().skip(channel).step_by(3).zip(&plane) {
            *v = (*v + amount * (*v - soft)).clamp(0.0, 1.0);
        }
    }
}

fn auto_contrast(picture: &mut Picture) {
    let (mut lo, mut hi) = ([1.0f32; 3], [0.0f32; 3]);
    for p in picture.pixels() {
        for c in 0..3 {
            lo[c] = lo[c].min(p[c]);
            hi[c] = hi[c].max(p[c]);
        }
    }
    for p in picture.pixels_mut() {
        for c in 0..3 {
            if hi[c] > lo[c] {
                p[c] = (p[c] - lo[c]) / (hi[c] - lo[c]);
            }
        }
    }
}

fn equalise(picture: &mut Picture) {
    let mut counts = [[0usize; 256]; 3];
    for p in picture.pixels() {
        for c in 0..3 {
            counts[c][level(p[c])] += 1;
        }
    }
    let total = (picture.size * picture.size) as f32;
    let tables = counts.map(|count| {
        let mut below = 0;
        std::array::from_fn(|i| {
            below += count[i];
            (below as f32 - count[i] as f32 / 2.0) / total
        })
    });
    by_table(picture, &tables);
}

/// Hue in turns; a grey pixel has none and stays grey.
fn shift_hue([r, g, b]: [f32; 3], hue: f32, saturation: f32) -> [f32; 3] {
    let (hi, lo) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = hi - lo;
    if chroma < 1e-3 {
        return [r, g, b];
    }
    let sector = if hi == r {
        ((g - b) / chroma).rem_euclid(6.0)
    } else if hi == g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    let sector = (sector + hue * 6.0).rem_euclid(6.0);
    let saturation = (chroma / hi + saturation).clamp(0.0, 1.0);
    // The closed form of HSV → RGB.
    [5.0f32, 3.0, 1.0].map(|n| {
        let k = (n + sector).rem_euclid(6.0);
        hi - hi * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

/// A tone change of the picture itself: what a stain, a burn or a dull spot does.
pub fn tone(draw: &mut Draw) -> Box<[Table; 3]> {
    let gamma = (sign(draw) * draw.range(0.3, 1.3)).exp2();
    let (factor, offset) = (draw.range(0.6, 1.4), draw.range(-0.25, 0.25));
    let curve = table(|v| (v.powf(gamma) * factor + offset).clamp(0.0, 1.0));
    Box::new([curve; 3])
}

#[cfg(test)]
mod tests {
    use super::super::draw::{Purpose, stream};
    use super::*;

    fn noise(size: usize) -> Picture {
        let mut draw = stream(1, 0, 0, Purpose::Textures);
        Picture { size, data: (0..size * size * 3).map(|_| draw.uniform()).collect() }
    }

    #[test]
    fn every_augmentation_stays_in_range_and_repeats_by_seed() {
        for augmentation in Augmentation::ALL {
            for image in 0..10 {
                let apply = || {
                    let mut picture = noise(24);
                    if let Some(step) = augmentation.draw(&mut stream(7, 0, image, Purpose::Blend)) {
                        step.apply(&mut picture);
                    }
                    picture
                };
                let once = apply();
                assert!(once.data.iter().all(|v| (-1e-6..=1.0 + 1e-6).contains(v)), "{augmentation:?}");
                assert!(once == apply(), "{augmentation:?}");
            }
        }
    }

    #[test]
    fn a_roll_only_moves_pixels() {
        let picture = noise(16);
        let rolled = Roll::draw(&mut stream(2, 0, 0, Purpose::Blend), 16).apply(&picture);
        let sorted = |p: &Picture| {
            let mut v = p.data.clone();
            v.sort_by(f32::total_cmp);
            v
        };
        assert_eq!(sorted(&picture), sorted(&rolled));
        assert_ne!(picture, rolled);
    }

    #[test]
    fn no_rotation_is_the_identity() {
        let picture = noise(16);
        let same = Warp::new(0.0, 1.0, [0.0, 0.0]).apply(&picture);
        assert!(picture.data.iter().zip(&same.data).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[test]
    fn hue_goes_round_and_leaves_grey_alone() {
        let near = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near(shift_hue([0.8, 0.2, 0.2], 1.0 / 3.0, 0.0), [0.2, 0.8, 0.2]));
        assert!(near(shift_hue([0.1, 0.4, 0.9], 1.0, 0.0), [0.1, 0.4, 0.9]));
        assert!(near(shift_hue([0.5; 3], 0.3, 0.2), [0.5; 3]));
    }
}
