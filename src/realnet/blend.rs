//! Training pictures: a good picture, and the same with an anomaly painted in,
//! A = (1−M)⊙I + (1−δ)M⊙I + δM⊙P. Decides what is drawn again; the arithmetic is the easel's.

use super::draw::Draw;
use super::easel::Easel;
use super::error::RealnetError;
use super::masks::{Kind, MIN_AREA, ShapeMix, Shapes};
use super::picture::Stored;
use super::sources::{Paint, SourceMix, Sources};
use crate::engine::cuda::painter::Change;

/// How anomalies are made; part of a preset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlendSpec {
    pub shapes: ShapeMix,
    pub sources: SourceMix,
    /// δ, the opacity, is uniform from here to 1.
    pub min_opacity: f32,
}

/// Shapes are drawn again so often until they are large enough.
const SHAPE_REDRAWS: usize = 8;
/// Paint is drawn so often, until it changes enough.
const PAINT_REDRAWS: usize = 4;

/// A change below a fiftieth (mean over the mask, of 1) is drawn again: the network cannot be asked to see it.
fn is_seen(change: &Change) -> bool {
    change.weight > 0 && change.changed * 50 >= change.weight
}

/// Paints an anomaly on each of `pictures`; `draws` are their random numbers. Everything that is drawn
/// again depends on exact sums alone, so each stream gives one blend, whatever the easel and the batch.
pub fn blend(
    easel: &mut Easel,
    draws: &mut [Draw],
    pictures: &[&Stored],
    normals: &[Stored],
    sources: &Sources,
    spec: &BlendSpec,
) -> Result<(), RealnetError> {
    let size = easel.size();
    let kinds: Vec<Kind> = draws.iter_mut().map(|draw| spec.shapes.draw(draw)).collect();
    let mut small = vec![true; draws.len()];
    for redraw in 0..=SHAPE_REDRAWS {
        let last = redraw == SHAPE_REDRAWS;
        let open = draws.iter_mut().zip(&kinds).zip(&small);
        let shapes: Vec<Option<Shapes>> = open
            .map(|((draw, kind), small)| {
                // Ellipses are never too small, but in tiny pictures.
                small.then(|| Shapes::draw(draw, if last { Kind::Ellipses } else { *kind }, size))
            })
            .collect();
        for (small, area) in small.iter_mut().zip(easel.outline(&shapes)?) {
            *small &= area.is_some_and(|area| area < MIN_AREA);
        }
        if !small.contains(&true) {
            break;
        }
    }
    let radii: Vec<usize> = draws.iter_mut().map(|draw| spec.shapes.draw_radius(draw)).collect();
    easel.soften(&radii)?;

    easel.set_pictures(pictures)?;
    let mut faint = vec![true; draws.len()];
    for _ in 0..PAINT_REDRAWS {
        let open = draws.iter_mut().zip(pictures).zip(&faint);
        let paints: Vec<Option<(Paint, f32)>> = open
            .map(|((draw, picture), faint)| {
                faint.then(|| {
                    let paint = sources.paint(draw, picture, normals);
                    (paint, draw.range(spec.min_opacity, 1.0))
                })
            })
            .collect();
        for (faint, change) in faint.iter_mut().zip(easel.paint(&paints)?) {
            *faint &= change.is_some_and(|change| !is_seen(&change));
        }
        if !faint.contains(&true) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::draw::{Purpose, stream};
    use super::super::picture::{Mask, Picture};
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

    /// One picture by itself, on the CPU.
    fn paint(draw: Draw, picture: &Stored, normals: &[Stored], sources: &Sources) -> (Picture, Mask) {
        let mut easel = Easel::on_cpu(picture.size, 1);
        blend(&mut easel, &mut [draw], &[picture], normals, sources, &SPEC).unwrap();
        (easel.pictures().remove(0), easel.masks().unwrap().remove(0))
    }

    #[test]
    fn a_blend_differs_from_its_normal_inside_the_mask_and_only_there() {
        let normals = normals(3, 64, false);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        let mut unseen = 0;
        for i in 0..80 {
            let normal = &normals[i as usize % 3];
            let (picture, mask) = paint(stream(5, 0, i, Purpose::Blend), normal, &normals, &sources);
            let mut change = 0.0f32;
            for ((to, from), m) in picture.pixels().zip(normal.picture().pixels()).zip(&mask.data) {
                let difference = (0..3).map(|c| (to[c] - from[c]).abs()).sum::<f32>();
                assert!(*m > 0.0 || difference == 0.0, "blend {i} leaks out of its mask");
                change += difference;
            }
            unseen += (change < 0.5) as u32;
            assert!(picture.data.iter().all(|v| (-1e-5..=1.00001).contains(v)), "blend {i}");
        }
        assert!(unseen <= 4, "{unseen} of 80 blends change nothing to speak of");
    }

    #[test]
    fn grey_normals_get_grey_anomalies() {
        let normals = normals(2, 64, true);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        assert!(sources.grey);
        for i in 0..40 {
            let (picture, _) = paint(stream(6, 0, i, Purpose::Blend), &normals[0], &normals, &sources);
            let colour = |p: &[f32; 3]| (p[0] - p[1]).abs().max((p[1] - p[2]).abs());
            assert!(picture.pixels().all(|p| colour(p) < 1e-3), "blend {i} is coloured");
        }
    }

    #[test]
    fn no_mask_is_smaller_than_the_minimum() {
        let normals = normals(1, 128, false);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        for i in 0..150 {
            let (_, mask) = paint(stream(3, 1, i, Purpose::Blend), &normals[0], &normals, &sources);
            // A soft edge may take a thin stroke's pixels below one half, so count any opacity.
            let touched = mask.data.iter().filter(|v| **v > 0.0).count();
            assert!(touched >= MIN_AREA, "draw {i}: {touched}");
            assert!(mask.data.iter().all(|v| (0.0..=1.0).contains(v)), "draw {i}");
        }
    }

    #[test]
    fn tiny_pictures_are_painted_too() {
        let normals = normals(1, 16, false);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        for i in 0..50 {
            paint(stream(4, 0, i, Purpose::Blend), &normals[0], &normals, &sources);
        }
    }

    #[test]
    fn the_same_stream_paints_the_same_blend() {
        let normals = normals(2, 32, false);
        let sources = Sources::new(1, &normals, vec![], SPEC.sources);
        let one = |step| paint(stream(9, step, 0, Purpose::Blend), &normals[0], &normals, &sources);
        assert_eq!(one(0), one(0));
        assert_ne!(one(0), one(1));
    }
}
