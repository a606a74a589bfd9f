//! RealNet's graphs: features of a picture, one training step, and a whole judgement.

use super::spec::{BankSpec, ImageScore, NetSpec, Residual, Scale};
use crate::engine::{
    Adam, Binary, Graph, GraphError, Norm, Op, Pool, Reduce, Resize, Shape, Unary, Value, Window, gradients,
};
use crate::nets::recon_unet::recon_unet;
use crate::nets::rrs_head::{Mode, head, select};
use crate::nets::{NetError, build};

/// Standardised features are clamped to ± this many deviations.
const CLAMP: f32 = 8.0;
/// Parameters of the optimiser: `adam.m.…` and `adam.v.…`.
pub const ADAM_PREFIX: &str = "adam";
/// The ranking's running statistics: the paper's .9 is kept for imports only.
const RANK_MOMENTUM: f32 = 0.1;

/// Parameter of the channels kept of scale `index` (from 0).
pub fn selection_name(index: usize) -> String {
    format!("afs.indexes.block{0}_layer{0}", index + 1)
}

/// Parameter of the mean and variance of the channels kept of scale `index`.
pub fn moments_name(index: usize) -> String {
    format!("features.block{}.moments", index + 1)
}

pub const BANK_WEIGHT: &str = "bank.weight";
/// Mean distance of normals at every position: what lies at the border sees padding, is rarer, and is
/// farther from everything without being worse.
pub const BANK_USUAL: &str = "bank.usual";
pub const BANK_BIAS: &str = "bank.bias";

fn unet_name(index: usize) -> String {
    format!("recon.block{}_recon", index + 1)
}

/// The backbone's activations at `tap_names`, from `image` N×S×S×3.
pub fn taps(g: &mut Graph, image: Value, spec: &NetSpec) -> Result<Vec<Value>, NetError> {
    let named = build(g, spec.backbone, image, &tap_names(spec))?;
    Ok(named.into_iter().map(|(_, value)| value).collect())
}

/// Names of all taps that a network needs: one per scale, then the bank's.
pub fn tap_names(spec: &NetSpec) -> Vec<&'static str> {
    let scales = spec.scales.iter().map(|s| s.tap);
    scales.chain(spec.bank.iter().flat_map(|b| b.taps.iter().map(|t| t.0))).collect()
}

/// The features that are reconstructed: chosen channels, standardised, clamped.
pub fn kept(g: &mut Graph, tapped: &[Value], spec: &NetSpec) -> Result<Vec<Value>, GraphError> {
    let mut out = vec![];
    for (index, (scale, x)) in spec.scales.iter().zip(tapped).enumerate() {
        let mut x = *x;
        if scale.keep < scale.channels {
            let indices = g.index_param(&selection_name(index), Shape::vector(scale.keep))?;
            x = g.gather(x, indices)?;
        }
        if spec.standardise {
            let moments = g.param(&moments_name(index), Shape::new(1, 1, 2, scale.keep))?;
            x = g.normalize(Norm::Batch, 0.0, x, moments, None)?;
            x = g.unary(Unary::Clamp { lo: -CLAMP, hi: CLAMP }, x)?;
        }
        out.push(x);
    }
    Ok(out)
}

/// Patch features of the bank on the finest tap's grid: 3×3 means, joined.
pub fn patches(g: &mut Graph, tapped: &[Value]) -> Result<Value, GraphError> {
    let mut joined = vec![];
    let Some(finest) = tapped.first().map(|x| g.shape(*x)) else {
        return Err(GraphError { node: "bank".into(), message: "has no taps".into() });
    };
    for x in tapped {
        let mean = g.pool(Pool::Avg, *x, Window { size: 3, stride: 1, pad: 1 })?;
        joined.push(g.resize(Resize::Bilinear, mean, finest.h(), finest.w())?);
    }
    g.concat(3, &joined)
}

/// Distance of every patch to the nearest in the bank: √min(|x|² − 2x·b + |b|²). The bank is a 1×1
/// convolution with weight −2b and bias |b|².
fn distance(g: &mut Graph, patches: Value, bank: &BankSpec) -> Result<Value, GraphError> {
    let weight = g.param(BANK_WEIGHT, Shape::new(1, 1, bank.channels(), bank.vectors))?;
    let bias = g.param(BANK_BIAS, Shape::vector(bank.vectors))?;
    let cross = g.conv2d(patches, weight, Some(bias), crate::engine::Conv::new(1, 0))?;
    let over_channels = [false, false, false, true];
    let nearest = g.reduce(Reduce::Min, cross, over_channels)?;
    let squares = g.unary(Unary::Square, patches)?;
    let norm = g.reduce(Reduce::Sum, squares, over_channels)?;
    let squared = g.add(nearest, norm)?;
    let squared = g.unary(Unary::Clamp { lo: 0.0, hi: f32::MAX }, squared)?;
    g.unary(Unary::Sqrt, squared)
}

/// Reconstructions of all scales.
fn reconstruct(g: &mut Graph, features: &[Value], spec: &NetSpec) -> Result<Vec<Value>, GraphError> {
    let scales = features.iter().zip(&spec.scales).enumerate();
    scales.map(|(i, (x, scale))| recon_unet(g, *x, &scale.unet, &unet_name(i))).collect()
}

/// Logits of the head from features and their reconstructions.
fn logits(
    g: &mut Graph,
    features: &[Value],
    reconstructed: &[Value],
    spec: &NetSpec,
    mode: Mode,
) -> Result<Value, GraphError> {
    let side = spec.side();
    let resize = if spec.aligned { Resize::BilinearAligned } else { Resize::Bilinear };
    let mut residuals = vec![];
    for (f, r) in features.iter().zip(reconstructed) {
        let difference = g.sub(*f, *r)?;
        let mut e = g.unary(Unary::Square, difference)?;
        if spec.residual == Residual::LogSquared {
            e = g.unary(Unary::Log1p, e)?;
        }
        residuals.push(g.resize(resize, e, side, side)?);
    }
    let joined = g.concat(3, &residuals)?;
    let chosen = select(g, joined, spec.selection, mode, "rrs")?;
    let y = head(g, chosen, spec.head, mode, "rrs")?;
    let target = spec.target_side();
    g.resize(resize, y, target, target)
}

/// Shape of a batch of kept features of one scale.
pub fn feature_shape(spec: &NetSpec, scale: &Scale, batch: usize) -> Shape {
    let side = spec.input / scale.stride;
    Shape::new(batch, side, side, scale.keep)
}

/// One training step. Inputs `presented.{i}` and `normal.{i}` per scale, `target` N×T×T×1, `rate`
/// (learning rate, 1 − β₁ᵗ, 1 − β₂ᵗ) and `loss_scale`, by which gradients are multiplied on their way so
/// that fp16 holds them, and divided before they are used; outputs as named.
#[derive(Debug)]
pub struct TrainStep {
    pub graph: Graph,
    /// `loss`, `reconstruction`, `segmentation`, `gradient_norm`: scalars. Where the norm is not finite,
    /// nothing was learnt: the step is skipped.
    pub outputs: Vec<(&'static str, Value)>,
}

pub fn train_step(spec: &NetSpec) -> Result<TrainStep, GraphError> {
    let mut g = Graph::new();
    let batch = spec.optimiser.batch;
    let mut presented = vec![];
    let mut normal = vec![];
    for (i, scale) in spec.scales.iter().enumerate() {
        let shape = feature_shape(spec, scale, batch);
        presented.push(g.input(&format!("presented.{i}"), shape));
        normal.push(g.input(&format!("normal.{i}"), shape));
    }
    let side = spec.target_side();
    let target = g.input("target", Shape::new(batch, side, side, 1));
    let rate = g.input("rate", Shape::vector(3));
    let loss_scale = g.input("loss_scale", Shape::SCALAR);

    let mode = Mode::Train { rank_momentum: RANK_MOMENTUM };
    let reconstructed = reconstruct(&mut g, &presented, spec)?;
    let y = logits(&mut g, &presented, &reconstructed, spec, mode)?;
    let segmentation = g.cross_entropy(y, target)?;
    let mut reconstruction: Option<Value> = None;
    for (r, f) in reconstructed.iter().zip(&normal) {
        let one = g.mse(*r, *f)?;
        reconstruction = Some(match reconstruction {
            Some(sum) => g.add(sum, one)?,
            None => one,
        });
    }
    let Some(reconstruction) = reconstruction else {
        return Err(GraphError { node: "loss".into(), message: "the network has no scales".into() });
    };
    let loss = g.add(reconstruction, segmentation)?;

    let trained: Vec<Value> =
        g.params().filter(|(name, _)| !name.ends_with(".moments")).map(|(_, v)| v).collect();
    let scaled = g.mul(loss, loss_scale)?;
    let grads = gradients(&mut g, scaled, &trained)?;
    // A norm that is not finite makes the factor no number, and Adam then does nothing: norm − norm is 0
    // for all others. Without clipping the factor is 1.
    let squares = g.apply(Op::SumSquares, &grads)?;
    let scaled_norm = g.unary(Unary::Sqrt, squares)?;
    let norm = g.binary(Binary::Div, scaled_norm, loss_scale)?;
    let clip = g.fill(Shape::SCALAR, spec.optimiser.clip.min(f32::MAX));
    let larger = g.binary(Binary::Max, norm, clip)?;
    let clipped = g.binary(Binary::Div, clip, larger)?;
    let unscaled = g.binary(Binary::Div, clipped, loss_scale)?;
    let finite = g.sub(norm, norm)?;
    let scale = g.add(unscaled, finite)?;
    let [beta1, beta2] = spec.optimiser.betas;
    let adam = Adam { beta1, beta2, eps: 1e-8, weight_decay: spec.optimiser.weight_decay };
    for (param, grad) in trained.iter().zip(&grads) {
        g.adam(*param, *grad, rate, scale, adam, ADAM_PREFIX)?;
    }
    let outputs = vec![
        ("loss", loss),
        ("reconstruction", reconstruction),
        ("segmentation", segmentation),
        ("gradient_norm", norm),
    ];
    Ok(TrainStep { graph: g, outputs })
}

/// What teaching looks at before features are chosen: input `image` N×S×S×3, outputs `tap.{i}` per
/// scale, all channels, and `patches`, where the preset has a bank.
pub fn survey(spec: &NetSpec, batch: usize) -> Result<(Graph, Vec<(String, Value)>), NetError> {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(batch, spec.input, spec.input, 3));
    let tapped = taps(&mut g, image, spec)?;
    let (scales, bank_taps) = tapped.split_at(spec.scales.len());
    let mut outputs: Vec<_> = scales.iter().enumerate().map(|(i, x)| (format!("tap.{i}"), *x)).collect();
    if spec.bank.is_some() {
        outputs.push(("patches".into(), patches(&mut g, bank_taps)?));
    }
    Ok((g, outputs))
}

/// The bank alone: input `image` 1×S×S×3, output the distance of every position.
pub fn distances(spec: &NetSpec, bank: &BankSpec) -> Result<(Graph, Value), NetError> {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(1, spec.input, spec.input, 3));
    let tapped: Vec<_> =
        build(&mut g, spec.backbone, image, &bank.taps.map(|t| t.0))?.into_iter().map(|t| t.1).collect();
    let x = patches(&mut g, &tapped)?;
    let far = distance(&mut g, x, bank)?;
    Ok((g, far))
}

/// Features as they are reconstructed: input `image` N×S×S×3, outputs `kept.{i}` per scale.
pub fn features(spec: &NetSpec, batch: usize) -> Result<(Graph, Vec<(String, Value)>), NetError> {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(batch, spec.input, spec.input, 3));
    let tapped = taps(&mut g, image, spec)?;
    let chosen = kept(&mut g, &tapped[..spec.scales.len()], spec)?;
    let outputs = chosen.into_iter().enumerate().map(|(i, x)| (format!("kept.{i}"), x)).collect();
    Ok((g, outputs))
}

/// A graph and its named outputs.
pub type Judgement = (Graph, Vec<(&'static str, Value)>);

/// A whole judgement of one picture.
pub fn judgement(spec: &NetSpec) -> Result<Judgement, NetError> {
    judgement_of(spec, 1)
}

/// Whole judgements of N pictures, none of which has a say in another's: input `image` N×S×S×3, normalised.
/// Outputs: `map` N×S×S×1, probability of an anomaly; `logit` N×T×T×1, the difference of the two logits, where the
/// preset scores by it, or `pooled` N×1×1×1, where it scores by pooled probability; `distance` N×T×T×1, where it
/// has a bank.
pub fn judgement_of(spec: &NetSpec, pictures: usize) -> Result<Judgement, NetError> {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(pictures, spec.input, spec.input, 3));
    let tapped = taps(&mut g, image, spec)?;
    let (scales, bank_taps) = tapped.split_at(spec.scales.len());
    let features = kept(&mut g, scales, spec)?;
    let reconstructed = reconstruct(&mut g, &features, spec)?;
    let y = logits(&mut g, &features, &reconstructed, spec, Mode::Judge)?;
    let resize = if spec.aligned { Resize::BilinearAligned } else { Resize::Bilinear };
    let map = g.anomaly_map(y, resize, spec.input, spec.input)?;
    let mut outputs = vec![("map", map)];
    outputs.push(match spec.score {
        ImageScore::TopLogits(_) => ("logit", g.logit_difference(y)?),
        ImageScore::PooledProbability(size) => ("pooled", g.largest_mean(map, size)?),
    });
    if let Some(bank) = &spec.bank {
        let x = patches(&mut g, bank_taps)?;
        let far = distance(&mut g, x, bank)?;
        let s = g.shape(far);
        let usual = g.param(BANK_USUAL, Shape::new(1, s.h(), s.w(), 1))?;
        outputs.push(("distance", g.sub(far, usual)?));
    }
    Ok((g, outputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::passes;
    use crate::model::Preset;
    use crate::nets::rrs_head::Selection;

    fn count(g: &Graph, prefix: &str) -> usize {
        g.params()
            .filter(|(name, _)| name.starts_with(prefix) && !name.ends_with(".moments"))
            .map(|(_, v)| g.shape(v).len())
            .sum()
    }

    #[test]
    fn every_preset_builds_its_judgement_and_its_training_step() {
        for preset in Preset::ALL {
            let spec = NetSpec::of(preset);
            let (g, outputs) = judgement(&spec).unwrap();
            let map = outputs.iter().find(|(name, _)| *name == "map").unwrap().1;
            assert_eq!(g.shape(map), Shape::new(1, 256, 256, 1), "{preset:?}");
            let step = train_step(&spec).unwrap();
            let names = |g: &Graph| -> Vec<String> {
                let of_net = |n: &&str| n.starts_with("recon.") || n.starts_with("rrs.");
                let mut names: Vec<_> =
                    g.params().map(|(n, _)| n).filter(of_net).map(str::to_owned).collect();
                names.sort();
                names
            };
            assert_eq!(names(&g), names(&step.graph), "{preset:?}");
        }
    }

    #[test]
    fn the_papers_preset_has_the_papers_size_and_lean_a_sixteenth_of_it() {
        let (g, _) = judgement(&NetSpec::of(Preset::Realnet)).unwrap();
        assert_eq!((count(&g, "recon."), count(&g, "rrs.")), (518_236_160, 5_872_662));
        let (g, _) = judgement(&NetSpec::of(Preset::Lean)).unwrap();
        assert_eq!((count(&g, "recon.") as f64 / 1e5).round(), 336.0);
        assert_eq!((count(&g, "rrs.") as f64 / 1e4).round(), 52.0);
    }

    #[test]
    fn the_presets_that_rank_judge_without_a_stack_of_residuals() {
        for preset in Preset::ALL {
            let spec = NetSpec::of(preset);
            let (mut g, outputs) = judgement(&spec).unwrap();
            let outputs: Vec<Value> = outputs.iter().map(|o| o.1).collect();
            passes::select_residuals(&mut g, &outputs);
            let channels: usize = spec.scales.iter().map(|s| s.keep).sum();
            let live: Vec<_> = passes::live(&g, &outputs);
            let nodes = || g.nodes().iter().zip(&live).filter(|(_, live)| **live).map(|(n, _)| n);
            let ranked = matches!(spec.selection, Selection::Ranked { .. });
            let chosen = nodes().any(|n| matches!(n.op, Op::ResidualGather(_)));
            assert_eq!(chosen, ranked, "{preset:?}");
            let side = spec.side();
            let stacked = nodes().any(|n| n.shape == Shape::new(1, side, side, channels));
            assert_eq!(stacked, !ranked, "{preset:?}");
        }
    }
}
