//! Pictures of parts, kept so that a verdict can be given again: the frame without loss, in a PNG that any
//! viewer opens, and another with the heatmap laid over it.
//!
//! | format | PNG |
//! |---|---|
//! | GRAY8, Bayer | grey |
//! | RGB, BGR | RGB |
//! | BGRx | RGB, and the fill byte in the text; RGBA if it varies |
//! | NV12, I420, YUY2 | grey: the planes one below the other, short rows filled up with 0 |
//!
//! A text chunk `inspectd` says format and size. 14 ms for 1080p RGB, so a thread of its own does it.

use std::fs::{File, Permissions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::store::Imaged;
use super::writer::Message;
use crate::imaging::{FrameView, Heatmap, ImagingError, PixelFormat, Plane, RgbImage, heatmap};
use crate::outputs::{Pixels, Record};
use crate::telemetry::{LineEvent, Output, OutputFault};

/// The text chunk's name.
const KEYWORD: &str = "inspectd";

/// The largest side of a picture that is read: as large as GStreamer's frames can be.
const LARGEST_SIDE: usize = 1 << 15;

/// A frame of its own: planes without padding, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Still {
    pub format: PixelFormat,
    pub width: usize,
    pub height: usize,
    data: Vec<u8>,
}

impl Default for Still {
    fn default() -> Self {
        Still { format: PixelFormat::Gray8, width: 0, height: 0, data: Vec::new() }
    }
}

impl Still {
    pub fn copy_from(&mut self, frame: &FrameView<'_>) -> Result<(), ImagingError> {
        frame.check()?;
        (self.format, self.width, self.height) = (frame.format, frame.width, frame.height);
        self.data.clear();
        for (i, plane) in frame.planes.iter().take(frame.format.planes()).enumerate() {
            let (row, rows) = frame.format.plane_size(i, frame.width, frame.height);
            for line in plane.data.chunks(plane.stride).take(rows) {
                self.data.extend_from_slice(line.get(..row).unwrap_or(line));
            }
        }
        Ok(())
    }

    pub fn view(&self) -> FrameView<'_> {
        let mut planes = [Plane::default(); 3];
        let mut rest = self.data.as_slice();
        for (i, plane) in planes.iter_mut().enumerate().take(self.format.planes()) {
            let (row, rows) = self.format.plane_size(i, self.width, self.height);
            let (data, after) = rest.split_at((row * rows).min(rest.len()));
            *plane = Plane { data, stride: row };
            rest = after;
        }
        FrameView { format: self.format, width: self.width, height: self.height, planes }
    }

    /// Rows of all planes, one below the other, and the longest.
    fn stack(&self) -> (usize, usize) {
        let sizes = (0..self.format.planes()).map(|i| self.format.plane_size(i, self.width, self.height));
        sizes.fold((0, 0), |(longest, sum), (row, rows)| (longest.max(row), sum + rows))
    }

    fn write(&self, to: impl Write) -> io::Result<()> {
        use PixelFormat::{Bayer, Bgr, Bgrx, Gray8, I420, Nv12, Rgb, Yuy2};
        let mut text = format!("{} {}x{}", self.format.name(), self.width, self.height);
        let swap = |size: usize, taken: usize| -> Vec<u8> {
            let pixels = self.data.chunks_exact(size);
            pixels.flat_map(|p| [p[2], p[1], p[0], p[size - 1]].into_iter().take(taken)).collect()
        };
        let (colour, width, height, pixels) = match self.format {
            Gray8 | Bayer(_) => (png::ColorType::Grayscale, self.width, self.height, None),
            Rgb => (png::ColorType::Rgb, self.width, self.height, None),
            Bgr => (png::ColorType::Rgb, self.width, self.height, Some(swap(3, 3))),
            Bgrx => {
                let fill = self.data.get(3).copied().unwrap_or(0);
                if self.data.chunks_exact(4).all(|pixel| pixel[3] == fill) {
                    text.push_str(&format!(" {fill}"));
                    (png::ColorType::Rgb, self.width, self.height, Some(swap(4, 3)))
                } else {
                    (png::ColorType::Rgba, self.width, self.height, Some(swap(4, 4)))
                }
            }
            Nv12 | I420 | Yuy2 => {
                let (longest, rows) = self.stack();
                let mut pixels = Vec::with_capacity(longest * rows);
                let view = self.view();
                for plane in view.planes.iter().take(self.format.planes()) {
                    for row in plane.data.chunks_exact(plane.stride) {
                        pixels.extend_from_slice(row);
                        pixels.resize(pixels.len() + longest - row.len(), 0);
                    }
                }
                (png::ColorType::Grayscale, longest, rows, Some(pixels))
            }
        };
        let side = |n: usize| u32::try_from(n).map_err(io::Error::other);
        let mut encoder = png::Encoder::new(to, side(width)?, side(height)?);
        encoder.set_color(colour);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        encoder.add_text_chunk(KEYWORD.to_owned(), text).map_err(encoding)?;
        let mut writer = encoder.write_header().map_err(encoding)?;
        writer.write_image_data(pixels.as_deref().unwrap_or(&self.data)).map_err(encoding)?;
        writer.finish().map_err(encoding)
    }

    /// Reads a picture of the archive. The error goes on from its path.
    pub fn read(path: &Path) -> io::Result<Still> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let broken = |error: png::DecodingError| match error {
            png::DecodingError::IoError(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        };
        let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info().map_err(broken)?;
        let text = reader.info().uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD);
        let text =
            text.map(|chunk| chunk.text.clone()).ok_or_else(|| bad("it is no picture of an archive"))?;
        let parse = || {
            let mut words = text.split(' ');
            let format = PixelFormat::from_name(words.next()?)?;
            let (width, height) = words.next()?.split_once('x')?;
            let (width, height): (usize, usize) = (width.parse().ok()?, height.parse().ok()?);
            let fill: Option<u8> = words.next().map(str::parse).transpose().ok()?;
            let side = 1..=LARGEST_SIDE;
            (side.contains(&width) && side.contains(&height)).then_some((format, width, height, fill))
        };
        let (format, width, height, fill) = parse().ok_or_else(|| bad("its text is not of an archive"))?;
        let mut still = Still { format, width, height, data: Vec::new() };
        let (colour, expected) = match (format, fill) {
            (PixelFormat::Gray8 | PixelFormat::Bayer(_), _) => (png::ColorType::Grayscale, (width, height)),
            (PixelFormat::Bgrx, None) => (png::ColorType::Rgba, (width, height)),
            (PixelFormat::Rgb | PixelFormat::Bgr | PixelFormat::Bgrx, _) => {
                (png::ColorType::Rgb, (width, height))
            }
            (PixelFormat::Nv12 | PixelFormat::I420 | PixelFormat::Yuy2, _) => {
                (png::ColorType::Grayscale, still.stack())
            }
        };
        let info = reader.info();
        let size = (info.width as usize, info.height as usize);
        if (info.color_type, info.bit_depth, size) != (colour, png::BitDepth::Eight, expected) {
            return Err(bad("its pixels are not those that its text promises"));
        }
        let length = reader.output_buffer_size().ok_or_else(|| bad("it is too large"))?;
        let mut pixels = vec![0; length];
        reader.next_frame(&mut pixels).map_err(broken)?;
        still.data = match (format, fill) {
            (PixelFormat::Bgr, _) => pixels.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect(),
            (PixelFormat::Bgrx, Some(fill)) => {
                pixels.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0], fill]).collect()
            }
            (PixelFormat::Bgrx, None) => {
                pixels.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0], p[3]]).collect()
            }
            (PixelFormat::Nv12 | PixelFormat::I420 | PixelFormat::Yuy2, _) => {
                let mut data = Vec::new();
                let mut lines = pixels.chunks_exact(expected.0);
                for i in 0..format.planes() {
                    let (row, rows) = format.plane_size(i, width, height);
                    for line in lines.by_ref().take(rows) {
                        data.extend_from_slice(line.get(..row).unwrap_or(line));
                    }
                }
                data
            }
            _ => pixels,
        };
        still.view().check().map_err(io::Error::other)?;
        Ok(still)
    }
}

fn encoding(error: png::EncodingError) -> io::Error {
    match error {
        png::EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// A part whose picture is to be kept.
pub(super) struct Job<P> {
    pub record: Record,
    pub picture: Arc<P>,
    pub map: Option<Heatmap>,
}

/// Writes pictures until nobody sends more.
pub(super) fn run<P: Pixels>(
    folder: &Path,
    power_safe: bool,
    jobs: &Receiver<Job<P>>,
    rows: &Sender<Message>,
    spare: &Sender<Heatmap>,
) {
    let (mut still, mut image) = (Still::default(), RgbImage::new(0, 0));
    for Job { record, picture, map } in jobs {
        let copied = still.copy_from(&picture.view());
        let copied =
            copied.and_then(|()| if map.is_some() { image.copy_from(&picture.view()) } else { Ok(()) });
        // The camera gets its slot back before the slow part.
        drop(picture);
        let drawn = map.as_ref().map(|map| heatmap::overlay(&image, map, record.rules.roi));
        let written =
            copied.map_err(io::Error::other).and_then(|()| keep(folder, power_safe, &record, &still, drawn));
        // If nobody waits for spare maps any more, this one is let go.
        map.into_iter().for_each(|map| drop(spare.try_send(map)));
        let bytes = match written {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let (output, fault) = (Output::Images, OutputFault::Write);
                record.telemetry.emit(LineEvent::OutputFailed { output, fault, detail: &error });
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                    let _ = rows.send(Message::NoRoom);
                }
                None
            }
        };
        // The archive ends after this thread.
        let _ = rows.send(Message::Imaged(Imaged::of(&record, bytes)));
    }
}

/// Writes both pictures. The one without the heatmap comes last: where it is, the other is.
fn keep(
    folder: &Path,
    power_safe: bool,
    record: &Record,
    still: &Still,
    drawn: Option<RgbImage>,
) -> io::Result<u64> {
    let line = record.rules.line.as_str();
    let [path, over] = super::image_paths(folder, line, record.captured_at, record.sequence);
    let day = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(day)?;
    let mut bytes = 0;
    if let Some(drawn) = drawn {
        heatmap::write_png(&over, &drawn).map_err(|error| match error {
            ImagingError::Write { source, .. } => source,
            other => io::Error::other(other),
        })?;
        bytes += std::fs::metadata(&over)?.len();
    }
    let written = write_still(&path, day, power_safe, still);
    if written.is_err() {
        // Alone it would be in nobody's account.
        let _ = std::fs::remove_file(&over);
    }
    Ok(bytes + written?)
}

fn write_still(path: &Path, day: &Path, power_safe: bool, still: &Still) -> io::Result<u64> {
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".tmp")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(day)?;
    let mut writer = BufWriter::new(file.as_file_mut());
    still.write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    if power_safe {
        file.as_file().sync_data()?;
    }
    let file = file.persist(path).map_err(|error| error.error)?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::FrameHash;

    /// Noise, with padding that differs from it.
    fn frame(format: PixelFormat, width: usize, height: usize, fill: Option<u8>) -> Vec<(Vec<u8>, usize)> {
        let mut state = 7u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..format.planes())
            .map(|i| {
                let (row, rows) = format.plane_size(i, width, height);
                let stride = row + 5;
                let byte = |at: usize| match fill {
                    Some(fill) if at % stride % 4 == 3 => Some(fill),
                    _ => None,
                };
                ((0..stride * rows).map(|at| byte(at).unwrap_or_else(&mut noise)).collect(), stride)
            })
            .collect()
    }

    #[test]
    fn every_format_comes_back_to_the_last_bit_and_with_the_same_hash() {
        let folder = tempfile::tempdir().unwrap();
        let mut seen = 0;
        for format in PixelFormat::ALL {
            for (width, height) in [(1, 1), (5, 3), (16, 8), (7, 6)] {
                for fill in [None, Some(255)] {
                    let data = frame(format, width, height, fill);
                    let mut planes = [Plane::default(); 3];
                    for (plane, (data, stride)) in planes.iter_mut().zip(&data) {
                        *plane = Plane { data, stride: *stride };
                    }
                    let view = FrameView { format, width, height, planes };
                    let mut still = Still::default();
                    still.copy_from(&view).unwrap();
                    let path = folder.path().join("a.png");
                    write_still(&path, folder.path(), true, &still).unwrap();
                    let read = Still::read(&path).unwrap_or_else(|e| panic!("{format:?}: {e}"));
                    assert_eq!(read, still, "{format:?} {width}x{height}");
                    assert_eq!(FrameHash::of(&read.view()), FrameHash::of(&view), "{format:?}");
                    // Anybody's viewer opens it.
                    assert!(image::open(&path).is_ok(), "{format:?}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 11 * 4 * 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary files stay");
    }

    #[test]
    fn what_is_no_picture_of_an_archive_is_refused_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        heatmap::write_png(&path, &RgbImage::new(4, 4)).unwrap();
        assert!(Still::read(&path).unwrap_err().to_string().contains("no picture of an archive"));
        let mut still = Still::default();
        still.copy_from(&FrameView::rgb(&[9; 48], 4, 4)).unwrap();
        write_still(&path, folder.path(), false, &still).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            // The end of a PNG may be missing; what is read must then be whole.
            if let Ok(read) = Still::read(&path) {
                assert_eq!(read, still, "cut at {cut}");
            }
        }
        let lie = |text: &str| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 4, 4);
            encoder.set_color(png::ColorType::Rgb);
            encoder.add_text_chunk(KEYWORD.into(), text.into()).unwrap();
            encoder.write_header().unwrap().write_image_data(&[0; 48]).unwrap();
            std::fs::write(&path, bytes).unwrap();
            Still::read(&path).map(|_| ()).map_err(|error| error.kind())
        };
        assert_eq!(lie("RGB 4x4"), Ok(()));
        for text in [
            "RGB 5x4",
            "NV12 4x4",
            "GRAY8 4x4",
            "RGB 4",
            "RGB 0x0",
            "X 4x4",
            "RGB 99999999999x4",
            "BGRx 4x4 256",
        ] {
            assert_eq!(lie(text), Err(io::ErrorKind::InvalidData), "{text}");
        }
    }
}
