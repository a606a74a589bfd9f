//! Pictures made from an anomaly map: the overlay for people, the 16-bit PNG for machines.

use std::fs::Permissions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::LazyLock;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use super::error::ImagingError;
use super::files::RgbImage;
use super::pixel::Roi;

/// Probability of an anomaly per pixel, `data[y * width + x]` in [0, 1]; covers the region of interest.
#[derive(Clone, Debug, PartialEq)]
pub struct Heatmap {
    pub width: usize,
    pub height: usize,
    pub data: Vec<f32>,
}

impl Heatmap {
    /// Bilinear, half-pixel centres, borders replicated. Neither size may be 0 unless both maps are empty.
    pub fn resized(&self, width: usize, height: usize) -> Heatmap {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let mut data = Vec::with_capacity(width * height);
        if !self.data.is_empty() && self.data.len() == self.width * self.height {
            let columns: Vec<Tap> = (0..width).map(|x| Tap::new(x, width, self.width)).collect();
            for y in 0..height {
                let v = Tap::new(y, height, self.height);
                let upper = &self.data[v.low * self.width..][..self.width];
                let lower = &self.data[v.high * self.width..][..self.width];
                data.extend(columns.iter().map(|h| {
                    let top = upper[h.low] + (upper[h.high] - upper[h.low]) * h.share;
                    let bottom = lower[h.low] + (lower[h.high] - lower[h.low]) * h.share;
                    top + (bottom - top) * v.share
                }));
            }
        }
        data.resize(width * height, 0.0);
        Heatmap { width, height, data }
    }
}

/// Two neighbours and the share of the second.
struct Tap {
    low: usize,
    high: usize,
    share: f32,
}

impl Tap {
    fn new(i: usize, output: usize, input: usize) -> Tap {
        let at = (i as f64 + 0.5) * input as f64 / output as f64 - 0.5;
        let at = at.clamp(0.0, (input - 1) as f64);
        let low = at as usize;
        Tap { low, high: (low + 1).min(input - 1), share: (at - low as f64) as f32 }
    }
}

/// Stops of the colour ramp in OKLab (L, a, b): violet, magenta, red-orange, yellow. Lightness rises
/// evenly, so that the ramp reads in grey as well and to colour-blind eyes.
const STOPS: [[f32; 3]; 5] =
    [[0.30, 0.06, -0.12], [0.45, 0.14, -0.07], [0.62, 0.17, 0.06], [0.77, 0.09, 0.14], [0.92, -0.02, 0.17]];

static RAMP: LazyLock<[[u8; 3]; 256]> = LazyLock::new(|| {
    let mut ramp = [[0; 3]; 256];
    for (i, entry) in ramp.iter_mut().enumerate() {
        let at = i as f32 / 255.0 * (STOPS.len() - 1) as f32;
        let low = (at as usize).min(STOPS.len() - 2);
        let share = at - low as f32;
        let mix = |k: usize| STOPS[low][k] + (STOPS[low + 1][k] - STOPS[low][k]) * share;
        *entry = oklab_to_srgb([mix(0), mix(1), mix(2)]);
    }
    ramp
});

/// Björn Ottosson, "A perceptual color space for image processing" (2020): OKLab to linear RGB, then
/// the sRGB transfer curve.
fn oklab_to_srgb([l, a, b]: [f32; 3]) -> [u8; 3] {
    let cube = |x: f32| x * x * x;
    let long = cube(l + 0.396_337_78 * a + 0.215_803_76 * b);
    let medium = cube(l - 0.105_561_346 * a - 0.063_854_17 * b);
    let short = cube(l - 0.089_484_18 * a - 1.291_485_5 * b);
    [
        4.076_741_7 * long - 3.307_711_6 * medium + 0.230_969_94 * short,
        -1.268_438 * long + 2.609_757_4 * medium - 0.341_319_38 * short,
        -0.004_196_086_3 * long - 0.703_418_6 * medium + 1.707_614_7 * short,
    ]
    .map(|linear| {
        let curved =
            if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
        (curved.clamp(0.0, 1.0) * 255.0).round() as u8
    })
}

/// Colour of a probability; violet at 0, yellow at 1.
pub fn colour(p: f32) -> [u8; 3] {
    RAMP[(level(p) * 255.0).round() as usize]
}

/// Into [0, 1]; what is not a number counts as 1, the fail-safe side.
fn level(p: f32) -> f32 {
    if p.is_nan() { 1.0 } else { p.clamp(0.0, 1.0) }
}

/// How opaque the colour lies over the picture: nothing below 5 %, at most 70 % from one half on, so
/// that the part stays visible under it.
fn opacity(p: f32) -> f32 {
    let t = ((level(p) - 0.05) / 0.45).clamp(0.0, 1.0);
    0.7 * t * t * (3.0 - 2.0 * t)
}

/// `image` with `map` laid over `roi` (or all of it), bilinearly enlarged. A region is drawn as a thin
/// frame. A region that leaves the picture is cut off at its border.
pub fn overlay(image: &RgbImage, map: &Heatmap, roi: Option<Roi>) -> RgbImage {
    let mut out = image.clone();
    let region = roi.unwrap_or(Roi { x: 0, y: 0, width: image.width, height: image.height });
    if region.width == 0 || region.height == 0 || map.data.is_empty() {
        return out;
    }
    let map = map.resized(region.width, region.height);
    for y in region.y..image.height.min(region.y.saturating_add(region.height)) {
        let first = (y - region.y) * region.width;
        let columns = region.width.min(image.width.saturating_sub(region.x));
        for (dx, &p) in map.data[first..first + columns].iter().enumerate() {
            let share = opacity(p);
            let at = (y * image.width + region.x + dx) * 3;
            let edge = roi.is_some()
                && (dx == 0 || dx + 1 == region.width || y == region.y || y + 1 == region.y + region.height);
            let (tint, share) = if edge { ([255; 3], 0.6) } else { (colour(p), share) };
            for (value, tint) in out.data[at..at + 3].iter_mut().zip(tint) {
                let from = f32::from(*value);
                *value = (from + (f32::from(tint) - from) * share).round() as u8;
            }
        }
    }
    out
}

/// 8-bit RGB PNG. Written under a temporary name in the same folder and renamed.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<(), ImagingError> {
    write_atomically(path, |w| encode(w, &image.data, image.width, image.height, ExtendedColorType::Rgb8))
}

/// An 8-bit RGB PNG in memory.
pub fn png_bytes(image: &RgbImage) -> Result<Vec<u8>, ImagingError> {
    let mut bytes = Vec::new();
    encode(&mut bytes, &image.data, image.width, image.height, ExtendedColorType::Rgb8)
        .map_err(|why| ImagingError::Encode { path: "(memory)".into(), why: why.to_string() })?;
    Ok(bytes)
}

/// 16-bit grey PNG of value round(65535·p), as large as the map. Written under a temporary name and
/// renamed.
pub fn write_map_png16(path: &Path, map: &Heatmap) -> Result<(), ImagingError> {
    let values: Vec<u16> = map.data.iter().map(|&p| (level(p) * 65535.0).round() as u16).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    write_atomically(path, |w| encode(w, bytes, map.width, map.height, ExtendedColorType::L16))
}

fn encode(
    writer: impl Write,
    bytes: &[u8],
    width: usize,
    height: usize,
    colour: ExtendedColorType,
) -> Result<(), image::ImageError> {
    PngEncoder::new_with_quality(writer, CompressionType::Fast, FilterType::Adaptive).write_image(
        bytes,
        width as u32,
        height as u32,
        colour,
    )
}

/// Whoever opens `path` sees the old file, none, or the whole new one.
fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut std::fs::File>) -> Result<(), image::ImageError>,
) -> Result<(), ImagingError> {
    let failed = |source: std::io::Error| ImagingError::Write { path: path.into(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The mode of an ordinary new file; the process's umask applies.
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".tmp")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    let mut writer = BufWriter::new(file.as_file_mut());
    write(&mut writer).map_err(|error| match error {
        image::ImageError::IoError(source) => failed(source),
        other => ImagingError::Encode { path: path.into(), why: other.to_string() },
    })?;
    writer.flush().map_err(failed)?;
    drop(writer);
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::read_image;

    fn grey(width: usize, height: usize) -> RgbImage {
        RgbImage { width, height, data: vec![100; width * height * 3] }
    }

    fn spot() -> Heatmap {
        Heatmap { width: 4, height: 4, data: (0..16).map(|i| if i == 5 { 1.0 } else { 0.0 }).collect() }
    }

    #[test]
    fn the_overlay_tints_the_anomaly_and_leaves_the_rest_untouched() {
        let over = overlay(&grey(64, 64), &spot(), None);
        let at = |x: usize, y: usize| &over.data[(y * 64 + x) * 3..][..3];
        assert_eq!(at(60, 60), [100, 100, 100]);
        assert_ne!(at(24, 24), [100, 100, 100], "the centre of cell (1, 1)");
    }

    #[test]
    fn the_overlay_of_a_region_changes_nothing_outside_it() {
        let region = Roi { x: 8, y: 16, width: 32, height: 16 };
        let over = overlay(&grey(64, 64), &spot(), Some(region));
        for y in 0..64 {
            for x in 0..64 {
                let inside = (8..40).contains(&x) && (16..32).contains(&y);
                let pixel = &over.data[(y * 64 + x) * 3..][..3];
                assert!(inside || pixel == [100, 100, 100], "{x} {y}");
            }
        }
        // A region that no longer fits is cut off, not a panic.
        overlay(&grey(20, 20), &spot(), Some(region));
        overlay(&grey(4, 4), &spot(), Some(region));
    }

    #[test]
    fn the_colour_ramp_grows_lighter_all_the_way() {
        let light =
            |[r, g, b]: [u8; 3]| 0.2126 * f32::from(r) + 0.7152 * f32::from(g) + 0.0722 * f32::from(b);
        for i in 8..256 {
            let (before, now) = (colour((i - 8) as f32 / 255.0), colour(i as f32 / 255.0));
            assert!(light(now) > light(before), "{i}: {before:?} {now:?}");
        }
    }

    #[test]
    fn enlarging_is_bilinear_with_half_pixel_centres() {
        let map = Heatmap { width: 2, height: 1, data: vec![0.0, 1.0] };
        assert_eq!(map.resized(4, 1).data, [0.0, 0.25, 0.75, 1.0]);
        assert_eq!(map.resized(2, 3).data, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(map.resized(1, 1).data, [0.5]);
    }

    #[test]
    fn a_raw_map_is_written_as_65535_times_p() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map.png");
        let map = Heatmap { width: 5, height: 1, data: vec![0.0, 0.25, 1.0, 7.0, f32::NAN] };
        write_map_png16(&path, &map).unwrap();
        let back = image::open(&path).unwrap().into_luma16();
        assert_eq!(back.into_raw(), [0, 16384, 65535, 65535, 65535]);
    }

    #[test]
    fn a_written_picture_comes_back_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let image = overlay(&grey(33, 17), &spot(), None);
        write_png(&path, &image).unwrap();
        write_png(&path, &image).unwrap();
        assert_eq!(read_image(&path).unwrap(), image);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o400, 0o400);
    }

    #[test]
    fn an_unwritable_folder_is_an_error_that_names_the_file() {
        let error = write_png(Path::new("/nonexistent/a.png"), &grey(2, 2)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/a.png"), "{error}");
    }
}
