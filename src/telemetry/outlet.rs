//! Counters of what goes out over the network: submitted = sent + lost(reason) + waiting, per line and
//! output, at every moment.

use std::fmt;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};
use tracing::error;

use super::limit::Limit;
use super::metrics::Metrics;

/// Where verdicts go over the network. The label `stage`; the label `line` is empty where one connection
/// serves all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutletKind {
    Modbus,
    Mqtt,
    Webhook,
}

impl OutletKind {
    pub fn label(self) -> &'static str {
        match self {
            OutletKind::Modbus => "modbus",
            OutletKind::Mqtt => "mqtt",
            OutletKind::Webhook => "webhook",
        }
    }
}

impl fmt::Display for OutletKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutletKind::Modbus => "The PLC",
            OutletKind::Mqtt => "The MQTT broker",
            OutletKind::Webhook => "The webhook's server",
        })
    }
}

/// Why a verdict did not reach the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The queue was full.
    Full,
    /// The other side did not answer in time.
    Timeout,
    /// The other side answered that it does not take it.
    Refused,
    /// There was no connection.
    Link,
    /// Written, but the PLC did not say that it had read it.
    Unacknowledged,
    /// A newer one took its place before it could be written.
    Superseded,
    /// The output was ended, by the daemon's end or a reload, before its turn came.
    Shutdown,
}

impl Loss {
    /// In the order of their numbers.
    pub const ALL: [Loss; 7] = [
        Loss::Full,
        Loss::Timeout,
        Loss::Refused,
        Loss::Link,
        Loss::Unacknowledged,
        Loss::Superseded,
        Loss::Shutdown,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Loss::Full => "full",
            Loss::Timeout => "timeout",
            Loss::Refused => "refused",
            Loss::Link => "link",
            Loss::Unacknowledged => "unacknowledged",
            Loss::Superseded => "superseded",
            Loss::Shutdown => "shutdown",
        }
    }
}

/// What one line sends by one output.
#[derive(Debug)]
pub struct OutletMeter {
    line: String,
    kind: OutletKind,
    sent: IntCounter,
    waiting: IntGauge,
    lost: [IntCounter; Loss::ALL.len()],
    stage: Histogram,
    limit: Limit,
}

impl OutletMeter {
    pub fn new(metrics: &Metrics, line: &str, kind: OutletKind) -> Self {
        let labels = [line, kind.label()];
        OutletMeter {
            line: line.to_owned(),
            kind,
            sent: metrics.outputs_sent.with_label_values(&labels),
            waiting: metrics.queue_depth.with_label_values(&labels),
            lost: Loss::ALL
                .map(|loss| metrics.outputs_failed.with_label_values(&[line, kind.label(), loss.label()])),
            stage: metrics.stage_duration.with_label_values(&labels),
            limit: Limit::default(),
        }
    }

    pub fn submitted(&self) {
        self.waiting.inc();
    }

    /// The other side has it, so long after the verdict.
    pub fn sent(&self, after: Duration) {
        self.sent.inc();
        self.waiting.dec();
        self.stage.observe(after.as_secs_f64());
    }

    /// That the other side is down is said once, when it goes down; what is lost meanwhile is counted.
    pub fn lost(&self, loss: Loss, detail: &dyn fmt::Display) {
        self.lost[loss as usize].inc();
        self.waiting.dec();
        if matches!(loss, Loss::Link | Loss::Shutdown) {
            return;
        }
        if let Some(unsaid) = self.limit.pass() {
            let (line, output, reason) = (self.line.as_str(), self.kind.label(), loss.label());
            error!(line, output, reason, unsaid, "A verdict did not reach its receiver: {detail}.");
        }
    }

    /// Sent, lost (all reasons), waiting.
    pub fn counts(&self) -> (u64, u64, i64) {
        (self.sent.get(), self.lost.iter().map(IntCounter::get).sum(), self.waiting.get())
    }

    pub fn lost_by(&self, loss: Loss) -> u64 {
        self.lost[loss as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_stand_at_their_numbers_and_are_counted_under_their_reason() {
        let metrics = Metrics::new();
        let meter = OutletMeter::new(&metrics, "a", OutletKind::Webhook);
        for (i, loss) in Loss::ALL.into_iter().enumerate() {
            for _ in 0..=i {
                meter.submitted();
                meter.lost(loss, &"x");
            }
            let labels = ["a", "webhook", loss.label()];
            assert_eq!(metrics.outputs_failed.with_label_values(&labels).get(), i as u64 + 1);
        }
        meter.submitted();
        meter.sent(Duration::ZERO);
        meter.submitted();
        assert_eq!(meter.counts(), (1, 28, 1));
    }
}
