//! What a camera is told: values as meant, already parsed from the config file.

use std::time::Duration;

use super::CaptureError;

/// Buffers upstream needs in its hands beside the queue: one being filled, one on its way, and two
/// that stay reserved for frames that have to be copied.
pub(super) const SLOTS_BESIDE_QUEUE: usize = 4;

/// One camera.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraConfig {
    /// Names the camera in logs, metrics and errors.
    pub name: String,
    /// The source in GStreamer's launch syntax, up to raw video; no sink.
    pub fragment: String,
    /// Frames that exist at most at once: in the queue, with the consumer, and upstream.
    /// At least `queue + 4`, plus one for each frame that the consumer holds on to.
    pub slots: usize,
    /// Frames that wait for the consumer at most; at least 1.
    pub queue: usize,
    /// What the end of the stream means.
    pub on_eos: OnEos,
    /// Restart when no frame came for so long; `None` for triggered cameras, which may be silent.
    pub stall_timeout: Option<Duration>,
    /// What happens to frames when the queue is full.
    pub drop_policy: DropPolicy,
    /// Hand frames on at their timestamps' pace (files) instead of at once (cameras).
    pub sync: bool,
    /// Number of the first frame: where another camera of the same line left off.
    pub first_sequence: u64,
}

impl CameraConfig {
    /// A live camera: newest frame matters, 2 queued, restarted when it ends or is silent for 5 s.
    pub fn new(name: impl Into<String>, fragment: impl Into<String>) -> Self {
        CameraConfig {
            name: name.into(),
            fragment: fragment.into(),
            slots: 8,
            queue: 2,
            on_eos: OnEos::Restart,
            stall_timeout: Some(Duration::from_secs(5)),
            drop_policy: DropPolicy::DropOldest,
            sync: false,
            first_sequence: 0,
        }
    }

    pub(super) fn validate(&self) -> Result<(), CaptureError> {
        let bad = |field: &'static str, problem: String| {
            Err(CaptureError::Config { camera: self.name.clone(), field, problem })
        };
        if self.queue == 0 {
            return bad("queue", "is 0, so no frame could ever wait; use 1 or more".to_owned());
        }
        let least = self.queue + SLOTS_BESIDE_QUEUE;
        if self.slots < least {
            let queue = self.queue;
            return bad(
                "slots",
                format!(
                    "is {}, but a queue of {queue} needs {least} slots or more; use slots = {}",
                    self.slots,
                    least + 2
                ),
            );
        }
        if self.slots > 4096 {
            return bad("slots", format!("is {}; use 4096 or fewer", self.slots));
        }
        if self.stall_timeout.is_some_and(|t| t.is_zero()) {
            return bad("stall_timeout", "is 0; leave it out to wait for ever".to_owned());
        }
        Ok(())
    }
}

/// What the end of the stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEos {
    /// The camera is finished; the receiver sees a disconnect after the last frame.
    Stop,
    /// Play again from the start, at once. A source that ends without a frame is a fault instead.
    Loop,
    /// A fault: restart with backoff. Right for everything live, which never ends by itself.
    Restart,
}

/// What happens when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPolicy {
    /// The longest waiting frame goes: what is on the line now matters.
    DropOldest,
    /// The frame that just came goes.
    DropNewest,
    /// The source waits: for files, where every picture is wanted. A camera would fall behind.
    Block,
}
