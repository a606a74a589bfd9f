//! What happens in the daemon: one typed event is one log line and one metric.
//!
//! ERROR means that data was lost or somebody must act; WARN that something was degraded and mended
//! itself or will; INFO what an operator wants in the log of a day; DEBUG what is true of every frame.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::limit::Limit;
use super::line::{Output, OutputFault, verdict_label};
use super::{LineMetrics, Metrics, OutletKind};
use crate::model::{Thresholds, Verdict};

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    Applied,
    Unchanged,
    Invalid,
    NeedsRestart,
    Failed,
    /// Taken over, but a line is without a camera now.
    NoCamera,
}

impl Reload {
    pub const ALL: [Reload; 6] = [
        Reload::Applied,
        Reload::Unchanged,
        Reload::Invalid,
        Reload::NeedsRestart,
        Reload::Failed,
        Reload::NoCamera,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Reload::Applied => "applied",
            Reload::Unchanged => "unchanged",
            Reload::Invalid => "invalid",
            Reload::NeedsRestart => "needs_restart",
            Reload::Failed => "failed",
            Reload::NoCamera => "no_camera",
        }
    }
}

/// Something that happened to the daemon.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    Listening { address: SocketAddr },
    LineStarted { line: &'a str, model: &'a str, thresholds: Thresholds },
    ModelReplaced { line: &'a str, from: &'a str, to: &'a str, thresholds: Thresholds },
    Ready { lines: usize, config: &'a str },
    Reloaded { result: Reload, detail: &'a dyn fmt::Display },
    LineEnded { line: &'a str },
    LineSick { line: &'a str, why: &'a str },
    LineWell { line: &'a str },
    DeviceUp { line: &'a str, device: &'a str, name: &'a str },
    DeviceFailed { line: &'a str, device: &'a str, error: &'a dyn fmt::Display },
    DeviceStillDown { line: &'a str, device: &'a str, error: &'a dyn fmt::Display },
    NotPinned { line: &'a str, device: &'a str, error: &'a dyn fmt::Display },
    ArchiveOpened { folder: &'a Path },
    ArchiveSetAside { to: &'a Path, error: &'a dyn fmt::Display },
    ArchiveFailed { error: &'a dyn fmt::Display },
    ArchiveWell { down_for: Option<Duration> },
    OutletUp { line: &'a str, outlet: OutletKind, address: &'a str, down_for: Option<Duration> },
    OutletDown { line: &'a str, outlet: OutletKind, address: &'a str, error: &'a dyn fmt::Display },
    Draining { why: &'a str, limit: Duration },
    DrainLimit { left: usize },
    Stopped { frames: u64 },
}

impl Event<'_> {
    /// Writes the log line and moves the metric.
    pub fn emit(self, metrics: &Metrics) {
        match self {
            Event::Listening { address } => {
                info!(%address, "Listening: http://{address}/ shows the lines, /metrics and /healthz are for machines.");
            }
            Event::LineStarted { line, model, thresholds: Thresholds { unsure, bad } } => {
                metrics.model_info.with_label_values(&[line, model]).set(1);
                info!(line, model, %unsure, %bad, "The line is started.");
            }
            Event::ModelReplaced { line, from, to, thresholds: Thresholds { unsure, bad } } => {
                // Gone already where the line had none.
                let _ = metrics.model_info.remove_label_values(&[line, from]);
                metrics.model_info.with_label_values(&[line, to]).set(1);
                info!(line, model = to, before = from, %unsure, %bad, "The line has another model.");
            }
            Event::Ready { lines, config } => {
                metrics.config_hash.with_label_values(&[config]).set(1);
                info!(lines, config, "Ready.");
            }
            Event::Reloaded { result, detail } => {
                metrics.config_reloads.with_label_values(&[result.label()]).inc();
                match result {
                    Reload::Applied => info!("The configuration was taken over: {detail}."),
                    Reload::Unchanged => info!("The configuration is as before; output files were reopened."),
                    Reload::Invalid => {
                        error!("The configuration was refused, and the one before stays in force: {detail}")
                    }
                    Reload::NeedsRestart => error!(
                        "Nothing was taken over, because these changes need `systemctl restart inspectd`: {detail}."
                    ),
                    Reload::NoCamera => error!(
                        "The configuration was taken over, but a camera did not start; another reload tries it \
                         again: {detail}."
                    ),
                    Reload::Failed => error!(
                        "Nothing was taken over, and the configuration before stays in force: {detail}"
                    ),
                }
            }
            Event::LineEnded { line } => info!(line, "The line's source has ended."),
            Event::LineSick { line, why } => warn!(line, "The line is not well: {why}."),
            Event::LineWell { line } => info!(line, "The line is well again."),
            Event::DeviceUp { line, device, name } => {
                metrics.device_up.with_label_values(&[line, device]).set(1);
                info!(line, device, "The line computes on {name}.");
            }
            Event::DeviceFailed { line, device, error } => {
                metrics.device_up.with_label_values(&[line, device]).set(0);
                metrics.device_failures.with_label_values(&[line, device]).inc();
                error!(
                    line,
                    device, "The GPU failed, and the CPU judges this line until it is back: {error}."
                );
            }
            Event::DeviceStillDown { line, device, error } => {
                warn!(line, device, "The GPU is not back yet: {error}.");
            }
            Event::NotPinned { line, device, error } => {
                warn!(
                    line,
                    device,
                    "The memory of the line's frames cannot be pinned, so each frame is copied to the GPU by \
                     way of the driver's own buffer: {error}. If the limit on locked memory is in the way: \
                     LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`."
                );
            }
            Event::ArchiveOpened { folder } => {
                info!(folder = %folder.display(), "The archive is open.");
            }
            Event::ArchiveSetAside { to, error } => error!(
                "The archive was damaged ({error}) and lies now in {} with its pictures beside it; a new one is begun. \
                 `sqlite3 FILE .recover` reads what can be read.",
                to.display()
            ),
            Event::ArchiveFailed { error } => {
                metrics.archive_up.with_label_values(&["archive"]).set(0);
                error!("The archive takes nothing, and inspection goes on without it: {error}.");
            }
            Event::ArchiveWell { down_for } => {
                metrics.archive_up.with_label_values(&["archive"]).set(1);
                if let Some(down_for) = down_for {
                    info!("The archive is written again, after {} s.", down_for.as_secs());
                }
            }
            Event::OutletUp { line, outlet, address, down_for } => {
                metrics.output_up.with_label_values(&[line, outlet.label()]).set(1);
                match down_for {
                    None => info!(line, address, "{outlet} takes verdicts."),
                    Some(time) => info!(line, address, "{outlet} takes verdicts again, after {time:.1?}."),
                }
            }
            Event::OutletDown { line, outlet, address, error } => {
                metrics.output_up.with_label_values(&[line, outlet.label()]).set(0);
                error!(
                    line,
                    address,
                    "{outlet} takes no verdicts, and is tried again until it does; what is lost meanwhile is \
                     counted: {error}."
                );
            }
            Event::Draining { why, limit } => {
                info!("Stopping ({why}): frames in flight have {limit:?} to be judged.");
            }
            Event::DrainLimit { left } => warn!(left, "Time is up: frames in flight were dropped."),
            Event::Stopped { frames } => info!(frames, "Stopped."),
        }
    }
}

/// Something that happened to a frame of a line, or to what its verdict drives.
#[derive(Clone, Copy)]
pub enum LineEvent<'a> {
    Verdict { sequence: u64, verdict: Verdict, score: Option<f32>, latency: Duration },
    JudgeFailed { sequence: u64, error: &'a dyn fmt::Display },
    FrameDamaged { sequence: u64, damage: &'a dyn fmt::Display },
    JudgementDiscarded { sequence: u64 },
    OutputFailed { output: Output, fault: OutputFault, detail: &'a dyn fmt::Display },
    LedgerUnbalanced { detail: &'a dyn fmt::Display },
}

/// Metrics of a line, and what keeps its log readable.
#[derive(Debug)]
pub struct LineTelemetry {
    pub name: String,
    pub metrics: LineMetrics,
    late: Limit,
    judge_failed: Limit,
    damaged: Limit,
    output_failed: [Limit; Output::ALL.len()],
    unbalanced: Limit,
}

impl LineTelemetry {
    pub fn new(name: &str, metrics: LineMetrics) -> Self {
        LineTelemetry {
            name: name.to_owned(),
            metrics,
            late: Limit::default(),
            judge_failed: Limit::default(),
            damaged: Limit::default(),
            output_failed: Output::ALL.map(|_| Limit::default()),
            unbalanced: Limit::default(),
        }
    }

    /// Moves the metric, and writes the log line unless one of its kind was written just before.
    pub fn emit(&self, event: LineEvent<'_>) {
        let line = self.name.as_str();
        match event {
            LineEvent::Verdict { sequence, verdict, score, latency } => {
                self.metrics.latency.observe(latency.as_secs_f64());
                if let Some(score) = score {
                    self.metrics.score.observe(score.into());
                }
                let latency_ms = latency.as_secs_f64() * 1e3;
                let verdict_name = verdict_label(verdict);
                // As an f32 prints; widened to f64 it would show digits that it does not have.
                let score = score.map(tracing::field::display);
                match verdict {
                    Verdict::Good => {
                        debug!(line, sequence, verdict = verdict_name, score, latency_ms, "Judged.")
                    }
                    Verdict::Unsure | Verdict::Bad => {
                        info!(line, sequence, verdict = verdict_name, score, latency_ms, "Judged.");
                    }
                    // Why is said by an event of its own.
                    Verdict::Unjudged => {
                        debug!(line, sequence, verdict = verdict_name, latency_ms, "Not judged.");
                    }
                    Verdict::Late => {
                        self.metrics.deadline_misses.inc();
                        if let Some(unsaid) = self.late.pass() {
                            warn!(
                                line,
                                sequence,
                                verdict = verdict_name,
                                latency_ms,
                                unsaid,
                                "A part was not judged in time."
                            );
                        }
                    }
                }
            }
            LineEvent::JudgeFailed { sequence, error } => {
                self.metrics.judge_failures.inc();
                if let Some(unsaid) = self.judge_failed.pass() {
                    error!(line, sequence, unsaid, "A frame could not be judged: {error}.");
                }
            }
            LineEvent::FrameDamaged { sequence, damage } => {
                if let Some(unsaid) = self.damaged.pass() {
                    warn!(line, sequence, unsaid, "A frame came damaged, so its part is unjudged: {damage}.");
                }
            }
            LineEvent::JudgementDiscarded { sequence } => {
                self.metrics.judgements_discarded.inc();
                debug!(line, sequence, "The judgement came after the verdict late.");
            }
            LineEvent::OutputFailed { output, fault, detail } => {
                self.metrics.output_failed(output, fault).inc();
                if let Some(unsaid) = self.output_failed[output as usize].pass() {
                    let (output, reason) = (output.label(), fault.label());
                    error!(line, output, reason, unsaid, "An output was lost: {detail}.");
                }
            }
            LineEvent::LedgerUnbalanced { detail } => {
                self.metrics.ledger_unbalanced.inc();
                if let Some(unsaid) = self.unbalanced.pass() {
                    error!(line, unsaid, "The ledger of frames does not balance: {detail}.");
                }
            }
        }
    }
}
