//! The inference thread: owns the judges of all lines, takes one frame at a time, or those that a GPU judges at
//! once, and gives back scores and maps; between two frames it takes other judges. It knows no deadline, threshold or
//! output, and allocates nothing once it has seen a frame of each line.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::desk::{Company, MOST};
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

    /// Judges frames of lines that share it, and says what became of each, by its place among them.
    fn judge_some(
        &mut self,
        frames: &[(FrameView<'_>, Option<Roi>)],
        each: &mut dyn FnMut(usize, Result<Judgement<'_>, Problem>),
    ) {
        for (i, (frame, roi)) in frames.iter().enumerate() {
            each(i, self.judge(frame, *roi));
        }
    }

    /// With whose frames those of its line can be judged at once.
    fn company(&self) -> Option<Company> {
        None
    }

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
    /// Frames to judge at once, from the first place on: by the judge of the first one's line.
    Judge([Option<Ask<P>>; MOST]),
    /// Other judges and regions, from the next frame on.
    Take(Handover),
}

/// A frame to judge.
pub struct Ask<P> {
    pub line: usize,
    pub picture: P,
    /// Receives the heatmap, if there is one.
    pub map: Option<Heatmap>,
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
pub struct Answer<P> {
    pub line: usize,
    pub picture: P,
    pub map: Option<Heatmap>,
    pub score: Result<f32, Problem>,
}

/// The frames of a job, judged, at their places.
pub struct Done<P> {
    pub answers: [Option<Answer<P>>; MOST],
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
        let mut asked = match job {
            Job::Judge(asked) => asked,
            Job::Take(handover) => {
                take(&mut seats, handover);
                continue;
            }
        };
        let began = Instant::now();
        heart.judging(Some(began));
        for ask in asked.iter().flatten() {
            if let (Some(pages), Some(seat)) = (ask.picture.pages(), seats.get_mut(ask.line)) {
                seat.meet(ask.line, pages);
            }
        }
        let scores = judge(&mut seats, &mut asked);
        heart.judging(None);
        let mut asked = asked.into_iter().zip(scores);
        let answers = std::array::from_fn(|_| {
            let (Some(Ask { line, picture, map }), score) = asked.next()? else { return None };
            let score = score.unwrap_or_else(|| Err("the judge said nothing of it".into()));
            Some(Answer { line, picture, map, score })
        });
        if done.send(Done { answers, began, ended: Instant::now() }).is_err() {
            return;
        }
    }
}

/// Asks the judge of the first frame's line for all of them.
fn judge<P: Picture>(
    seats: &mut [Seat],
    asked: &mut [Option<Ask<P>>; MOST],
) -> [Option<Result<f32, Problem>>; MOST] {
    let mut scores = [const { None }; MOST];
    let mut maps = [const { None }; MOST];
    let mut frames = [(FrameView::rgb(&[], 0, 0), None); MOST];
    let mut judges = None;
    let mut count = 0;
    for (place, ask) in asked.iter_mut().enumerate().map_while(|(place, ask)| Some((place, ask.as_mut()?))) {
        maps[place] = ask.map.take();
        frames[place] = (ask.picture.view(), seats.get(ask.line).and_then(|seat| seat.roi));
        judges.get_or_insert(ask.line);
        count += 1;
    }
    if let Some(seat) = judges.and_then(|line| seats.get_mut(line)) {
        seat.judge.judge_some(&frames[..count], &mut |place, judged| {
            let (Some(map), Some(score)) = (maps.get_mut(place), scores.get_mut(place)) else { return };
            *score = Some(judged.map(|judgement| {
                if let Some(map) = map {
                    map.width = judgement.map_width;
                    map.height = judgement.map_height;
                    map.data.clear();
                    map.data.extend_from_slice(judgement.map);
                }
                judgement.score
            }));
        });
    }
    for (ask, map) in asked.iter_mut().zip(maps) {
        if let Some(ask) = ask {
            ask.map = map;
        }
    }
    scores
}

impl Seat {
    /// Tells the judge where the line's frames lie, unless it knows.
    fn meet(&mut self, line: usize, pages: &Arc<Pages>) {
        if !self.pages.as_ref().is_some_and(|known| Arc::ptr_eq(known, pages)) {
            self.judge.meet(line, pages);
            self.pages = Some(Arc::clone(pages));
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
