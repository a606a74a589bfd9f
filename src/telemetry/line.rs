//! The metrics of one line, looked up once, so that a frame costs neither hashing nor allocation.

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::metrics::Metrics;
use crate::imaging::ImageHealth;
use crate::model::Verdict;

/// The order of per-verdict arrays.
pub const VERDICTS: [(Verdict, &str); Verdict::ALL.len()] = [
    (Verdict::Good, "good"),
    (Verdict::Unsure, "unsure"),
    (Verdict::Bad, "bad"),
    (Verdict::Late, "late"),
    (Verdict::Unjudged, "unjudged"),
];

/// Label of a verdict, as in metrics and JSON.
pub fn verdict_label(verdict: Verdict) -> &'static str {
    VERDICTS[verdict as usize].1
}

/// The verdict with that label.
pub fn verdict_of(label: &str) -> Option<Verdict> {
    VERDICTS.iter().find(|(_, other)| *other == label).map(|(verdict, _)| *verdict)
}

/// A counter whose value is kept elsewhere and copied here for each scrape.
#[derive(Debug)]
struct Mirror(IntCounter);

impl Mirror {
    fn set(&self, value: u64) {
        self.0.inc_by(value.saturating_sub(self.0.get()));
    }
}

/// What a line's ledger says at one instant; it balances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    pub captured: u64,
    pub zero_copy: u64,
    pub copied: u64,
    pub damaged: u64,
    pub in_flight: u64,
    /// In the order of [`VERDICTS`].
    pub verdicts: [u64; Verdict::ALL.len()],
    pub dropped: Vec<(&'static str, u64)>,
    pub restarts: Vec<(&'static str, u64)>,
    /// Triggers whose frame never came.
    pub missed: u64,
    pub camera_up: bool,
    pub healthy: bool,
}

/// Handles for one line. Made with the line, so that every series starts at 0.
#[derive(Debug)]
pub struct LineMetrics {
    captured: Mirror,
    zero_copy: Mirror,
    copied: Mirror,
    damaged: Mirror,
    missed: Mirror,
    verdicts: [Mirror; Verdict::ALL.len()],
    dropped: Vec<(&'static str, Mirror)>,
    restarts: Vec<(&'static str, Mirror)>,
    in_flight: IntGauge,
    camera_up: IntGauge,
    healthy: IntGauge,
    brightness: Gauge,
    contrast: Gauge,
    sharpness: Gauge,
    clipped: Gauge,
    frozen_frames: IntGauge,
    pub deadline_misses: IntCounter,
    pub judge_failures: IntCounter,
    pub judgements_discarded: IntCounter,
    pub ledger_unbalanced: IntCounter,
    pub latency: Histogram,
    pub stage_queue: Histogram,
    pub stage_judge: Histogram,
    pub score: Histogram,
    pub judge_queue: IntGauge,
    outputs_failed: [[IntCounter; OutputFault::ALL.len()]; Output::ALL.len()],
}

/// What a verdict drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    Verdicts,
    Heatmaps,
    /// A row of the archive.
    Archive,
    /// A picture for the archive.
    Images,
}

/// Why an output did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputFault {
    /// Its queue was full: the disk or the reader is slower than the line.
    Full,
    /// It could not be written.
    Write,
    /// No buffer was left to keep the heatmap in.
    Busy,
    /// It happened, but later than others waited for it.
    Slow,
}

impl Output {
    /// In the order of their numbers.
    pub const ALL: [Output; 4] = [Output::Verdicts, Output::Heatmaps, Output::Archive, Output::Images];

    pub fn label(self) -> &'static str {
        match self {
            Output::Verdicts => "verdicts",
            Output::Heatmaps => "heatmaps",
            Output::Archive => "archive",
            Output::Images => "images",
        }
    }
}

impl OutputFault {
    /// In the order of their numbers.
    pub const ALL: [OutputFault; 4] =
        [OutputFault::Full, OutputFault::Write, OutputFault::Busy, OutputFault::Slow];

    pub fn label(self) -> &'static str {
        match self {
            OutputFault::Full => "full",
            OutputFault::Write => "write",
            OutputFault::Busy => "busy",
            OutputFault::Slow => "slow",
        }
    }
}

impl LineMetrics {
    pub fn new(metrics: &Metrics, line: &str, drops: &[&'static str], restarts: &[&'static str]) -> Self {
        let m = metrics;
        let failed = |output: Output| {
            OutputFault::ALL
                .map(|fault| m.outputs_failed.with_label_values(&[line, output.label(), fault.label()]))
        };
        let reasons = |vec: &prometheus::IntCounterVec, reasons: &[&'static str]| {
            reasons.iter().map(|reason| (*reason, Mirror(vec.with_label_values(&[line, *reason])))).collect()
        };
        LineMetrics {
            captured: Mirror(m.frames_captured.with_label_values(&[line])),
            zero_copy: Mirror(m.frames_zero_copy.with_label_values(&[line])),
            copied: Mirror(m.frames_copied.with_label_values(&[line])),
            missed: Mirror(m.triggers_missed.with_label_values(&[line])),
            damaged: Mirror(m.frames_damaged.with_label_values(&[line])),
            verdicts: VERDICTS.map(|(_, label)| Mirror(m.verdicts.with_label_values(&[line, label]))),
            dropped: reasons(&m.frames_dropped, drops),
            restarts: reasons(&m.camera_restarts, restarts),
            in_flight: m.frames_in_flight.with_label_values(&[line]),
            camera_up: m.camera_up.with_label_values(&[line]),
            healthy: m.line_healthy.with_label_values(&[line]),
            brightness: m.image_brightness.with_label_values(&[line]),
            contrast: m.image_contrast.with_label_values(&[line]),
            sharpness: m.image_sharpness.with_label_values(&[line]),
            clipped: m.image_clipped.with_label_values(&[line]),
            frozen_frames: m.image_frozen_frames.with_label_values(&[line]),
            deadline_misses: m.deadline_misses.with_label_values(&[line]),
            judge_failures: m.judge_failures.with_label_values(&[line]),
            judgements_discarded: m.judgements_discarded.with_label_values(&[line]),
            ledger_unbalanced: m.ledger_unbalanced.with_label_values(&[line]),
            latency: m.frame_latency.with_label_values(&[line]),
            stage_queue: m.stage_duration.with_label_values(&[line, "queue"]),
            stage_judge: m.stage_duration.with_label_values(&[line, "judge"]),
            score: m.anomaly_score.with_label_values(&[line]),
            judge_queue: m.queue_depth.with_label_values(&[line, "judge"]),
            outputs_failed: Output::ALL.map(failed),
        }
    }

    pub fn output_failed(&self, output: Output, fault: OutputFault) -> &IntCounter {
        &self.outputs_failed[output as usize][fault as usize]
    }

    /// Takes over what the ledger says. All of it comes from one instant, so a scrape balances.
    pub fn mirror(&self, counts: &FrameCounts) {
        self.captured.set(counts.captured);
        self.zero_copy.set(counts.zero_copy);
        self.copied.set(counts.copied);
        self.damaged.set(counts.damaged);
        self.missed.set(counts.missed);
        for (mirror, value) in self.verdicts.iter().zip(counts.verdicts) {
            mirror.set(value);
        }
        mirror_all(&self.dropped, &counts.dropped);
        mirror_all(&self.restarts, &counts.restarts);
        self.in_flight.set(i64::try_from(counts.in_flight).unwrap_or(i64::MAX));
        self.camera_up.set(counts.camera_up.into());
        self.healthy.set(counts.healthy.into());
    }
}

impl LineMetrics {
    pub fn show_image(&self, image: &ImageHealth) {
        self.brightness.set(image.brightness.into());
        self.contrast.set(image.contrast.into());
        self.sharpness.set(image.sharpness.into());
        self.clipped.set(image.clipped.into());
        self.frozen_frames.set(i64::try_from(image.frozen_frames).unwrap_or(i64::MAX));
    }
}

fn mirror_all(mirrors: &[(&'static str, Mirror)], values: &[(&'static str, u64)]) {
    for (reason, mirror) in mirrors {
        let sum = values.iter().filter(|(other, _)| other == reason).map(|(_, n)| n).sum();
        mirror.set(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_labels_stand_at_their_verdict_and_are_those_of_the_json() {
        for (verdict, label) in VERDICTS {
            assert_eq!(verdict_label(verdict), label);
            assert_eq!(verdict_of(label), Some(verdict));
            assert_eq!(serde_json::to_string(&verdict).unwrap(), format!("\"{label}\""));
        }
    }

    #[test]
    fn mirrored_counters_follow_and_never_fall() {
        let metrics = Metrics::new();
        let line = LineMetrics::new(&metrics, "a", &["queue_full", "shutdown"], &[]);
        let counts = FrameCounts {
            captured: 10,
            verdicts: [4, 0, 1, 2, 0],
            // Two places drop for the same reason; they are one series.
            dropped: vec![("queue_full", 1), ("shutdown", 0), ("queue_full", 2)],
            ..FrameCounts::default()
        };
        line.mirror(&counts);
        line.mirror(&FrameCounts { captured: 9, ..counts });
        assert_eq!(metrics.frames_captured.with_label_values(&["a"]).get(), 10);
        assert_eq!(metrics.verdicts.with_label_values(&["a", "late"]).get(), 2);
        assert_eq!(metrics.frames_dropped.with_label_values(&["a", "queue_full"]).get(), 3);
    }
}
