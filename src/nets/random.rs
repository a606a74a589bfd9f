//! Weights from a formula: for tests and timing where no trained weights are at hand.

use super::Arch;
use crate::engine::{ParamStore, Shape, Tensor};

/// Reproducible weights under which activations keep a sane size. The numbers follow from the seed,
/// the parameter's name and the element's index by integer arithmetic and one square root, so that
/// `tests/golden/make_backbones.py` makes the very same in Python.
///
/// Convolutions: uniform with variance 2/fan-in (He et al. 2015). Batch norms: weight 1 ± .2 (.4 ± .2
/// where it ends a residual branch, or 16 blocks would double the variance each), bias ± .1, mean ± .1,
/// variance 1 ± .3.
pub fn random_weights(arch: Arch, seed: u64) -> ParamStore {
    let mut store = ParamStore::new();
    for (name, shape) in arch.params() {
        let data = parameter(arch, &name, shape, seed);
        store.insert(name, Tensor::new(shape, data));
    }
    store
}

/// Numbers in [−1, 1) by index, told apart by name and seed: what the weights above are made of.
pub fn formula_stream(name: &str, seed: u64) -> impl Fn(usize) -> f64 {
    let key = fnv1a(name) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move |i| unit(key, i as u64)
}

fn parameter(arch: Arch, name: &str, shape: Shape, seed: u64) -> Vec<f32> {
    let uniform = formula_stream(name, seed);
    let uniform = &uniform;
    let spread = |centre: f64, half: f64| move |i: usize| (centre + half * uniform(i)) as f32;
    let [kh, kw, cin, _] = shape.0;
    let count = 0..shape.len();
    if name.ends_with(".moments") {
        let channels = shape.c();
        let value = |i| if i < channels { spread(0.0, 0.1)(i) } else { spread(1.0, 0.3)(i) };
        count.map(value).collect()
    } else if name.ends_with(".bias") {
        count.map(spread(0.0, 0.1)).collect()
    } else if kh * kw * cin == 1 {
        let centre = if ends_residual(arch, name) { 0.4 } else { 1.0 };
        count.map(spread(centre, 0.2)).collect()
    } else {
        let bound = (6.0 / (kh * kw * cin) as f64).sqrt();
        count.map(spread(0.0, bound)).collect()
    }
}

fn ends_residual(arch: Arch, name: &str) -> bool {
    match arch {
        Arch::WideResnet50_2 => name.ends_with(".bn3.weight"),
        Arch::EfficientnetLite0 => {
            [2, 4, 6, 7, 9, 10, 12, 13, 14].iter().any(|block| name == format!("_blocks.{block}._bn2.weight"))
        }
    }
}

/// FNV-1a, 64 bits.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Element `i` of the stream `key`, in [−1, 1): splitmix64's finaliser, its upper 53 bits.
fn unit(key: u64, i: u64) -> f64 {
    let mut z = key.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}
