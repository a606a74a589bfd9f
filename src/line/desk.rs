//! The desk at which frames wait for their verdict: queues, deadlines and counts of all lines, as a
//! plain value. It is told what happens and what time it is; it never waits, so its tests do not either.
//!
//! A frame that was received leaves the desk exactly once: with a verdict (good, unsure, bad, late, unjudged) or
//! dropped for a reason. [`Counts::balances`] says so after every step.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::trigger::{self, Trigger};
use crate::capture::Damage;
use crate::config::{DropPolicy, LineConfig, TriggerMode};
use crate::model::Verdict;
use crate::outputs::{PartId, Pixels, Reason};
use crate::pages::Pages;

/// A captured frame.
pub trait Picture: Pixels {
    fn sequence(&self) -> u64;
    fn captured_at(&self) -> Instant;
    /// Why it has no pixels, if it has none.
    fn damage(&self) -> Option<Damage> {
        None
    }
    /// The memory that its pixels share with the line's other frames, if there is such.
    fn pages(&self) -> Option<&Arc<Pages>> {
        None
    }
}

/// How frames of one line are treated.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Frames that may wait; at least 1.
    pub queue: usize,
    pub policy: DropPolicy,
    /// From capture to verdict.
    pub deadline: Option<Duration>,
    /// Only frames that were triggered are parts; how long after its trigger a frame may come.
    pub triggered: Option<Duration>,
}

impl Terms {
    pub fn of(line: &LineConfig) -> Self {
        let triggered = (line.trigger.mode == TriggerMode::Software).then_some(line.trigger.frame_within);
        Terms { queue: line.queue, policy: line.drop, deadline: line.deadline, triggered }
    }
}

/// What became of the frames that were received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub received: u64,
    /// By `Verdict as usize`.
    pub verdicts: [u64; Verdict::ALL.len()],
    pub queue_full: u64,
    /// Nobody waited for these frames.
    pub not_triggered: u64,
    pub shutdown: u64,
    /// Waiting or being judged.
    pub in_flight: u64,
    /// Triggers whose frame never came. No frame, so not of the balance.
    pub missed: u64,
}

impl Counts {
    pub fn settled(&self) -> u64 {
        self.verdicts.iter().sum::<u64>() + self.queue_full + self.not_triggered + self.shutdown
    }

    pub fn balances(&self) -> bool {
        self.received == self.settled() + self.in_flight
    }
}

/// Identity of a part, which has no pixels or none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameId {
    pub line: usize,
    /// The frame's number, and one for each part before it that had no frame.
    pub sequence: u64,
    pub captured_at: Instant,
    pub part: Option<PartId>,
}

struct Judging {
    id: FrameId,
    /// The verdict late was given meanwhile.
    expired: bool,
}

struct Waiting<P> {
    id: FrameId,
    picture: P,
}

struct Line<P> {
    terms: Terms,
    waiting: VecDeque<Waiting<P>>,
    counts: Counts,
    /// Frames that are being judged and have no verdict yet.
    judging: usize,
    company: Option<Company>,
    /// Triggers whose frame has not come, oldest first. They are bounded where they are fired.
    open: VecDeque<Trigger>,
    /// The number after the last one that was given.
    next_sequence: u64,
    /// Frames of other lines that were judged while one of this line waited.
    passed_over: usize,
}

/// Frames that are judged at once, at most.
pub const MOST: usize = 4;

/// Lines whose frames can be judged at once have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Company {
    /// Of the judge that they share.
    pub key: usize,
    /// Frames at once, at most.
    pub most: usize,
}

pub struct Desk<P> {
    lines: Vec<Line<P>>,
    /// Those that were given out together, in that order.
    judging: VecDeque<Judging>,
}

impl<P: Picture> Desk<P> {
    pub fn new(terms: impl IntoIterator<Item = Terms>) -> Self {
        let line = |terms: Terms| Line {
            terms,
            waiting: VecDeque::with_capacity(terms.queue + 1),
            counts: Counts::default(),
            judging: 0,
            company: None,
            open: VecDeque::with_capacity(trigger::OPEN),
            next_sequence: 0,
            passed_over: 0,
        };
        Desk { lines: terms.into_iter().map(line).collect(), judging: VecDeque::with_capacity(MOST) }
    }

    /// Whether a frame is being judged.
    pub fn is_judging(&self) -> bool {
        !self.judging.is_empty()
    }

    /// Which judge judges the line, if several lines share it.
    pub fn join(&mut self, line: usize, company: Option<Company>) {
        if let Some(l) = self.lines.get_mut(line) {
            l.company = company;
        }
    }

    /// New terms for a line. Frames that no longer fit its queue are dropped as it fills up: the oldest first.
    pub fn renew(&mut self, line: usize, terms: Terms) {
        let Some(l) = self.lines.get_mut(line) else { return };
        l.terms = terms;
        while l.waiting.len() > terms.queue {
            l.waiting.pop_front();
            l.counts.queue_full += 1;
        }
        l.waiting.reserve(terms.queue + 1 - l.waiting.len());
        l.recount();
    }

    /// Whether a frame of `line` may be taken from its camera: always, but for lines that block.
    pub fn accepts(&self, line: usize) -> bool {
        self.lines
            .get(line)
            .is_some_and(|l| l.terms.policy != DropPolicy::Block || l.waiting.len() < l.terms.queue)
    }

    /// The next frame of its line that is captured after `trigger` is a part.
    pub fn arm(&mut self, trigger: Trigger) {
        if let Some(l) = self.lines.get_mut(trigger.line) {
            l.open.push_back(trigger);
        }
    }

    /// A frame came. Returns the frame that has to go, if the queue is full or nobody triggered it.
    pub fn arrive(&mut self, line: usize, picture: P) -> Option<P> {
        let Some(l) = self.lines.get_mut(line) else { return Some(picture) };
        l.counts.received += 1;
        let Some(id) = l.identify(line, &picture) else {
            l.counts.not_triggered += 1;
            return Some(picture);
        };
        let waiting = Waiting { id, picture };
        let gone = if l.waiting.len() < l.terms.queue {
            l.waiting.push_back(waiting);
            None
        } else if l.terms.policy == DropPolicy::Oldest {
            let oldest = l.waiting.pop_front();
            l.waiting.push_back(waiting);
            oldest
        } else {
            Some(waiting)
        };
        if gone.is_some() {
            l.counts.queue_full += 1;
        }
        l.recount();
        gone.map(|waiting| waiting.picture)
    }

    /// A frame came without pixels: it takes no place, and its verdict is given. `None` if nobody triggered it.
    pub fn arrive_damaged(&mut self, line: usize, picture: &P) -> Option<FrameId> {
        let l = self.lines.get_mut(line)?;
        l.counts.received += 1;
        let id = l.identify(line, picture);
        match id {
            Some(_) => l.counts.verdicts[Verdict::Unjudged as usize] += 1,
            None => l.counts.not_triggered += 1,
        }
        id
    }

    /// The frame to judge next: the one whose deadline is nearest; among lines without deadlines, which come after,
    /// the one that waited longest. But no line is passed over more often than there are other lines: nearest
    /// deadlines alone would let a fast line with a short deadline have the device to itself. `None` while a frame is
    /// being judged.
    pub fn next_frame(&mut self) -> Option<(usize, P)> {
        if self.is_judging() {
            return None;
        }
        let others = self.lines.len().saturating_sub(1);
        let urgency = |l: &Line<P>| {
            let first = l.waiting.front()?;
            let patience = others.saturating_sub(l.passed_over);
            // Those whose patience has ended go first, and of them the one that was passed over most often.
            let neglect = if patience == 0 { Reverse(l.passed_over) } else { Reverse(0) };
            let captured = first.id.captured_at;
            Some(match l.terms.deadline {
                Some(deadline) => (neglect, 0, captured + deadline),
                None => (neglect, 1, captured),
            })
        };
        let candidates = self.lines.iter().enumerate().filter_map(|(i, l)| urgency(l).map(|u| (u, i)));
        let (_, line) = candidates.min()?;
        for (other, l) in self.lines.iter_mut().enumerate() {
            l.passed_over = if other == line || l.waiting.is_empty() { 0 } else { l.passed_over + 1 };
        }
        Some((line, self.give_out(line)?))
    }

    /// A frame that can be judged together with those given out since nothing was judged: of a line that shares
    /// their judge and has fewest among them; of such lines the one whose deadline is nearest. Only a frame that is
    /// there: nobody waits for company.
    pub fn next_beside(&mut self) -> Option<(usize, P)> {
        let company = self.judging.front().and_then(|first| self.lines.get(first.id.line)?.company)?;
        if self.judging.len() >= company.most.min(MOST) {
            return None;
        }
        let urgency = |l: &Line<P>| {
            let first = l.waiting.front().filter(|_| l.company == Some(company))?;
            let captured = first.id.captured_at;
            Some(match l.terms.deadline {
                Some(deadline) => (l.judging, 0, captured + deadline),
                None => (l.judging, 1, captured),
            })
        };
        let candidates = self.lines.iter().enumerate().filter_map(|(i, l)| urgency(l).map(|u| (u, i)));
        let (_, line) = candidates.min()?;
        self.lines.get_mut(line)?.passed_over = 0;
        Some((line, self.give_out(line)?))
    }

    fn give_out(&mut self, line: usize) -> Option<P> {
        let l = self.lines.get_mut(line)?;
        let Waiting { id, picture } = l.waiting.pop_front()?;
        l.judging += 1;
        l.recount();
        self.judging.push_back(Judging { id, expired: false });
        Some(picture)
    }

    /// The next of the frames that [`next_frame`](Self::next_frame) and [`next_beside`](Self::next_beside) gave out
    /// came back; they come in that order. `None` if it has its verdict already. Otherwise its verdict is due:
    /// [`settle`](Self::settle).
    pub fn returned(&mut self) -> Option<FrameId> {
        let judging = self.judging.pop_front()?;
        if judging.expired { None } else { Some(judging.id) }
    }

    /// Counts the verdict of a frame that [`returned`](Self::returned).
    pub fn settle(&mut self, id: FrameId, verdict: Verdict) {
        if let Some(l) = self.lines.get_mut(id.line) {
            l.counts.verdicts[verdict as usize] += 1;
            l.judging = l.judging.saturating_sub(1);
            l.recount();
        }
    }

    /// Gives the verdict late to frames whose deadline has come, waiting or being judged, and to triggers whose frame
    /// has not come. `late` gets each of them and why; waiting frames are let go after it.
    pub fn expire(&mut self, now: Instant, mut late: impl FnMut(FrameId, Reason)) {
        for (line, l) in self.lines.iter_mut().enumerate() {
            while let Some(id) = l.missed(line, now) {
                late(id, Reason::NoFrame);
            }
            let Some(deadline) = l.terms.deadline else { continue };
            // Frames of one camera come in the order of their capture.
            while let Some(first) = l.waiting.front().filter(|w| w.id.captured_at + deadline <= now) {
                let id = first.id;
                l.waiting.pop_front();
                l.counts.verdicts[Verdict::Late as usize] += 1;
                l.recount();
                late(id, Reason::Deadline);
            }
        }
        for judging in self.judging.iter_mut().filter(|judging| !judging.expired) {
            let Some(l) = self.lines.get_mut(judging.id.line) else { continue };
            if l.terms.deadline.is_some_and(|deadline| judging.id.captured_at + deadline <= now) {
                judging.expired = true;
                l.judging = l.judging.saturating_sub(1);
                l.counts.verdicts[Verdict::Late as usize] += 1;
                l.recount();
                late(judging.id, Reason::Deadline);
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do next, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting =
            self.lines.iter().filter_map(|l| Some(l.waiting.front()?.id.captured_at + l.terms.deadline?));
        let open = self.lines.iter().filter_map(|l| l.open.front().map(|trigger| trigger.at + l.within()));
        let judging = self.judging.iter().filter(|judging| !judging.expired).filter_map(|judging| {
            Some(judging.id.captured_at + self.lines.get(judging.id.line)?.terms.deadline?)
        });
        waiting.chain(open).chain(judging).min()
    }

    /// Drops all that waits or is judged: the daemon ends. Returns how many.
    pub fn clear(&mut self) -> usize {
        let mut dropped = 0;
        for l in &mut self.lines {
            let n = l.waiting.len() + l.judging;
            l.waiting.clear();
            l.judging = 0;
            l.counts.shutdown += n as u64;
            l.counts.missed += l.open.drain(..).count() as u64;
            l.recount();
            dropped += n;
        }
        self.judging.iter_mut().for_each(|judging| judging.expired = true);
        dropped
    }

    /// Whether nothing waits, nothing is judged and no part has yet to get its frame.
    pub fn is_idle(&self) -> bool {
        self.judging.is_empty() && self.lines.iter().all(|l| l.waiting.is_empty() && l.open.is_empty())
    }

    pub fn counts(&self, line: usize) -> Counts {
        self.lines.get(line).map(|l| l.counts).unwrap_or_default()
    }

    pub fn waiting(&self, line: usize) -> usize {
        self.lines.get(line).map_or(0, |l| l.waiting.len())
    }
}

impl<P: Picture> Line<P> {
    /// Gives a frame its number, and its part if it has one. `None` for a frame that nobody triggered.
    fn identify(&mut self, line: usize, picture: &P) -> Option<FrameId> {
        let captured_at = picture.captured_at();
        // Parts without a frame have numbers, too, so frames are numbered that many further on.
        let sequence = picture.sequence() + self.counts.missed;
        self.next_sequence = sequence + 1;
        if self.terms.triggered.is_none() {
            return Some(FrameId { line, sequence, captured_at, part: None });
        }
        let part = self.open.front().filter(|trigger| trigger.at <= captured_at)?.part;
        self.open.pop_front();
        Some(FrameId { line, sequence, captured_at, part: Some(part) })
    }
}

impl<P> Line<P> {
    /// How long a trigger waits for its frame. Those left over when software no longer triggers have waited enough.
    fn within(&self) -> Duration {
        self.terms.triggered.unwrap_or_default()
    }

    /// A part whose frame should have come by now.
    fn missed(&mut self, line: usize, now: Instant) -> Option<FrameId> {
        let within = self.within();
        let &Trigger { part, at, .. } = self.open.front().filter(|trigger| trigger.at + within <= now)?;
        self.open.pop_front();
        self.counts.missed += 1;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Some(FrameId { line, sequence, captured_at: at, part: Some(part) })
    }

    /// In flight is what is really there, not what the other counts leave over: so a frame that is lost
    /// or counted twice shows.
    fn recount(&mut self) {
        self.counts.in_flight = (self.waiting.len() + self.judging) as u64;
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
