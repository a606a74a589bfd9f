//! Pixel formats and borrowed views of frames.

use super::bayer::{self, Mosaic};
use super::error::ImagingError;
use super::yuv;

/// Memory layout of a frame, named as GStreamer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// One plane, one byte per pixel.
    Gray8,
    /// One plane, R G B bytes.
    Rgb,
    /// One plane, B G R bytes.
    Bgr,
    /// One plane, B G R x bytes.
    Bgrx,
    /// Y plane, then interleaved U V at half width and height (4:2:0).
    Nv12,
    /// Y plane, U plane, V plane, chroma at half width and height (4:2:0).
    I420,
    /// One plane, Y0 U Y1 V bytes per two pixels (4:2:2).
    Yuy2,
    /// One plane, one byte per pixel, whose colour depends on its place.
    Bayer(Mosaic),
}

impl PixelFormat {
    pub const ALL: [PixelFormat; 11] = [
        PixelFormat::Gray8,
        PixelFormat::Rgb,
        PixelFormat::Bgr,
        PixelFormat::Bgrx,
        PixelFormat::Nv12,
        PixelFormat::I420,
        PixelFormat::Yuy2,
        PixelFormat::Bayer(Mosaic::Rggb),
        PixelFormat::Bayer(Mosaic::Grbg),
        PixelFormat::Bayer(Mosaic::Gbrg),
        PixelFormat::Bayer(Mosaic::Bggr),
    ];

    /// The name used in GStreamer caps, in the config and in the kernels.
    pub fn name(self) -> &'static str {
        match self {
            PixelFormat::Gray8 => "GRAY8",
            PixelFormat::Rgb => "RGB",
            PixelFormat::Bgr => "BGR",
            PixelFormat::Bgrx => "BGRx",
            PixelFormat::Nv12 => "NV12",
            PixelFormat::I420 => "I420",
            PixelFormat::Yuy2 => "YUY2",
            PixelFormat::Bayer(Mosaic::Rggb) => "rggb",
            PixelFormat::Bayer(Mosaic::Grbg) => "grbg",
            PixelFormat::Bayer(Mosaic::Gbrg) => "gbrg",
            PixelFormat::Bayer(Mosaic::Bggr) => "bggr",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Number of planes in memory.
    pub fn planes(self) -> usize {
        match self {
            PixelFormat::Nv12 => 2,
            PixelFormat::I420 => 3,
            _ => 1,
        }
    }

    /// Bytes in a row and number of rows of plane `plane`, for a frame of `width` × `height` pixels.
    /// Chroma of odd sizes rounds up.
    pub fn plane_size(self, plane: usize, width: usize, height: usize) -> (usize, usize) {
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        match (self, plane) {
            (PixelFormat::Nv12, 1) => (2 * half_width, half_height),
            (PixelFormat::I420, 1 | 2) => (half_width, half_height),
            (PixelFormat::Gray8 | PixelFormat::Nv12 | PixelFormat::I420 | PixelFormat::Bayer(_), 0) => {
                (width, height)
            }
            (PixelFormat::Rgb | PixelFormat::Bgr, 0) => (3 * width, height),
            (PixelFormat::Bgrx, 0) => (4 * width, height),
            (PixelFormat::Yuy2, 0) => (4 * half_width, height),
            _ => (0, 0),
        }
    }
}

/// One plane: `data[y * stride + x_bytes]`; stride in bytes, at least the row's bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plane<'a> {
    pub data: &'a [u8],
    pub stride: usize,
}

/// A frame as captured, borrowed. Unused planes are empty.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    pub format: PixelFormat,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    pub planes: [Plane<'a>; 3],
}

impl<'a> FrameView<'a> {
    /// A tightly packed RGB frame. `data` holds `width * height * 3` bytes.
    pub fn rgb(data: &'a [u8], width: usize, height: usize) -> Self {
        FrameView {
            format: PixelFormat::Rgb,
            width,
            height,
            planes: [Plane { data, stride: width * 3 }, Plane::default(), Plane::default()],
        }
    }

    /// Every pixel that the size promises lies in its plane.
    pub fn check(&self) -> Result<(), ImagingError> {
        let FrameView { format, width, height, planes } = *self;
        if width == 0 || height == 0 {
            return Err(ImagingError::Size { width, height, why: "a side is 0" });
        }
        for (index, plane) in planes.iter().enumerate().take(format.planes()) {
            let (row, rows) = format.plane_size(index, width, height);
            // The last row may end without its padding.
            let need = plane.stride.checked_mul(rows - 1).and_then(|n| n.checked_add(row));
            if plane.stride < row || need.is_none_or(|need| plane.data.len() < need) {
                return Err(ImagingError::Plane {
                    format,
                    plane: index,
                    width,
                    height,
                    stride: plane.stride,
                    have: plane.data.len(),
                    need: need.unwrap_or(usize::MAX).max(row * rows),
                });
            }
        }
        Ok(())
    }

    /// Pixel (`x`, `y`) as 8-bit RGB. The frame has passed [`FrameView::check`].
    #[inline]
    pub fn rgb_at(&self, x: usize, y: usize) -> [u8; 3] {
        let [p0, p1, p2] = &self.planes;
        let luma = |x: usize| p0.data[y * p0.stride + x];
        match self.format {
            PixelFormat::Gray8 => [luma(x); 3],
            PixelFormat::Rgb => [luma(3 * x), luma(3 * x + 1), luma(3 * x + 2)],
            PixelFormat::Bgr => [luma(3 * x + 2), luma(3 * x + 1), luma(3 * x)],
            PixelFormat::Bgrx => [luma(4 * x + 2), luma(4 * x + 1), luma(4 * x)],
            PixelFormat::Nv12 => {
                let at = (y / 2) * p1.stride + (x & !1);
                yuv::to_rgb(luma(x), p1.data[at], p1.data[at + 1])
            }
            PixelFormat::I420 => yuv::to_rgb(
                luma(x),
                p1.data[(y / 2) * p1.stride + x / 2],
                p2.data[(y / 2) * p2.stride + x / 2],
            ),
            PixelFormat::Yuy2 => {
                let pair = 4 * (x / 2);
                yuv::to_rgb(luma(2 * x), luma(pair + 1), luma(pair + 3))
            }
            PixelFormat::Bayer(mosaic) => bayer::to_rgb(*p0, (self.width, self.height), mosaic, x, y),
        }
    }
}

/// Region of interest in pixels of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roi {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

impl Roi {
    /// `roi`, or the whole of a `width` × `height` frame; fails where it is empty or leaves the frame.
    pub fn resolve(roi: Option<Roi>, width: usize, height: usize) -> Result<Roi, ImagingError> {
        let Some(roi) = roi else {
            return Ok(Roi { x: 0, y: 0, width, height });
        };
        let ends_in = |start: usize, len: usize, end: usize| {
            len > 0 && start.checked_add(len).is_some_and(|last| last <= end)
        };
        if ends_in(roi.x, roi.width, width) && ends_in(roi.y, roi.height, height) {
            Ok(roi)
        } else {
            Err(ImagingError::Region { roi, width, height })
        }
    }
}
