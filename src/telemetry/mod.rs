//! Telemetry: one typed event is one log line and one metric.
//!
//! | constraint | value |
//! |---|---|
//! | metrics | [`METRICS`], one table; `/metrics` serves exactly these and `process_*` |
//! | cost per frame | no allocation, no hashing: a line's handles are looked up once ([`LineMetrics`]) |
//! | log lines of one repeating fault | 1 per 10 s and line, with the number left out |
//!
//! The counters of frames are kept by the line's ledger and copied for each scrape under one lock, so
//! that captured = verdicts + dropped + in flight holds in every scrape.

mod event;
mod limit;
mod line;
pub mod logging;
mod metrics;
mod outlet;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

pub use event::{Event, LineEvent, LineTelemetry, Reload};
pub use line::{FrameCounts, LineMetrics, Output, OutputFault, VERDICTS, verdict_label, verdict_of};
pub use metrics::{Kind, METRICS, Metric, Metrics};
pub use outlet::{Loss, OutletKind, OutletMeter};

type Collect = Box<dyn Fn(&Metrics) + Send>;

/// The daemon's metrics, shared by all threads.
#[derive(Clone)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
    /// Brings the mirrored metrics up to date; held while a scrape is written out.
    collect: Arc<Mutex<Option<Collect>>>,
    /// What is wrong with the archive, as a sentence, and how often that was told.
    archive_fault: Arc<Mutex<Option<String>>>,
    archive_limit: Arc<limit::Limit>,
    /// Line → what is wrong with its GPU, as a sentence.
    device_faults: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Telemetry {
    pub fn new() -> Self {
        let metrics = Metrics::new().with_process();
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for reload in Reload::ALL {
            metrics.config_reloads.with_label_values(&[reload.label()]);
        }
        Telemetry {
            metrics: Arc::new(metrics),
            collect: Arc::default(),
            archive_fault: Arc::default(),
            archive_limit: Arc::default(),
            device_faults: Arc::default(),
        }
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn emit(&self, event: Event<'_>) {
        match event {
            Event::DeviceFailed { line, device, error } | Event::DeviceStillDown { line, device, error } => {
                let fault = format!("{device} failed, the CPU judges: {error}");
                self.device_faults().insert(line.to_owned(), fault);
            }
            Event::DeviceUp { line, .. } => drop(self.device_faults().remove(line)),
            Event::ArchiveFailed { error } => {
                *self.archive() = Some(error.to_string());
                if self.archive_limit.pass().is_none() {
                    return;
                }
            }
            Event::ArchiveWell { .. } => *self.archive() = None,
            _ => {}
        }
        event.emit(&self.metrics);
    }

    fn device_faults(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.device_faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn archive(&self) -> MutexGuard<'_, Option<String>> {
        self.archive_fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Why the archive takes nothing, as a sentence.
    pub fn archive_fault(&self) -> Option<String> {
        self.archive().clone()
    }

    /// Why the CPU judges a line that is to be judged by a GPU, as a sentence.
    pub fn device_fault(&self, line: &str) -> Option<String> {
        self.device_faults().get(line).cloned()
    }

    /// `collect` runs before each scrape.
    pub fn on_scrape(&self, collect: impl Fn(&Metrics) + Send + 'static) {
        *self.collect.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Box::new(collect));
    }

    /// One scrape in Prometheus' text format.
    pub fn scrape(&self) -> String {
        let collect = self.collect.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(collect) = collect.as_ref() {
            collect(&self.metrics);
        }
        self.metrics.encode()
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}
