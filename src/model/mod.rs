//! The model file, its thresholds, and what a score means.
//!
//! * One file is one model: a safetensors file whose metadata says how it was taught and calibrated.
//! * A model file is written whole or not at all, and read only if its hash is right.
//! * Thresholds come from held-out good pictures alone; what their number cannot support is not promised.

pub mod calibration;
mod file;
mod verdict;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engine::{ParamStore, Tensor};

pub use calibration::{Calibration, CalibrationError, CalibrationRule, calibrate};
pub use file::ModelError;
pub use verdict::{Thresholds, Verdict};

/// How large a network, and of which make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// EfficientNet-Lite0, made for CPUs and small boards.
    Small,
    /// The paper's wiring at a quarter of the width.
    Lean,
    /// The paper's network.
    Realnet,
}

impl Preset {
    pub const ALL: [Preset; 3] = [Preset::Small, Preset::Lean, Preset::Realnet];

    pub const fn name(self) -> &'static str {
        match self {
            Preset::Small => "small",
            Preset::Lean => "lean",
            Preset::Realnet => "realnet",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Preset {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Preset::ALL.map(Preset::name).join(", ");
        Preset::ALL
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| format!("there is no preset `{name}`; known are {}", known()))
    }
}

/// The frozen network under a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backbone {
    /// `nets::Arch::name`.
    pub arch: String,
    /// `params_sha256` of its parameters: feature selection and everything taught hold for these alone.
    pub sha256: String,
}

/// Where a model came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub seed: u64,
    pub iterations: u64,
    pub seconds: f32,
    /// Good pictures taught with, held-out ones not counted.
    pub images: u64,
    /// Hash over the pictures' bytes, in order of their paths.
    pub images_sha256: String,
    /// Loss averaged over the last iterations.
    pub loss: f32,
    /// Stopped by the clock or by the user before its schedule was through.
    pub stopped_early: bool,
}

/// What is known about a model besides its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMeta {
    pub preset: Preset,
    pub backbone: Backbone,
    /// Width and height of the network's input, pixels.
    pub input_width: usize,
    pub input_height: usize,
    pub calibration: Calibration,
    pub training: Training,
    /// RFC 3339.
    pub created_at: String,
    pub inspectd_version: String,
    /// Settings that the network is rebuilt from and that the preset does not imply.
    #[serde(default)]
    pub settings: BTreeMap<String, serde_json::Value>,
}

/// A taught model: what is known about it, and its weights. Feature-selection indices and
/// standardisation moments are tensors among the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub meta: ModelMeta,
    pub params: ParamStore,
}

impl Model {
    /// Reads a model and verifies its hash.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        file::load(path)
    }

    /// Writes the model, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        file::save(self, path)
    }

    pub fn thresholds(&self) -> Thresholds {
        self.meta.calibration.thresholds
    }

    /// What a verdict's record names the model by: 16 hexadecimal digits of the hash over its metadata
    /// and weights. Reads all weights; call it once.
    pub fn hash(&self) -> String {
        let mut hash = file::content_sha256(&file::meta_json(&self.meta), self.params.iter());
        hash.truncate(16);
        hash
    }
}

/// SHA-256 over names, shapes and elements, in the given order: 64 hexadecimal digits.
pub fn params_sha256<'a>(params: impl Iterator<Item = (&'a str, &'a Tensor)>) -> String {
    let mut hasher = Sha256::new();
    hash_params(&mut hasher, params);
    hex(&hasher.finalize())
}

fn hash_params<'a>(hasher: &mut Sha256, params: impl Iterator<Item = (&'a str, &'a Tensor)>) {
    for (name, tensor) in params {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        for extent in tensor.shape.0 {
            hasher.update((extent as u64).to_le_bytes());
        }
        if cfg!(target_endian = "little") {
            hasher.update(bytemuck::cast_slice::<f32, u8>(&tensor.data));
        } else {
            tensor.data.iter().for_each(|x| hasher.update(x.to_le_bytes()));
        }
    }
}

/// Two lower-case digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
