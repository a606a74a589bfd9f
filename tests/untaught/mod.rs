//! A model that was hardly taught, on a backbone of random weights: its verdicts mean nothing, but
//! everything around it is real. Small, so that a debug build makes it in seconds.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use inspectd::imaging::{RgbImage, heatmap};
use inspectd::model::{Backbone, CalibrationRule, Model, ModelMeta, Preset, Training, calibrate};
use inspectd::nets::{Arch, random_weights};
use inspectd::realnet::{Lesson, NetSpec, teach};

const SIDE: usize = 64;

/// Made once per process.
pub fn model() -> Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(make).clone()
}

fn make() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<_> = (0..10)
        .map(|i| {
            let mut image = RgbImage::new(SIDE, SIDE);
            for (at, value) in image.data.iter_mut().enumerate() {
                // Stripes with some noise: something that is not of one colour.
                *value = 80 + (at / 24 % 8 * 10) as u8 + (at.wrapping_mul(2_654_435_761 + i) >> 7 & 15) as u8;
            }
            let path = folder.path().join(format!("{i}.png"));
            heatmap::write_png(&path, &image).unwrap();
            path
        })
        .collect();
    let mut spec = NetSpec { input: SIDE, selection_pictures: 4, normals: 8, ..NetSpec::of(Preset::Small) };
    spec.optimiser.iterations = 1;
    let lesson = Lesson {
        spec,
        seed: 1,
        deadline: None,
        device: inspectd::engine::Threads::new(2).into(),
        textures: vec![],
    };
    let taught = teach(&images, &random_weights(Arch::EfficientnetLite0, 1), &lesson, |_| true).unwrap();
    let scores: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
    let meta = ModelMeta {
        preset: Preset::Small,
        backbone: Backbone { arch: "efficientnet_lite0".into(), sha256: "00".repeat(32) },
        input_width: SIDE,
        input_height: SIDE,
        calibration: calibrate(&scores, &CalibrationRule::default()).unwrap(),
        training: Training::default(),
        created_at: "2026-01-02T03:04:05Z".into(),
        inspectd_version: "0.1.0".into(),
        settings: BTreeMap::new(),
    };
    Model { meta, params: taught.params }
}
