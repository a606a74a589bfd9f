//! The inference thread: owns the judges of all lines, takes one frame at a time and gives back its score and
//! map; between two frames it takes other judges. It knows no deadline, threshold or output, and allocates nothing once
//! it has seen a frame of each line.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::heart::Heart;
use super::{Picture, Problem};
use crate::imaging::{FrameView, Heatmap, Roi};
use crate::model::Thresholds;
use crate::pages::Pages;
use crate::realnet::{Inspector, Judgement};

/// What gives a frame its score. A trait, so that the daemon can be tested without a model.
pub trait Judge: Send {
    /// The model's own thresholds.
    fn thresholds(&self) -> Thresholds;

    fn judge(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Judgement<'_>, Problem>;

    /// Frames of `line` come from this memory from now on. Told once, before the first of them.
    fn meet(&mut self, line: usize, pages: &Arc<Pages>) {
        let _ = (line, pages);
    }
}

impl Judge for Inspector {
    fn thresholds(&self) -> Thresholds {
        Inspector::thresholds(self)
    }

    fn judge(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Judgement<'_>, Problem> {
        Inspector::judge(self, frame, roi).map_err(Problem::from)
    }
}

/// What the inference thread is given to do.
pub enum Job<P> {
    /// A frame to judge. `map` receives the heatmap, if there is one.
    Judge { line: usize, picture: P, map: Option<Heatmap> },
    /// Other judges and regions, from the next frame on.
    Take(Handover),
}

/// What a reload changes for the inference thread.
pub struct Handover {
    /// For each line; `None` keeps the judge that it has.
    pub judges: Vec<Option<Box<dyn Judge>>>,
    /// For each line.
    pub rois: Vec<Option<Roi>>,
    /// Gets the judges that were replaced: letting go of one takes time that no frame should wait.
    pub done: Sender<Vec<Box<dyn Judge>>>,
}

/// A frame that was judged.
pub struct Done<P> {
    pub line: usize,
    pub picture: P,
    pub map: Option<Heatmap>,
    pub score: Result<f32, Problem>,
    pub began: Instant,
    pub ended: Instant,
}

/// The inference thread and its queues. It ends when `jobs` is dropped.
pub struct Worker<P> {
    /// Room for a handover and the frame after it, so that sending never waits.
    pub jobs: Sender<Job<P>>,
    pub done: Receiver<Done<P>>,
    pub thread: JoinHandle<()>,
}

/// Longer than a queue spins before it lets its thread sleep, on a machine as busy as can be.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// Starts the thread: a judge for each line and its region.
pub fn start<P: Picture>(
    judges: Vec<(Box<dyn Judge>, Option<Roi>)>,
    heart: Arc<Heart>,
) -> io::Result<Worker<P>> {
    let (jobs, job_receiver) = bounded(2);
    let (done_sender, done) = bounded(1);
    let (ready_sender, ready) = bounded(1);
    let seats = judges.into_iter().map(|(judge, roi)| Seat { judge, roi, pages: None }).collect();
    let thread = std::thread::Builder::new().name("inference".to_owned()).spawn(move || {
        // Nobody can send yet. The first wait of a thread and of a queue allocates; when it
        // would come is up to the scheduler, so it is had here and no frame pays for it.
        drop(job_receiver.recv_timeout(FIRST_WAIT));
        if ready_sender.send(()).is_ok() {
            run(seats, &job_receiver, &done_sender, &heart);
        }
    })?;
    ready.recv().map_err(io::Error::other)?;
    Ok(Worker { jobs, done, thread })
}

/// One line at the inference thread.
struct Seat {
    judge: Box<dyn Judge>,
    roi: Option<Roi>,
    /// The memory that the judge knows the line's frames to come from.
    pages: Option<Arc<Pages>>,
}

fn run<P: Picture>(mut seats: Vec<Seat>, jobs: &Receiver<Job<P>>, done: &Sender<Done<P>>, heart: &Heart) {
    for job in jobs {
        let (line, picture, mut map) = match job {
            Job::Judge { line, picture, map } => (line, picture, map),
            Job::Take(handover) => {
                take(&mut seats, handover);
                continue;
            }
        };
        let Some(seat) = seats.get_mut(line) else { continue };
        let began = Instant::now();
        heart.judging(Some(began));
        if let Some(pages) = picture.pages()
            && !seat.pages.as_ref().is_some_and(|known| Arc::ptr_eq(known, pages))
        {
            seat.judge.meet(line, pages);
            seat.pages = Some(Arc::clone(pages));
        }
        let score = seat.judge.judge(&picture.view(), seat.roi).map(|judgement| {
            if let Some(map) = &mut map {
                map.width = judgement.map_width;
                map.height = judgement.map_height;
                map.data.clear();
                map.data.extend_from_slice(judgement.map);
            }
            judgement.score
        });
        heart.judging(None);
        let answer = Done { line, picture, map, score, began, ended: Instant::now() };
        if done.send(answer).is_err() {
            return;
        }
    }
}

fn take(seats: &mut [Seat], Handover { judges, rois, done }: Handover) {
    let mut replaced = Vec::new();
    for ((seat, judge), roi) in seats.iter_mut().zip(judges).zip(rois) {
        seat.roi = roi;
        if let Some(judge) = judge {
            replaced.push(std::mem::replace(&mut seat.judge, judge));
            // The new one has met nobody.
            seat.pages = None;
        }
    }
    // If nobody waits for the old judges any more, they are let go here.
    let _ = done.send(replaced);
}
