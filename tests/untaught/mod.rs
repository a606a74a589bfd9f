//! A model that was never taught: its verdicts mean nothing, but everything around it is real.

use std::collections::BTreeMap;

use inspectd::engine::ParamStore;
use inspectd::model::{Backbone, CalibrationRule, Model, ModelMeta, Preset, Training, calibrate};

pub fn model() -> Model {
    let scores: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
    let meta = ModelMeta {
        preset: Preset::Small,
        backbone: Backbone { arch: "efficientnet_lite0".into(), sha256: "00".repeat(32) },
        input_width: 256,
        input_height: 256,
        calibration: calibrate(&scores, &CalibrationRule::default()).unwrap(),
        training: Training::default(),
        created_at: "2026-01-02T03:04:05Z".into(),
        inspectd_version: "0.1.0".into(),
        settings: BTreeMap::new(),
    };
    Model { meta, params: ParamStore::new() }
}
