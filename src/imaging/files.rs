//! Picture files in: PNG, JPEG, BMP, TIFF, WebP, PNM, told apart by content and not by name.
//!
//! Everything becomes packed 8-bit RGB: grey is replicated, 16 bits are scaled by 255/65535 and rounded,
//! alpha is dropped, palettes are resolved. EXIF orientation is ignored, as cameras in a line write none.

use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::error::ImagingError;
use super::pixel::FrameView;
use super::preprocess::MAX_SIDE;

/// What counts as a picture when a folder is walked (any case).
pub const EXTENSIONS: [&str; 11] =
    ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp", "pnm", "pgm", "ppm", "pbm"];

/// Pictures above this are refused before they are decoded.
pub const MAX_PIXELS: usize = 200_000_000;

/// What decoding may take beside the file itself: 16-bit RGB of 170 million pixels, 8-bit RGB of all.
const MAX_DECODE_BYTES: u64 = 1 << 30;

/// A file larger than any picture within [`MAX_PIXELS`] could be.
const MAX_FILE_BYTES: u64 = 2 << 30;

/// Packed 8-bit RGB, `data[(y * width + x) * 3 + c]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

impl RgbImage {
    /// A black picture.
    pub fn new(width: usize, height: usize) -> Self {
        RgbImage { width, height, data: vec![0; width * height * 3] }
    }

    /// A copy of a frame of any format.
    pub fn from_frame(frame: &FrameView<'_>) -> Result<Self, ImagingError> {
        let mut image = RgbImage::new(0, 0);
        image.copy_from(frame)?;
        Ok(image)
    }

    /// Becomes a copy of `frame`; allocates only where the frame is larger than any before.
    pub fn copy_from(&mut self, frame: &FrameView<'_>) -> Result<(), ImagingError> {
        frame.check()?;
        self.width = frame.width;
        self.height = frame.height;
        self.data.resize(frame.width * frame.height * 3, 0);
        for (y, row) in self.data.chunks_exact_mut(frame.width * 3).enumerate() {
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                pixel.copy_from_slice(&frame.rgb_at(x, y));
            }
        }
        Ok(())
    }

    pub fn view(&self) -> FrameView<'_> {
        FrameView::rgb(&self.data, self.width, self.height)
    }
}

/// Reads one picture. Refuses what is missing, empty, no picture, truncated, corrupt or too large.
pub fn read_image(path: &Path) -> Result<RgbImage, ImagingError> {
    let bytes = read_bytes(path)?;
    let image = decode(&bytes, path)?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(RgbImage { width, height, data: image.into_raw() })
}

/// A single-channel reading of a mask file: 0…255, row-major, with its width and height.
pub fn read_gray(path: &Path) -> Result<(usize, usize, Vec<u8>), ImagingError> {
    let bytes = read_bytes(path)?;
    let image = decode(&bytes, path)?.into_luma8();
    Ok((image.width() as usize, image.height() as usize, image.into_raw()))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, ImagingError> {
    let read = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => ImagingError::Missing { path: path.into() },
        _ => ImagingError::Read { path: path.into(), source },
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length == 0 {
        return Err(ImagingError::Corrupt { path: path.into(), why: "the file is empty".into() });
    }
    if length > MAX_FILE_BYTES {
        let why = format!("it is {} MiB long; no picture within the limits is", length >> 20);
        return Err(ImagingError::NotAPicture { path: path.into(), why });
    }
    std::fs::read(path).map_err(read)
}

fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage, ImagingError> {
    let corrupt = |why: String| ImagingError::Corrupt { path: path.into(), why };
    let failed = |error: ImageError| match error {
        ImageError::Unsupported(e) => ImagingError::NotAPicture { path: path.into(), why: e.to_string() },
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => {
            corrupt("the file ends too early".into())
        }
        other => corrupt(other.to_string()),
    };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|source| ImagingError::Read { path: path.into(), source })?;
    let Some(format) = reader.format() else {
        return Err(ImagingError::NotAPicture {
            path: path.into(),
            why: "its content is not PNG, JPEG, BMP, TIFF, WebP or PNM".into(),
        });
    };
    if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
        return Err(corrupt("the JPEG data ends too early".into()));
    }
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    if width == 0 || height == 0 {
        return Err(corrupt(format!("it claims {width}×{height} pixels")));
    }
    if width * height > MAX_PIXELS {
        return Err(ImagingError::TooLarge { path: path.into(), width, height });
    }
    decoder.set_limits(limits).map_err(failed)?;
    DynamicImage::from_decoder(decoder).map_err(failed)
}

/// The decoder fills what a truncated JPEG lacks with grey and says nothing; a grey half would be
/// judged as a part. Within a scan 0xFF is followed by 0 or a restart marker, so the last scan of a
/// whole file is followed by an end marker.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let scan = bytes.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap_or(0);
    bytes[scan..].windows(2).any(|w| w == [0xff, 0xd9])
}

/// `path` itself if it is a file; otherwise the pictures below it, by extension, sorted by path.
/// Hidden files and folders are passed over. A folder without a picture is an error.
pub fn list_images(path: &Path) -> Result<Vec<PathBuf>, ImagingError> {
    let kind = std::fs::metadata(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => ImagingError::Missing { path: path.into() },
        _ => ImagingError::Read { path: path.into(), source },
    })?;
    if !kind.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    let shown = |e: &walkdir::DirEntry| e.depth() == 0 || !e.file_name().as_encoded_bytes().starts_with(b".");
    for entry in walkdir::WalkDir::new(path).follow_links(true).into_iter().filter_entry(shown) {
        let entry = entry
            .map_err(|e| ImagingError::Read { path: e.path().unwrap_or(path).into(), source: e.into() })?;
        if entry.file_type().is_file() && is_picture_name(entry.path()) {
            found.push(entry.into_path());
        }
    }
    if found.is_empty() {
        return Err(ImagingError::NoPictures { path: path.into() });
    }
    found.sort();
    Ok(found)
}

fn is_picture_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayAlphaImage, ImageBuffer, Luma};

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn photo() -> DynamicImage {
        let noise = |x: u32, y: u32, k: u32| (x * 7 + y * 13 + (x * y) % 31 * k) as u8;
        image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([noise(x, y, 1), noise(x, y, 3), noise(x, y, 5)]))
            .into()
    }

    fn read_from(bytes: &[u8], name: &str) -> Result<RgbImage, ImagingError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_image(&path)
    }

    #[test]
    fn lossless_formats_come_back_as_written() {
        let photo = photo();
        for format in
            [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP, ImageFormat::Pnm]
        {
            let image = read_from(&encoded(&photo, format), "no_extension").unwrap();
            assert_eq!((image.width, image.height), (64, 48), "{format:?}");
            assert_eq!(image.data, photo.as_bytes(), "{format:?}");
        }
    }

    #[test]
    fn truncated_files_of_every_format_are_errors_and_never_half_pictures() {
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::WebP,
            ImageFormat::Pnm,
        ] {
            let whole = encoded(&photo(), format);
            assert!(read_from(&whole, "a").is_ok(), "{format:?}");
            for keep in [1, 8, whole.len() / 4, whole.len() / 2, whole.len() - 20] {
                let result = read_from(&whole[..keep], "a.png");
                assert!(
                    matches!(result, Err(ImagingError::Corrupt { .. } | ImagingError::NotAPicture { .. })),
                    "{format:?} cut to {keep} of {}: {:?}",
                    whole.len(),
                    result.map(|i| (i.width, i.height))
                );
            }
        }
    }

    #[test]
    fn a_flipped_byte_in_a_png_is_an_error() {
        let mut bytes = encoded(&photo(), ImageFormat::Png);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        assert!(matches!(read_from(&bytes, "a.png"), Err(ImagingError::Corrupt { .. })));
    }

    #[test]
    fn an_empty_file_a_text_file_and_a_missing_file_are_told_apart() {
        let empty = read_from(b"", "a.png").unwrap_err();
        assert!(empty.to_string().ends_with("the file is empty"), "{empty}");
        let text = read_from(b"this is no picture, whatever its name", "a.png").unwrap_err();
        assert!(matches!(text, ImagingError::NotAPicture { .. }), "{text}");
        let missing = read_image(Path::new("/nonexistent/a.png")).unwrap_err();
        assert!(missing.is_missing(), "{missing}");
        let folder = tempfile::tempdir().unwrap();
        assert!(read_image(folder.path()).is_err());
    }

    #[test]
    fn sixteen_bit_grey_is_scaled_and_replicated() {
        let grey = ImageBuffer::<Luma<u16>, _>::from_vec(4, 1, vec![0u16, 257, 32896, 65535]).unwrap();
        let image = read_from(&encoded(&grey.into(), ImageFormat::Png), "a.png").unwrap();
        assert_eq!(image.data, [0, 0, 0, 1, 1, 1, 128, 128, 128, 255, 255, 255]);
    }

    #[test]
    fn alpha_is_dropped_and_not_blended() {
        let image = GrayAlphaImage::from_raw(2, 1, vec![10, 0, 200, 255]).unwrap();
        let image = read_from(&encoded(&image.into(), ImageFormat::Png), "a.png").unwrap();
        assert_eq!(image.data, [10, 10, 10, 200, 200, 200]);
    }

    #[test]
    fn a_palette_is_resolved() {
        // 2×1, 8-bit palette of red and blue, indices 1 0; written by Pillow.
        let bytes = include_bytes!("../../tests/golden/palette.png");
        let image = read_from(bytes, "a.png").unwrap();
        assert_eq!(image.data, [0, 0, 255, 255, 0, 0]);
    }

    #[test]
    fn a_header_that_claims_a_giant_picture_is_refused_before_decoding() {
        let mut bytes = b"P6 20000 20000 255\n".to_vec();
        bytes.extend([0; 64]);
        let error = read_from(&bytes, "a.ppm").unwrap_err();
        assert!(matches!(error, ImagingError::TooLarge { width: 20000, height: 20000, .. }), "{error}");
        let bytes = b"P6 4000000000 4000000000 255\n".to_vec();
        assert!(read_from(&bytes, "a.ppm").is_err());
    }

    #[test]
    fn a_folder_is_walked_in_order_and_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("b/c")).unwrap();
        std::fs::create_dir_all(at(".cache")).unwrap();
        for name in ["b/c/2.PNG", "b/1.jpg", "a.tiff", "notes.txt", "._a.png", ".cache/x.png"] {
            std::fs::write(at(name), b"x").unwrap();
        }
        assert_eq!(list_images(folder.path()).unwrap(), ["a.tiff", "b/1.jpg", "b/c/2.PNG"].map(at).to_vec());
        assert_eq!(list_images(&at("notes.txt")).unwrap(), [at("notes.txt")]);
        assert!(matches!(list_images(&at(".cache/none")), Err(ImagingError::Missing { .. })));
        std::fs::create_dir(at("empty")).unwrap();
        assert!(matches!(list_images(&at("empty")), Err(ImagingError::NoPictures { .. })));
    }
}
