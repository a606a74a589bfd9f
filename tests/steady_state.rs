//! Once a line is warm, the inference thread allocates nothing per frame: counted by the allocator
//! itself, on that thread, from one judgement to the next.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use inspectd::config::{self, Complaint, DaemonConfig, LineConfig};
use inspectd::imaging::{FrameView, Roi};
use inspectd::line::camera::{Camera, CameraCounts, CameraView};
use inspectd::line::daemon::start;
use inspectd::line::{Judge, Made, NoJudge, Picture, Problem, Supplier};
use inspectd::model::Thresholds;
use inspectd::outputs::Pixels;
use inspectd::realnet::Judgement;
use inspectd::telemetry::Telemetry;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and nobody asks.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches a thread-local
// cell that needs no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Frame(u64, Instant);

static PIXELS: [u8; 48] = [7; 48];

impl Pixels for Frame {
    fn view(&self) -> FrameView<'_> {
        FrameView::rgb(&PIXELS, 4, 4)
    }
}

impl Picture for Frame {
    fn sequence(&self) -> u64 {
        self.0
    }

    fn captured_at(&self) -> Instant {
        self.1
    }
}

struct NoCounts;

impl CameraView for NoCounts {
    fn counts(&self) -> CameraCounts {
        CameraCounts::default()
    }
}

/// Notes how often its thread has allocated when each frame comes. Every third frame is bad, so that
/// maps are taken away and come back.
struct Witness {
    map: Vec<f32>,
    seen: Vec<u64>,
    tell: Sender<Vec<u64>>,
}

const FRAMES: usize = 600;

impl Judge for Witness {
    fn thresholds(&self) -> Thresholds {
        Thresholds { unsure: 0.5, bad: 0.5 }
    }

    fn judge(&mut self, _: &FrameView<'_>, _: Option<Roi>) -> Result<Judgement<'_>, Problem> {
        self.seen.push(COUNT.with(Cell::get));
        let n = self.seen.len();
        if n == FRAMES {
            self.tell.send(std::mem::take(&mut self.seen))?;
        }
        let score = if n.is_multiple_of(3) { 1.0 } else { 0.0 };
        Ok(Judgement { score, map_width: 64, map_height: 64, map: &self.map })
    }
}

/// One line with a witness.
struct One {
    tell: Sender<Vec<u64>>,
    frames: Receiver<Frame>,
}

impl Supplier<Frame> for One {
    fn judges(&self, _: &DaemonConfig, _: &[&LineConfig]) -> Result<Vec<Made>, NoJudge> {
        let seen = Vec::with_capacity(FRAMES);
        let witness = Witness { map: vec![0.5; 64 * 64], seen, tell: self.tell.clone() };
        Ok(vec![Made { hash: "m".into(), judge: Box::new(witness) }])
    }

    fn camera(&self, _: &LineConfig, _: u64) -> Result<Camera<Frame>, Problem> {
        let view = Arc::new(NoCounts);
        Ok(Camera { frames: self.frames.clone(), view, stop: Box::new(|_| Ok(())) })
    }

    fn examine(&self, _: &LineConfig) -> Vec<Complaint> {
        Vec::new()
    }
}

#[test]
fn the_inference_thread_allocates_nothing_once_it_is_warm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(folder.path().join("m"), "").unwrap();
    std::fs::write(
        &path,
        "[daemon]\nhttp = \"off\"\n[[line]]\nname = \"a\"\nmodel = \"m\"\nsource = \"fake\"\ndrop = \"block\"\n\
         deadline_ms = 0\n[line.outputs]\nverdicts = \"v.jsonl\"\nheatmaps = \"maps\"\nheatmaps_keep = 3\n",
    )
    .unwrap();
    let (tell, told) = bounded(1);
    let (frames, receiver) = bounded(1);
    let works = Arc::new(One { tell, frames: receiver });
    let config = config::load(&path).unwrap_or_else(|e| panic!("{e}"));
    let daemon = start(config, path, works, Telemetry::new(), None).unwrap_or_else(|e| panic!("{e}"));
    let (_commands, none) = bounded(1);
    let run = std::thread::spawn(move || daemon.run(&none));
    for n in 0..FRAMES as u64 {
        frames.send_timeout(Frame(n, Instant::now()), Duration::from_secs(60)).expect("frames are taken");
    }
    let seen = told.recv_timeout(Duration::from_secs(60)).expect("all frames are judged");
    drop(frames);
    run.join().unwrap().unwrap();
    // The first frames fill the seven maps in circulation; a few more wait for one to come round.
    let warm = seen[FRAMES / 2];
    let allocations = seen[FRAMES - 1] - warm;
    assert_eq!(allocations, 0, "in the second half of {FRAMES} frames");
}
