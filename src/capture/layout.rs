//! Where a frame's planes lie in its memory. Strides and offsets come from the buffer's video meta and
//! are checked once here, so that a view can never reach outside.

use gstreamer as gst;
use gstreamer_video as gst_video;

use super::jpeg::JPEG;
use crate::imaging::{FrameView, PixelFormat, Plane};

/// The caps of Bayer cameras, which GStreamer does not count as raw video: its own tools for raw video know
/// neither their size nor their planes.
pub(super) const BAYER: &str = "video/x-bayer";

/// Everything that we hand on, as caps.
pub(super) fn accepted_caps() -> gst::Caps {
    let raw = PixelFormat::ALL.iter().filter_map(|f| f.name().parse::<gst_video::VideoFormat>().ok());
    let mut caps = gst_video::VideoCapsBuilder::new().format_list(raw).build();
    caps.merge(unconverted_caps());
    caps
}

/// What no converter for raw video takes, so that the source is linked to the sink by itself.
pub(super) fn unconverted_caps() -> gst::Caps {
    let mut caps = bayer_caps();
    caps.merge(gst::Caps::new_empty_simple(JPEG));
    caps
}

/// All mosaics, as caps.
fn bayer_caps() -> gst::Caps {
    let mosaics = PixelFormat::ALL.iter().filter(|f| matches!(f, PixelFormat::Bayer(_))).map(|f| f.name());
    gst::Caps::builder(BAYER).field("format", gst::List::new(mosaics)).build()
}

/// What a stream's caps say of its frames.
#[derive(Debug)]
pub(super) struct Stream {
    /// Where planes lie if nobody says otherwise; copies get it.
    pub layout: Layout,
    /// Bytes of a frame so laid out.
    pub bytes: usize,
    /// `None` for Bayer.
    info: Option<gst_video::VideoInfo>,
}

impl Stream {
    /// `None` for formats and sizes that we do not hand on.
    pub(super) fn of_caps(caps: &gst::CapsRef) -> Option<Self> {
        let fields = caps.structure(0)?;
        if fields.name() != BAYER {
            let info = gst_video::VideoInfo::from_caps(caps).ok()?;
            return Some(Stream { layout: Layout::of_info(&info)?, bytes: info.size(), info: Some(info) });
        }
        let format = PixelFormat::from_name(fields.get::<&str>("format").ok()?)?;
        let side = |name| fields.get::<i32>(name).ok().and_then(|side| usize::try_from(side).ok());
        let (width, height) = (side("width")?, side("height")?);
        // As bayer2rgb and the sources have it.
        let stride = width.checked_next_multiple_of(4)?;
        let layout = Layout::new(format, (width, height), &[0], &[i32::try_from(stride).ok()?])?;
        Some(Stream { layout, bytes: stride * height, info: None })
    }

    /// Where the planes of a buffer lie; `None` where its meta contradicts the caps.
    pub(super) fn layout_of(&self, buffer: &gst::BufferRef) -> Option<Layout> {
        match (&self.info, buffer.meta::<gst_video::VideoMeta>()) {
            (Some(info), Some(meta)) => Layout::of_meta(info, &meta),
            _ => Some(self.layout),
        }
    }

    /// Whether GStreamer's pools for raw video take it.
    pub(super) fn is_raw_video(&self) -> bool {
        self.info.is_some()
    }
}

/// The format in our terms; `None` for the formats we do not hand on.
fn pixel_format(format: gst_video::VideoFormat) -> Option<PixelFormat> {
    Some(match format {
        gst_video::VideoFormat::Gray8 => PixelFormat::Gray8,
        gst_video::VideoFormat::Rgb => PixelFormat::Rgb,
        gst_video::VideoFormat::Bgr => PixelFormat::Bgr,
        gst_video::VideoFormat::Bgrx => PixelFormat::Bgrx,
        gst_video::VideoFormat::Nv12 => PixelFormat::Nv12,
        gst_video::VideoFormat::I420 => PixelFormat::I420,
        gst_video::VideoFormat::Yuy2 => PixelFormat::Yuy2,
        _ => return None,
    })
}

/// Bytes of pixels in a row of plane `plane`, and its rows. Odd sizes round chroma up.
fn plane_size(format: PixelFormat, width: usize, height: usize, plane: usize) -> (usize, usize) {
    let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
    match (format, plane) {
        (PixelFormat::Gray8 | PixelFormat::Bayer(_), _) => (width, height),
        (PixelFormat::Rgb | PixelFormat::Bgr, _) => (width * 3, height),
        (PixelFormat::Bgrx, _) => (width * 4, height),
        (PixelFormat::Yuy2, _) => (half_width * 4, height),
        (PixelFormat::Nv12 | PixelFormat::I420, 0) => (width, height),
        (PixelFormat::Nv12, _) => (half_width * 2, half_height),
        (PixelFormat::I420, _) => (half_width, half_height),
    }
}

/// One plane in the frame's memory: `offset + row * stride`, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub offset: usize,
    pub stride: usize,
    /// Bytes of pixels per row; what lies between this and `stride` is padding.
    pub row_bytes: usize,
    pub rows: usize,
}

impl Span {
    /// From the first pixel's byte to the last one's; padding after the last row need not exist.
    fn bytes(&self) -> usize {
        self.stride * (self.rows - 1) + self.row_bytes
    }
}

/// The planes of a frame in one block of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub format: PixelFormat,
    pub width: usize,
    pub height: usize,
    spans: [Span; 3],
}

/// Larger pictures than this in either direction are refused; products of sizes then stay far from
/// overflow.
const MAX_SIDE: usize = 1 << 15;

impl Layout {
    /// The layout with the given offsets and strides; `None` when a size is zero or too large, a stride
    /// is negative or shorter than a row, or a plane is missing.
    pub(super) fn new(
        format: PixelFormat,
        (width, height): (usize, usize),
        offsets: &[usize],
        strides: &[i32],
    ) -> Option<Self> {
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return None;
        }
        let mut spans = [Span::default(); 3];
        for (plane, span) in spans.iter_mut().enumerate().take(format.planes()) {
            let (row_bytes, rows) = plane_size(format, width, height, plane);
            let stride = usize::try_from(*strides.get(plane)?).ok()?;
            let offset = *offsets.get(plane)?;
            if stride < row_bytes || offset > isize::MAX as usize / 2 {
                return None;
            }
            *span = Span { offset, stride, row_bytes, rows };
        }
        Some(Layout { format, width, height, spans })
    }

    /// GStreamer's own layout for these caps.
    fn of_info(info: &gst_video::VideoInfo) -> Option<Self> {
        let size = (info.width() as usize, info.height() as usize);
        Self::new(pixel_format(info.format())?, size, info.offset(), info.stride())
    }

    /// The layout that the meta of a buffer with these caps states.
    fn of_meta(info: &gst_video::VideoInfo, meta: &gst_video::VideoMeta) -> Option<Self> {
        if meta.format() != info.format() || meta.width() != info.width() || meta.height() != info.height() {
            return None;
        }
        let size = (info.width() as usize, info.height() as usize);
        Self::new(pixel_format(info.format())?, size, meta.offset(), meta.stride())
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans[..self.format.planes()]
    }

    /// Whether every plane lies inside `len` bytes.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.spans().iter().all(|span| span.offset + span.bytes() <= len)
    }

    /// The frame in `memory`. Planes that do not lie inside come out empty; `fits` rules that out.
    pub(super) fn view<'a>(&self, memory: &'a [u8]) -> FrameView<'a> {
        let mut planes = [Plane::default(); 3];
        for (plane, span) in planes.iter_mut().zip(self.spans()) {
            let data = memory.get(span.offset..span.offset + span.bytes()).unwrap_or_default();
            *plane = Plane { data, stride: span.stride };
        }
        FrameView { format: self.format, width: self.width, height: self.height, planes }
    }

    /// Whether format and size are the same; strides may differ.
    pub(super) fn same_picture(&self, other: &Layout) -> bool {
        (self.format, self.width, self.height) == (other.format, other.width, other.height)
    }

    /// Copies the picture row by row from `from`, laid out like this, to `to`, laid out like `target`.
    /// False, with some rows copied, when the pictures differ or a side is too small.
    pub(super) fn copy_to(&self, from: &[u8], target: &Layout, to: &mut [u8]) -> bool {
        self.same_picture(target)
            && self.spans().iter().zip(target.spans()).all(|(source, target)| {
                (0..source.rows).all(|row| {
                    let read = source.offset + row * source.stride;
                    let write = target.offset + row * target.stride;
                    match (
                        from.get(read..read + source.row_bytes),
                        to.get_mut(write..write + source.row_bytes),
                    ) {
                        (Some(from), Some(to)) => {
                            to.copy_from_slice(from);
                            true
                        }
                        _ => false,
                    }
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(format: PixelFormat, width: i32, height: i32) -> gst::Caps {
        let kind = if matches!(format, PixelFormat::Bayer(_)) { BAYER } else { "video/x-raw" };
        let caps = gst::Caps::builder(kind).field("format", format.name());
        let rate = gst::Fraction::new(30, 1);
        caps.field("width", width).field("height", height).field("framerate", rate).build()
    }

    #[test]
    fn the_layout_of_every_format_and_odd_size_fits_gstreamers_own_buffer_exactly() {
        gstreamer::init().unwrap();
        for format in PixelFormat::ALL {
            for (width, height) in [(1, 1), (2, 2), (3, 5), (321, 241), (640, 480)] {
                let Stream { layout, bytes, .. } = Stream::of_caps(&caps(format, width, height)).unwrap();
                assert!(layout.fits(bytes), "{} {width}x{height}", format.name());
                let last = layout.spans().last().unwrap();
                let end = last.offset + last.bytes();
                assert!(!layout.fits(end - 1), "{} {width}x{height}", format.name());
            }
        }
    }

    #[test]
    fn caps_that_are_no_picture_of_ours_are_refused() {
        gstreamer::init().unwrap();
        let bayer = PixelFormat::from_name("gbrg").unwrap();
        assert_eq!(Stream::of_caps(&caps(bayer, 5, 3)).unwrap().layout.spans()[0].stride, 8);
        for (width, height) in [(0, 3), (5, 0), (-5, 3), (5, i32::MAX)] {
            assert!(Stream::of_caps(&caps(bayer, width, height)).is_none(), "{width}×{height}");
        }
        for text in
            ["video/x-bayer,format=rggb", "video/x-bayer,format=rggb16le,width=4,height=4", "image/png"]
        {
            assert!(Stream::of_caps(&text.parse::<gst::Caps>().unwrap()).is_none(), "{text}");
        }
        assert!(Stream::of_caps(&gst::Caps::new_empty()).is_none());
    }

    #[test]
    fn odd_sizes_round_chroma_up() {
        assert_eq!(plane_size(PixelFormat::Nv12, 5, 3, 1), (6, 2));
        assert_eq!(plane_size(PixelFormat::I420, 5, 3, 2), (3, 2));
        assert_eq!(plane_size(PixelFormat::Yuy2, 5, 3, 0), (12, 3));
    }

    #[test]
    fn hostile_strides_and_sizes_are_refused() {
        let gray = PixelFormat::Gray8;
        assert!(Layout::new(gray, (10, 10), &[0], &[10]).is_some());
        assert!(Layout::new(gray, (10, 10), &[0], &[9]).is_none());
        assert!(Layout::new(gray, (10, 10), &[0], &[-10]).is_none());
        assert!(Layout::new(gray, (10, 10), &[usize::MAX], &[10]).is_none());
        assert!(Layout::new(gray, (0, 10), &[0], &[10]).is_none());
        assert!(Layout::new(gray, (10, 1 << 20), &[0], &[10]).is_none());
        assert!(Layout::new(PixelFormat::Nv12, (10, 10), &[0], &[10]).is_none());
    }

    #[test]
    fn padded_rows_are_copied_without_their_padding() {
        let source = Layout::new(PixelFormat::Gray8, (3, 2), &[0], &[5]).unwrap();
        let target = Layout::new(PixelFormat::Gray8, (3, 2), &[1], &[4]).unwrap();
        let from = [1, 2, 3, 99, 99, 4, 5, 6];
        let mut to = [0; 9];
        assert!(source.copy_to(&from, &target, &mut to));
        assert_eq!(to, [0, 1, 2, 3, 0, 4, 5, 6, 0]);
        assert!(!source.copy_to(&from[..7], &target, &mut to));
        assert!(!source.copy_to(&from, &target, &mut to[..7]));
        let other = Layout::new(PixelFormat::Gray8, (2, 2), &[0], &[4]).unwrap();
        assert!(!source.copy_to(&from, &other, &mut to));
    }
}
