//! What happens to a tile of results before it is stored: bias, residual, activation.
//!
//! ```text
//! y = act(x + [y if accumulate] + bias[n] + residual[m, n])
//! ```

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};

/// Activation functions, applied last.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Act {
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x for x > 0, else slope·x; slope in 0..=1.
    LeakyRelu(f32),
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// x·sigmoid(x), also known as swish
    Silu,
    /// (1 - e^-2x) / (1 + e^-2x)
    Tanh,
    /// The tanh form: x·sigmoid(2·√(2/π)·(x + 0.044715·x³))  (Hendrycks & Gimpel 2016, §2)
    GeluTanh,
}

impl Act {
    /// The definition, one value at a time.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Relu6 => Self::Relu.apply(if x > 6.0 { 6.0 } else { x }),
            Self::LeakyRelu(slope) => {
                if x < 0.0 {
                    slope * x
                } else {
                    x
                }
            }
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::GeluTanh => x / (1.0 + (-GELU_SCALE * (x + 0.044_715 * x * x * x)).exp()),
        }
    }

    /// The part that kernels apply in registers; the rest follows by [`act_in_place`] on the stored
    /// tile, which is still in the first-level cache.
    pub(super) fn in_register(self) -> Self {
        if self.needs_pass() { Self::None } else { self }
    }

    pub(super) fn needs_pass(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Silu | Self::Tanh | Self::GeluTanh)
    }
}

/// 2·√(2/π)
const GELU_SCALE: f32 = 1.595_769;

/// What to do with each result before it is stored. The default stores it as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One value per column (output channel).
    pub bias: Option<&'a [f32]>,
    /// Same shape and layout as the output; must not overlap it (use `accumulate` for that).
    pub residual: Option<&'a [f32]>,
    /// Add to what the output holds, instead of overwriting it.
    pub accumulate: bool,
    pub act: Act,
}

impl<'a> Epilogue<'a> {
    /// act(x + bias)
    pub fn bias_act(bias: &'a [f32], act: Act) -> Self {
        Self { bias: Some(bias), act, ..Self::default() }
    }

    /// x + y
    pub fn accumulate() -> Self {
        Self { accumulate: true, ..Self::default() }
    }

    pub(super) fn check(&self, columns: usize, outputs: usize) {
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), columns, "one bias per output channel");
        }
        if let Some(residual) = self.residual {
            assert_eq!(residual.len(), outputs, "the residual has the output's shape");
        }
    }
}

#[inline(always)]
pub(super) unsafe fn act_vector<S: Simd>(act: Act, v: S::V) -> S::V {
    // SAFETY: arithmetic only; the caller vouches for the instruction set.
    unsafe {
        match act {
            Act::Relu => S::max(S::splat(0.0), v),
            Act::Relu6 => S::max(S::splat(0.0), S::min(S::splat(6.0), v)),
            Act::LeakyRelu(slope) => S::max(S::mul(S::splat(slope), v), v),
            _ => v,
        }
    }
}

/// y = act(y) over a slice, vectorised; for Sigmoid, Silu, Tanh and GeluTanh within 4e-7 relative plus
/// 1e-7 absolute of [`Act::apply`] computed in f64.
pub fn act_in_place(isa: Isa, act: Act, y: &mut [f32]) {
    match isa {
        // SAFETY: a pool or test hands out only sets that the machine supports (`Isa::is_supported`).
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { act_avx512(act, y) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { act_avx2(act, y) },
        _ => act_body::<Portable>(act, y),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn act_avx512(act: Act, y: &mut [f32]) {
    act_body::<Avx512>(act, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn act_avx2(act: Act, y: &mut [f32]) {
    act_body::<Avx2>(act, y);
}

/// The compiler vectorises these loops with whatever set the instantiating function enables; the type
/// parameter only keeps the three apart.
#[inline(always)]
fn act_body<S: Simd>(act: Act, y: &mut [f32]) {
    match act {
        Act::None => {}
        Act::Sigmoid => y.iter_mut().for_each(|x| *x = 1.0 / (1.0 + exp(-*x))),
        Act::Silu => y.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x)),
        Act::Tanh => y.iter_mut().for_each(|x| *x = tanh(*x)),
        Act::GeluTanh => y.iter_mut().for_each(|x| {
            *x /= 1.0 + exp(-GELU_SCALE * (*x + 0.044_715 * *x * *x * *x));
        }),
        _ => y.iter_mut().for_each(|x| *x = act.apply(*x)),
    }
}

/// Near 0 the exponential form cancels: there an odd polynomial (Taylor to x⁹; the next term is below
/// 2e-8 relative at 1/4) takes over.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let s = x * x;
    let small = x + x * s * (-0.333_333_33 + s * (0.133_333_33 + s * (-0.053_968_254 + s * 0.021_869_488)));
    let e = exp(-2.0 * x.abs());
    let large = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < 0.25 { small } else { large }
}

/// eˣ for f32 without branches or calls, so that loops over it vectorise: x = n·ln2 + r with
/// |r| ≤ ln2/2, a degree-6 Taylor polynomial in r (its remainder r⁷/5040 is below 1.3e-7), exponent n
/// added to the bits. Clamped to ±87, where e^-87 = 1.6e-38 is the last normal number; NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding 1.5·2²³ rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0 / 120.0 + r * (1.0 / 720.0);
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * p))));
    let exponent = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    p * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(act: Act, x: f64) -> f64 {
        match act {
            Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Act::Silu => x / (1.0 + (-x).exp()),
            Act::Tanh => x.tanh(),
            Act::GeluTanh => x / (1.0 + (-f64::from(GELU_SCALE) * (x + 0.044715 * x * x * x)).exp()),
            _ => f64::from(act.apply(x as f32)),
        }
    }

    #[test]
    fn vector_activations_equal_their_definitions() {
        let acts = [
            Act::None,
            Act::Relu,
            Act::Relu6,
            Act::LeakyRelu(0.1),
            Act::Sigmoid,
            Act::Silu,
            Act::Tanh,
            Act::GeluTanh,
        ];
        let inputs: Vec<f32> =
            (-4000..=4000).map(|i| i as f32 * 0.005).chain([0.0, -80.0, 80.0, 500.0]).collect();
        for isa in Isa::available() {
            for act in acts {
                let mut y = inputs.clone();
                act_in_place(isa, act, &mut y);
                for (&x, &got) in inputs.iter().zip(&y) {
                    let want = exact(act, f64::from(x));
                    // exp: 1.3e-7 from the series, 3 roundings of 6e-8; for gelu the argument's own rounding,
                    // up to |argument|·1.2e-7, is a relative error of the exponential (argument ≤ 90).
                    let tolerance = match act {
                        Act::GeluTanh => 1e-5 * want.abs() + 1e-7,
                        _ => 4.5e-7 * want.abs() + 1e-7,
                    };
                    assert!(
                        (f64::from(got) - want).abs() <= tolerance,
                        "{isa:?} {act:?}({x}) = {got}, not {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_nan_stays_a_nan() {
        for isa in Isa::available() {
            for act in [Act::Relu, Act::Relu6, Act::LeakyRelu(0.2), Act::Sigmoid, Act::Silu, Act::Tanh] {
                let mut y = [f32::NAN; 17];
                act_in_place(isa, act, &mut y);
                assert!(y.iter().all(|v| v.is_nan()), "{isa:?} {act:?}");
            }
        }
    }
}
