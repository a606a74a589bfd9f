//! The verdict thread: takes frames from the cameras, hands them to the inference thread by deadline,
//! gives verdicts in time, and passes on what they drive. It owns the desk and the rules, so a reload
//! is one message between two frames; it waits for nobody but its inputs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError};
use jiff::{SignedDuration, Timestamp};

use super::Picture;
use super::desk::{Desk, FrameId, MOST, Terms};
use super::heart::{Heart, TICK};
use super::judge::{Answer, Ask, Done, Handover, Job, Judge};
use super::shared::LineShared;
use super::trigger::Triggers;
use crate::archive::Archive;
use crate::capture::Damage;
use crate::imaging::Heatmap;
use crate::model::Verdict;
use crate::outputs::live::{Job as LiveJob, Viewer};
use crate::outputs::{FrameHash, HeatmapJob, HeatmapWriter, Reason, Record, Rules, VerdictWriter};
use crate::telemetry::{LineEvent, Output, OutputFault};

/// What the verdict thread is told.
pub enum Control<P> {
    /// A new configuration, taken over between two frames.
    Turn(Turnover),
    /// The camera of `line` is being stopped and another will follow; `closed` hears when the last frame was taken.
    Expect { line: usize, closed: Sender<()> },
    /// The camera that follows.
    Attach { line: usize, frames: Receiver<P> },
    /// Judge what is there, but drop what is left at `until`.
    Drain { until: Instant },
}

/// What changes between two frames; each list has one entry for each line, in order.
pub struct Turnover {
    pub rules: Vec<Arc<Rules>>,
    pub terms: Vec<Terms>,
    /// `None` keeps the line's judge.
    pub judges: Vec<Option<Box<dyn Judge>>>,
    /// Hears when it is in force, and gets the judges that were replaced.
    pub done: Sender<Vec<Box<dyn Judge>>>,
}

/// Where a line's frames come from.
enum Feed {
    Open,
    /// To be closed and followed by another.
    Expected(Sender<()>),
    /// Between two cameras.
    Away,
    Ended,
}

/// One line at the verdict thread.
pub struct Seat<P> {
    frames: Receiver<P>,
    feed: Feed,
    rules: Arc<Rules>,
    shared: Arc<LineShared>,
}

impl<P> Seat<P> {
    pub fn new(frames: Receiver<P>, rules: Arc<Rules>, shared: Arc<LineShared>) -> Self {
        Seat { frames, feed: Feed::Open, rules, shared }
    }

    fn is_open(&self) -> bool {
        matches!(self.feed, Feed::Open | Feed::Expected(_))
    }
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
    pub control: Receiver<Control<P>>,
    /// Waits for the frame that is being judged.
    pub turnover: Option<Turnover>,
    pub verdicts: VerdictWriter,
    /// Between the verdicts and what they drive, if there is one.
    pub archive: Option<Archive<P>>,
    pub heatmaps: HeatmapWriter<Arc<P>>,
    pub viewer: Viewer<Arc<P>>,
    /// Maps that were written come back here.
    pub spare: Receiver<Heatmap>,
    /// At hand, longest unused first: all are used early, so that none grows late.
    pub maps: VecDeque<Heatmap>,
    pub heart: Arc<Heart>,
    pub late: Vec<(FrameId, Reason)>,
    pub triggers: Triggers,
}

/// Inputs other than cameras.
const DONE: usize = 0;
const CONTROL: usize = 1;
const TRIGGERS: usize = 2;
const CAMERAS: usize = 3;

impl<P: Picture> Conductor<P> {
    pub fn run(mut self) -> End {
        let mut drain_until = None;
        loop {
            if let Some(end) = self.attend(&mut drain_until) {
                return end;
            }
        }
    }

    /// Goes on until the set of inputs changes: a line ends, has to wait, or gets another camera.
    fn attend(&mut self, drain_until: &mut Option<Instant>) -> Option<End> {
        // Beside `self`, so that waiting on them leaves it free.
        let (done, control) = (self.done.clone(), self.control.clone());
        let triggers = self.triggers.heard().clone();
        let cameras: Vec<Receiver<P>> = self.seats.iter().map(|seat| seat.frames.clone()).collect();
        let listened: Vec<bool> = (0..cameras.len()).map(|line| self.listens(line)).collect();
        let order: Vec<usize> = (0..cameras.len()).filter(|&line| listened[line]).collect();
        let mut select = Select::new();
        select.recv(&done);
        select.recv(&control);
        select.recv(&triggers);
        for &line in &order {
            select.recv(&cameras[line]);
        }
        let mut same = true;
        while same && (0..cameras.len()).all(|line| listened[line] == self.listens(line)) {
            let now = Instant::now();
            self.heart.tick(now);
            if !self.turn(now) {
                return Some(End::WorkerGone(self.cut()));
            }
            let ended = |seat: &Seat<P>| match seat.feed {
                Feed::Ended => true,
                Feed::Away => drain_until.is_some(),
                Feed::Open | Feed::Expected(_) => false,
            };
            if self.seats.iter().all(ended) && self.desk.is_idle() {
                return Some(End::Finished);
            }
            if drain_until.is_some_and(|until| now >= until) {
                return Some(End::Cut(self.cut()));
            }
            let wake = [self.desk.next_deadline(), *drain_until].into_iter().flatten().min();
            let wait = wake.map_or(TICK, |wake| wake.saturating_duration_since(now).min(TICK));
            match select.ready_timeout(wait) {
                Err(_) => {}
                Ok(DONE) => match done.try_recv() {
                    Ok(answer) => self.judged(answer),
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return Some(End::WorkerGone(self.cut())),
                },
                Ok(CONTROL) => match control.try_recv() {
                    Ok(Control::Turn(turnover)) => self.turnover = Some(turnover),
                    Ok(Control::Expect { line, closed }) => self.expect(line, closed),
                    Ok(Control::Attach { line, frames }) => {
                        self.attach(line, frames);
                        same = false;
                    }
                    Ok(Control::Drain { until }) => *drain_until = Some(until),
                    Err(TryRecvError::Empty) => {}
                    // Whoever started us has gone: there is nobody to run for.
                    Err(TryRecvError::Disconnected) => return Some(End::Cut(self.cut())),
                },
                Ok(TRIGGERS) => self.hear(),
                Ok(ready) => {
                    let line = order.get(ready - CAMERAS).copied().unwrap_or(0);
                    match cameras[line].try_recv() {
                        Ok(picture) => self.arrived(line, picture),
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected) => self.closed(line),
                    }
                }
            }
        }
        None
    }

    fn listens(&self, line: usize) -> bool {
        self.seats[line].is_open() && self.desk.accepts(line)
    }

    fn closed(&mut self, line: usize) {
        let seat = &mut self.seats[line];
        match std::mem::replace(&mut seat.feed, Feed::Ended) {
            Feed::Expected(closed) => {
                seat.feed = Feed::Away;
                // Whoever asked may have stopped waiting.
                let _ = closed.try_send(());
            }
            Feed::Open | Feed::Away | Feed::Ended => seat.shared.publish().ended = true,
        }
    }

    fn expect(&mut self, line: usize, closed: Sender<()>) {
        let Some(seat) = self.seats.get_mut(line) else { return };
        seat.feed = match seat.feed {
            Feed::Open | Feed::Expected(_) => Feed::Expected(closed),
            Feed::Away | Feed::Ended => {
                seat.shared.publish().ended = false;
                let _ = closed.try_send(());
                Feed::Away
            }
        };
    }

    fn attach(&mut self, line: usize, frames: Receiver<P>) {
        self.take_in(line);
        let Some(seat) = self.seats.get_mut(line) else { return };
        seat.frames = frames;
        seat.feed = Feed::Open;
        seat.shared.publish().ended = false;
    }

    /// Gives late verdicts that are due and hands out the next frame. False if nobody takes it.
    fn turn(&mut self, now: Instant) -> bool {
        self.expire(now);
        if !self.desk.is_judging()
            && let Some(turnover) = self.turnover.take()
            && !self.turn_over(turnover)
        {
            return false;
        }
        let Some(first) = self.desk.next_frame() else { return true };
        while let Ok(map) = self.spare.try_recv() {
            self.maps.push_back(map);
        }
        let mut asked = [const { None }; MOST];
        let mut next = Some(first);
        for place in &mut asked {
            let Some((line, picture)) = next.take() else { break };
            *place = Some(self.ask(line, picture, now));
            next = self.desk.next_beside();
        }
        // One job is out at a time and there is room for one beside a handover: this never waits.
        self.jobs.send(Job::Judge(asked)).is_ok()
    }

    fn ask(&mut self, line: usize, picture: P, now: Instant) -> Ask<P> {
        let metrics = &self.seats[line].shared.telemetry.metrics;
        metrics.stage_queue.observe(now.saturating_duration_since(picture.captured_at()).as_secs_f64());
        metrics.judge_queue.set(self.desk.waiting(line) as i64);
        Ask { line, picture, map: self.maps.pop_front() }
    }

    /// Nothing is being judged: what comes next is under the new rules, by the new judges. False if nobody
    /// takes them.
    fn turn_over(&mut self, Turnover { rules, terms, judges, done }: Turnover) -> bool {
        for (line, (terms, rules)) in terms.into_iter().zip(rules).enumerate() {
            self.desk.renew(line, terms);
            self.publish(line, None);
            self.seats[line].rules = rules;
        }
        for (line, judge) in
            judges.iter().enumerate().filter_map(|(line, judge)| Some((line, judge.as_ref()?)))
        {
            self.desk.join(line, judge.company());
        }
        let rois = self.seats.iter().map(|seat| seat.rules.roi).collect();
        self.jobs.send(Job::Take(Handover { judges, rois, done })).is_ok()
    }

    /// Takes the triggers that were fired.
    fn hear(&mut self) {
        while let Ok(trigger) = self.triggers.heard().try_recv() {
            self.desk.arm(trigger);
        }
    }

    fn arrived(&mut self, line: usize, picture: P) {
        // It may be the frame of a trigger that was fired just before it was captured.
        self.hear();
        if let Some(damage) = picture.damage() {
            return self.damaged(line, &picture, damage);
        }
        // A frame that has to go is let go here; the desk has counted it.
        drop(self.desk.arrive(line, picture));
        self.publish(line, None);
        let waiting = self.desk.waiting(line) as i64;
        self.seats[line].shared.telemetry.metrics.judge_queue.set(waiting);
    }

    /// A part passed, but there is nothing to judge it by.
    fn damaged(&mut self, line: usize, picture: &P, damage: Damage) {
        let id = self.desk.arrive_damaged(line, picture);
        self.publish(line, None);
        let Some(id) = id else { return };
        let event = LineEvent::FrameDamaged { sequence: id.sequence, damage: &damage };
        self.seats[line].shared.telemetry.emit(event);
        let (record, _) = self.verdict(id, Verdict::Unjudged, None, Instant::now());
        self.submit(Record { reason: Some(Reason::Damaged), ..record }, false);
    }

    fn expire(&mut self, now: Instant) {
        let mut late = std::mem::take(&mut self.late);
        self.desk.expire(now, |id, reason| late.push((id, reason)));
        for (id, reason) in late.drain(..) {
            self.publish(id.line, None);
            let (record, _) = self.verdict(id, Verdict::Late, None, now);
            self.submit(Record { reason: Some(reason), ..record }, false);
        }
        self.late = late;
    }

    fn judged(&mut self, done: Done<P>) {
        let now = Instant::now();
        self.expire(now);
        let Done { answers, began, ended } = done;
        // The verdicts count from here; what follows must not keep the inference thread waiting. If it is gone, the
        // loop will notice.
        let settled =
            answers.map(|answer| self.settled(answer?, ended.saturating_duration_since(began), now));
        self.turn(Instant::now());
        for (record, wants_picture, answer) in settled.into_iter().flatten() {
            self.pass_on(record, wants_picture, answer);
        }
    }

    /// Counts the verdict of a frame that was judged. `None` where it was given already.
    fn settled(
        &mut self,
        answer: Answer<P>,
        took: Duration,
        now: Instant,
    ) -> Option<(Record, bool, Answer<P>)> {
        let Answer { line, .. } = answer;
        let telemetry = Arc::clone(&self.seats[line].shared.telemetry);
        telemetry.metrics.stage_judge.observe(took.as_secs_f64());
        let Some(id) = self.desk.returned() else {
            telemetry.emit(LineEvent::JudgementDiscarded { sequence: answer.picture.sequence() });
            self.maps.extend(answer.map);
            return None;
        };
        let score = answer.score.as_ref().ok().copied();
        let verdict =
            score.map_or(Verdict::Unjudged, |score| self.seats[line].rules.thresholds.verdict(score));
        self.desk.settle(id, verdict);
        self.publish(line, score);
        let (record, wants_picture) = self.verdict(id, verdict, score, now);
        Some((record, wants_picture, answer))
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
            part_id: id.part,
            captured_at: wall_clock(latency),
            verdict,
            reason: None,
            score,
            latency,
            frame_hash: None,
            heatmap: false,
        };
        self.viewer.judged(id.line, &record);
        (record, seat.rules.wants_heatmap(verdict))
    }

    /// Sends a judged frame's verdict and picture to their writers.
    fn pass_on(
        &mut self,
        mut record: Record,
        wants_picture: bool,
        Answer { line, picture, map, score, .. }: Answer<P>,
    ) {
        if let Err(error) = score {
            record.reason = Some(Reason::JudgeFailed);
            record.telemetry.emit(LineEvent::JudgeFailed { sequence: record.sequence, error: &error });
        }
        if record.rules.drive_anything() || self.archive.is_some() {
            record.frame_hash = Some(FrameHash::of(&picture.view()));
        }
        let wants_image = self.archive.as_ref().is_some_and(|archive| archive.wants_image(&record));
        let now = Instant::now();
        let wants_look = map.is_some() && self.viewer.wants(line, now);
        if !wants_picture && !wants_image && !wants_look {
            self.maps.extend(map);
            return self.submit(record, false);
        }
        let picture = Arc::new(picture);
        // The region that it was judged on, which may have changed meanwhile.
        let roi = record.rules.roi;
        let image = wants_image && self.keep_image(&record, &picture, map.as_ref());
        if let Some(copy) = map.as_ref().filter(|_| wants_look).and_then(|map| self.copy_of(map)) {
            let (sequence, picture) = (record.sequence, Arc::clone(&picture));
            self.maps.extend(self.viewer.submit(LiveJob { line, sequence, picture, map: copy, roi }, now));
        }
        if !wants_picture {
            self.maps.extend(map);
        } else if let Some(map) = map {
            let latest = Arc::clone(&self.seats[line].shared.latest);
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
        self.submit(record, image);
    }

    /// A second map with the same values, if one is at hand.
    fn copy_of(&mut self, map: &Heatmap) -> Option<Heatmap> {
        let mut copy = self.maps.pop_front()?;
        (copy.width, copy.height) = (map.width, map.height);
        copy.data.clone_from(&map.data);
        Some(copy)
    }

    /// Hands a picture to the archive. False if there was no room for it.
    fn keep_image(&mut self, record: &Record, picture: &Arc<P>, map: Option<&Heatmap>) -> bool {
        // Where every map is in use, the picture is kept without.
        let map = map.and_then(|map| self.copy_of(map));
        let Some(archive) = &self.archive else { return false };
        let (kept, left) = archive.submit_image(record.clone(), Arc::clone(picture), map);
        self.maps.extend(left);
        kept
    }

    /// `image`: the archive gets its picture.
    fn submit(&self, record: Record, image: bool) {
        let left = match &self.archive {
            Some(archive) => archive.submit(record, image).err(),
            None => Some(record),
        };
        if let Some(record) = left {
            self.verdicts.publish(record);
        }
    }

    fn publish(&self, line: usize, score: Option<f32>) {
        let mut published = self.seats[line].shared.publish();
        published.counts = self.desk.counts(line);
        if score.is_some() {
            published.last_score = score;
        }
    }

    /// Takes what is left in a camera's queue.
    fn take_in(&mut self, line: usize) {
        let Some(frames) = self.seats.get(line).map(|seat| seat.frames.clone()) else { return };
        while let Ok(picture) = frames.try_recv() {
            self.arrived(line, picture);
        }
    }

    /// Drops all frames that are left, those in the cameras' queues too.
    fn cut(&mut self) -> usize {
        for line in 0..self.seats.len() {
            self.take_in(line);
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
