//! A verdict as one JSON line, with all that is needed to give it again: hashes of frame, model and
//! configuration, score and thresholds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{PartId, Rules};
use crate::imaging::FrameView;
use crate::model::{Thresholds, Verdict};
use crate::telemetry::{LineTelemetry, verdict_label};

/// Why a part has no score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its deadline came first.
    Deadline,
    /// The model could not judge it.
    JudgeFailed,
    /// It was triggered, but no frame came in time.
    NoFrame,
    /// Its frame came without pixels that can be trusted.
    Damaged,
}

/// The first 8 bytes of the SHA-256 of a frame's format, size and pixels, row padding left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHash([u8; 8]);

impl FrameHash {
    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        FrameHash(bytes)
    }

    /// About 1 ms per 2 MB where the processor has SHA instructions, 5 ms where not.
    pub fn of(frame: &FrameView<'_>) -> Self {
        let mut hash = Sha256::new();
        hash.update(frame.format.name());
        hash.update((frame.width as u64).to_le_bytes());
        hash.update((frame.height as u64).to_le_bytes());
        for (i, plane) in frame.planes.iter().take(frame.format.planes()).enumerate() {
            let (row_bytes, rows) = frame.format.plane_size(i, frame.width, frame.height);
            if plane.stride == row_bytes {
                hash.update(plane.data.get(..row_bytes * rows).unwrap_or(plane.data));
            } else if plane.stride > 0 {
                for row in plane.data.chunks(plane.stride).take(rows) {
                    hash.update(row.get(..row_bytes).unwrap_or(row));
                }
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        FrameHash(first)
    }
}

impl std::fmt::Display for FrameHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// A verdict on its way to its file. Holds no pixels, so any number may wait.
#[derive(Clone, Debug)]
pub struct Record {
    pub rules: Arc<Rules>,
    pub telemetry: Arc<LineTelemetry>,
    pub sequence: u64,
    /// What the plant calls it.
    pub part_id: Option<PartId>,
    /// Of a part without a frame, when it was triggered.
    pub captured_at: Timestamp,
    pub verdict: Verdict,
    /// For parts that are late or unjudged.
    pub reason: Option<Reason>,
    pub score: Option<f32>,
    pub latency: Duration,
    pub frame_hash: Option<FrameHash>,
    /// A picture is on its way to [`heatmap_path`](Record::heatmap_path).
    pub heatmap: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    line: &'a str,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    part_id: Option<PartId>,
    captured_at: String,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    score: Option<f32>,
    thresholds: Thresholds,
    latency_ms: f64,
    model_hash: &'a str,
    config_hash: &'a str,
    frame_hash: Option<String>,
    heatmap: Option<PathBuf>,
}

impl Record {
    /// Where the picture of this part goes: `LINE_TIME_SEQUENCE_VERDICT.png`. Names sort by time.
    pub fn heatmap_path(&self) -> Option<PathBuf> {
        let folder = self.rules.heatmaps.as_ref()?;
        let time = self.captured_at.strftime("%Y%m%dT%H%M%S%.3fZ");
        let (line, sequence, verdict) = (&self.rules.line, self.sequence, verdict_label(self.verdict));
        Some(folder.path.join(format!("{line}_{time}_{sequence:08}_{verdict}.png")))
    }

    /// Appends the JSON line to `text`.
    pub fn write_json(&self, text: &mut Vec<u8>) -> serde_json::Result<()> {
        let line = Line {
            line: self.rules.line.as_str(),
            sequence: self.sequence,
            part_id: self.part_id,
            captured_at: format!("{:.3}", self.captured_at),
            verdict: self.verdict,
            reason: self.reason,
            score: self.score,
            thresholds: self.rules.thresholds,
            latency_ms: (self.latency.as_secs_f64() * 1e6).round() / 1e3,
            model_hash: &self.rules.model_hash,
            config_hash: &self.rules.config_hash,
            frame_hash: self.frame_hash.map(|hash| hash.to_string()),
            heatmap: self.heatmap.then(|| self.heatmap_path()).flatten(),
        };
        serde_json::to_writer(&mut *text, &line)?;
        text.push(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::{PixelFormat, Plane};
    use crate::outputs::testing;

    #[test]
    fn a_verdict_is_one_json_line_with_all_it_can_be_recomputed_from() {
        let record = Record { heatmap: true, ..testing::record() };
        let mut text = Vec::new();
        record.write_json(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"line\":\"cam1\",\"sequence\":7,\"captured_at\":\"2026-11-24T09:30:45.123Z\",\"verdict\":\"bad\",\
             \"score\":1.5,\"thresholds\":{\"unsure\":0.5,\"bad\":1.0},\"latency_ms\":12.346,\
             \"model_hash\":\"m0\",\"config_hash\":\"c0\",\"frame_hash\":\"00000000000000ff\",\
             \"heatmap\":\"/maps/cam1_20261124T093045.123Z_00000007_bad.png\"}\n"
        );
    }

    #[test]
    fn a_part_that_was_not_judged_says_why_and_has_no_score() {
        let record = Record {
            verdict: Verdict::Unjudged,
            reason: Some(Reason::JudgeFailed),
            score: None,
            frame_hash: None,
            part_id: Some("A 17".parse().unwrap()),
            ..testing::record()
        };
        let mut text = Vec::new();
        record.write_json(&mut text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&json["verdict"], &json["reason"]), (&"unjudged".into(), &"judge_failed".into()));
        assert!(json["score"].is_null() && json["heatmap"].is_null());
        assert_eq!(json["part_id"], "A 17");
    }

    #[test]
    fn a_score_that_is_no_number_is_still_json() {
        let mut text = Vec::new();
        Record { score: Some(f32::NAN), ..testing::record() }.write_json(&mut text).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["score"].is_null());
    }

    #[test]
    fn the_frame_hash_ignores_padding_and_sees_pixels_size_and_format() {
        let tight: Vec<u8> = (0..24).collect();
        let frame = FrameView::rgb(&tight, 4, 2);
        let mut padded = vec![99; 40];
        padded[..12].copy_from_slice(&tight[..12]);
        padded[20..32].copy_from_slice(&tight[12..]);
        let mut loose = frame;
        loose.planes[0] = Plane { data: &padded, stride: 20 };
        assert_eq!(FrameHash::of(&frame), FrameHash::of(&loose));
        let mut other = tight.clone();
        other[23] ^= 1;
        assert_ne!(FrameHash::of(&frame), FrameHash::of(&FrameView::rgb(&other, 4, 2)));
        assert_ne!(FrameHash::of(&frame), FrameHash::of(&FrameView::rgb(&tight, 2, 4)));
        assert_ne!(FrameHash::of(&frame), FrameHash::of(&FrameView { format: PixelFormat::Bgr, ..frame }));
    }
}
