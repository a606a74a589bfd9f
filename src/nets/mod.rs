//! Networks as graphs. A builder appends nodes and yields the values at its taps; it knows no weights,
//! no device and no training.
//!
//! Backbones keep the parameter names of their PyTorch sources, except that a batch norm's running mean
//! and variance are one tensor, `{bn}.moments`; `import_weights` converts.

mod efficientnet_lite;
mod import;
mod random;
pub mod recon_unet;
pub mod rrs_head;
mod wide_resnet;

use std::fmt;
use std::str::FromStr;

use crate::engine::{Act, Conv, Graph, GraphError, GraphResult, Shape, Value};

pub use import::{WEIGHTS_FORMAT, import_weights, load_weights, save_weights};
pub use random::{formula_stream, random_weights};

/// A backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    EfficientnetLite0,
    WideResnet50_2,
}

impl Arch {
    pub const ALL: [Arch; 2] = [Arch::EfficientnetLite0, Arch::WideResnet50_2];

    pub const fn name(self) -> &'static str {
        match self {
            Arch::EfficientnetLite0 => "efficientnet_lite0",
            Arch::WideResnet50_2 => "wide_resnet50_2",
        }
    }

    /// The taps that `inspectd forward` writes, shallow to deep.
    pub const fn default_taps(self) -> &'static [&'static str] {
        match self {
            Arch::EfficientnetLite0 => &["block2", "block4", "block10", "block15"],
            Arch::WideResnet50_2 => &["layer1", "layer2", "layer3", "layer4"],
        }
    }

    /// Names and shapes of all parameters that feed any tap, in the order of use.
    pub fn params(self) -> Vec<(String, Shape)> {
        let mut g = Graph::new();
        let image = g.input("image", Shape::new(1, 64, 64, 3));
        let deepest = self.default_taps().last().copied().unwrap_or_default();
        build(&mut g, self, image, &[deepest]).expect("the deepest tap exists and 64×64 fits every layer");
        g.params().map(|(name, value)| (name.to_owned(), g.shape(value))).collect()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = NetError;

    fn from_str(name: &str) -> Result<Self, NetError> {
        Arch::ALL
            .into_iter()
            .find(|arch| arch.name() == name)
            .ok_or_else(|| NetError::UnknownArch { name: name.to_owned() })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("there is no network `{name}`; known are {}", known_archs())]
    UnknownArch { name: String },
    #[error("{arch} has no tap `{tap}`; its taps are {known}")]
    UnknownTap { arch: Arch, tap: String, known: String },
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Keys that are missing, of another shape, or hold numbers that are not finite.
    #[error("these are not the weights of {arch}: {}", list(problems))]
    Weights { arch: Arch, problems: Vec<String> },
    #[error("these weights were imported as {found}, not as {wanted}")]
    OtherArch { wanted: Arch, found: String },
    #[error(transparent)]
    File(#[from] crate::weights::WeightsError),
}

fn known_archs() -> String {
    Arch::ALL.map(Arch::name).join(", ")
}

/// The first few, and how many more.
fn list(problems: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = problems.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// Appends `arch` on `image` (N×H×W×3, normalised as the weights were trained: ImageNet mean and
/// standard deviation) up to the deepest of `taps`, and yields the taps in the order asked for.
///
/// WideResNet50-2: `layer1` … `layer4`, strides 4, 8, 16, 32. EfficientNet-Lite0: `block0` … `block15`,
/// the blocks' outputs, and from `block1` on `blockN.expand`, the expansion after its ReLU6.
pub fn build(
    g: &mut Graph,
    arch: Arch,
    image: Value,
    taps: &[&str],
) -> Result<Vec<(String, Value)>, NetError> {
    let mut collected = Taps { wanted: taps, found: vec![None; taps.len()], seen: vec![] };
    match arch {
        Arch::EfficientnetLite0 => efficientnet_lite::build(g, image, &mut collected)?,
        Arch::WideResnet50_2 => wide_resnet::build(g, image, &mut collected)?,
    }
    let Taps { wanted, found, seen } = collected;
    wanted
        .iter()
        .zip(found)
        .map(|(&tap, value)| {
            let value = value.ok_or_else(|| NetError::UnknownTap {
                arch,
                tap: tap.to_owned(),
                known: seen.join(", "),
            })?;
            Ok((tap.to_owned(), value))
        })
        .collect()
}

/// Collects the taps that were asked for while a network is built.
struct Taps<'a> {
    wanted: &'a [&'a str],
    found: Vec<Option<Value>>,
    seen: Vec<String>,
}

impl Taps<'_> {
    fn offer(&mut self, name: String, value: Value) {
        for (wanted, found) in self.wanted.iter().zip(&mut self.found) {
            if *wanted == name {
                *found = Some(value);
            }
        }
        self.seen.push(name);
    }

    /// Whether nothing deeper is needed.
    fn done(&self) -> bool {
        self.found.iter().all(Option::is_some)
    }
}

/// One convolution without bias, its batch norm by running moments, and an activation.
struct ConvBn<'a> {
    conv_name: &'a str,
    bn_name: &'a str,
    kernel: usize,
    out_channels: usize,
    conv: Conv,
    eps: f32,
    act: Act,
}

impl ConvBn<'_> {
    fn append(&self, g: &mut Graph, x: Value) -> GraphResult {
        let cin = g.shape(x).c() / self.conv.groups.max(1);
        let shape = Shape::new(self.kernel, self.kernel, cin, self.out_channels);
        let w = g.param(&format!("{}.weight", self.conv_name), shape)?;
        let y = g.conv2d(x, w, None, self.conv)?;
        let y = g.batch_norm_eval(y, self.eps, self.bn_name)?;
        g.act(self.act, y)
    }
}

#[cfg(test)]
mod tests;
