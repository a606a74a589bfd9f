//! The inference thread: owns the judges of all lines of one device, takes one frame at a time and
//! gives back its score and map. It knows no deadline, threshold or output, and allocates nothing once
//! it has seen a frame of each line.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::heart::Heart;
use super::{Picture, Problem};
use crate::config::LineName;
use crate::imaging::{FrameView, Heatmap, Roi};
use crate::model::Thresholds;
use crate::pages::Pages;
use crate::realnet::{Inspector, Judgement};

/// What gives a frame its score. A trait, so that the daemon can be tested without a model.
pub trait Judge {
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

/// Makes a judge on the inference thread, where its memory is then at home.
pub type Recipe = Box<dyn FnOnce() -> Result<Box<dyn Judge>, Problem> + Send>;

/// A frame to judge. `map` receives the heatmap, if there is one.
pub struct Job<P> {
    pub line: usize,
    pub picture: P,
    pub map: Option<Heatmap>,
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

/// The inference thread's two queues of one frame each. It ends when `jobs` is dropped.
pub struct Worker<P> {
    pub jobs: Sender<Job<P>>,
    pub done: Receiver<Done<P>>,
    pub thread: JoinHandle<()>,
    /// Each line's own thresholds.
    pub thresholds: Vec<Thresholds>,
}

/// Why the inference thread did not start.
#[derive(Debug)]
pub enum WorkerError {
    Thread(io::Error),
    Judge { line: LineName, source: Problem },
    Gone,
}

/// Longer than a queue spins before it lets its thread sleep, on a machine as busy as can be.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// Starts the thread and waits until every judge is made.
pub fn start<P: Picture>(
    recipes: Vec<(LineName, Option<Roi>, Recipe)>,
    heart: Arc<Heart>,
) -> Result<Worker<P>, WorkerError> {
    let (jobs, job_receiver) = bounded(1);
    let (done_sender, done) = bounded(1);
    let (ready_sender, ready) = bounded(1);
    let thread = std::thread::Builder::new()
        .name("inference".to_owned())
        .spawn(move || match make(recipes) {
            Ok(judges) => {
                let thresholds: Vec<_> = judges.iter().map(|(judge, _)| judge.thresholds()).collect();
                // Nobody can send yet. The first wait of a thread and of a queue allocates; when it
                // would come is up to the scheduler, so it is had here and no frame pays for it.
                drop(job_receiver.recv_timeout(FIRST_WAIT));
                if ready_sender.send(Ok(thresholds)).is_ok() {
                    run(judges, &job_receiver, &done_sender, &heart);
                }
            }
            // Whoever asked has gone away if nobody takes the answer.
            Err(error) => drop(ready_sender.send(Err(error))),
        })
        .map_err(WorkerError::Thread)?;
    let thresholds = ready.recv().map_err(|_| WorkerError::Gone)??;
    Ok(Worker { jobs, done, thread, thresholds })
}

type Judges = Vec<(Box<dyn Judge>, Option<Roi>)>;

fn make(recipes: Vec<(LineName, Option<Roi>, Recipe)>) -> Result<Judges, WorkerError> {
    let make = |(line, roi, recipe): (LineName, Option<Roi>, Recipe)| match recipe() {
        Ok(judge) => Ok((judge, roi)),
        Err(source) => Err(WorkerError::Judge { line, source }),
    };
    recipes.into_iter().map(make).collect()
}

fn run<P: Picture>(mut judges: Judges, jobs: &Receiver<Job<P>>, done: &Sender<Done<P>>, heart: &Heart) {
    let mut known: Vec<Option<Arc<Pages>>> = judges.iter().map(|_| None).collect();
    for Job { line, picture, mut map } in jobs {
        let (Some((judge, roi)), Some(known)) = (judges.get_mut(line), known.get_mut(line)) else { continue };
        let began = Instant::now();
        heart.judging(Some(began));
        if let Some(pages) = picture.pages()
            && !known.as_ref().is_some_and(|known| Arc::ptr_eq(known, pages))
        {
            judge.meet(line, pages);
            *known = Some(Arc::clone(pages));
        }
        let score = judge.judge(&picture.view(), *roi).map(|judgement| {
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
