//! What an anomaly is painted with: P in A = (1−M)⊙I + (1−δ)M⊙I + δM⊙P.

use std::f32::consts::PI;

use super::augment::{Roll, Step, Table, Warp, by_table, strong, tone};
use super::draw::{Draw, Purpose, sign, stream};
use super::picture::{Picture, Stored};
use super::textures::{fractal, procedural};

/// How often each source is drawn; the shares sum to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceMix {
    /// The picture itself, rolled and strongly augmented.
    pub itself: f32,
    /// Another good picture, strongly augmented.
    pub other: f32,
    /// Flat colours, tone changes and fractal noise.
    pub noise: f32,
    /// Textures: photographs from a folder where one is given, procedural ones otherwise.
    pub textures: f32,
}

impl SourceMix {
    pub const INDUSTRIAL: SourceMix = SourceMix { itself: 0.25, other: 0.25, noise: 0.3, textures: 0.2 };
    /// RealNet's texture option ({normal .5, dtd .5}), for the paper's presets without synthesis.
    pub const TEXTURES: SourceMix = SourceMix { itself: 0.25, other: 0.0, noise: 0.0, textures: 0.75 };
}

/// How many textures stand in for a folder of photographs.
const PROCEDURAL_TEXTURES: usize = 72;
/// Planes of fractal noise, made once: five octaves a blend would cost more than the blend.
const NOISE_PLANES: usize = 24;

/// Everything that anomalies are painted from.
#[derive(Debug)]
pub struct Sources {
    size: usize,
    mix: SourceMix,
    textures: Vec<Stored>,
    noise: Vec<Vec<f32>>,
    /// The good pictures are grey, so anomalies are: colour alone would give them away.
    pub(super) grey: bool,
}

impl Sources {
    /// `textures`: photographs of the network's input size; procedural ones where empty.
    pub fn new(seed: u64, normals: &[Stored], mut textures: Vec<Stored>, mix: SourceMix) -> Self {
        let size = normals.first().map_or(0, |n| n.size);
        if textures.is_empty() {
            textures = procedural(seed, PROCEDURAL_TEXTURES, size);
        }
        let noise = (0..NOISE_PLANES)
            .map(|i| {
                let mut draw = stream(seed, 1, i as u32, Purpose::Textures);
                let cells = draw.range(1.0, 6.0).exp2();
                let aspect = if draw.chance(0.3) { draw.range(-2.0, 2.0).exp2() } else { 1.0 };
                fractal(&mut draw, size, [cells * aspect, cells / aspect], 4)
            })
            .collect();
        // 12 of 255: sensor noise and JPEG leave less in a grey picture.
        let grey = normals.iter().all(|n| n.colourfulness() < 12);
        Sources { size, mix, textures, noise, grey }
    }

    /// Planes in [0, 1] that `Base::Cloud` names by number.
    pub fn clouds(&self) -> &[Vec<f32>] {
        &self.noise
    }

    /// Draws P for `picture`, one of `normals`.
    pub fn paint<'a>(&'a self, draw: &mut Draw, picture: &'a Stored, normals: &'a [Stored]) -> Paint<'a> {
        let (mix, size) = (self.mix, self.size);
        let kind = draw.uniform();
        let (base, steps) = if kind < mix.itself || normals.is_empty() {
            (Base::Rolled(picture, Roll::draw(draw, size)), strong(draw))
        } else if kind < mix.itself + mix.other {
            let other = &normals[draw.below(normals.len())];
            (Base::Rolled(other, Roll::draw(draw, size)), strong(draw))
        } else if kind < mix.itself + mix.other + mix.noise {
            (self.noise(draw, picture), vec![])
        } else {
            (self.texture(draw), strong(draw))
        };
        Paint { base, steps, grey: self.grey }
    }

    fn noise<'a>(&'a self, draw: &mut Draw, picture: &'a Stored) -> Base<'a> {
        match draw.below(3) {
            0 => {
                let level = draw.uniform();
                Base::Flat([0; 3].map(|_| (level + draw.range(-0.25, 0.25)).clamp(0.0, 1.0)))
            }
            1 => Base::Toned(picture, tone(draw)),
            _ => {
                let index = draw.below(self.noise.len());
                let plane = &self.noise[index];
                let offset = draw.below(plane.len());
                let level = draw.uniform();
                let colours = [0; 3].map(|_| {
                    let contrast = sign(draw) * draw.range(0.1, 0.8);
                    (level + draw.range(-0.15, 0.15), contrast)
                });
                Base::Cloud { index, plane, offset, colours }
            }
        }
    }

    fn texture(&self, draw: &mut Draw) -> Base<'_> {
        let texture = &self.textures[draw.below(self.textures.len())];
        if draw.chance(0.5) {
            let reach = self.size as f32 / 2.0;
            let shift = [draw.range(-reach, reach), draw.range(-reach, reach)];
            let (angle, scale) = (draw.range(-PI, PI), draw.range(-1.0, 1.0).exp2());
            Base::Warped(texture, Warp::new(angle, scale, shift))
        } else {
            Base::Rolled(texture, Roll::draw(draw, self.size))
        }
    }
}

/// What P starts as.
#[derive(Clone, Debug, PartialEq)]
pub enum Base<'a> {
    Rolled(&'a Stored, Roll),
    Warped(&'a Stored, Warp),
    Flat([f32; 3]),
    Toned(&'a Stored, Box<[Table; 3]>),
    /// A plane of noise (of the sources' number `index`), read from `offset` on and around its end; level
    /// and contrast of each channel.
    Cloud {
        index: usize,
        plane: &'a [f32],
        offset: usize,
        colours: [(f32, f32); 3],
    },
}

/// P with its random numbers drawn: the rest is arithmetic, on whatever device.
#[derive(Clone, Debug, PartialEq)]
pub struct Paint<'a> {
    pub base: Base<'a>,
    pub steps: Vec<Step>,
    /// Its colours are taken away at last.
    pub grey: bool,
}

impl Paint<'_> {
    pub fn picture(&self, size: usize) -> Picture {
        let mut p = match &self.base {
            Base::Rolled(source, roll) => roll.apply(&source.picture()),
            Base::Warped(source, warp) => warp.apply(&source.picture()),
            Base::Flat(colour) => Picture::flat(size, *colour),
            Base::Toned(source, tables) => {
                let mut p = source.picture();
                by_table(&mut p, tables);
                p
            }
            Base::Cloud { plane, offset, colours, .. } => {
                let (head, tail) = plane.split_at(*offset);
                let data = tail.iter().chain(head).flat_map(|v| {
                    colours.map(|(level, contrast)| (level + contrast * (v - 0.5)).clamp(0.0, 1.0))
                });
                Picture { size, data: data.collect() }
            }
        };
        self.steps.iter().for_each(|step| step.apply(&mut p));
        if self.grey {
            p.pixels_mut().for_each(|v| *v = [0.299 * v[0] + 0.587 * v[1] + 0.114 * v[2]; 3]);
        }
        p
    }
}
