//! For tests: the obvious loops in f64, seeded random numbers, poisoned buffers, and comparison within a derived
//! bound.

use super::epilogue::{Act, Epilogue};
use super::geometry::ConvGeometry;

/// SplitMix64 (Steele et al. 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// What must not survive in an output, and must not be read from scratch.
pub fn poisoned(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// Sums with the sums of their terms' magnitudes, from which the error bound follows.
#[derive(Clone)]
pub struct Exact {
    pub value: Vec<f64>,
    pub magnitude: Vec<f64>,
    /// Terms of each sum.
    pub terms: usize,
}

impl Exact {
    pub fn zero(len: usize, terms: usize) -> Self {
        Self { value: vec![0.0; len], magnitude: vec![0.0; len], terms }
    }

    pub fn add(&mut self, i: usize, a: f32, b: f32) {
        let product = f64::from(a) * f64::from(b);
        self.value[i] += product;
        self.magnitude[i] += product.abs();
    }

    /// The epilogue, `before` being the output's contents for `accumulate`.
    pub fn finish(&mut self, e: &Epilogue, before: &[f32], columns: usize) {
        for i in 0..self.value.len() {
            let mut plus = |x: f32| {
                self.value[i] += f64::from(x);
                self.magnitude[i] += f64::from(x.abs());
            };
            if e.accumulate {
                plus(before[i]);
            }
            if let Some(bias) = e.bias {
                plus(bias[i % columns]);
            }
            if let Some(residual) = e.residual {
                plus(residual[i]);
            }
            let x = self.value[i];
            self.value[i] = match e.act {
                Act::Silu => x / (1.0 + (-x).exp()),
                act => f64::from(act.apply(x as f32)),
            };
        }
    }

    /// Each of the terms is rounded at most twice (product and sum), and so are three of the epilogue:
    /// |error| ≤ (2·terms + 6)·2⁻²⁴·Σ|term| (Higham 2002, §3.1). Activations are Lipschitz with 1.1 at
    /// most and add their own 5e-7.
    pub fn assert_close(&self, got: &[f32], what: &str) {
        assert_eq!(got.len(), self.value.len(), "{what}");
        for (i, &g) in got.iter().enumerate() {
            let bound = (2 * self.terms + 6) as f64 * 2f64.powi(-24) * self.magnitude[i] * 1.1 + 5e-7;
            let error = (f64::from(g) - self.value[i]).abs();
            assert!(error <= bound, "{what}: [{i}] is {g}, not {} ({error:e} > {bound:e})", self.value[i]);
        }
    }
}

/// Calls `f(input pixel offset, weight offset, output offset)` for each multiply-add of a convolution.
pub fn each_mac(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    let (ci, co) = (g.cin / g.groups, g.cout / g.groups);
    for b in 0..g.n {
        for oy in 0..g.oh() {
            for ox in 0..g.ow() {
                for ky in 0..g.kh {
                    for kx in 0..g.kw {
                        let iy = (oy * g.stride + ky).wrapping_sub(g.pad.top);
                        let ix = (ox * g.stride + kx).wrapping_sub(g.pad.left);
                        if iy >= g.h || ix >= g.w {
                            continue;
                        }
                        for o in 0..g.cout {
                            for c in 0..ci {
                                let x = ((b * g.h + iy) * g.w + ix) * g.cin + o / co * ci + c;
                                let w = ((ky * g.kw + kx) * ci + c) * g.cout + o;
                                let y = ((b * g.oh() + oy) * g.ow() + ox) * g.cout + o;
                                f(x, w, y);
                            }
                        }
                    }
                }
            }
        }
    }
}
