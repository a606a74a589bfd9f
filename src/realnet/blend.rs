//! Training pictures: a good picture, and the same with an anomaly painted in.

use super::draw::Draw;
use super::masks::{MIN_AREA, ShapeMix, draw_mask};
use super::picture::{Mask, Picture, Stored};
use super::sources::{SourceMix, Sources};

/// How anomalies are made; part of a preset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlendSpec {
    pub shapes: ShapeMix,
    pub sources: SourceMix,
    /// δ, the opacity, is uniform from here to 1.
    pub min_opacity: f32,
}

/// A blend and where it differs from the good picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Blend {
    pub picture: Picture,
    /// Opacity per pixel before δ; above one half counts as anomalous.
    pub mask: Mask,
}

/// A change below this (mean over the mask, of 1) is drawn again: the network cannot be asked to see it.
const MIN_CHANGE: f32 = 0.02;
const REDRAWS: usize = 4;

/// Paints an anomaly on `picture`.
pub fn blend(
    draw: &mut Draw,
    picture: &Picture,
    normals: &[Stored],
    sources: &Sources,
    spec: &BlendSpec,
) -> Blend {
    let mask = draw_mask(draw, picture.size, spec.shapes);
    let mut out = Blend { picture: picture.clone(), mask };
    for _ in 0..REDRAWS {
        let paint = sources.paint(draw, picture, normals);
        let opacity = draw.range(spec.min_opacity, 1.0);
        let mut change = 0.0;
        let mut weight = 1e-6;
        let pixels = out.picture.pixels_mut().zip(picture.pixels()).zip(paint.pixels());
        for (((to, from), p), m) in pixels.zip(&out.mask.data) {
            if *m > 0.0 {
                let alpha = opacity * m;
                for c in 0..3 {
                    let difference = alpha * (p[c] - from[c]);
                    to[c] = from[c] + difference;
                    change += difference.abs();
                }
                weight += 3.0 * m;
            }
        }
        if change / weight >= MIN_CHANGE {
            break;
        }
    }
    debug_assert!(picture.size < 32 || out.mask.data.iter().filter(|m| **m > 0.0).count() >= MIN_AREA / 2);
    out
}

#[cfg(test)]
mod tests {
    use super::super::draw::{Purpose, stream};
    use super::*;

    const SPEC: BlendSpec =
        BlendSpec { shapes: ShapeMix::INDUSTRIAL, sources: SourceMix::INDUSTRIAL, min_opacity: 0.3 };

    fn normals(count: u32, size: usize, grey: bool) -> Vec<Stored> {
        (0..count)
            .map(|i| {
                let mut draw = stream(1, 0, i, Purpose::Textures);
                let mut noise = || 0.5 + 0.1 * draw.normal();
                let mut p = Picture::flat(size, [0.0; 3]);
                p.pixels_mut()
                    .for_each(|v| *v = if grey { [noise(); 3] } else { [noise(), noise(), noise()] });
                Stored::from_picture(&p)
            })
            .collect()
    }

    #[test]
    fn a_blend_differs_from_its_normal_inside_the_mask_and_only_there() {
        let normals = normals(3, 64, false);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        let mut unseen = 0;
        for i in 0..80 {
            let normal = normals[i as usize % 3].picture();
            let b = blend(&mut stream(5, 0, i, Purpose::Blend), &normal, &normals, &sources, &SPEC);
            let mut change = 0.0f32;
            for ((to, from), m) in b.picture.pixels().zip(normal.pixels()).zip(&b.mask.data) {
                let difference = (0..3).map(|c| (to[c] - from[c]).abs()).sum::<f32>();
                assert!(*m > 0.0 || difference == 0.0, "blend {i} leaks out of its mask");
                change += difference;
            }
            unseen += (change < 0.5) as u32;
            assert!(b.picture.data.iter().all(|v| (-1e-5..=1.00001).contains(v)), "blend {i}");
        }
        assert!(unseen <= 4, "{unseen} of 80 blends change nothing to speak of");
    }

    #[test]
    fn grey_normals_get_grey_anomalies() {
        let normals = normals(2, 64, true);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        assert!(sources.grey);
        for i in 0..40 {
            let b =
                blend(&mut stream(6, 0, i, Purpose::Blend), &normals[0].picture(), &normals, &sources, &SPEC);
            let colour = |p: &[f32; 3]| (p[0] - p[1]).abs().max((p[1] - p[2]).abs());
            assert!(b.picture.pixels().all(|p| colour(p) < 1e-3), "blend {i} is coloured");
        }
    }

    #[test]
    fn the_same_stream_paints_the_same_blend() {
        let normals = normals(2, 32, false);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        let one = |step| {
            blend(&mut stream(9, step, 0, Purpose::Blend), &normals[0].picture(), &normals, &sources, &SPEC)
        };
        assert_eq!(one(0), one(0));
        assert_ne!(one(0), one(1));
    }
}
