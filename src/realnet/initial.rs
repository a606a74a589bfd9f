//! Starting values of everything that teaching trains.

use super::draw::{Purpose, stream};
use super::network::ADAM_PREFIX;
use crate::engine::{Graph, ParamStore, Shape, Tensor};
use crate::nets::recon_unet::starts_at_zero;
use crate::nets::rrs_head::SMALL_OUTPUT_BIAS;

/// Fills in every parameter of `g` that `store` lacks: convolutions uniform in ±1/√fan-in (PyTorch's
/// default, Kaiming with a = √5), norms the identity, running statistics of mean 0 and variance 1, the
/// optimiser's moments 0.
pub fn fill_missing(g: &Graph, seed: u64, store: &mut ParamStore) {
    for (index, (name, value)) in g.params().enumerate() {
        if store.contains(name) {
            continue;
        }
        let shape = g.shape(value);
        let tensor = if name.starts_with(ADAM_PREFIX) || starts_at_zero(name) {
            Tensor::zeros(shape)
        } else if name == "rrs.output.bias" && shape == Shape::vector(2) {
            Tensor::vector(SMALL_OUTPUT_BIAS.to_vec())
        } else if let Some(stem) = name.strip_suffix(".bias") {
            let weight = g.params().find(|(n, _)| n.strip_suffix(".weight") == Some(stem));
            match weight.map(|(_, w)| g.shape(w)) {
                Some(weight) if !is_vector(weight) => uniform(seed, index, shape, fan_in(weight)),
                _ => Tensor::zeros(shape),
            }
        } else if name.ends_with(".moments") {
            let mut tensor = Tensor::zeros(shape);
            let half = tensor.data.len() / 2;
            tensor.data[half..].fill(1.0);
            tensor
        } else if is_vector(shape) {
            Tensor::full(shape, 1.0)
        } else {
            uniform(seed, index, shape, fan_in(shape))
        };
        store.insert(name, tensor);
    }
}

/// A norm's weight, as no convolution of these networks has a 1×1×1×C weight.
fn is_vector(shape: Shape) -> bool {
    shape.len() == shape.c()
}

/// Of kh×kw×cin×cout; for a transposed convolution, kh×kw×cout×cin, PyTorch counts the same axes.
fn fan_in(shape: Shape) -> usize {
    shape.n() * shape.h() * shape.w()
}

fn uniform(seed: u64, index: usize, shape: Shape, fan_in: usize) -> Tensor {
    let mut draw = stream(seed, 0, index as u32, Purpose::Initial);
    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
    Tensor::new(shape, (0..shape.len()).map(|_| draw.range(-bound, bound)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::network::train_step;
    use super::super::spec::NetSpec;
    use super::*;
    use crate::model::Preset;

    #[test]
    fn a_small_network_starts_with_no_reconstruction_and_the_norms_as_identity() {
        let step = train_step(&NetSpec::of(Preset::Small)).unwrap();
        let mut store = ParamStore::new();
        fill_missing(&step.graph, 1, &mut store);
        let get = |name: &str| &store.get(name).unwrap().data;
        assert!(get("recon.block1_recon.out.2.weight").iter().all(|v| *v == 0.0));
        assert!(get("recon.block1_recon.out.0.weight").iter().all(|v| *v == 1.0));
        assert!(get("recon.block1_recon.out.0.bias").iter().all(|v| *v == 0.0));
        assert_eq!(get("rrs.output.bias"), &SMALL_OUTPUT_BIAS);
        assert!(get("adam.m.rrs.output.bias").iter().all(|v| *v == 0.0));
        let weight = get("recon.block1_recon.input_blocks.0.weight");
        let bound = 1.0 / (9.0f32 * 48.0).sqrt();
        assert!(weight.iter().all(|v| v.abs() <= bound) && weight.iter().any(|v| v.abs() > 0.9 * bound));
        let moments = get("rrs.input_norm.moments");
        assert_eq!((moments[0], moments[moments.len() / 2]), (0.0, 1.0));
    }

    #[test]
    fn another_seed_starts_elsewhere() {
        let step = train_step(&NetSpec::of(Preset::Small)).unwrap();
        let start = |seed| {
            let mut store = ParamStore::new();
            fill_missing(&step.graph, seed, &mut store);
            store
        };
        assert_eq!(start(1), start(1));
        assert_ne!(start(1), start(2));
    }
}
