//! Fakes for the tests of this room: pictures, cameras and judges without GStreamer and without a model.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::camera::{Camera, CameraCounts, CameraView};
use super::desk::Picture;
use super::{Judge, Made, NoJudge, Problem, Supplier};
use crate::capture::Damage;
use crate::config::{Complaint, DaemonConfig, LineConfig};
use crate::imaging::{FrameView, Roi};
use crate::model::Thresholds;
use crate::outputs::Pixels;
use crate::realnet::Judgement;

/// A grey picture of 4 by 4 pixels.
#[derive(Debug)]
pub struct FakePicture {
    sequence: u64,
    captured_at: Instant,
    pixels: [u8; 48],
    damage: Option<Damage>,
}

impl FakePicture {
    pub fn new(sequence: u64, captured_at: Instant) -> Self {
        FakePicture { sequence, captured_at, pixels: [sequence as u8; 48], damage: None }
    }
}

impl Pixels for FakePicture {
    fn view(&self) -> FrameView<'_> {
        FrameView::rgb(&self.pixels, 4, 4)
    }
}

impl Picture for FakePicture {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn captured_at(&self) -> Instant {
        self.captured_at
    }

    fn damage(&self) -> Option<Damage> {
        self.damage
    }
}

/// SplitMix64: enough for choosing test cases, and the seed is in the assertion's message.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A camera that a test feeds by hand.
#[derive(Clone)]
pub struct FakeCamera {
    /// Gone once the camera was stopped.
    frames: Arc<Mutex<Option<Sender<FakePicture>>>>,
    counts: Arc<FakeCounts>,
}

#[derive(Default)]
pub struct FakeCounts {
    captured: AtomicU64,
    started: AtomicU64,
}

impl CameraView for FakeCounts {
    fn counts(&self) -> CameraCounts {
        CameraCounts {
            captured: self.captured.load(Relaxed),
            up: true,
            last_frame_at: Some(Instant::now()),
            ..CameraCounts::default()
        }
    }
}

impl FakeCamera {
    /// The hand that feeds, and what the daemon opens. It ends when its last hand is dropped, or stopped.
    pub fn new() -> (FakeCamera, Camera<FakePicture>) {
        let (frames, receiver) = bounded(1);
        let frames = Arc::new(Mutex::new(Some(frames)));
        let counts = Arc::new(FakeCounts::default());
        let (view, hand) = (Arc::clone(&counts), Arc::downgrade(&frames));
        let stop = move |_| {
            if let Some(frames) = hand.upgrade() {
                frames.lock().unwrap().take();
            }
            Ok(())
        };
        (FakeCamera { frames, counts }, Camera { frames: receiver, view, stop: Box::new(stop) })
    }

    pub fn is_stopped(&self) -> bool {
        self.frames.lock().unwrap().is_none()
    }

    /// Captures a frame now; waits while the hand-over queue is full. The frame's number is its score.
    pub fn capture(&self) {
        self.send(None);
    }

    /// The same, but the frame comes damaged.
    pub fn capture_damaged(&self) {
        self.send(Some(Damage::Marked));
    }

    fn send(&self, damage: Option<Damage>) {
        let sequence = self.counts.started.fetch_add(1, Relaxed);
        // Counted before it is handed over, as a camera does.
        self.counts.captured.fetch_add(1, Relaxed);
        let frames = self.frames.lock().unwrap().clone().expect("the camera runs");
        let picture = FakePicture { damage, ..FakePicture::new(sequence, Instant::now()) };
        frames.send_timeout(picture, Duration::from_secs(10)).expect("the daemon takes frames");
    }
}

/// Gives the frame's number as its score, and waits at a gate before each judgement if it has one.
/// `u8::MAX` is a frame that cannot be judged.
pub struct FakeJudge {
    pub gate: Option<Receiver<()>>,
    pub map: Vec<f32>,
    /// Hears how many frames it is given at once.
    pub given: Option<Sender<usize>>,
    /// Its own thresholds.
    pub thresholds: Thresholds,
}

impl FakeJudge {
    pub fn new(gate: Option<Receiver<()>>) -> Self {
        FakeJudge {
            gate,
            map: vec![0.5; 4],
            given: None,
            thresholds: Thresholds { unsure: 100.0, bad: 200.0 },
        }
    }
}

/// Makes a judge.
pub type Recipe = Box<dyn FnOnce() -> Result<Box<dyn Judge>, Problem> + Send>;

/// Gives out what tests have put in: judges with their models' hashes and cameras, in order.
#[derive(Default)]
pub struct FakeSupplier {
    pub judges: Mutex<VecDeque<(&'static str, Recipe)>>,
    pub cameras: Mutex<VecDeque<Camera<FakePicture>>>,
    first: Mutex<Vec<u64>>,
}

impl FakeSupplier {
    pub fn put_judge(&self, hash: &'static str, judge: Recipe) {
        self.judges.lock().unwrap().push_back((hash, judge));
    }

    /// The hand of a camera that is given out later.
    pub fn put_camera(&self) -> FakeCamera {
        let (hand, camera) = FakeCamera::new();
        self.cameras.lock().unwrap().push_back(camera);
        hand
    }

    /// The number of each camera's first frame, in the order that they were started.
    pub fn first_frames(&self) -> Vec<u64> {
        self.first.lock().unwrap().clone()
    }
}

impl Supplier<FakePicture> for FakeSupplier {
    fn judges(&self, _: &DaemonConfig, lines: &[&LineConfig]) -> Result<Vec<Made>, NoJudge> {
        let make = |line: &&LineConfig| {
            let next = self.judges.lock().unwrap().pop_front();
            let (hash, recipe) = next.unwrap_or_else(|| panic!("no judge for {}", line.name));
            let judge = recipe().map_err(|source| NoJudge { line: line.name.clone(), source })?;
            Ok(Made { hash: hash.to_owned(), judge })
        };
        lines.iter().map(make).collect()
    }

    fn camera(&self, _: &LineConfig, first: u64) -> Result<Camera<FakePicture>, Problem> {
        self.first.lock().unwrap().push(first);
        self.cameras.lock().unwrap().pop_front().ok_or_else(|| "there is no element `fake`".into())
    }

    fn examine(&self, _: &LineConfig) -> Vec<Complaint> {
        Vec::new()
    }
}

impl Judge for FakeJudge {
    fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    fn judge_some(
        &mut self,
        frames: &[(FrameView<'_>, Option<Roi>)],
        each: &mut dyn FnMut(usize, Result<Judgement<'_>, Problem>),
    ) {
        if let Some(given) = &self.given {
            given.send(frames.len()).expect("the test hears");
        }
        for (i, (frame, roi)) in frames.iter().enumerate() {
            each(i, self.judge(frame, *roi));
        }
    }

    fn judge(&mut self, frame: &FrameView<'_>, _: Option<Roi>) -> Result<Judgement<'_>, Problem> {
        if let Some(gate) = &self.gate {
            // A gate that was taken away is open.
            let _ = gate.recv();
        }
        match frame.planes[0].data[0] {
            u8::MAX => Err("the picture is of another part".into()),
            n => Ok(Judgement { score: n.into(), map_width: 2, map_height: 2, map: &self.map }),
        }
    }
}
