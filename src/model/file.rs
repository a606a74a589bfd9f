//! The model file: one safetensors file.
//!
//! Metadata: `format` ("inspectd-model"), `format_version`, `model` (`ModelMeta` as JSON) and
//! `content_sha256`, over that JSON and every tensor's name, shape and elements. A flipped bit anywhere
//! is found at load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Model, ModelMeta, Preset, hash_params, hex};
use crate::engine::{ParamStore, Shape, Tensor};
use crate::weights::{self, RawTensor, WeightsError};

const FORMAT: &str = "inspectd-model";
const VERSION: &str = "1";

/// Why a model file was not read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    File(#[from] WeightsError),
    #[error("{} is no model: {what}; `inspectd teach --images DIR --out FILE` makes one", path.display())]
    NotAModel { path: PathBuf, what: String },
    #[error(
        "{} has model format {found}, this inspectd reads {VERSION}: use the inspectd that taught it, or \
         teach it again",
        path.display()
    )]
    Version { path: PathBuf, found: String },
    #[error("{}: {problem}; it was taught by another version of inspectd or is damaged", path.display())]
    Preset { path: PathBuf, problem: String },
    #[error("{} is damaged: what it says about itself cannot be read: {source}", path.display())]
    Meta { path: PathBuf, source: serde_json::Error },
    #[error(
        "{} is damaged: its content has sha256 {found}, not {stored} as it was written; copy it again",
        path.display()
    )]
    Hash { path: PathBuf, stored: String, found: String },
}

impl ModelError {
    /// The file is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, ModelError::File(WeightsError::Missing { .. }))
    }
}

pub(super) fn meta_json(meta: &ModelMeta) -> String {
    // Strings, numbers and maps keyed by strings: nothing in it can fail to be JSON.
    serde_json::to_string(meta).unwrap_or_default()
}

pub(super) fn content_sha256<'a>(meta: &str, params: impl Iterator<Item = (&'a str, &'a Tensor)>) -> String {
    let mut hasher = Sha256::new();
    hasher.update((meta.len() as u64).to_le_bytes());
    hasher.update(meta);
    hash_params(&mut hasher, params);
    hex(&hasher.finalize())
}

pub(super) fn save(model: &Model, path: &Path) -> Result<(), ModelError> {
    let meta = meta_json(&model.meta);
    // JSON has no infinities; better to hear of one now than from an unreadable model.
    serde_json::from_str::<ModelMeta>(&meta)
        .map_err(|source| ModelError::Meta { path: path.to_owned(), source })?;
    let metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("format_version".to_owned(), VERSION.to_owned()),
        ("content_sha256".to_owned(), content_sha256(&meta, model.params.iter())),
        ("model".to_owned(), meta),
    ]);
    Ok(weights::write_params(path, &model.params, &metadata)?)
}

pub(super) fn load(path: &Path) -> Result<Model, ModelError> {
    let not_a_model = |what: &str| ModelError::NotAModel { path: path.to_owned(), what: what.to_owned() };
    let content = weights::read_content(path).map_err(|error| match error {
        WeightsError::Format { path, what } => ModelError::NotAModel { path, what },
        error => error.into(),
    })?;
    let text = |key: &str| content.metadata.get(key).map(String::as_str);
    match text("format") {
        Some(FORMAT) => {}
        Some(crate::nets::WEIGHTS_FORMAT) => return Err(not_a_model("it holds a backbone's weights alone")),
        _ => return Err(not_a_model("it is a weights file without a model's description")),
    }
    match text("format_version") {
        Some(VERSION) => {}
        found => {
            let found = found.unwrap_or("of no version").to_owned();
            return Err(ModelError::Version { path: path.to_owned(), found });
        }
    }
    let (Some(json), Some(stored)) = (text("model"), text("content_sha256")) else {
        return Err(not_a_model("its description or its hash is missing"));
    };
    let damaged = |source| ModelError::Meta { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_str(json).map_err(damaged)?;
    let preset = value.get("preset").and_then(|preset| preset.as_str()).unwrap_or_default();
    preset.parse::<Preset>().map_err(|problem| ModelError::Preset { path: path.to_owned(), problem })?;
    let meta: ModelMeta = serde_json::from_str(json).map_err(damaged)?;
    let stored = stored.to_owned();
    let json = json.to_owned();
    let mut params = ParamStore::new();
    for (name, raw) in content.tensors {
        let shape = shape(&raw)
            .ok_or_else(|| not_a_model(&format!("tensor `{name}` has {} axes, not 4", raw.shape.len())))?;
        params.insert(name, Tensor::new(shape, raw.into_reals()));
    }
    let found = content_sha256(&json, params.iter());
    if found != stored {
        return Err(ModelError::Hash { path: path.to_owned(), stored, found });
    }
    Ok(Model { meta, params })
}

fn shape(raw: &RawTensor) -> Option<Shape> {
    raw.shape.as_slice().try_into().ok().map(Shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backbone, CalibrationRule, Training, calibrate};

    fn model() -> Model {
        let scores: Vec<f32> = (0..40).map(|i| (i * 7 % 40) as f32 * 0.13).collect();
        let mut params = ParamStore::new();
        params
            .insert("head.weight", Tensor::new(Shape::new(3, 3, 2, 1), (0..18).map(|x| x as f32).collect()));
        params.insert("afs.block5.indices", Tensor::vector(vec![3.0, 1.0, 4.0]));
        let meta = ModelMeta {
            preset: Preset::Small,
            backbone: Backbone { arch: "efficientnet_lite0".into(), sha256: "ab".repeat(32) },
            input_width: 256,
            input_height: 224,
            calibration: calibrate(&scores, &CalibrationRule::default()).unwrap(),
            training: Training { seed: 7, iterations: 400, seconds: 61.3, ..Default::default() },
            created_at: "2026-01-02T03:04:05Z".into(),
            inspectd_version: "0.1.0".into(),
            settings: BTreeMap::from([("top_k".into(), 3.into())]),
        };
        Model { meta, params }
    }

    fn saved(model: &Model) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        model.save(&path).unwrap();
        (folder, path)
    }

    #[test]
    fn a_model_is_read_back_as_it_was_written() {
        let model = model();
        let (_folder, path) = saved(&model);
        let read = Model::load(&path).unwrap();
        assert_eq!(read, model);
        assert_eq!(read.hash(), model.hash());
        assert_eq!(read.hash().len(), 16);
        assert_eq!(read.thresholds(), model.meta.calibration.thresholds);
    }

    #[test]
    fn the_hash_covers_weights_and_thresholds() {
        let model = model();
        let mut other = model.clone();
        other.meta.calibration.thresholds.bad += 1.0;
        assert_ne!(other.hash(), model.hash());
        let mut other = model.clone();
        other.params.insert("afs.block5.indices", Tensor::vector(vec![3.0, 1.0, 5.0]));
        assert_ne!(other.hash(), model.hash());
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let (_folder, path) = saved(&model());
        let clean = std::fs::read(&path).unwrap();
        for at in 0..clean.len() {
            let mut bytes = clean.clone();
            bytes[at] ^= 0x20;
            std::fs::write(&path, &bytes).unwrap();
            // Blanks that pad the header to 8 bytes may turn into NULs, which JSON does not take.
            assert!(Model::load(&path).is_err(), "a flip at byte {at} of {} was not found", clean.len());
        }
    }

    #[test]
    fn every_truncated_model_is_an_error_that_names_the_file() {
        let (_folder, path) = saved(&model());
        let clean = std::fs::read(&path).unwrap();
        for fiftieth in 0..50 {
            std::fs::write(&path, &clean[..clean.len() * fiftieth / 50]).unwrap();
            let error = Model::load(&path).unwrap_err().to_string();
            assert!(error.contains("m.safetensors"), "{error}");
        }
    }

    /// The model's file with one piece of metadata replaced.
    fn with_metadata(key: &str, value: &str) -> ModelError {
        let model = model();
        let (_folder, path) = saved(&model);
        let mut metadata = weights::read_content(&path).unwrap().metadata;
        metadata.insert(key.into(), value.into());
        weights::write_params(&path, &model.params, &metadata).unwrap();
        Model::load(&path).unwrap_err()
    }

    #[test]
    fn a_wrong_hash_is_said_to_be_one() {
        let error = with_metadata("content_sha256", "00");
        assert!(matches!(error, ModelError::Hash { .. }), "{error}");
        assert!(error.to_string().contains("copy it again"), "{error}");
    }

    #[test]
    fn an_unknown_preset_is_named_with_the_known_ones() {
        let json = meta_json(&model().meta).replace("\"small\"", "\"huge\"");
        let error = with_metadata("model", &json);
        assert!(matches!(error, ModelError::Preset { .. }), "{error}");
        assert!(error.to_string().contains("`huge`") && error.to_string().contains("small, lean"), "{error}");
    }

    #[test]
    fn a_model_of_another_format_version_is_refused() {
        let error = with_metadata("format_version", "2");
        assert!(matches!(error, ModelError::Version { .. }), "{error}");
    }

    #[test]
    fn a_model_that_does_not_describe_itself_is_refused() {
        for json in ["", "{", "{\"preset\":\"small\"}", &"[".repeat(10_000)] {
            let error = with_metadata("model", json);
            assert!(matches!(error, ModelError::Meta { .. } | ModelError::Preset { .. }), "{json}: {error}");
        }
    }

    #[test]
    fn what_is_no_model_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert!(Model::load(&path).unwrap_err().is_missing());
        std::fs::write(&path, b"\x89PNG\r\n\x1a\n and so on").unwrap();
        assert!(matches!(Model::load(&path), Err(ModelError::NotAModel { .. })));
        let format = BTreeMap::from([("format".to_owned(), crate::nets::WEIGHTS_FORMAT.to_owned())]);
        for metadata in [BTreeMap::new(), format] {
            weights::write_params(&path, &ParamStore::new(), &metadata).unwrap();
            let error = Model::load(&path).unwrap_err();
            assert!(matches!(error, ModelError::NotAModel { .. }), "{error}");
            assert!(error.to_string().contains("inspectd teach"), "{error}");
        }
    }

    #[test]
    fn a_model_with_a_number_that_is_none_is_not_written() {
        let mut model = model();
        model.meta.training.loss = f32::NAN;
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(model.save(&folder.path().join("m")), Err(ModelError::Meta { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
