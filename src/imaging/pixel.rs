//! Pixel formats and borrowed views of frames.

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
}

impl PixelFormat {
    pub const ALL: [PixelFormat; 7] = [
        PixelFormat::Gray8,
        PixelFormat::Rgb,
        PixelFormat::Bgr,
        PixelFormat::Bgrx,
        PixelFormat::Nv12,
        PixelFormat::I420,
        PixelFormat::Yuy2,
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
}

/// Region of interest in pixels of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roi {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}
