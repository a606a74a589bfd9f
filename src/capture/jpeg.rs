//! JPEG pictures from the camera, decoded here and not by GStreamer's `jpegdec`, which hands on a picture
//! that was cut in half, or whose bits were changed on the way, as a good one.
//!
//! libjpeg says of both only that it "warns"; here every warning is damage. Every picture that was cut is seen. Of
//! changed bits only those are that leave no valid stream of codes: 4 in 10 of single ones (JPEG has no checksum),
//! so a link that changes bits needs a transport that has one.
//!
//! | constraint | value |
//! |---|---|
//! | picture | at most 64 megapixels, 32768 a side; grey becomes GRAY8, everything else RGB |
//! | progressive scans | at most 64; each costs a pass over the whole picture, and encoders write about ten |
//! | colour spaces | grey, YCbCr, RGB; those of printers are refused |
//! | cost on two megapixels | 5 to 8 ms on one core, on the camera's own thread |

use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat as Order};

use super::layout::Layout;
use crate::imaging::PixelFormat;

const MAX_PIXELS: usize = 64 << 20;
const MAX_SCANS: u32 = 64;

/// The media type in caps.
pub(super) const JPEG: &str = "image/jpeg";

/// What a picture decodes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub layout: Layout,
    /// Of the decoded picture.
    pub bytes: usize,
}

/// One decoder for all pictures of a camera.
#[derive(Debug)]
pub(super) struct Decoder(Decompressor);

impl Decoder {
    pub(super) fn new() -> Result<Self, String> {
        let mut decompressor = Decompressor::new().map_err(|error| error.to_string())?;
        decompressor.set_scan_limit(MAX_SCANS).map_err(|error| error.to_string())?;
        Ok(Decoder(decompressor))
    }

    /// Reads size and colours; the error is a clause.
    pub(super) fn header(&mut self, jpeg: &[u8]) -> Result<Header, String> {
        let header = self.0.read_header(jpeg).map_err(|error| error.to_string())?;
        let (width, height) = (header.width, header.height);
        let (format, pixel_bytes) = match header.colorspace {
            Colorspace::Gray => (PixelFormat::Gray8, 1),
            Colorspace::RGB | Colorspace::YCbCr => (PixelFormat::Rgb, 3),
            Colorspace::CMYK | Colorspace::YCCK => {
                return Err("its colours are those of a printer".to_owned());
            }
        };
        let too_large = || format!("it claims {width} x {height} pixels");
        if width.checked_mul(height).is_none_or(|pixels| pixels > MAX_PIXELS) {
            return Err(too_large());
        }
        // Rows as GStreamer pads them.
        let stride = (width * pixel_bytes).next_multiple_of(4);
        let layout = i32::try_from(stride)
            .ok()
            .and_then(|stride| Layout::new(format, (width, height), &[0], &[stride]))
            .ok_or_else(too_large)?;
        Ok(Header { layout, bytes: stride * height })
    }

    /// Decodes all of a picture into `pixels`, which has the bytes that its header says.
    pub(super) fn decode(&mut self, jpeg: &[u8], header: &Header, pixels: &mut [u8]) -> Result<(), String> {
        let Some(span) = header.layout.spans().first() else { return Err("it has no pixels".to_owned()) };
        // The decoder panics where it has too little room.
        let room = pixels.get_mut(..header.bytes).ok_or("there is too little room for its pixels")?;
        let format = match header.layout.format {
            PixelFormat::Gray8 => Order::GRAY,
            _ => Order::RGB,
        };
        let (width, height) = (header.layout.width, header.layout.height);
        let image = Image { pixels: room, width, pitch: span.stride, height, format };
        self.0.decompress(jpeg, image).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture with something to see in every block.
    fn picture(width: usize, height: usize) -> Vec<u8> {
        (0..width * height * 3)
            .map(|i| ((i / 3 % width) * 5 + i / (3 * width) * 3 + i % 3 * 40) as u8)
            .collect()
    }

    fn encode(width: usize, height: usize) -> Vec<u8> {
        let pixels = picture(width, height);
        let image = Image { pixels: &pixels[..], width, pitch: width * 3, height, format: Order::RGB };
        turbojpeg::compress(image, 95, turbojpeg::Subsamp::None).unwrap().to_vec()
    }

    fn decode(jpeg: &[u8]) -> Result<Vec<u8>, String> {
        let mut decoder = Decoder::new()?;
        let header = decoder.header(jpeg)?;
        let mut pixels = vec![0x55; header.bytes];
        decoder.decode(jpeg, &header, &mut pixels)?;
        Ok(pixels)
    }

    #[test]
    fn a_whole_picture_comes_out_as_it_was() {
        let (width, height) = (37, 19);
        let decoded = decode(&encode(width, height)).unwrap();
        let stride = (width * 3usize).next_multiple_of(4);
        let worst = (0..width * height * 3)
            .map(|i| decoded[i / (width * 3) * stride + i % (width * 3)].abs_diff(picture(width, height)[i]))
            .max();
        // Quality 95 quantises the flattest coefficients by 1 or 2, the steepest by 10.
        assert!(worst.unwrap() < 40, "{worst:?}");
    }

    #[test]
    fn grey_pictures_stay_grey() {
        let pixels = [100u8; 64];
        let image = Image { pixels: &pixels[..], width: 8, pitch: 8, height: 8, format: Order::GRAY };
        let jpeg = turbojpeg::compress(image, 95, turbojpeg::Subsamp::Gray).unwrap();
        let header = Decoder::new().unwrap().header(&jpeg).unwrap();
        assert_eq!((header.layout.format, header.bytes), (PixelFormat::Gray8, 64));
        assert!(decode(&jpeg).unwrap().iter().all(|p| p.abs_diff(100) <= 1));
    }

    #[test]
    fn a_picture_cut_anywhere_is_damaged() {
        let jpeg = encode(64, 64);
        // The last two bytes are the end-of-image marker.
        for cut in (0..jpeg.len() - 1).step_by(7).chain([jpeg.len() - 2, jpeg.len() - 3]) {
            assert!(decode(&jpeg[..cut]).is_err(), "cut at {cut} of {}", jpeg.len());
        }
        assert!(decode(&jpeg).is_ok());
    }

    #[test]
    fn what_follows_the_picture_does_not_matter() {
        // Capture cards hand on buffers of one size.
        let mut jpeg = encode(64, 64);
        jpeg.resize(jpeg.len() + 1000, 0);
        assert!(decode(&jpeg).is_ok());
    }

    #[test]
    fn most_changed_bits_are_seen_and_none_panics() {
        let jpeg = encode(64, 64);
        let mut seen = 0;
        let changes = 300;
        for n in 0..changes {
            let mut changed = jpeg.clone();
            // Spread over the file by the golden ratio.
            let at = (n as f64 * 0.618_033_988_75).fract() * changed.len() as f64;
            changed[at as usize] ^= 1 << (n % 8);
            seen += usize::from(decode(&changed).is_err());
        }
        // 118 are seen. What is not: quantiser tables, the bits of a coefficient, and codes that others of the same
        // length replaced.
        assert!(seen * 3 > changes, "{seen} of {changes}");
    }

    #[test]
    fn hostile_sizes_are_refused_before_there_is_memory_for_them() {
        let mut jpeg = encode(64, 64);
        let sof = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[sof + 5..sof + 9].copy_from_slice(&[0x7f, 0xff, 0x7f, 0xff]);
        let error = Decoder::new().unwrap().header(&jpeg).unwrap_err();
        assert_eq!(error, "it claims 32767 x 32767 pixels");
        jpeg[sof + 5..sof + 9].copy_from_slice(&[0xff; 4]);
        assert!(Decoder::new().unwrap().header(&jpeg).is_err());
        for garbage in [&b""[..], b"\xff\xd8", b"not a picture", &[0xff; 5000]] {
            assert!(Decoder::new().unwrap().header(garbage).is_err());
        }
    }
}
