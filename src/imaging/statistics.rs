//! What a camera's picture looks like as a picture: brightness, contrast, sharpness, and whether it is still the
//! same one. Together they tell a dirty lens, a lamp that failed or a camera that repeats itself from a bad product.
//!
//! | constraint | value |
//! |---|---|
//! | pixels looked at | at most 96 × 64 points on a grid, each with its 4 neighbours |
//! | cost | 0.1 to 0.3 ms for two megapixels, whatever the format; no allocation |
//! | luma | grey level 0 … 255: BT.601's from RGB; Y from 16 … 235 stretched; the mean of a cell in a Bayer mosaic |

use super::{FrameView, PixelFormat, Plane};

const COLUMNS: usize = 96;
const ROWS: usize = 64;

/// The weight of a new picture in the mean: a single odd one moves little, a lasting change is there after 50.
const NEW: f32 = 1.0 / 16.0;

/// One picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageStatistics {
    /// Mean luma, grey levels.
    pub brightness: f32,
    /// Standard deviation of luma, grey levels.
    pub contrast: f32,
    /// Variance of luma's Laplacian, grey levels²: the focus measure LAPV of Pech-Pacheco et al., "Diatom autofocusing
    /// in brightfield microscopy: a comparative study", ICPR 2000. Falls as edges blur; its scale is the scene's own.
    pub sharpness: f32,
    /// Share of points that are black or white, 0 … 1.
    pub clipped: f32,
    /// The same for the same picture; another one gives another, all but certainly.
    pub fingerprint: u64,
}

impl ImageStatistics {
    /// `None` for pictures that are too small to have an inside, or not whole.
    pub fn of(frame: &FrameView<'_>) -> Option<Self> {
        frame.check().ok()?;
        let &FrameView { format, width, height, planes: [p, ..] } = frame;
        let at = |x: usize, y: usize| i32::from(p.data[y * p.stride + x]);
        // BT.601's weights in 1/256.
        let rgb = |r: i32, g: i32, b: i32| (77 * r + 150 * g + 29 * b) >> 8;
        match format {
            PixelFormat::Gray8 => survey(width, height, 1, at),
            PixelFormat::Nv12 | PixelFormat::I420 => survey(width, height, 1, |x, y| stretched(at(x, y))),
            PixelFormat::Yuy2 => survey(width, height, 1, |x, y| stretched(at(2 * x, y))),
            PixelFormat::Rgb => {
                survey(width, height, 1, |x, y| rgb(at(3 * x, y), at(3 * x + 1, y), at(3 * x + 2, y)))
            }
            PixelFormat::Bgr => {
                survey(width, height, 1, |x, y| rgb(at(3 * x + 2, y), at(3 * x + 1, y), at(3 * x, y)))
            }
            PixelFormat::Bgrx => {
                survey(width, height, 1, |x, y| rgb(at(4 * x + 2, y), at(4 * x + 1, y), at(4 * x, y)))
            }
            PixelFormat::Bayer(_) => {
                survey(width, height, 2, |x, y| cell(&p, x.min(width - 2), y.min(height - 2)))
            }
        }
    }
}

/// Y of limited range as a grey level.
fn stretched(y: i32) -> i32 {
    (((y - 16) * 298 + 128) >> 8).clamp(0, 255)
}

/// The mean of four mosaic pixels side by side, which are of all colours wherever they begin.
fn cell(plane: &Plane<'_>, x: usize, y: usize) -> i32 {
    let at = |x: usize, y: usize| i32::from(plane.data[y * plane.stride + x]);
    (at(x, y) + at(x + 1, y) + at(x, y + 1) + at(x + 1, y + 1) + 2) >> 2
}

/// Looks at the grid. `reach`: how far the Laplacian's neighbours are.
#[inline(always)]
fn survey(
    width: usize,
    height: usize,
    reach: usize,
    luma: impl Fn(usize, usize) -> i32,
) -> Option<ImageStatistics> {
    let inside = |side: usize| side.checked_sub(2 * reach).filter(|&inside| inside > 0);
    let (wide, high) = (inside(width)?, inside(height)?);
    let (columns, rows) = (wide.min(COLUMNS), high.min(ROWS));
    let (mut sum, mut squares, mut edge_sum, mut edge_squares, mut clipped) = (0i64, 0i64, 0i64, 0i64, 0u32);
    let mut fingerprint = (width as u64) << 32 | height as u64;
    for row in 0..rows {
        let y = reach + row * high / rows;
        for column in 0..columns {
            let x = reach + column * wide / columns;
            let here = luma(x, y);
            let edge =
                4 * here - luma(x - reach, y) - luma(x + reach, y) - luma(x, y - reach) - luma(x, y + reach);
            sum += i64::from(here);
            squares += i64::from(here * here);
            edge_sum += i64::from(edge);
            edge_squares += i64::from(edge * edge);
            clipped += u32::from(here <= 1 || here >= 254);
            // Fowler, Noll and Vo's hash, on words.
            let word = u64::from(here as u32) << 32 | u64::from(edge as u32);
            fingerprint = (fingerprint ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
    }
    let points = (columns * rows) as f64;
    let variance = |sum: i64, squares: i64| {
        let mean = sum as f64 / points;
        (squares as f64 / points - mean * mean).max(0.0)
    };
    Some(ImageStatistics {
        brightness: (sum as f64 / points) as f32,
        contrast: variance(sum, squares).sqrt() as f32,
        sharpness: variance(edge_sum, edge_squares) as f32,
        clipped: (f64::from(clipped) / points) as f32,
        fingerprint,
    })
}

/// A camera's pictures of late: means over about 16, and how long it has been the same one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageHealth {
    /// As in [`ImageStatistics`].
    pub brightness: f32,
    pub contrast: f32,
    pub sharpness: f32,
    pub clipped: f32,
    /// Pictures in a row that were the same as the one before them.
    pub frozen_frames: u64,
}

/// Looks at one picture after another.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<u64>,
    health: Option<ImageHealth>,
}

impl Watch {
    /// How the pictures are, this one included.
    pub fn look(&mut self, frame: &FrameView<'_>) -> Option<ImageHealth> {
        let now = ImageStatistics::of(frame)?;
        let frozen = self.last.replace(now.fingerprint) == Some(now.fingerprint);
        let fresh = ImageHealth {
            brightness: now.brightness,
            contrast: now.contrast,
            sharpness: now.sharpness,
            clipped: now.clipped,
            frozen_frames: 0,
        };
        let before = self.health.unwrap_or(fresh);
        let blend = |old: f32, new: f32| old + (new - old) * NEW;
        self.health = Some(ImageHealth {
            brightness: blend(before.brightness, fresh.brightness),
            contrast: blend(before.contrast, fresh.contrast),
            sharpness: blend(before.sharpness, fresh.sharpness),
            clipped: blend(before.clipped, fresh.clipped),
            frozen_frames: if frozen { before.frozen_frames + 1 } else { 0 },
        });
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grey picture in `format`, of `luma` at each point.
    fn frame(
        format: PixelFormat,
        (width, height): (usize, usize),
        luma: impl Fn(usize, usize) -> u8,
    ) -> [Vec<u8>; 3] {
        let mut planes = [vec![], vec![], vec![]];
        for (i, plane) in planes.iter_mut().enumerate().take(format.planes()) {
            let (row, rows) = format.plane_size(i, width, height);
            *plane = vec![128; row * rows];
        }
        let (row, _) = format.plane_size(0, width, height);
        let limited = |l: u8| (16.0 + f64::from(l) * 219.0 / 255.0).round() as u8;
        for y in 0..height {
            for x in 0..width {
                let l = luma(x, y);
                match format {
                    PixelFormat::Gray8 | PixelFormat::Bayer(_) => planes[0][y * row + x] = l,
                    PixelFormat::Nv12 | PixelFormat::I420 => planes[0][y * row + x] = limited(l),
                    PixelFormat::Yuy2 => planes[0][y * row + 2 * x] = limited(l),
                    PixelFormat::Rgb | PixelFormat::Bgr => planes[0][y * row + 3 * x..][..3].fill(l),
                    PixelFormat::Bgrx => planes[0][y * row + 4 * x..][..4].fill(l),
                }
            }
        }
        planes
    }

    fn view(format: PixelFormat, (width, height): (usize, usize), planes: &[Vec<u8>; 3]) -> FrameView<'_> {
        let plane = |i: usize| {
            let (stride, _) = format.plane_size(i, width, height);
            if i < format.planes() { Plane { data: &planes[i], stride } } else { Plane::default() }
        };
        FrameView { format, width, height, planes: [plane(0), plane(1), plane(2)] }
    }

    fn statistics(
        format: PixelFormat,
        size: (usize, usize),
        luma: impl Fn(usize, usize) -> u8,
    ) -> ImageStatistics {
        ImageStatistics::of(&view(format, size, &frame(format, size, luma))).unwrap()
    }

    #[test]
    fn brightness_and_contrast_are_the_same_in_every_format() {
        for format in PixelFormat::ALL {
            // Two halves: a mean of 100 and a deviation of 40.
            let found = statistics(format, (194, 130), |x, _| if x < 97 { 60 } else { 140 });
            // Limited range rounds to steps of 1.16.
            assert!((found.brightness - 100.0).abs() < 1.5, "{format:?}: {found:?}");
            assert!((found.contrast - 40.0).abs() < 1.5, "{format:?}: {found:?}");
            assert_eq!(found.clipped, 0.0, "{format:?}");
        }
    }

    #[test]
    fn a_blurred_picture_is_less_sharp_at_the_same_brightness() {
        // A sine of 5 pixels a period, and of 32.
        let wave = |period: f64| {
            move |x: usize, _| (128.0 + 60.0 * (x as f64 * std::f64::consts::TAU / period).sin()) as u8
        };
        for format in [PixelFormat::Gray8, PixelFormat::Rgb, PixelFormat::Nv12] {
            let (sharp, soft) =
                (statistics(format, (400, 300), wave(5.0)), statistics(format, (400, 300), wave(32.0)));
            // The Laplacian of a wave is its amplitude times 2 - 2 cos(2π / period).
            assert!(sharp.sharpness > 100.0 * soft.sharpness, "{sharp:?} {soft:?}");
            assert!((sharp.brightness - soft.brightness).abs() < 3.0);
        }
    }

    #[test]
    fn black_and_white_are_clipped() {
        for format in [PixelFormat::Gray8, PixelFormat::Bgrx, PixelFormat::Yuy2] {
            let found = statistics(format, (200, 100), |x, _| if x < 50 { 255 } else { 90 });
            assert!((found.clipped - 0.25).abs() < 0.02, "{format:?}: {found:?}");
            assert_eq!(statistics(format, (200, 100), |_, _| 0).clipped, 1.0);
        }
    }

    #[test]
    fn a_picture_that_stands_still_is_counted_and_noise_of_one_level_is_not_still() {
        let mut watch = Watch::default();
        let still = frame(PixelFormat::Gray8, (64, 48), |x, y| (x * y) as u8);
        let still = view(PixelFormat::Gray8, (64, 48), &still);
        let counts: Vec<u64> = (0..4).map(|_| watch.look(&still).unwrap().frozen_frames).collect();
        assert_eq!(counts, [0, 1, 2, 3]);
        let noisy = frame(PixelFormat::Gray8, (64, 48), |x, y| (x * y) as u8 ^ u8::from(x == 30 && y == 20));
        assert_eq!(watch.look(&view(PixelFormat::Gray8, (64, 48), &noisy)).unwrap().frozen_frames, 0);
    }

    #[test]
    fn means_follow_a_lasting_change_and_not_a_single_picture() {
        let mut watch = Watch::default();
        let (dark, light) = (vec![20; 64 * 48], vec![220; 64 * 48]);
        let grey = |data| FrameView {
            format: PixelFormat::Gray8,
            width: 64,
            height: 48,
            planes: [Plane { data, stride: 64 }, Plane::default(), Plane::default()],
        };
        assert_eq!(watch.look(&grey(&dark)).unwrap().brightness, 20.0);
        assert_eq!(watch.look(&grey(&light)).unwrap().brightness, 20.0 + 200.0 / 16.0);
        let after = (0..100).filter_map(|_| watch.look(&grey(&light))).last().unwrap();
        assert!(after.brightness > 219.0, "{after:?}");
    }

    #[test]
    fn the_cost_does_not_grow_with_the_picture() {
        let cost = |side: usize| {
            let planes = frame(PixelFormat::Rgb, (side, side), |x, y| (x ^ y) as u8);
            let view = view(PixelFormat::Rgb, (side, side), &planes);
            let once = || {
                let start = std::time::Instant::now();
                std::hint::black_box(ImageStatistics::of(std::hint::black_box(&view)));
                start.elapsed()
            };
            (0..20).map(|_| once()).min().unwrap()
        };
        let (small, large) = (cost(128), cost(1440));
        println!("1440 x 1440 RGB: {large:?}, 128 x 128: {small:?}");
        // 126 times the pixels; what is left is memory that is not in the cache.
        assert!(large < small * 20, "{large:?} against {small:?}");
    }

    #[test]
    fn pictures_without_an_inside_have_no_statistics() {
        for size in [(1, 1), (2, 50), (50, 2), (3, 3), (4, 4)] {
            for format in PixelFormat::ALL {
                let found = ImageStatistics::of(&view(format, size, &frame(format, size, |_, _| 7)));
                let reach = if matches!(format, PixelFormat::Bayer(_)) { 2 } else { 1 };
                assert_eq!(found.is_some(), size.0 > 2 * reach && size.1 > 2 * reach, "{format:?} {size:?}");
            }
        }
        assert_eq!(ImageStatistics::of(&FrameView::rgb(&[0; 10], 4, 4)), None, "not whole");
    }
}
