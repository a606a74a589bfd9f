//! What a camera counts, and the ledger in which every frame is entered once and leaves once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::imaging::ImageHealth;

/// Why a captured frame was not handed to the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The queue was full and the policy chose this frame.
    QueueFull,
    /// Every slot was in use.
    NoSlot,
    /// A format, size or stride that cannot be handed on.
    Unsupported,
    /// The camera was being stopped or restarted.
    Shutdown,
}

impl DropReason {
    pub const ALL: [DropReason; 4] =
        [DropReason::QueueFull, DropReason::NoSlot, DropReason::Unsupported, DropReason::Shutdown];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::NoSlot => "no_slot",
            DropReason::Unsupported => "unsupported",
            DropReason::Shutdown => "shutdown",
        }
    }
}

/// Why a pipeline was torn down and built again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RestartReason {
    /// An element reported an error.
    Error,
    /// The stream ended and was not allowed to.
    Eos,
    /// No frame came for the configured time.
    Stall,
    /// Formats could not be agreed on, at start or after a change.
    Caps,
    /// The pipeline refused to start.
    StateChange,
}

impl RestartReason {
    pub const ALL: [RestartReason; 5] = [
        RestartReason::Error,
        RestartReason::Eos,
        RestartReason::Stall,
        RestartReason::Caps,
        RestartReason::StateChange,
    ];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            RestartReason::Error => "error",
            RestartReason::Eos => "eos",
            RestartReason::Stall => "stall",
            RestartReason::Caps => "caps",
            RestartReason::StateChange => "state_change",
        }
    }
}

/// The frames of one camera at one instant: `captured = delivered + dropped + in_flight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Frames that reached the pipeline's end.
    pub captured: u64,
    /// Frames that the consumer took and has let go of.
    pub delivered: u64,
    /// Frames in the queue or in the consumer's hands.
    pub in_flight: u64,
    /// Frames that upstream wrote straight into a slot.
    pub zero_copy: u64,
    /// Frames that were copied into a slot.
    pub copied: u64,
    /// Frames that came damaged. They are handed on, without pixels.
    pub damaged: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Ledger {
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    pub fn balances(&self) -> bool {
        self.captured == self.delivered + self.dropped_total() + self.in_flight
    }
}

/// Counters of one camera, shared and safe to read from any thread at any time. They only grow and
/// outlive restarts of the pipeline.
#[derive(Debug, Default)]
pub struct CaptureStats {
    // Under a lock and not in atomics, so that a reader never sees a frame between two columns.
    // Held for a few additions, two or three times per frame.
    ledger: Mutex<Ledger>,
    restarts: [AtomicU64; RestartReason::ALL.len()],
    pub(super) heap_fallback: AtomicU64,
    pub(super) caps_changes: AtomicU64,
    pub(super) loops: AtomicU64,
    pub(super) up: AtomicBool,
    pub(super) finished: AtomicBool,
    last_frame_at: Mutex<Option<Instant>>,
    last_fault: Mutex<Option<String>>,
    image: Mutex<Option<ImageHealth>>,
}

/// A counter's lock is never left half-written: each holder only adds. So poison is no news.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl CaptureStats {
    /// A consistent copy of the frame counters.
    pub fn ledger(&self) -> Ledger {
        *lock(&self.ledger)
    }

    /// Whether the current pipeline has delivered frames and no fault since.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Whether the camera has ended for good: end of stream with [`OnEos::Stop`](super::OnEos), or stopped.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Relaxed)
    }

    pub fn restarts(&self, reason: RestartReason) -> u64 {
        self.restarts[reason as usize].load(Relaxed)
    }

    pub fn restarts_total(&self) -> u64 {
        self.restarts.iter().map(|n| n.load(Relaxed)).sum()
    }

    /// Buffers that upstream asked for and that no slot was left for; they came from the heap.
    pub fn heap_fallback(&self) -> u64 {
        self.heap_fallback.load(Relaxed)
    }

    /// Times that format, width or height changed while running.
    pub fn caps_changes(&self) -> u64 {
        self.caps_changes.load(Relaxed)
    }

    /// Times that [`OnEos::Loop`](super::OnEos) began again.
    pub fn loops(&self) -> u64 {
        self.loops.load(Relaxed)
    }

    /// When the last frame arrived, by the camera's clock.
    pub fn last_frame_at(&self) -> Option<Instant> {
        *lock(&self.last_frame_at)
    }

    /// What went wrong last, as a sentence; kept after recovery.
    pub fn last_fault(&self) -> Option<String> {
        lock(&self.last_fault).clone()
    }

    /// How the pictures of late are; `None` before the first.
    pub fn image(&self) -> Option<ImageHealth> {
        *lock(&self.image)
    }

    pub(super) fn set_image(&self, image: ImageHealth) {
        *lock(&self.image) = Some(image);
    }

    pub(super) fn count_restart(&self, reason: RestartReason) {
        self.restarts[reason as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn set_fault(&self, fault: &str) {
        *lock(&self.last_fault) = Some(fault.to_owned());
    }

    /// Enters a frame. What it returns must be kept with the frame.
    pub(super) fn enter(self: &Arc<Self>, now: Instant) -> Ticket {
        *lock(&self.last_frame_at) = Some(now);
        let mut ledger = lock(&self.ledger);
        ledger.captured += 1;
        ledger.in_flight += 1;
        Ticket { stats: Arc::clone(self), fate: Fate::Dropped(DropReason::Shutdown) }
    }

    pub(super) fn count_zero_copy(&self) {
        lock(&self.ledger).zero_copy += 1;
    }

    pub(super) fn count_copied(&self) {
        lock(&self.ledger).copied += 1;
    }

    pub(super) fn count_damaged(&self) {
        lock(&self.ledger).damaged += 1;
    }
}

/// A frame's line in the ledger: closed when dropped, so no path can forget it or close it twice.
#[derive(Debug)]
pub(super) struct Ticket {
    stats: Arc<CaptureStats>,
    fate: Fate,
}

#[derive(Debug)]
enum Fate {
    Delivered,
    Dropped(DropReason),
}

impl Ticket {
    pub(super) fn discard(&mut self, reason: DropReason) {
        self.fate = Fate::Dropped(reason);
    }

    /// From here on, letting go of the frame counts as delivered.
    pub(super) fn deliver(&mut self) {
        self.fate = Fate::Delivered;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut ledger = lock(&self.stats.ledger);
        ledger.in_flight -= 1;
        match self.fate {
            Fate::Delivered => ledger.delivered += 1,
            Fate::Dropped(reason) => ledger.dropped[reason as usize] += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_in_exactly_one_column_at_every_step() {
        let stats = Arc::new(CaptureStats::default());
        let mut first = stats.enter(Instant::now());
        let mut second = stats.enter(Instant::now());
        assert!(stats.ledger().balances());
        assert_eq!(stats.ledger().in_flight, 2);
        first.deliver();
        drop(first);
        second.discard(DropReason::NoSlot);
        drop(second);
        let ledger = stats.ledger();
        assert!(ledger.balances());
        assert_eq!((ledger.captured, ledger.delivered, ledger.in_flight), (2, 1, 0));
        assert_eq!(ledger.dropped(DropReason::NoSlot), 1);
    }

    #[test]
    fn labels_are_distinct_and_in_the_order_of_the_counters() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i, "{}", reason.label());
        }
        for (i, reason) in RestartReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i, "{}", reason.label());
        }
    }
}
