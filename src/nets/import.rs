//! From other people's weights to ours: names, layouts, running moments.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Arch, NetError, efficientnet_lite};
use crate::engine::{ParamStore, Shape, Tensor};
use crate::weights::{self, RawTensor};

/// `format` in the metadata of a backbone file that `inspectd import` wrote.
pub const WEIGHTS_FORMAT: &str = "inspectd-weights";

/// How one source names a parameter of ours.
type Naming = fn(&str) -> String;

fn as_ours(name: &str) -> String {
    name.to_owned()
}

/// timm's `tf_efficientnet_lite0`. Its `efficientnet_lite0` has the same keys but pads symmetrically
/// and has another eps: those weights load, and give worse features than they could.
fn as_timm_efficientnet(name: &str) -> String {
    let Some((block, part)) = name.strip_prefix("_blocks.").and_then(|rest| rest.split_once('.')) else {
        return name.replacen("_conv_stem", "conv_stem", 1).replacen("_bn0", "bn1", 1);
    };
    let index: usize = block.parse().unwrap_or(usize::MAX);
    let (stage, place) = efficientnet_lite::places().nth(index).unwrap_or_default();
    let (layer, field) = part.split_once('.').unwrap_or((part, ""));
    // The first block has no expansion, and timm counts its layers from there.
    let layer = match (index, layer) {
        (0, "_project_conv") => "conv_pw",
        (0, "_bn1") => "bn1",
        (0, "_bn2") => "bn2",
        (_, "_expand_conv") => "conv_pw",
        (_, "_depthwise_conv") => "conv_dw",
        (_, "_project_conv") => "conv_pwl",
        (_, "_bn0") => "bn1",
        (_, "_bn1") => "bn2",
        _ => "bn3",
    };
    format!("blocks.{stage}.{place}.{layer}.{field}")
}

/// Per source: its naming and a key that tells it, and any prefix before it, apart.
fn namings(arch: Arch) -> &'static [(Naming, &'static str)] {
    match arch {
        Arch::EfficientnetLite0 => &[
            (as_ours, "_blocks.0._depthwise_conv.weight"),
            (as_timm_efficientnet, "blocks.0.0.conv_dw.weight"),
        ],
        Arch::WideResnet50_2 => &[(as_ours, "layer1.0.conv1.weight")],
    }
}

/// Converts a PyTorch state dictionary: torchvision's and timm's names, behind any common prefix (a
/// published RealNet checkpoint has its backbone under `backbone.feature_extractor.`). Convolutions turn
/// from O·I·H·W to H·W·I·O, running means and variances become `moments`; the classifier and anything
/// else that feeds no tap is dropped.
pub fn import_weights(arch: Arch, mut tensors: BTreeMap<String, RawTensor>) -> Result<ParamStore, NetError> {
    let (naming, prefix) = namings(arch)
        .iter()
        .find_map(|(naming, anchor)| Some((*naming, shortest_prefix(&tensors, anchor)?)))
        .unwrap_or((as_ours, String::new()));
    let mut store = ParamStore::new();
    let mut problems = vec![];
    let mut take = |name: &str, problems: &mut Vec<String>| {
        let key = format!("{prefix}{}", naming(name));
        let found = tensors.remove(&key);
        if found.is_none() {
            problems.push(format!("`{key}` is missing"));
        }
        found
    };
    for (name, shape) in arch.params() {
        let data = match name.strip_suffix(".moments") {
            Some(bn) => {
                let mean = take(&format!("{bn}.running_mean"), &mut problems);
                let variance = take(&format!("{bn}.running_var"), &mut problems);
                let (Some(mean), Some(variance)) = (mean, variance) else { continue };
                let row = Shape::vector(shape.c());
                convert(&format!("{bn}.running_mean"), mean, row, &mut problems)
                    .zip(convert(&format!("{bn}.running_var"), variance, row, &mut problems))
                    .map(|(mean, variance)| [mean, variance].concat())
            }
            None => match take(&name, &mut problems) {
                Some(raw) => convert(&name, raw, shape, &mut problems),
                None => continue,
            },
        };
        if let Some(data) = data {
            store.insert(name, Tensor::new(shape, data));
        }
    }
    if problems.is_empty() { Ok(store) } else { Err(NetError::Weights { arch, problems }) }
}

fn shortest_prefix(tensors: &BTreeMap<String, RawTensor>, anchor: &str) -> Option<String> {
    tensors
        .keys()
        .filter_map(|key| key.strip_suffix(anchor))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .min_by_key(|prefix| prefix.len())
        .map(str::to_owned)
}

/// Elements in our layout, or a note of what is wrong.
fn convert(name: &str, raw: RawTensor, shape: Shape, problems: &mut Vec<String>) -> Option<Vec<f32>> {
    let [kh, kw, cin, cout] = shape.0;
    let is_conv = !(shape == Shape::vector(shape.c()));
    let expected = if is_conv { vec![cout, cin, kh, kw] } else { vec![cout] };
    if raw.shape != expected {
        problems.push(format!("`{name}` is {:?} instead of {expected:?}", raw.shape));
        return None;
    }
    let source = raw.into_reals();
    if source.iter().any(|x| !x.is_finite()) {
        problems.push(format!("`{name}` holds a number that is not finite"));
        return None;
    }
    if !is_conv {
        return Some(source);
    }
    let mut data = vec![0.0; source.len()];
    let taps = kh * kw;
    for o in 0..cout {
        for i in 0..cin {
            for t in 0..taps {
                data[(t * cin + i) * cout + o] = source[(o * cin + i) * taps + t];
            }
        }
    }
    Some(data)
}

/// Reads a backbone's weights: our own file, or anything that `import_weights` converts.
pub fn load_weights(path: &Path, arch: Arch) -> Result<ParamStore, NetError> {
    let content = weights::read_content(path)?;
    if content.metadata.get("format").map(String::as_str) != Some(WEIGHTS_FORMAT) {
        return import_weights(arch, content.tensors);
    }
    if let Some(found) = content.metadata.get("arch").filter(|found| *found != arch.name()) {
        return Err(NetError::OtherArch { wanted: arch, found: found.clone() });
    }
    let mut tensors = content.tensors;
    let mut store = ParamStore::new();
    let mut problems = vec![];
    for (name, shape) in arch.params() {
        match tensors.remove(&name) {
            None => problems.push(format!("`{name}` is missing")),
            Some(raw) if raw.shape != shape.0 => {
                problems.push(format!("`{name}` is {:?} instead of {:?}", raw.shape, shape.0));
            }
            Some(raw) => store.insert(name, Tensor::new(shape, raw.into_reals())),
        }
    }
    if problems.is_empty() { Ok(store) } else { Err(NetError::Weights { arch, problems }) }
}

/// Writes a backbone's weights as our own file.
pub fn save_weights(path: &Path, arch: Arch, params: &ParamStore) -> Result<(), NetError> {
    let metadata = BTreeMap::from([
        ("format".to_owned(), WEIGHTS_FORMAT.to_owned()),
        ("arch".to_owned(), arch.name().to_owned()),
        ("inspectd_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    Ok(weights::write_params(path, params, &metadata)?)
}

#[cfg(test)]
pub(super) fn naming_for_tests(name: &str) -> String {
    as_timm_efficientnet(name)
}
