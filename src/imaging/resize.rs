//! Antialiased bilinear resize: the triangle filter, as `PIL.Image.resize(…, BILINEAR)` has it.
//!
//! One axis, `in` samples to `out` samples, scale `s = in / out`, filter width `f = max(s, 1)`. Output
//! sample `i` is centred at `c = (i + ½) s`; it covers the input samples
//!
//! ```text
//! first = max(0, ⌊c − f + ½⌋)   …   last = min(in, ⌊c + f + ½⌋) − 1
//! w(x)  = max(0, 1 − |x − c + ½| / f),   divided by their sum
//! ```
//!
//! computed in f64 and rounded to f32 once. The two axes are independent, so the result does not
//! depend on their order but for rounding. Here rows are blended first (long contiguous loops on
//! bytes), then columns. PIL works columns first and rounds to 8 bits in between; it is within one
//! grey level of this: its first rounding loses at most ½, which the second pass averages, and its
//! second rounding at most ½ again.

use super::files::RgbImage;

/// Filter taps of one axis: output `i` is `Σ_t weights[i·taps + t] · x[start[i] + t]`.
#[derive(Clone, Debug)]
pub struct Axis {
    pub start: Vec<usize>,
    pub weights: Vec<f32>,
    /// The same for every output; short windows are padded with zero weights.
    pub taps: usize,
}

impl Axis {
    /// Neither size may be 0. Every `start[i] + taps` is at most `input`, unless padded later.
    pub fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter = scale.max(1.0);
        let windows: Vec<(usize, Vec<f32>)> =
            (0..output).map(|i| window(input, (i as f64 + 0.5) * scale, filter)).collect();
        let taps = windows.iter().map(|(_, w)| w.len()).max().unwrap_or(1);
        let mut start = Vec::with_capacity(output);
        let mut weights = vec![0.0; output * taps];
        for ((first, window), weights) in windows.into_iter().zip(weights.chunks_exact_mut(taps)) {
            // A window at the far end is shifted back so that its zero padding lies inside.
            let shift = (first + taps).saturating_sub(input);
            start.push(first - shift);
            weights[shift..shift + window.len()].copy_from_slice(&window);
        }
        Axis { start, weights, taps }
    }

    /// Appends zero weights until `taps` is a multiple of `n`; the reader pads its input.
    pub fn padded_to(&self, n: usize) -> Self {
        let taps = self.taps.next_multiple_of(n);
        let mut weights = vec![0.0; self.start.len() * taps];
        for (wide, w) in weights.chunks_exact_mut(taps).zip(self.weights.chunks_exact(self.taps)) {
            wide[..self.taps].copy_from_slice(w);
        }
        Axis { start: self.start.clone(), weights, taps }
    }

    /// Taps of output `i`: first input sample, and weights.
    #[inline]
    pub fn window(&self, i: usize) -> (usize, &[f32]) {
        (self.start[i], &self.weights[i * self.taps..(i + 1) * self.taps])
    }
}

/// First sample and normalised weights around `centre`, without zeros at either end.
fn window(input: usize, centre: f64, filter: f64) -> (usize, Vec<f32>) {
    let first = (centre - filter + 0.5).max(0.0) as usize;
    let last = ((centre + filter + 0.5) as usize).clamp(first + 1, input.max(first + 1));
    let raw: Vec<f64> =
        (first..last).map(|x| (1.0 - ((x as f64 - centre + 0.5) / filter).abs()).max(0.0)).collect();
    let sum: f64 = raw.iter().sum();
    let lead = raw.iter().take_while(|&&w| w == 0.0).count().min(raw.len() - 1);
    let tail = raw.iter().rev().take_while(|&&w| w == 0.0).count().min(raw.len() - 1 - lead);
    let weights = raw[lead..raw.len() - tail].iter().map(|w| (w / sum) as f32).collect();
    (first + lead, weights)
}

/// `sums = Σ_t weights[t] · row(t)`, four rows at a time. Rows hold at least `sums.len()` bytes.
#[inline]
pub fn blend_rows<'a>(weights: &[f32], row: impl Fn(usize) -> &'a [u8], sums: &mut [f32]) {
    let n = sums.len();
    let mut done = 0;
    while done < weights.len() {
        let w = &weights[done..weights.len().min(done + 4)];
        let first = done == 0;
        let r = |t: usize| &row(done + t)[..n];
        match *w {
            [a, b, c, d] => add4([a, b, c, d], [r(0), r(1), r(2), r(3)], sums, first),
            [a, b, c] => add3([a, b, c], [r(0), r(1), r(2)], sums, first),
            [a, b] => add2([a, b], [r(0), r(1)], sums, first),
            [a] => add1(a, r(0), sums, first),
            _ => return,
        }
        done += w.len();
    }
}

macro_rules! add_rows {
    ($name:ident, $weights:ty, $rows:ty, |$w:ident, $x:ident, $i:ident| $sum:expr) => {
        #[inline]
        fn $name($w: $weights, $x: $rows, sums: &mut [f32], first: bool) {
            if first {
                for ($i, s) in sums.iter_mut().enumerate() {
                    *s = $sum;
                }
            } else {
                for ($i, s) in sums.iter_mut().enumerate() {
                    *s += $sum;
                }
            }
        }
    };
}
add_rows!(add4, [f32; 4], [&[u8]; 4], |w, x, i| (w[0] * f32::from(x[0][i]) + w[1] * f32::from(x[1][i]))
    + (w[2] * f32::from(x[2][i]) + w[3] * f32::from(x[3][i])));
add_rows!(add3, [f32; 3], [&[u8]; 3], |w, x, i| (w[0] * f32::from(x[0][i]) + w[1] * f32::from(x[1][i]))
    + w[2] * f32::from(x[2][i]));
add_rows!(add2, [f32; 2], [&[u8]; 2], |w, x, i| w[0] * f32::from(x[0][i]) + w[1] * f32::from(x[1][i]));
add_rows!(add1, f32, &[u8], |w, x, i| w * f32::from(x[i]));

/// Samples that [`columns_interleaved`] may read beyond the last pixel's first channel.
pub const LANES: usize = 4;

/// One row of interleaved pixels, `STRIDE` samples each, to `out` RGB triples: channel `k` of the
/// output is sample `order[k]` of the pixel. `axis.taps` is even; `sums` is padded by `LANES` and
/// by the axis' padding.
#[inline]
pub fn columns_interleaved<const STRIDE: usize>(
    axis: &Axis,
    order: [usize; 3],
    sums: &[f32],
    mut store: impl FnMut(usize, [f32; 3]),
) {
    for i in 0..axis.start.len() {
        let (first, weights) = axis.window(i);
        let mut even = [0.0f32; LANES];
        let mut odd = [0.0f32; LANES];
        let pixels = &sums[first * STRIDE..(first + axis.taps - 1) * STRIDE + LANES];
        for (t, w) in weights.chunks_exact(2).enumerate() {
            let x = &pixels[2 * t * STRIDE..2 * t * STRIDE + STRIDE + LANES];
            for k in 0..LANES {
                even[k] += w[0] * x[k];
                odd[k] += w[1] * x[STRIDE + k];
            }
        }
        store(i, order.map(|k| even[k] + odd[k]));
    }
}

/// One row of a single channel. `axis.taps` is a multiple of [`LANES`]; `sums` is padded likewise.
#[inline]
pub fn columns_plane(axis: &Axis, sums: &[f32], mut store: impl FnMut(usize, f32)) {
    for i in 0..axis.start.len() {
        let (first, weights) = axis.window(i);
        let mut lanes = [0.0f32; LANES];
        let x = &sums[first..first + axis.taps];
        for (w, x) in weights.chunks_exact(LANES).zip(x.chunks_exact(LANES)) {
            for k in 0..LANES {
                lanes[k] += w[k] * x[k];
            }
        }
        store(i, (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
    }
}

/// A picture of another size, rounded to 8 bits once. `width` and `height` are at least 1, and so is the
/// picture.
pub fn resize_rgb(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let rows = Axis::new(image.height, height);
    let columns = Axis::new(image.width, width).padded_to(LANES);
    let bytes = image.width * 3;
    let mut sums = vec![0.0; bytes + columns.taps * 3 + LANES];
    let mut out = RgbImage::new(width, height);
    for (y, out) in out.data.chunks_exact_mut(width * 3).enumerate() {
        let (first, weights) = rows.window(y);
        blend_rows(weights, |t| &image.data[(first + t) * bytes..][..bytes], &mut sums[..bytes]);
        columns_interleaved::<3>(&columns, [0, 1, 2], &sums, |x, p| {
            for (out, p) in out[x * 3..].iter_mut().zip(p) {
                *out = (p + 0.5) as u8;
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_normalised_and_windows_lie_inside() {
        for (input, output) in
            [(1, 1), (1, 7), (7, 1), (256, 256), (1080, 256), (300, 256), (3, 256), (255, 254)]
        {
            let axis = Axis::new(input, output);
            for i in 0..output {
                let (first, w) = axis.window(i);
                assert!(first + axis.taps <= input, "{input}→{output} at {i}");
                let sum: f32 = w.iter().sum();
                // each weight is rounded once (2^-24 relative), and the sum of `taps` values that
                // add up to 1 rounds `taps` times
                assert!(
                    (sum - 1.0).abs() <= axis.taps as f32 * 6e-8 + 6e-8,
                    "{input}→{output} at {i}: {sum}"
                );
            }
        }
    }

    #[test]
    fn the_same_size_is_the_identity() {
        let axis = Axis::new(256, 256);
        assert_eq!(axis.taps, 1);
        assert!((0..256).all(|i| axis.window(i) == (i, &[1.0f32][..])));
    }

    #[test]
    fn halving_blends_four_samples_by_hand_computed_weights() {
        // s = 2, centre of output 1 is 3: samples 1…4 at distance 1.5, .5, .5, 1.5 over f = 2.
        let axis = Axis::new(8, 4);
        assert_eq!(axis.window(1), (1, &[0.125f32, 0.375, 0.375, 0.125][..]));
        // At the edge the outside sample is left out: .375 .375 .125 over .875.
        let (first, w) = axis.window(0);
        assert_eq!(first, 0);
        for (w, want) in w.iter().zip([3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0, 0.0]) {
            assert!((w - want as f32).abs() < 1e-7);
        }
    }
}
