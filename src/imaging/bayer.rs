//! Bayer mosaics to 8-bit RGB, bilinear.
//!
//! A camera behind a colour filter array delivers one colour a pixel, repeating every 2×2:
//!
//! ```text
//! RGGB  R G    GRBG  G R    GBRG  G B    BGGR  B G
//!       G B          B G          R G          G R
//! ```
//!
//! Each pixel keeps the colour it has. The other two are means of the nearest samples of theirs:
//!
//! ```text
//! at red or blue    green     (N + S + W + E + 2) >> 2
//!                   opposite  (NW + NE + SW + SE + 2) >> 2
//! at green          the colour of its row     (W + E + 1) >> 1
//!                   the colour of its column  (N + S + 1) >> 1
//! ```
//!
//! Beyond the border the frame is mirrored at its outermost pixels, which are not repeated: row −1 is row 1.
//! That keeps the mosaic's phase, so a mean never mixes colours. A side of one pixel repeats it.
//! It is the exact sum, rounded once, half up: what a GPU computes in integers is the very same.

use super::pixel::Plane;

/// Which colour stands where, named by the first row and then the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mosaic {
    Rggb,
    Grbg,
    Gbrg,
    Bggr,
}

impl Mosaic {
    /// Column and row of red in each 2×2; blue is at the other corner.
    pub fn red(self) -> (usize, usize) {
        match self {
            Mosaic::Rggb => (0, 0),
            Mosaic::Grbg => (1, 0),
            Mosaic::Gbrg => (0, 1),
            Mosaic::Bggr => (1, 1),
        }
    }
}

/// The index before `i` of `n`, mirrored.
fn before(i: usize, n: usize) -> usize {
    if i > 0 { i - 1 } else { 1.min(n - 1) }
}

/// The index after `i` of `n`, mirrored.
fn after(i: usize, n: usize) -> usize {
    if i + 1 < n { i + 1 } else { n.saturating_sub(2) }
}

/// Three pixels of three rows, the pixel in the middle.
type Square = [[u8; 3]; 3];

/// `red_row`, `red_column`: whether red stands in the pixel's row, and in its column.
#[inline(always)]
fn demosaic([[nw, n, ne], [w, c, e], [sw, s, se]]: Square, red_row: bool, red_column: bool) -> [u8; 3] {
    let mean = |sum: u16, shift: u32| ((sum + (1 << (shift - 1))) >> shift) as u8;
    let two = |a: u8, b: u8| mean(u16::from(a) + u16::from(b), 1);
    let four =
        |a: u8, b: u8, c: u8, d: u8| mean(u16::from(a) + u16::from(b) + u16::from(c) + u16::from(d), 2);
    match (red_row, red_column) {
        (true, true) => [c, four(n, s, w, e), four(nw, ne, sw, se)],
        (false, false) => [four(nw, ne, sw, se), four(n, s, w, e), c],
        (true, false) => [two(w, e), c, two(n, s)],
        (false, true) => [two(n, s), c, two(w, e)],
    }
}

/// Pixel (`x`, `y`) of a frame of `width` × `height`, all of whose pixels lie in the plane.
pub fn to_rgb(
    plane: Plane<'_>,
    (width, height): (usize, usize),
    mosaic: Mosaic,
    x: usize,
    y: usize,
) -> [u8; 3] {
    let columns = [before(x, width), x, after(x, width)];
    let rows = [before(y, height), y, after(y, height)];
    let square = rows.map(|row| columns.map(|column| plane.data[row * plane.stride + column]));
    let (red_x, red_y) = mosaic.red();
    demosaic(square, y % 2 == red_y, x % 2 == red_x)
}

/// Pixels `x…` of row `y` to planar R, G and B of equal lengths. What lies beyond the frame's last pixel
/// repeats that.
pub fn row(
    plane: Plane<'_>,
    (width, height): (usize, usize),
    mosaic: Mosaic,
    (x, y): (usize, usize),
    [r, g, b]: [&mut [u8]; 3],
) {
    let (red_x, red_y) = mosaic.red();
    let red_row = y % 2 == red_y;
    let inside = r.len().min(width - x);
    // Pixels with a neighbour on either side; their squares are windows of the three rows.
    let (first, last) = (x.max(1), (x + inside).min(width - 1));
    if first < last {
        let rows = [before(y, height), y, after(y, height)];
        let [above, here, below] =
            rows.map(|row| &plane.data[row * plane.stride + first - 1..][..last - first + 2]);
        let squares = above.windows(3).zip(here.windows(3)).zip(below.windows(3));
        let out = r[first - x..].iter_mut().zip(&mut g[first - x..]).zip(&mut b[first - x..]);
        let mut red_column = first % 2 == red_x;
        for (((above, here), below), ((r, g), b)) in squares.zip(out) {
            let square = [above, here, below].map(|row| [row[0], row[1], row[2]]);
            [*r, *g, *b] = demosaic(square, red_row, red_column);
            red_column = !red_column;
        }
    }
    for at in (0..inside).filter(|at| !(first..last).contains(&(x + at))) {
        [r[at], g[at], b[at]] = to_rgb(plane, (width, height), mosaic, x + at, y);
    }
    for plane in [r, g, b] {
        let (pixels, beyond) = plane.split_at_mut(inside);
        if let Some(last) = pixels.last() {
            beyond.fill(*last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, Mosaic); 4] =
        [("rggb", Mosaic::Rggb), ("grbg", Mosaic::Grbg), ("gbrg", Mosaic::Gbrg), ("bggr", Mosaic::Bggr)];

    /// tests/golden/make_bayer.py: scipy's convolution of the three masked planes with mirrored borders.
    #[test]
    fn every_mosaic_agrees_with_scipys_bilinear_demosaic_to_the_last_bit() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/bayer.json")).unwrap();
        let bytes = |hex: &serde_json::Value| -> Vec<u8> {
            let hex = hex.as_str().unwrap();
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
        };
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 16);
        for case in cases {
            let name = case["mosaic"].as_str().unwrap();
            let (_, mosaic) = ALL.into_iter().find(|(n, _)| *n == name).unwrap();
            let n = |key: &str| case[key].as_u64().unwrap() as usize;
            let (width, height) = (n("width"), n("height"));
            let (data, want) = (bytes(&case["raw"]), bytes(&case["rgb"]));
            let plane = Plane { data: &data, stride: width };
            for y in 0..height {
                for x in 0..width {
                    let got = to_rgb(plane, (width, height), mosaic, x, y);
                    assert_eq!(got, want[(y * width + x) * 3..][..3], "{name} {width}×{height} at {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_its_pixels_from_anywhere_to_beyond_the_end() {
        for (width, height) in [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (9, 6)] {
            let stride = width + 3;
            let data: Vec<u8> = (0..stride * height).map(|i| (i * 89 + 17) as u8).collect();
            let plane = Plane { data: &data[..stride * (height - 1) + width], stride };
            for (_, mosaic) in ALL {
                for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
                    for len in [1, 2, width - x, width - x + 1] {
                        let mut rgb = [0; 3].map(|_| vec![0xaa; len]);
                        let [r, g, b] = &mut rgb;
                        row(plane, (width, height), mosaic, (x, y), [r, g, b]);
                        for at in 0..len {
                            let want = to_rgb(plane, (width, height), mosaic, (x + at).min(width - 1), y);
                            assert_eq!(
                                [r[at], g[at], b[at]],
                                want,
                                "{mosaic:?} {width}×{height} {x}+{at}, {y}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_grey_surface_stays_grey_and_a_red_one_red_up_to_the_border() {
        for (_, mosaic) in ALL {
            let (red_x, red_y) = mosaic.red();
            for size in [(2, 2), (4, 6), (5, 3)] {
                let red = |i: usize| (i % size.0) % 2 == red_x && (i / size.0) % 2 == red_y;
                let (grey, only_red): (Vec<u8>, Vec<u8>) =
                    (0..size.0 * size.1).map(|i| (77, if red(i) { 200 } else { 0 })).unzip();
                for i in 0..size.0 * size.1 {
                    let at =
                        |data| to_rgb(Plane { data, stride: size.0 }, size, mosaic, i % size.0, i / size.0);
                    assert_eq!(at(&grey), [77; 3]);
                    assert_eq!(at(&only_red), [200, 0, 0], "{mosaic:?} {size:?} at {i}");
                }
            }
        }
    }
}
