//! Presets: every number that makes one RealNet differ from another.

use super::blend::BlendSpec;
use super::masks::ShapeMix;
use super::sources::SourceMix;
use crate::model::Preset;
use crate::nets::Arch;
use crate::nets::recon_unet::UnetSpec;
use crate::nets::rrs_head::{HeadSpec, Selection};

/// One scale of features: where they are tapped, how many are kept, what reconstructs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub tap: &'static str,
    /// Channels of the tap.
    pub channels: usize,
    /// Input pixels per position.
    pub stride: usize,
    /// Channels that feature selection keeps; all of them where equal to `channels`.
    pub keep: usize,
    pub unet: UnetSpec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// (f − f̂)²
    Squared,
    /// ln(1 + (f − f̂)²): one loud channel does not drown the others.
    LogSquared,
}

/// What the head is taught to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A position is anomalous where the mask covers more than a quarter of it.
    Cells,
    /// Every input pixel.
    Pixels,
}

/// How the anomaly map becomes one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageScore {
    /// Mean of the k largest logit differences.
    TopLogits(usize),
    /// Largest mean probability of a window of this many pixels (RealNet's own).
    PooledProbability(usize),
}

/// A memory of normal patches (PatchCore, sections 3.1–3.2) whose distance joins the image score: a
/// second opinion that owes nothing to how training anomalies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankSpec {
    /// Taps and their channels, finest first; coarser ones are brought to the finest grid.
    pub taps: [(&'static str, usize); 2],
    pub vectors: usize,
    /// The image's distance is the mean of this many largest.
    pub top: usize,
}

impl BankSpec {
    pub fn channels(&self) -> usize {
        self.taps.iter().map(|t| t.1).sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimiserSpec {
    pub rate: f32,
    pub betas: [f32; 2],
    pub weight_decay: f32,
    pub warm_up: usize,
    /// The rate ends, after a cosine, at this share of itself.
    pub final_share: f32,
    /// Largest norm of all gradients together.
    pub clip: f32,
    pub batch: usize,
    /// Iterations that teaching aims at; time may end it before.
    pub iterations: usize,
}

/// A whole RealNet.
#[derive(Clone, Debug, PartialEq)]
pub struct NetSpec {
    pub preset: Preset,
    /// The frozen network that features come from.
    pub backbone: Arch,
    /// Side of the square input, pixels.
    pub input: usize,
    pub scales: Vec<Scale>,
    /// Standardise features per channel by statistics of normals and clamp them to ±8.
    pub standardise: bool,
    pub residual: Residual,
    /// Align corners where residuals are brought to the finest grid (the paper's way).
    pub aligned: bool,
    pub selection: Selection,
    pub head: HeadSpec,
    pub target: Target,
    pub score: ImageScore,
    pub bank: Option<BankSpec>,
    pub blends: BlendSpec,
    pub optimiser: OptimiserSpec,
    /// Blended pictures that feature selection looks at.
    pub selection_pictures: usize,
    /// Blended pictures whose features are kept for further use, and how many are new each iteration.
    pub ring: usize,
    pub fresh: usize,
    /// Normals whose features are kept.
    pub normals: usize,
}

impl NetSpec {
    pub fn of(preset: Preset) -> Self {
        match preset {
            Preset::Small => Self::small(),
            Preset::Lean => Self::paper(preset, 8, 64, 128),
            Preset::Realnet => Self::paper(preset, 2, 256, 128),
        }
    }

    fn small() -> Self {
        let scale = |tap, channels, stride, keep, width| Scale {
            tap,
            channels,
            stride,
            keep,
            unet: UnetSpec::plain(keep, width),
        };
        NetSpec {
            preset: Preset::Small,
            backbone: Arch::EfficientnetLite0,
            input: 256,
            scales: vec![scale("block5.expand", 240, 8, 48, 16), scale("block11.expand", 672, 16, 96, 24)],
            standardise: true,
            residual: Residual::LogSquared,
            aligned: false,
            // Ranks alone cost .03 in so short a training (rank order hides which channel speaks) and gating
            // cost up to .03 too; ranks beside all channels gained .003 (mean image AUROC, four categories).
            selection: Selection::Beside { by_max: 12, by_mean: 12 },
            head: HeadSpec::Small { width: 16 },
            target: Target::Cells,
            score: ImageScore::TopLogits(3),
            bank: Some(BankSpec { taps: [("block4", 40), ("block10", 112)], vectors: 2000, top: 10 }),
            blends: BlendSpec {
                shapes: ShapeMix::INDUSTRIAL,
                sources: SourceMix::INDUSTRIAL,
                min_opacity: 0.3,
            },
            optimiser: OptimiserSpec {
                rate: 2e-3,
                betas: [0.9, 0.99],
                weight_decay: 1e-4,
                warm_up: 30,
                final_share: 0.02,
                clip: 5.0,
                batch: 8,
                iterations: 800,
            },
            selection_pictures: 64,
            ring: 256,
            fresh: 2,
            normals: 400,
        }
    }

    /// `narrow`: U-Net width is channels / narrow.
    fn paper(preset: Preset, narrow: usize, rank: usize, head: usize) -> Self {
        let scale = |tap, channels, stride, keep: usize| Scale {
            tap,
            channels,
            stride,
            keep,
            unet: UnetSpec::paper(keep, keep / narrow),
        };
        NetSpec {
            preset,
            backbone: Arch::WideResnet50_2,
            input: 256,
            scales: vec![
                scale("layer1", 256, 4, 256),
                scale("layer2", 512, 8, 512),
                scale("layer3", 1024, 16, 512),
                scale("layer4", 2048, 32, 256),
            ],
            standardise: false,
            residual: Residual::Squared,
            aligned: true,
            selection: Selection::Ranked { by_max: rank, by_mean: rank },
            head: HeadSpec::Paper { width: head },
            target: Target::Pixels,
            score: ImageScore::PooledProbability(16),
            bank: None,
            blends: BlendSpec { shapes: ShapeMix::PERLIN, sources: SourceMix::TEXTURES, min_opacity: 0.5 },
            optimiser: OptimiserSpec {
                rate: 1e-4,
                betas: [0.9, 0.999],
                weight_decay: 0.0,
                warm_up: 0,
                final_share: 1.0,
                clip: f32::INFINITY,
                batch: 16,
                // 1000 epochs of 242 pictures in batches of 16.
                iterations: 15_000,
            },
            selection_pictures: 1024,
            ring: 32,
            fresh: 4,
            normals: 64,
        }
    }

    /// Side of the grid that residuals meet on.
    pub fn side(&self) -> usize {
        self.input / self.scales.iter().map(|s| s.stride).min().unwrap_or(1)
    }

    /// Side of the grid that the head is taught on.
    pub fn target_side(&self) -> usize {
        match self.target {
            Target::Cells => self.side(),
            Target::Pixels => self.input,
        }
    }
}
