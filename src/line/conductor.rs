//! The verdict thread: takes frames from the cameras, hands them to the inference thread by deadline,
//! gives verdicts in time, and passes on what they drive. It owns the desk and the rules, so a reload
//! is one message between two frames; it waits for nobody but its inputs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError};
use jiff::{SignedDuration, Timestamp};

use super::desk::{Desk, FrameId};
use super::heart::{Heart, TICK};
use super::judge::{Done, Job};
use super::shared::LineShared;
use super::{Picture, Problem};
use crate::imaging::{Heatmap, Roi};
use crate::model::Verdict;
use crate::outputs::{FrameHash, HeatmapJob, HeatmapWriter, Reason, Record, Rules, VerdictWriter};
use crate::telemetry::{LineEvent, Output, OutputFault};

/// What the verdict thread is told.
pub enum Control {
    /// New rules, one for each line in order; acknowledged when they are in force.
    Apply { rules: Vec<Arc<Rules>>, done: Sender<()> },
    /// Judge what is there, but drop what is left at `until`.
    Drain { until: Instant },
}

/// One line at the verdict thread.
pub struct Seat<P> {
    pub frames: Receiver<P>,
    pub roi: Option<Roi>,
    pub rules: Arc<Rules>,
    pub shared: Arc<LineShared>,
}

/// How the verdict thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every source has ended and every frame has its verdict.
    Finished,
    /// Time was up and so many frames were dropped.
    Cut(usize),
    /// The inference thread is gone; so many frames were dropped.
    WorkerGone(usize),
}

pub struct Conductor<P> {
    pub desk: Desk<P>,
    pub seats: Vec<Seat<P>>,
    pub jobs: Sender<Job<P>>,
    pub done: Receiver<Done<P>>,
    pub control: Receiver<Control>,
    pub verdicts: VerdictWriter,
    pub heatmaps: HeatmapWriter<P>,
    /// Maps that were written come back here.
    pub spare: Receiver<Heatmap>,
    /// At hand, longest unused first: all are used early, so that none grows late.
    pub maps: VecDeque<Heatmap>,
    pub heart: Arc<Heart>,
    pub late: Vec<FrameId>,
}

/// Inputs other than cameras.
const DONE: usize = 0;
const CONTROL: usize = 1;
const CAMERAS: usize = 2;

impl<P: Picture> Conductor<P> {
    pub fn run(mut self) -> End {
        // Beside `self`, so that waiting on them leaves it free.
        let cameras: Vec<Receiver<P>> = self.seats.iter().map(|seat| seat.frames.clone()).collect();
        let (done, control) = (self.done.clone(), self.control.clone());
        let mut open = vec![true; cameras.len()];
        let mut listened = vec![false; cameras.len()];
        let mut order = Vec::with_capacity(cameras.len());
        let mut drain_until: Option<Instant> = None;
        loop {
            let mut select = Select::new();
            select.recv(&done);
            select.recv(&control);
            order.clear();
            for (line, camera) in cameras.iter().enumerate() {
                listened[line] = open[line] && self.desk.accepts(line);
                if listened[line] {
                    select.recv(camera);
                    order.push(line);
                }
            }
            // The set of inputs changes when a line ends or has to wait; until then it is kept.
            while (0..open.len()).all(|line| listened[line] == (open[line] && self.desk.accepts(line))) {
                let now = Instant::now();
                self.heart.tick(now);
                if !self.turn(now) {
                    return End::WorkerGone(self.cut(&cameras));
                }
                if !open.contains(&true) && self.desk.is_idle() {
                    return End::Finished;
                }
                if drain_until.is_some_and(|until| now >= until) {
                    return End::Cut(self.cut(&cameras));
                }
                let wake = [self.desk.next_deadline(), drain_until].into_iter().flatten().min();
                let wait = wake.map_or(TICK, |wake| wake.saturating_duration_since(now).min(TICK));
                match select.ready_timeout(wait) {
                    Err(_) => {}
                    Ok(DONE) => match done.try_recv() {
                        Ok(answer) => self.judged(answer),
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected) => return End::WorkerGone(self.cut(&cameras)),
                    },
                    Ok(CONTROL) => match control.try_recv() {
                        Ok(Control::Apply { rules, done }) => self.apply(rules, &done),
                        Ok(Control::Drain { until }) => drain_until = Some(until),
                        Err(TryRecvError::Empty) => {}
                        // Whoever started us has gone: there is nobody to run for.
                        Err(TryRecvError::Disconnected) => return End::Cut(self.cut(&cameras)),
                    },
                    Ok(ready) => {
                        let line = order.get(ready - CAMERAS).copied().unwrap_or(0);
                        match cameras[line].try_recv() {
                            Ok(picture) => self.arrived(line, picture),
                            Err(TryRecvError::Empty) => {}
                            Err(TryRecvError::Disconnected) => {
                                open[line] = false;
                                self.seats[line].shared.publish().ended = true;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Gives late verdicts that are due and hands out the next frame. False if nobody takes it.
    fn turn(&mut self, now: Instant) -> bool {
        self.expire(now);
        let Some((line, picture)) = self.desk.next_frame() else { return true };
        let metrics = &self.seats[line].shared.telemetry.metrics;
        metrics.stage_queue.observe(now.saturating_duration_since(picture.captured_at()).as_secs_f64());
        metrics.judge_queue.set(self.desk.waiting(line) as i64);
        while let Ok(map) = self.spare.try_recv() {
            self.maps.push_back(map);
        }
        let map = self.maps.pop_front();
        // One frame is judged at a time and the queue holds one, so this never waits.
        self.jobs.send(Job { line, picture, map }).is_ok()
    }

    fn arrived(&mut self, line: usize, picture: P) {
        // A frame that has to go is let go here; the desk has counted it.
        drop(self.desk.arrive(line, picture));
        self.publish(line, None);
        let waiting = self.desk.waiting(line) as i64;
        self.seats[line].shared.telemetry.metrics.judge_queue.set(waiting);
    }

    fn expire(&mut self, now: Instant) {
        let mut late = std::mem::take(&mut self.late);
        self.desk.expire(now, |id| late.push(id));
        for id in late.drain(..) {
            self.publish(id.line, None);
            let (record, _) = self.verdict(id, Verdict::Late, None, now);
            self.submit(Record { reason: Some(Reason::Deadline), ..record });
        }
        self.late = late;
    }

    fn judged(&mut self, answer: Done<P>) {
        let now = Instant::now();
        self.expire(now);
        let Done { line, picture, map, score, began, ended } = answer;
        let telemetry = Arc::clone(&self.seats[line].shared.telemetry);
        telemetry.metrics.stage_judge.observe(ended.saturating_duration_since(began).as_secs_f64());
        let due = self.desk.returned();
        let outcome = match (due, score) {
            (None, _) => {
                telemetry.emit(LineEvent::JudgementDiscarded { sequence: picture.sequence() });
                None
            }
            (Some(id), Ok(score)) => {
                let verdict = self.seats[line].rules.thresholds.verdict(score);
                Some((id, verdict, Ok(score)))
            }
            (Some(id), Err(error)) => Some((id, Verdict::Unjudged, Err(error))),
        };
        let Some((id, verdict, score)) = outcome else {
            self.maps.extend(map);
            return;
        };
        self.desk.settle(id, verdict);
        self.publish(line, score.as_ref().ok().copied());
        // The verdict counts from here; what follows must not keep the inference thread waiting. If it
        // is gone, the loop will notice.
        let (record, wants_picture) = self.verdict(id, verdict, score.as_ref().ok().copied(), now);
        self.turn(Instant::now());
        self.pass_on(record, wants_picture, picture, map, score);
    }

    /// Makes the record of a verdict, and moves metrics and log.
    fn verdict(&self, id: FrameId, verdict: Verdict, score: Option<f32>, now: Instant) -> (Record, bool) {
        let seat = &self.seats[id.line];
        let latency = now.saturating_duration_since(id.captured_at);
        let event = LineEvent::Verdict { sequence: id.sequence, verdict, score, latency };
        seat.shared.telemetry.emit(event);
        let record = Record {
            rules: Arc::clone(&seat.rules),
            telemetry: Arc::clone(&seat.shared.telemetry),
            sequence: id.sequence,
            captured_at: wall_clock(latency),
            verdict,
            reason: None,
            score,
            latency,
            frame_hash: None,
            heatmap: false,
        };
        (record, seat.rules.wants_heatmap(verdict))
    }

    /// Sends a judged frame's verdict and picture to their writers.
    fn pass_on(
        &mut self,
        mut record: Record,
        wants_picture: bool,
        picture: P,
        map: Option<Heatmap>,
        score: Result<f32, Problem>,
    ) {
        if let Err(error) = score {
            record.reason = Some(Reason::JudgeFailed);
            record.telemetry.emit(LineEvent::JudgeFailed { sequence: record.sequence, error: &error });
        }
        if record.rules.drive_anything() {
            record.frame_hash = Some(FrameHash::of(&picture.view()));
        }
        if !wants_picture {
            self.maps.extend(map);
        } else if let Some(map) = map {
            let line = self.seats.iter().find(|seat| seat.rules.line == record.rules.line);
            let (roi, latest) = match line {
                Some(seat) => (seat.roi, Arc::clone(&seat.shared.latest)),
                None => (None, Arc::default()),
            };
            let job = HeatmapJob { record: record.clone(), picture, map, roi, latest };
            match self.heatmaps.submit(job) {
                Ok(()) => record.heatmap = true,
                Err(job) => self.maps.push_back(job.map),
            }
        } else {
            record.telemetry.emit(LineEvent::OutputFailed {
                output: Output::Heatmaps,
                fault: OutputFault::Busy,
                detail: &"every heatmap is still being written",
            });
        }
        self.submit(record);
    }

    fn submit(&self, record: Record) {
        for outlet in &record.rules.outlets {
            outlet.submit(&record);
        }
        if record.rules.verdicts.is_some() {
            self.verdicts.submit(record);
        }
    }

    fn publish(&self, line: usize, score: Option<f32>) {
        let mut published = self.seats[line].shared.publish();
        published.counts = self.desk.counts(line);
        if score.is_some() {
            published.last_score = score;
        }
    }

    fn apply(&mut self, rules: Vec<Arc<Rules>>, done: &Sender<()>) {
        for (seat, rules) in self.seats.iter_mut().zip(rules) {
            seat.rules = rules;
        }
        // The reload was given up if nobody waits for the answer; the rules hold all the same.
        let _ = done.try_send(());
    }

    /// Drops all frames that are left, those in the cameras' queues too.
    fn cut(&mut self, cameras: &[Receiver<P>]) -> usize {
        for (line, camera) in cameras.iter().enumerate() {
            while let Ok(picture) = camera.try_recv() {
                drop(self.desk.arrive(line, picture));
            }
        }
        let left = self.desk.clear();
        for line in 0..self.seats.len() {
            self.publish(line, None);
        }
        left
    }
}

/// The time of day `age` ago.
fn wall_clock(age: Duration) -> Timestamp {
    let now = Timestamp::now();
    SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(now)
}
