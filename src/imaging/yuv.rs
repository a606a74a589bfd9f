//! YUV to 8-bit RGB, BT.601 limited range, in 16-bit fixed point.
//!
//! Cameras and GStreamer default to BT.601 with Y in 16…235 and chroma in 16…240 for the sizes and
//! sources seen here, so that is the one choice. With the coefficients
//!
//! ```text
//! R = 1.164384 (Y−16)                     + 1.596027 (V−128)
//! G = 1.164384 (Y−16) − 0.391762 (U−128)  − 0.812968 (V−128)
//! B = 1.164384 (Y−16) + 2.017232 (U−128)
//! ```
//!
//! the arithmetic is, with `>>` rounding down,
//!
//! ```text
//! luma = (((Y−16)  << 7) · 19077) >> 16         in 1/32 of a grey level
//! vr   = (((V−128) << 8) · 13075) >> 16         and likewise ug 3209, vg 6660, ub 16525
//! R = clamp((luma + vr + 16) >> 5, 0, 255)
//! G = clamp((luma − ug − vg + 16) >> 5, 0, 255)
//! B = clamp((luma + ub + 16) >> 5, 0, 255)
//! ```
//!
//! Every product is a 16 × 16 → high 16 bit multiplication, so the loop runs eight pixels at a time
//! on any x86-64, and a GPU gets the very same bytes. Rounding down loses less than 1/32 of a level
//! per term, three terms at most, so the result is within 0.5 + 3/32 + 0.02 of the exact formula.
//!
//! Chroma is replicated to its two (4:2:2) or four (4:2:0) pixels, not interpolated.

const Y_GAIN: i32 = 19077; // 1.164384 · 2^14
const V_TO_R: i32 = 13075; // 1.596027 · 2^13
const U_TO_G: i32 = 3209; // 0.391762 · 2^13
const V_TO_G: i32 = 6660; // 0.812968 · 2^13
const U_TO_B: i32 = 16525; // 2.017232 · 2^13

/// High half of a 16 × 16 bit product.
#[inline(always)]
fn mul_high(a: i16, b: i32) -> i16 {
    ((i32::from(a) * b) >> 16) as i16
}

#[inline(always)]
fn luma(y: u8) -> i16 {
    mul_high((i16::from(y) - 16) << 7, Y_GAIN)
}

/// What chroma adds to R, G and B, in 1/32 of a level.
#[inline(always)]
fn chroma(u: u8, v: u8) -> (i16, i16, i16) {
    let u = (i16::from(u) - 128) << 8;
    let v = (i16::from(v) - 128) << 8;
    (mul_high(v, V_TO_R), -mul_high(u, U_TO_G) - mul_high(v, V_TO_G), mul_high(u, U_TO_B))
}

#[inline(always)]
fn level(sum: i16) -> u8 {
    ((sum + 16) >> 5).clamp(0, 255) as u8
}

/// One pixel.
#[inline]
pub fn to_rgb(y: u8, u: u8, v: u8) -> [u8; 3] {
    let l = luma(y);
    let (r, g, b) = chroma(u, v);
    [level(l + r), level(l + g), level(l + b)]
}

/// One row of 4:2:0 or 4:2:2 to planar R, G, B. `yuv(i)` gives the chroma pair of pixels `2i` and
/// `2i + 1`; each of `y`, `r`, `g`, `b` holds the same even number of pixels.
#[inline(always)]
fn row(pairs: impl Iterator<Item = ([u8; 2], u8, u8)>, r: &mut [u8], g: &mut [u8], b: &mut [u8]) {
    let out = r.chunks_exact_mut(2).zip(g.chunks_exact_mut(2)).zip(b.chunks_exact_mut(2));
    for (([y0, y1], u, v), ((r, g), b)) in pairs.zip(out) {
        let (cr, cg, cb) = chroma(u, v);
        let (l0, l1) = (luma(y0), luma(y1));
        r[0] = level(l0 + cr);
        r[1] = level(l1 + cr);
        g[0] = level(l0 + cg);
        g[1] = level(l1 + cg);
        b[0] = level(l0 + cb);
        b[1] = level(l1 + cb);
    }
}

/// `y.len()` even; `u`, `v` of half that; `r`, `g`, `b` of `y`'s length.
pub fn row_i420(y: &[u8], u: &[u8], v: &[u8], r: &mut [u8], g: &mut [u8], b: &mut [u8]) {
    let pairs = y.chunks_exact(2).zip(u).zip(v).map(|((y, &u), &v)| ([y[0], y[1]], u, v));
    row(pairs, r, g, b);
}

/// `y.len()` even; `uv` of the same length, U and V interleaved.
pub fn row_nv12(y: &[u8], uv: &[u8], r: &mut [u8], g: &mut [u8], b: &mut [u8]) {
    let pairs = y.chunks_exact(2).zip(uv.chunks_exact(2)).map(|(y, c)| ([y[0], y[1]], c[0], c[1]));
    row(pairs, r, g, b);
}

/// `yuyv` of twice `r`'s (even) length: Y0 U Y1 V.
pub fn row_yuy2(yuyv: &[u8], r: &mut [u8], g: &mut [u8], b: &mut [u8]) {
    row(yuyv.chunks_exact(4).map(|p| ([p[0], p[2]], p[1], p[3])), r, g, b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_yuv_triple_is_within_its_bound_of_the_exact_formula() {
        // 1/2 from rounding, 3/32 from three products rounded down, and the coefficients' own
        // rounding: 0.5/2^13 · 128 · 2 + 0.5/2^14 · 239 < 0.024.
        let bound = 0.5 + 3.0 / 32.0 + 0.024;
        let mut worst = 0.0f64;
        for y in 0..=255u8 {
            for u in (0..=255u8).step_by(5) {
                for v in (0..=255u8).step_by(3) {
                    let (l, cu, cv) =
                        (255.0 / 219.0 * (f64::from(y) - 16.0), f64::from(u) - 128.0, f64::from(v) - 128.0);
                    let exact = [l + 1.596027 * cv, l - 0.391762 * cu - 0.812968 * cv, l + 2.017232 * cu];
                    for (ours, exact) in to_rgb(y, u, v).into_iter().zip(exact) {
                        worst = worst.max((f64::from(ours) - exact.clamp(0.0, 255.0)).abs());
                    }
                }
            }
        }
        assert!(worst <= bound, "{worst} > {bound}");
    }

    #[test]
    fn black_white_and_primaries_come_out_as_such() {
        assert_eq!(to_rgb(16, 128, 128), [0, 0, 0]);
        assert_eq!(to_rgb(235, 128, 128), [255, 255, 255]);
        assert_eq!(to_rgb(0, 128, 128), [0, 0, 0]);
        assert_eq!(to_rgb(255, 128, 128), [255, 255, 255]);
        let [r, g, b] = to_rgb(82, 90, 240); // BT.601 red
        assert!(r >= 254 && g <= 1 && b <= 1, "{r} {g} {b}");
    }

    #[test]
    fn rows_of_all_three_layouts_agree_with_the_single_pixel() {
        let y: Vec<u8> = (0..38u32).map(|i| (i * 53 % 256) as u8).collect();
        let u: Vec<u8> = (0..19u32).map(|i| (i * 91 + 7) as u8).collect();
        let v: Vec<u8> = (0..19u32).map(|i| (i * 37 + 99) as u8).collect();
        let uv: Vec<u8> = u.iter().zip(&v).flat_map(|(&u, &v)| [u, v]).collect();
        let yuyv: Vec<u8> = (0..19).flat_map(|i| [y[2 * i], u[i], y[2 * i + 1], v[i]]).collect();
        let want: Vec<[u8; 3]> = (0..38).map(|x| to_rgb(y[x], u[x / 2], v[x / 2])).collect();
        for layout in 0..3 {
            let (mut r, mut g, mut b) = (vec![9; 38], vec![9; 38], vec![9; 38]);
            match layout {
                0 => row_i420(&y, &u, &v, &mut r, &mut g, &mut b),
                1 => row_nv12(&y, &uv, &mut r, &mut g, &mut b),
                _ => row_yuy2(&yuyv, &mut r, &mut g, &mut b),
            }
            for x in 0..38 {
                assert_eq!([r[x], g[x], b[x]], want[x], "layout {layout}, pixel {x}");
            }
        }
    }
}
