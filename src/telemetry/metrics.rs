//! The one table of metrics, and the registry made from it. Names are Prometheus' own style: prefix
//! `inspectd_`, base units, counters end in `_total`.

use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Without the prefix.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    pub fn full_name(&self) -> String {
        format!("{PREFIX}_{}", self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Upper bounds of the buckets; `+Inf` is added.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As in a `# TYPE` line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

const PREFIX: &str = "inspectd";

/// Seconds. Dense from 1 ms to 100 ms, where the promise on latency is made.
const SECONDS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// Scores have no fixed range; these cover logits and probabilities.
const SCORES: &[f64] = &[
    -8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 4.0, 8.0,
];

/// Makes the struct, the table and the constructor from one list.
macro_rules! metrics {
    ($($field:ident: $type:ident = $name:literal, $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        /// Handles to every metric of the table.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(pub $field: $type,)*
        }

        /// Every metric that `/metrics` serves under the prefix `inspectd_`.
        pub static METRICS: &[Metric] = &[
            $(Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help },)*
        ];

        impl Metrics {
            pub fn new() -> Metrics {
                let registry = Registry::new();
                $(let $field = {
                    let metric = METRICS
                        .iter()
                        .find(|metric| metric.name == $name)
                        .expect("the macro above put it there");
                    <$type as Make>::make(metric, &registry)
                };)*
                Metrics { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    frames_captured: IntCounterVec = "frames_captured_total", Kind::Counter, ["line"],
        "Frames that reached the end of the camera's pipeline.";
    frames_dropped: IntCounterVec = "frames_dropped_total", Kind::Counter, ["line", "reason"],
        "Frames that got no verdict.";
    frames_in_flight: IntGaugeVec = "frames_in_flight", Kind::Gauge, ["line"],
        "Frames captured and not yet judged or dropped. In every scrape, captured = verdicts + dropped + in flight.";
    frames_zero_copy: IntCounterVec = "frames_zero_copy_total", Kind::Counter, ["line"],
        "Frames that the source wrote straight into our memory.";
    frames_copied: IntCounterVec = "frames_copied_total", Kind::Counter, ["line"],
        "Frames that were copied into our memory.";
    frames_damaged: IntCounterVec = "frames_damaged_total", Kind::Counter, ["line"],
        "Frames that came damaged: marked by the driver, cut short, or JPEG that cannot be decoded. Their verdict is unjudged.";
    triggers_missed: IntCounterVec = "triggers_missed_total", Kind::Counter, ["line"],
        "Software triggers after which no frame came in time. Their parts are late; they have no frame, so they are in no other count of frames or verdicts.";
    verdicts: IntCounterVec = "verdicts_total", Kind::Counter, ["line", "verdict"],
        "Verdicts: good, unsure, bad, late (not judged in time) or unjudged (damaged, or the model failed).";
    deadline_misses: IntCounterVec = "deadline_misses_total", Kind::Counter, ["line"],
        "Frames that were not judged within the line's deadline.";
    judge_failures: IntCounterVec = "judge_failures_total", Kind::Counter, ["line"],
        "Frames that the model could not judge; their verdict is unjudged.";
    judgements_discarded: IntCounterVec = "judgements_discarded_total", Kind::Counter, ["line"],
        "Judgements that came after the verdict late had been given.";
    frame_latency: HistogramVec = "frame_latency_seconds", Kind::Histogram(SECONDS), ["line"],
        "From the frame's arrival to its verdict.";
    stage_duration: HistogramVec = "stage_duration_seconds", Kind::Histogram(SECONDS), ["line", "stage"],
        "Time a frame spent in a stage: queue (waiting), judge (the network), modbus, mqtt or webhook (from verdict to taken).";
    anomaly_score: HistogramVec = "anomaly_score", Kind::Histogram(SCORES), ["line"],
        "Scores of judged frames.";
    queue_depth: IntGaugeVec = "queue_depth", Kind::Gauge, ["line", "queue"],
        "Entries that wait: judge (frames), verdicts and heatmaps (outputs of all lines, line empty), modbus, mqtt and webhook (verdicts not yet taken by the other side).";
    camera_up: IntGaugeVec = "camera_up", Kind::Gauge, ["line"],
        "1 while the camera gives frames.";
    camera_restarts: IntCounterVec = "camera_restarts_total", Kind::Counter, ["line", "reason"],
        "Times that the camera's pipeline was built anew after a fault.";
    image_brightness: GaugeVec = "image_brightness", Kind::Gauge, ["line"],
        "Mean luma of the line's pictures of late, 0 (black) to 255 (white).";
    image_contrast: GaugeVec = "image_contrast", Kind::Gauge, ["line"],
        "Standard deviation of luma in the line's pictures of late, grey levels; near 0 with a covered lens.";
    image_sharpness: GaugeVec = "image_sharpness", Kind::Gauge, ["line"],
        "Variance of the Laplacian of luma in the line's pictures of late; falls when the lens is dirty or out of focus.";
    image_clipped: GaugeVec = "image_clipped_ratio", Kind::Gauge, ["line"],
        "Share of the points of the line's pictures of late that are black or white.";
    image_frozen_frames: IntGaugeVec = "image_frozen_frames", Kind::Gauge, ["line"],
        "Pictures in a row that were the same as the one before; a camera's noise keeps this at 0.";
    line_healthy: IntGaugeVec = "line_healthy", Kind::Gauge, ["line"],
        "1 while the line makes progress, as /healthz says.";
    outputs_failed: IntCounterVec = "outputs_failed_total", Kind::Counter, ["line", "stage", "reason"],
        "Verdicts, pictures or heatmaps that were lost: full (queue), write (disk), busy (no buffer), timeout, refused, link (down), unacknowledged, superseded (by a newer one), shutdown; slow: a verdict went out before it was in the archive.";
    outputs_sent: IntCounterVec = "outputs_sent_total", Kind::Counter, ["line", "stage"],
        "Verdicts that the other side has taken: modbus, mqtt, webhook.";
    output_up: IntGaugeVec = "output_up", Kind::Gauge, ["line", "stage"],
        "1 while the other side of an output takes verdicts; mqtt is one connection for all lines, line empty.";
    archive_up: IntGaugeVec = "archive_up", Kind::Gauge, ["stage"],
        "1 while the archive (stage archive) can be written, 0 while it takes nothing.";
    archive_bytes: IntGaugeVec = "archive_bytes", Kind::Gauge, ["stage"],
        "Bytes that the archive holds: database, images.";
    ledger_unbalanced: IntCounterVec = "ledger_unbalanced_total", Kind::Counter, ["line"],
        "Checks of the ledger of frames that found a frame lost or counted twice.";
    config_reloads: IntCounterVec = "config_reloads_total", Kind::Counter, ["result"],
        "Reloads: applied, unchanged, invalid (the file is wrong), needs_restart or failed, all of which changed nothing; no_camera (taken over, but a line has no camera now).";
    config_hash: IntGaugeVec = "config_hash_info", Kind::Gauge, ["hash"],
        "1 for the configuration in force.";
    model_info: IntGaugeVec = "model_info", Kind::Gauge, ["line", "version"],
        "1 for the model in force; the version is the start of the file's SHA-256.";
    device_up: IntGaugeVec = "device_up", Kind::Gauge, ["line", "device"],
        "1 while the line computes on the GPU that the configuration names, 0 while the CPU stands in.";
    device_failures: IntCounterVec = "device_failures_total", Kind::Counter, ["line", "device"],
        "Times that the GPU could not be used or failed and the CPU took over.";
    build_info: IntGaugeVec = "build_info", Kind::Gauge, ["version"],
        "1 for the running version.";
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything in Prometheus' text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Fails only for families without metrics or names, which gather() does not return.
        if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "The metrics cannot be written out.");
        }
        text
    }

    /// Adds CPU time, memory and open files of this process (`process_*`).
    pub fn with_process(self) -> Self {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        if let Err(error) = self.registry.register(Box::new(process)) {
            tracing::error!(%error, "The process metrics are left out.");
        }
        self
    }
}

trait Make: Sized {
    fn make(metric: &Metric, registry: &Registry) -> Self;
}

const VALID: &str = "names and labels of the table are valid and registered once; a test makes them all";

impl Make for IntCounterVec {
    fn make(metric: &Metric, registry: &Registry) -> Self {
        let made = IntCounterVec::new(opts(metric), metric.labels).expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }
}

impl Make for IntGaugeVec {
    fn make(metric: &Metric, registry: &Registry) -> Self {
        let made = IntGaugeVec::new(opts(metric), metric.labels).expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }
}

impl Make for GaugeVec {
    fn make(metric: &Metric, registry: &Registry) -> Self {
        let made = GaugeVec::new(opts(metric), metric.labels).expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }
}

impl Make for HistogramVec {
    fn make(metric: &Metric, registry: &Registry) -> Self {
        let buckets = match metric.kind {
            Kind::Histogram(buckets) => buckets.to_vec(),
            Kind::Counter | Kind::Gauge => Vec::new(),
        };
        let made = HistogramVec::new(HistogramOpts { common_opts: opts(metric), buckets }, metric.labels);
        let made = made.expect(VALID);
        registry.register(Box::new(made.clone())).expect(VALID);
        made
    }
}

fn opts(metric: &Metric) -> Opts {
    Opts::new(metric.name, metric.help).namespace(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn metrics_serves_exactly_the_table() {
        let metrics = Metrics::new();
        crate::telemetry::LineMetrics::new(&metrics, "cam1", &["queue_full"], &["stall"]);
        metrics.queue_depth.with_label_values(&["", "verdicts"]).set(0);
        for reload in crate::telemetry::Reload::ALL {
            metrics.config_reloads.with_label_values(&[reload.label()]).inc();
        }
        metrics.config_hash.with_label_values(&["00"]).set(1);
        metrics.model_info.with_label_values(&["cam1", "00"]).set(1);
        metrics.device_up.with_label_values(&["cam1", "cuda:0"]).set(1);
        metrics.device_failures.with_label_values(&["cam1", "cuda:0"]).inc();
        metrics.archive_up.with_label_values(&["archive"]).set(1);
        metrics.archive_bytes.with_label_values(&["images"]).set(0);
        metrics.build_info.with_label_values(&["0.1"]).set(1);
        crate::telemetry::OutletMeter::new(&metrics, "cam1", crate::telemetry::OutletKind::Modbus);
        metrics.output_up.with_label_values(&["cam1", "modbus"]).set(1);
        let text = metrics.encode();
        let lines = |start: &str| -> BTreeSet<String> {
            text.lines().filter_map(|line| line.strip_prefix(start)).map(str::to_owned).collect()
        };
        let expected = |row: fn(&Metric) -> String| -> BTreeSet<String> { METRICS.iter().map(row).collect() };
        assert_eq!(lines("# TYPE "), expected(|m| format!("{} {}", m.full_name(), m.kind.name())));
        assert_eq!(lines("# HELP "), expected(|m| format!("{} {}", m.full_name(), m.help)));
        for metric in METRICS {
            let start = metric.full_name();
            let sample = text
                .lines()
                .find(|line| line.strip_prefix(&start).is_some_and(|rest| rest.starts_with(['{', '_'])));
            let sample = sample.unwrap_or_else(|| panic!("{start} has no sample"));
            for label in metric.labels {
                assert!(sample.contains(&format!("{label}=\"")), "{sample} lacks {label}");
            }
        }
    }

    #[test]
    fn counters_and_only_counters_end_in_total() {
        for metric in METRICS {
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn labels_are_of_the_agreed_set() {
        let agreed = ["device", "line", "stage", "reason", "verdict", "queue", "result", "hash", "version"];
        for metric in METRICS {
            assert!(metric.labels.iter().all(|label| agreed.contains(label)), "{}", metric.name);
        }
    }
}
