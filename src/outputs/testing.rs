//! Records for the tests of this room.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::record::{FrameHash, Record};
use super::rules::{HeatmapFolder, Rules};
use crate::config::{HeatmapsOf, LineName, OutputsConfig, Sink};
use crate::imaging::FrameView;
use crate::model::{Thresholds, Verdict};
use crate::telemetry::{LineMetrics, LineTelemetry, Metrics};

const THRESHOLDS: Thresholds = Thresholds { unsure: 0.5, bad: 1.0 };

fn with(rules: Rules) -> Record {
    let metrics = LineMetrics::new(&Metrics::new(), "cam1", &[], &[]);
    Record {
        rules: Arc::new(rules),
        telemetry: Arc::new(LineTelemetry::new("cam1", metrics)),
        sequence: 7,
        part_id: None,
        captured_at: "2026-11-24T09:30:45.123Z".parse().unwrap(),
        verdict: Verdict::Bad,
        reason: None,
        score: Some(1.5),
        latency: Duration::from_nanos(12_345_678),
        frame_hash: Some(FrameHash::from_bytes([0, 0, 0, 0, 0, 0, 0, 255])),
        heatmap: false,
    }
}

/// A bad part. Its files are not opened.
pub fn record() -> Record {
    with(Rules {
        line: LineName::new("cam1"),
        roi: None,
        thresholds: THRESHOLDS,
        model_hash: "m0".into(),
        config_hash: "c0".into(),
        verdicts: None,
        heatmaps: Some(HeatmapFolder { path: "/maps".into(), of: HeatmapsOf::Bad, keep: 1 }),
        outlets: Vec::new(),
    })
}

pub fn record_to(config: &OutputsConfig) -> Record {
    with(Rules::open(LineName::new("cam1"), config, THRESHOLDS, "m0".into(), "c0".into()).unwrap())
}

pub fn record_with_heatmaps(folder: &Path, keep: usize) -> Record {
    record_to(&OutputsConfig {
        verdicts: Sink::Off,
        heatmaps: Some(folder.to_owned()),
        heatmaps_of: HeatmapsOf::Bad,
        heatmaps_keep: keep,
    })
}

#[test]
fn a_frame_hash_has_sixteen_digits() {
    assert_eq!(FrameHash::of(&FrameView::rgb(&[0; 3], 1, 1)).to_string().len(), 16);
}
