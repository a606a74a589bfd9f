//! The one definition of how a picture becomes a network's input; files, cameras, CPU and GPU alike.
//!
//! ```text
//! any PixelFormat ─▶ region of interest ─▶ 8-bit RGB ─▶ resize ─▶ normalise ─▶ f32, [y][x][rgb]
//! ```
//!
//! 1. **Region.** Only pixels of the region are read (and their neighbours, where the sensor's mosaic makes
//!    pixels of them); the resize treats its border as the picture's.
//! 2. **8-bit RGB.** RGB, BGR, BGRx reorder; GRAY8 is replicated; YUV formats by [`super::yuv`], chroma
//!    replicated; Bayer mosaics by [`super::bayer`], bilinear. A frame saved as an 8-bit PNG and read back therefore gives the same input.
//! 3. **Resize.** Antialiased triangle filter, [`super::resize`], in f32 without rounding in between:
//!    within one grey level of `PIL.Image.resize((w, h), BILINEAR)`. The same size is the identity.
//! 4. **Normalise.** `out = p · a_c + b_c` with `a_c = 1 / (255 σ_c)`, `b_c = −μ_c / σ_c` computed in f64
//!    and rounded to f32; μ = (0.485, 0.456, 0.406), σ = (0.229, 0.224, 0.225), ImageNet's.
//!
//! Rows are summed over taps in groups of four, `(w0·x0 + w1·x1) + (w2·x2 + w3·x3)`, with no fused
//! multiply-add, so the CPU gives the same bits on every x86-64. A GPU kernel may sum in another order: with
//! `t` taps per axis the two differ by less than `(t_x + t_y + 4) · 2^-24 · 255` grey levels.

use super::bayer;
use super::error::ImagingError;
use super::pixel::{FrameView, PixelFormat, Plane, Roi};
use super::resize::{Axis, LANES, blend_rows, columns_interleaved, columns_plane};
use super::yuv;

/// ImageNet mean, RGB, of values in [0, 1].
pub const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// ImageNet standard deviation, RGB, of values in [0, 1].
pub const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The largest side a frame or an output may have, pixels.
pub const MAX_SIDE: usize = 65_500;

/// `a_c` and `b_c` of step 4.
pub fn normalisation() -> ([f32; 3], [f32; 3]) {
    let a = STD.map(|s| (1.0 / (255.0 * s)) as f32);
    let mut b = [0.0; 3];
    for c in 0..3 {
        b[c] = (-MEAN[c] / STD[c]) as f32;
    }
    (a, b)
}

/// Filter taps and scratch for one frame size, region and output size; any pixel format.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    width: usize,
    height: usize,
    roi: Roi,
    out_width: usize,
    out_height: usize,
    rows: Axis,
    columns: Axis,
    /// One blended row, with room for four channels and the padding of the column filter.
    sums: Vec<f32>,
    /// The last `rows.taps` rows of the region converted from YUV or Bayer, planar R G B each.
    ring: Vec<u8>,
}

impl Preprocessor {
    /// For frames of `width` × `height` pixels, of which `roi` (or all) becomes `out_width` ×
    /// `out_height`. Fails on empty or absurd sizes and on a region that leaves the frame.
    pub fn new(
        width: usize,
        height: usize,
        roi: Option<Roi>,
        out_width: usize,
        out_height: usize,
    ) -> Result<Self, ImagingError> {
        for (width, height) in [(width, height), (out_width, out_height)] {
            if width == 0 || height == 0 {
                return Err(ImagingError::Size { width, height, why: "a side is 0" });
            }
            if width > MAX_SIDE || height > MAX_SIDE {
                return Err(ImagingError::Size { width, height, why: "a side is over 65500" });
            }
        }
        let roi = Roi::resolve(roi, width, height)?;
        let rows = Axis::new(roi.height, out_height);
        let columns = Axis::new(roi.width, out_width).padded_to(LANES);
        let row = even_span(roi).1;
        Ok(Preprocessor {
            width,
            height,
            roi,
            out_width,
            out_height,
            sums: vec![0.0; (row.max(roi.width) + columns.taps) * 4 + LANES],
            ring: vec![0; rows.taps * row * 3],
            rows,
            columns,
        })
    }

    /// The region that is read, pixels of the frame.
    pub fn roi(&self) -> Roi {
        self.roi
    }

    /// Width and height of the frames this takes, pixels.
    pub fn frame_size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Fills `out`, `out_height * out_width * 3` values, `[y][x][rgb]`. Allocates nothing.
    pub fn run(&mut self, frame: &FrameView<'_>, out: &mut [f32]) -> Result<(), ImagingError> {
        if (frame.width, frame.height) != (self.width, self.height) {
            return Err(ImagingError::FrameSize {
                width: frame.width,
                height: frame.height,
                expected_width: self.width,
                expected_height: self.height,
            });
        }
        frame.check()?;
        let need = self.out_width * self.out_height * 3;
        if out.len() != need {
            return Err(ImagingError::Output { have: out.len(), need });
        }
        match frame.format {
            PixelFormat::Gray8 => self.gray(frame.planes[0], out),
            PixelFormat::Rgb => self.interleaved::<3>(frame.planes[0], [0, 1, 2], out),
            PixelFormat::Bgr => self.interleaved::<3>(frame.planes[0], [2, 1, 0], out),
            PixelFormat::Bgrx => self.interleaved::<4>(frame.planes[0], [2, 1, 0], out),
            PixelFormat::Nv12 | PixelFormat::I420 | PixelFormat::Yuy2 => self.converted(frame, yuv_row, out),
            PixelFormat::Bayer(mosaic) => {
                let size = (frame.width, frame.height);
                let row = |frame: &FrameView<'_>, y, x, span, rgb: &mut [u8]| {
                    bayer::row(frame.planes[0], size, mosaic, (x, y), planar(rgb, span));
                };
                self.converted(frame, row, out);
            }
        }
        Ok(())
    }

    fn interleaved<const STRIDE: usize>(&mut self, plane: Plane<'_>, order: [usize; 3], out: &mut [f32]) {
        let (a, b) = normalisation();
        let Roi { x, y, width, .. } = self.roi;
        let bytes = width * STRIDE;
        for (oy, out) in out.chunks_exact_mut(self.out_width * 3).enumerate() {
            let (first, weights) = self.rows.window(oy);
            let row = |t: usize| {
                let at = (y + first + t) * plane.stride + x * STRIDE;
                &plane.data[at..at + bytes]
            };
            blend_rows(weights, row, &mut self.sums[..bytes]);
            columns_interleaved::<STRIDE>(&self.columns, order, &self.sums, |i, p| {
                for c in 0..3 {
                    out[i * 3 + c] = p[c] * a[c] + b[c];
                }
            });
        }
    }

    fn gray(&mut self, plane: Plane<'_>, out: &mut [f32]) {
        let (a, b) = normalisation();
        let Roi { x, y, width, .. } = self.roi;
        for (oy, out) in out.chunks_exact_mut(self.out_width * 3).enumerate() {
            let (first, weights) = self.rows.window(oy);
            let row = |t: usize| {
                let at = (y + first + t) * plane.stride + x;
                &plane.data[at..at + width]
            };
            blend_rows(weights, row, &mut self.sums[..width]);
            columns_plane(&self.columns, &self.sums, |i, p| {
                for c in 0..3 {
                    out[i * 3 + c] = p * a[c] + b[c];
                }
            });
        }
    }

    /// Rows are converted once, as the row filter reaches them, into a ring of `rows.taps` rows. `convert`
    /// is given frame, row, first pixel and number of pixels, as [`yuv_row`] is.
    fn converted(
        &mut self,
        frame: &FrameView<'_>,
        convert: impl Fn(&FrameView<'_>, usize, usize, usize, &mut [u8]),
        out: &mut [f32],
    ) {
        let (a, b) = normalisation();
        let (x, span) = even_span(self.roi);
        let skip = self.roi.x - x;
        let taps = self.rows.taps;
        let mut converted = 0;
        for (oy, out) in out.chunks_exact_mut(self.out_width * 3).enumerate() {
            let (first, weights) = self.rows.window(oy);
            converted = converted.max(first);
            while converted < first + taps {
                let slot = (converted % taps) * span * 3;
                convert(frame, self.roi.y + converted, x, span, &mut self.ring[slot..slot + span * 3]);
                converted += 1;
            }
            let ring = &self.ring;
            let row = |t: usize| &ring[((first + t) % taps) * span * 3..][..span * 3];
            blend_rows(weights, row, &mut self.sums[..span * 3]);
            for c in 0..3 {
                columns_plane(&self.columns, &self.sums[c * span + skip..], |i, p| {
                    out[i * 3 + c] = p * a[c] + b[c];
                });
            }
        }
    }
}

/// The region widened to whole chroma pairs: first pixel, and an even number of pixels.
fn even_span(roi: Roi) -> (usize, usize) {
    let x = roi.x & !1;
    (x, (roi.x + roi.width - x).next_multiple_of(2))
}

/// A row's three colours, one behind the other.
fn planar(rgb: &mut [u8], span: usize) -> [&mut [u8]; 3] {
    let (r, gb) = rgb.split_at_mut(span);
    let (g, b) = gb.split_at_mut(span);
    [r, g, b]
}

/// Converts row `y`, pixels `x..x + span` (both even) to planar R, G, B. Where the frame's width is odd,
/// the pixel beyond it repeats the last.
fn yuv_row(frame: &FrameView<'_>, y: usize, x: usize, span: usize, rgb: &mut [u8]) {
    let [r, g, b] = planar(rgb, span);
    let [p0, p1, p2] = frame.planes;
    if frame.format == PixelFormat::Yuy2 {
        let at = y * p0.stride + x * 2;
        return yuv::row_yuy2(&p0.data[at..at + span * 2], r, g, b);
    }
    // An odd width leaves one luma sample without its pair: whole pairs first, then that one.
    let inside = span.min(frame.width - x);
    let pairs = inside & !1;
    let luma = &p0.data[y * p0.stride + x..][..inside];
    let (u, v) = if frame.format == PixelFormat::Nv12 {
        let at = (y / 2) * p1.stride + x;
        let uv = &p1.data[at..at + span];
        yuv::row_nv12(&luma[..pairs], &uv[..pairs], r, g, b);
        (uv[span - 2], uv[span - 1])
    } else {
        let u = &p1.data[(y / 2) * p1.stride + x / 2..][..span / 2];
        let v = &p2.data[(y / 2) * p2.stride + x / 2..][..span / 2];
        yuv::row_i420(&luma[..pairs], u, v, r, g, b);
        (u[span / 2 - 1], v[span / 2 - 1])
    };
    if pairs < span {
        let [pr, pg, pb] = yuv::to_rgb(luma[inside - 1], u, v);
        r[pairs..].fill(pr);
        g[pairs..].fill(pg);
        b[pairs..].fill(pb);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::RgbImage;

    /// The formula of tests/golden/make_resize.py.
    fn picture(width: usize, height: usize) -> RgbImage {
        let mut image = RgbImage::new(width, height);
        for (i, value) in image.data.iter_mut().enumerate() {
            let (c, x, y) = ((i % 3) as u32, (i / 3 % width) as u32, (i / 3 / width) as u32);
            let h = (x / 2).wrapping_mul(73856093)
                ^ (y / 3).wrapping_mul(19349663)
                ^ 83492791u32.wrapping_mul(c + 1);
            let noise = h.wrapping_mul(2654435761) >> 24;
            *value = (noise + x * 3 + y * 5) as u8;
        }
        image
    }

    /// Grey levels before normalisation.
    fn levels(out: &[f32]) -> Vec<f64> {
        out.iter().enumerate().map(|(i, &v)| (f64::from(v) * STD[i % 3] + MEAN[i % 3]) * 255.0).collect()
    }

    fn prepared(frame: &FrameView<'_>, roi: Option<Roi>, width: usize, height: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; width * height * 3];
        let mut preprocessor = Preprocessor::new(frame.width, frame.height, roi, width, height).unwrap();
        preprocessor.run(frame, &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_finite()));
        out
    }

    #[test]
    fn resizing_agrees_with_pillow_to_one_grey_level() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/resize.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let n = |v: &serde_json::Value, i: usize| v[i].as_u64().unwrap() as usize;
            let (from, to, bx) = (&case["from"], &case["to"], &case["box"]);
            let roi = bx.is_array().then(|| Roi {
                x: n(bx, 0),
                y: n(bx, 1),
                width: n(bx, 2) - n(bx, 0),
                height: n(bx, 3) - n(bx, 1),
            });
            let image = picture(n(from, 0), n(from, 1));
            let ours = levels(&prepared(&image.view(), roi, n(to, 0), n(to, 1)));
            let hex = case["rgb"].as_str().unwrap();
            assert_eq!(hex.len(), ours.len() * 2);
            for (i, ours) in ours.iter().enumerate() {
                let pillow = f64::from(u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap());
                // Half a level from each of Pillow's two roundings; 2^-22 coefficients and our f32
                // add less than a thousandth.
                assert!((ours - pillow).abs() <= 1.001, "{from}→{to} at {i}: {ours} against {pillow}");
            }
        }
    }

    #[test]
    fn the_same_size_is_the_pixel_itself() {
        let image = picture(16, 16);
        let (a, b) = normalisation();
        let want: Vec<f32> =
            image.data.iter().enumerate().map(|(i, &v)| f32::from(v) * a[i % 3] + b[i % 3]).collect();
        assert_eq!(prepared(&image.view(), None, 16, 16), want);
        for (i, &v) in image.data.iter().enumerate() {
            let exact = (f64::from(v) / 255.0 - MEAN[i % 3]) / STD[i % 3];
            // a and b are rounded to f32 (b is at most 2.2), and so are product and sum
            assert!((f64::from(want[i]) - exact).abs() < 4.0 * 2.7 * 2f64.powi(-24));
        }
    }

    /// The same picture in every format; chroma formats hold what `rgb_at` says they do.
    fn frame_bytes(
        format: PixelFormat,
        width: usize,
        height: usize,
        padding: usize,
    ) -> ([Vec<u8>; 3], [usize; 3]) {
        let mut planes: [Vec<u8>; 3] = Default::default();
        let mut strides = [0; 3];
        for p in 0..format.planes() {
            let (row, rows) = format.plane_size(p, width, height);
            strides[p] = row + padding;
            let mut state = (p as u32 + 1).wrapping_mul(2654435761);
            planes[p] = (0..strides[p] * (rows - 1) + row)
                .map(|_| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    (state >> 24) as u8
                })
                .collect();
        }
        (planes, strides)
    }

    #[test]
    fn every_format_equals_its_rgb_copy_at_odd_sizes_strides_and_regions() {
        for format in PixelFormat::ALL {
            for (width, height) in [(1, 1), (2, 2), (37, 23), (64, 48), (50, 1), (1, 50)] {
                for padding in [0, 5] {
                    let (planes, strides) = frame_bytes(format, width, height, padding);
                    let plane = |i: usize| Plane { data: &planes[i], stride: strides[i] };
                    let frame = FrameView { format, width, height, planes: [plane(0), plane(1), plane(2)] };
                    let copy = RgbImage::from_frame(&frame).unwrap();
                    let odd = Roi {
                        x: width / 3,
                        y: height / 3,
                        width: width - width / 3,
                        height: height.div_ceil(2),
                    };
                    let inner =
                        Roi { x: (width / 5) | 1, y: height / 2, width: width / 2, height: height / 3 };
                    let rois = [None, Some(odd), (inner.width > 0 && inner.height > 0).then_some(inner)];
                    for roi in rois {
                        let direct = levels(&prepared(&frame, roi, 16, 12));
                        let copied = levels(&prepared(&copy.view(), roi, 16, 12));
                        for (i, (d, c)) in direct.iter().zip(&copied).enumerate() {
                            // The two sum in different orders: at most 16 + 50 taps of 255 levels.
                            let bound = (16.0 + 50.0 + 4.0) * 2f64.powi(-24) * 255.0;
                            assert!(
                                (d - c).abs() <= bound,
                                "{format:?} {width}×{height} padding {padding} {roi:?} at {i}: {d} {c}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_region_reads_nothing_outside_itself() {
        let mut image = picture(40, 30);
        let roi = Roi { x: 11, y: 7, width: 20, height: 9 };
        let before = prepared(&image.view(), Some(roi), 8, 8);
        for y in 0..30 {
            for x in 0..40 {
                if !((11..31).contains(&x) && (7..16).contains(&y)) {
                    image.data[(y * 40 + x) * 3..][..3].fill(0xee);
                }
            }
        }
        assert_eq!(prepared(&image.view(), Some(roi), 8, 8), before);
    }

    #[test]
    fn one_preprocessor_serves_changing_formats() {
        let mut preprocessor = Preprocessor::new(37, 23, None, 8, 8).unwrap();
        let mut out = vec![0.0; 8 * 8 * 3];
        for _ in 0..2 {
            for format in PixelFormat::ALL {
                let (planes, strides) = frame_bytes(format, 37, 23, 3);
                let plane = |i: usize| Plane { data: &planes[i], stride: strides[i] };
                let frame =
                    FrameView { format, width: 37, height: 23, planes: [plane(0), plane(1), plane(2)] };
                preprocessor.run(&frame, &mut out).unwrap();
                assert_eq!(out, prepared(&frame, None, 8, 8), "{format:?}");
            }
        }
    }

    #[test]
    fn short_planes_wrong_sizes_and_bad_regions_are_errors() {
        let (planes, strides) = frame_bytes(PixelFormat::Nv12, 10, 10, 0);
        let plane = |i: usize| Plane { data: &planes[i], stride: strides[i] };
        let good = FrameView {
            format: PixelFormat::Nv12,
            width: 10,
            height: 10,
            planes: [plane(0), plane(1), plane(2)],
        };
        let mut preprocessor = Preprocessor::new(10, 10, None, 4, 4).unwrap();
        let mut out = [0.0; 48];
        assert!(preprocessor.run(&good, &mut out).is_ok());
        assert!(matches!(preprocessor.run(&good, &mut out[1..]), Err(ImagingError::Output { .. })));
        let mut short = good;
        short.planes[1].data = &planes[1][..planes[1].len() - 1];
        assert!(matches!(preprocessor.run(&short, &mut out), Err(ImagingError::Plane { plane: 1, .. })));
        let mut narrow = good;
        narrow.planes[0].stride = 9;
        assert!(matches!(preprocessor.run(&narrow, &mut out), Err(ImagingError::Plane { plane: 0, .. })));
        let mut absurd = good;
        absurd.planes[0].stride = usize::MAX / 2;
        assert!(matches!(preprocessor.run(&absurd, &mut out), Err(ImagingError::Plane { .. })));
        let mut other = good;
        other.height = 9;
        assert!(matches!(preprocessor.run(&other, &mut out), Err(ImagingError::FrameSize { .. })));

        assert!(Preprocessor::new(0, 10, None, 4, 4).is_err());
        assert!(Preprocessor::new(10, 10, None, 4, 0).is_err());
        assert!(Preprocessor::new(10, 1 << 40, None, 4, 4).is_err());
        for roi in [(0, 0, 11, 10), (1, 0, 10, 10), (0, 0, 0, 4), (usize::MAX, 0, 2, 2)] {
            let roi = Roi { x: roi.0, y: roi.1, width: roi.2, height: roi.3 };
            assert!(
                matches!(Preprocessor::new(10, 10, Some(roi), 4, 4), Err(ImagingError::Region { .. })),
                "{roi:?}"
            );
        }
    }
}
