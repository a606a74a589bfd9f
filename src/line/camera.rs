//! A camera as a line sees it, and the one that captures through GStreamer.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::{Picture, Problem};
use crate::capture::{
    self, CameraConfig, CaptureStats, Damage, DropReason, Frame, RestartReason, SystemClock,
};
use crate::config::{DropPolicy, LineConfig, OnEos};
use crate::imaging::{FrameView, ImageHealth};
use crate::outputs::Pixels;
use crate::pages::Pages;

/// A camera that was started.
pub struct Camera<P> {
    /// Disconnected when the camera has ended for good and its last frame was taken.
    pub frames: Receiver<P>,
    pub view: Arc<dyn CameraView>,
    /// Stops it, and waits for that at most so long.
    pub stop: StopCamera,
}

pub type StopCamera = Box<dyn FnOnce(Duration) -> Result<(), Problem> + Send>;

/// Reads a camera's counters.
pub trait CameraView: Send + Sync {
    fn counts(&self) -> CameraCounts;
}

/// A camera's counters at one instant.
#[derive(Clone, Debug, Default)]
pub struct CameraCounts {
    pub captured: u64,
    pub zero_copy: u64,
    pub copied: u64,
    /// Came without pixels.
    pub damaged: u64,
    pub dropped: Vec<(&'static str, u64)>,
    pub restarts: Vec<(&'static str, u64)>,
    pub up: bool,
    pub last_frame_at: Option<Instant>,
    pub last_fault: Option<String>,
    /// How the pictures of late are.
    pub image: Option<ImageHealth>,
}

impl CameraCounts {
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, n)| n).sum()
    }

    pub fn restarts_total(&self) -> u64 {
        self.restarts.iter().map(|(_, n)| n).sum()
    }
}

impl CameraCounts {
    /// Adds what an earlier camera of the same line counted. What is so now is this one's.
    fn add(&mut self, earlier: &CameraCounts) {
        self.captured += earlier.captured;
        self.zero_copy += earlier.zero_copy;
        self.copied += earlier.copied;
        self.damaged += earlier.damaged;
        for (sums, counts) in [(&mut self.dropped, &earlier.dropped), (&mut self.restarts, &earlier.restarts)]
        {
            for (reason, n) in counts {
                match sums.iter_mut().find(|(other, _)| other == reason) {
                    Some((_, sum)) => *sum += n,
                    None => sums.push((reason, *n)),
                }
            }
        }
    }
}

/// All cameras that a line has had since the start, as one.
pub struct Succession(Mutex<Successors>);

struct Successors {
    now: Arc<dyn CameraView>,
    /// Of cameras that have ended.
    past: CameraCounts,
    /// Those that did not end in time may still count.
    lingering: Vec<Arc<dyn CameraView>>,
}

impl Succession {
    pub fn new(first: Arc<dyn CameraView>) -> Self {
        Succession(Mutex::new(Successors { now: first, past: CameraCounts::default(), lingering: vec![] }))
    }

    /// `next` follows. `ended`: the one before counts no more.
    pub fn follow(&self, next: Arc<dyn CameraView>, ended: bool) {
        let mut all = self.lock();
        let before = std::mem::replace(&mut all.now, next);
        if ended {
            all.past.add(&before.counts());
        } else {
            all.lingering.push(before);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Successors> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl CameraView for Succession {
    fn counts(&self) -> CameraCounts {
        let all = self.lock();
        let mut counts = all.now.counts();
        counts.add(&all.past);
        all.lingering.iter().for_each(|view| counts.add(&view.counts()));
        counts
    }
}

/// Labels of `frames_dropped_total`.
pub fn drop_reasons() -> Vec<&'static str> {
    let mut reasons = DropReason::ALL.map(DropReason::label).to_vec();
    // The desk's own.
    reasons.push("not_triggered");
    reasons
}

/// Labels of `camera_restarts_total`.
pub fn restart_reasons() -> Vec<&'static str> {
    RestartReason::ALL.map(RestartReason::label).to_vec()
}

impl CameraView for CaptureStats {
    fn counts(&self) -> CameraCounts {
        let ledger = self.ledger();
        CameraCounts {
            captured: ledger.captured,
            zero_copy: ledger.zero_copy,
            copied: ledger.copied,
            damaged: ledger.damaged,
            dropped: DropReason::ALL.map(|reason| (reason.label(), ledger.dropped(reason))).to_vec(),
            restarts: RestartReason::ALL.map(|reason| (reason.label(), self.restarts(reason))).to_vec(),
            up: self.is_up(),
            last_frame_at: self.last_frame_at(),
            last_fault: self.last_fault(),
            image: self.image(),
        }
    }
}

impl Pixels for Frame {
    fn view(&self) -> FrameView<'_> {
        Frame::view(self)
    }
}

impl Picture for Frame {
    fn sequence(&self) -> u64 {
        Frame::sequence(self)
    }

    fn captured_at(&self) -> Instant {
        Frame::captured_at(self)
    }

    fn damage(&self) -> Option<Damage> {
        Frame::damage(self)
    }

    fn pages(&self) -> Option<&Arc<Pages>> {
        Frame::pages(self)
    }
}

/// Starts the camera that `line` describes. Its first frame has the number `first`.
pub fn start(line: &LineConfig, first: u64) -> Result<Camera<Frame>, Problem> {
    let config = CameraConfig {
        name: line.name.to_string(),
        fragment: line.source.clone(),
        slots: line.slots,
        // Frames wait at the desk, where their deadlines are watched; this queue only hands over.
        queue: 1,
        on_eos: match line.on_eos {
            OnEos::Restart => capture::OnEos::Restart,
            OnEos::Stop => capture::OnEos::Stop,
            OnEos::Loop => capture::OnEos::Loop,
        },
        stall_timeout: line.stall_timeout,
        drop_policy: match line.drop {
            DropPolicy::Oldest => capture::DropPolicy::DropOldest,
            DropPolicy::Newest => capture::DropPolicy::DropNewest,
            DropPolicy::Block => capture::DropPolicy::Block,
        },
        sync: line.sync,
        first_sequence: first,
    };
    let camera = capture::Camera::start(config, Arc::new(SystemClock))?;
    Ok(Camera {
        frames: camera.frames().clone(),
        view: camera.stats(),
        stop: Box::new(move |limit| camera.stop(limit).map_err(Problem::from)),
    })
}
