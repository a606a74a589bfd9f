//! The desk at which frames wait for their verdict: queues, deadlines and counts of all lines, as a
//! plain value. It is told what happens and what time it is; it never waits, so its tests do not either.
//!
//! A frame that was received leaves the desk exactly once: with a verdict (good, unsure, bad, late, unjudged) or
//! dropped for a reason. [`Counts::balances`] says so after every step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::capture::Damage;
use crate::config::{DropPolicy, LineConfig};
use crate::model::Verdict;
use crate::outputs::Pixels;
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
}

impl Terms {
    pub fn of(line: &LineConfig) -> Self {
        Terms { queue: line.queue, policy: line.drop, deadline: line.deadline }
    }
}

/// What became of the frames that were received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub received: u64,
    /// By `Verdict as usize`.
    pub verdicts: [u64; Verdict::ALL.len()],
    pub queue_full: u64,
    pub shutdown: u64,
    /// Waiting or being judged.
    pub in_flight: u64,
}

impl Counts {
    pub fn settled(&self) -> u64 {
        self.verdicts.iter().sum::<u64>() + self.queue_full + self.shutdown
    }

    pub fn balances(&self) -> bool {
        self.received == self.settled() + self.in_flight
    }
}

/// Identity of a frame after its pixels are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameId {
    pub line: usize,
    pub sequence: u64,
    pub captured_at: Instant,
}

struct Judging {
    id: FrameId,
    /// The verdict late was given meanwhile.
    expired: bool,
}

struct Line<P> {
    terms: Terms,
    waiting: VecDeque<P>,
    counts: Counts,
    judging: bool,
}

pub struct Desk<P> {
    lines: Vec<Line<P>>,
    judging: Option<Judging>,
}

impl<P: Picture> Desk<P> {
    pub fn new(terms: impl IntoIterator<Item = Terms>) -> Self {
        let line = |terms: Terms| Line {
            terms,
            waiting: VecDeque::with_capacity(terms.queue + 1),
            counts: Counts::default(),
            judging: false,
        };
        Desk { lines: terms.into_iter().map(line).collect(), judging: None }
    }

    /// Whether a frame is being judged.
    pub fn is_judging(&self) -> bool {
        self.judging.is_some()
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

    /// A frame came. Returns the frame that has to go, if the queue is full.
    pub fn arrive(&mut self, line: usize, picture: P) -> Option<P> {
        let Some(l) = self.lines.get_mut(line) else { return Some(picture) };
        l.counts.received += 1;
        let gone = if l.waiting.len() < l.terms.queue {
            l.waiting.push_back(picture);
            None
        } else if l.terms.policy == DropPolicy::Oldest {
            let oldest = l.waiting.pop_front();
            l.waiting.push_back(picture);
            oldest
        } else {
            Some(picture)
        };
        if gone.is_some() {
            l.counts.queue_full += 1;
        }
        l.recount();
        gone
    }

    /// A frame came without pixels: it takes no place, and its verdict is given.
    pub fn arrive_damaged(&mut self, line: usize, picture: &P) -> FrameId {
        if let Some(l) = self.lines.get_mut(line) {
            l.counts.received += 1;
            l.counts.verdicts[Verdict::Unjudged as usize] += 1;
        }
        FrameId { line, sequence: picture.sequence(), captured_at: picture.captured_at() }
    }

    /// The frame to judge next: the one whose deadline is nearest; among lines without deadlines, which
    /// come after, the one that waited longest. `None` while a frame is being judged.
    pub fn next_frame(&mut self) -> Option<(usize, P)> {
        if self.judging.is_some() {
            return None;
        }
        let urgency = |l: &Line<P>| {
            l.waiting.front().map(|p| match l.terms.deadline {
                Some(deadline) => (0, p.captured_at() + deadline),
                None => (1, p.captured_at()),
            })
        };
        let candidates = self.lines.iter().enumerate().filter_map(|(i, l)| urgency(l).map(|u| (u, i)));
        let (_, line) = candidates.min()?;
        let l = self.lines.get_mut(line)?;
        let picture = l.waiting.pop_front()?;
        l.judging = true;
        l.recount();
        let id = FrameId { line, sequence: picture.sequence(), captured_at: picture.captured_at() };
        self.judging = Some(Judging { id, expired: false });
        Some((line, picture))
    }

    /// The frame that [`next_frame`](Self::next_frame) gave out came back. `None` if it has its verdict already.
    /// Otherwise its verdict is due: [`settle`](Self::settle).
    pub fn returned(&mut self) -> Option<FrameId> {
        let judging = self.judging.take()?;
        if judging.expired { None } else { Some(judging.id) }
    }

    /// Counts the verdict of a frame that [`returned`](Self::returned).
    pub fn settle(&mut self, id: FrameId, verdict: Verdict) {
        if let Some(l) = self.lines.get_mut(id.line) {
            l.counts.verdicts[verdict as usize] += 1;
            l.judging = false;
            l.recount();
        }
    }

    /// Gives the verdict late to frames whose deadline has come, waiting or being judged. `late` gets
    /// each of them; waiting ones are let go after it.
    pub fn expire(&mut self, now: Instant, mut late: impl FnMut(FrameId)) {
        for (line, l) in self.lines.iter_mut().enumerate() {
            let Some(deadline) = l.terms.deadline else { continue };
            while let Some(p) = l.waiting.front() {
                // Frames of one camera come in the order of their capture.
                if p.captured_at() + deadline > now {
                    break;
                }
                let id = FrameId { line, sequence: p.sequence(), captured_at: p.captured_at() };
                l.waiting.pop_front();
                l.counts.verdicts[Verdict::Late as usize] += 1;
                l.recount();
                late(id);
            }
        }
        let Some(judging) = self.judging.as_mut().filter(|judging| !judging.expired) else { return };
        let Some(l) = self.lines.get_mut(judging.id.line) else { return };
        if l.terms.deadline.is_some_and(|deadline| judging.id.captured_at + deadline <= now) {
            judging.expired = true;
            l.judging = false;
            l.counts.verdicts[Verdict::Late as usize] += 1;
            l.recount();
            late(judging.id);
        }
    }

    /// When [`expire`](Self::expire) has something to do next, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting =
            self.lines.iter().filter_map(|l| Some(l.waiting.front()?.captured_at() + l.terms.deadline?));
        let judging = self.judging.as_ref().filter(|judging| !judging.expired).and_then(|judging| {
            Some(judging.id.captured_at + self.lines.get(judging.id.line)?.terms.deadline?)
        });
        waiting.chain(judging).min()
    }

    /// Drops all that waits or is judged: the daemon ends. Returns how many.
    pub fn clear(&mut self) -> usize {
        let mut dropped = 0;
        for l in &mut self.lines {
            let n = l.waiting.len() + usize::from(l.judging);
            l.waiting.clear();
            l.judging = false;
            l.counts.shutdown += n as u64;
            l.recount();
            dropped += n;
        }
        if let Some(judging) = &mut self.judging {
            judging.expired = true;
        }
        dropped
    }

    /// Whether nothing waits and nothing is judged.
    pub fn is_idle(&self) -> bool {
        self.judging.is_none() && self.lines.iter().all(|l| l.waiting.is_empty())
    }

    pub fn counts(&self, line: usize) -> Counts {
        self.lines.get(line).map(|l| l.counts).unwrap_or_default()
    }

    pub fn waiting(&self, line: usize) -> usize {
        self.lines.get(line).map_or(0, |l| l.waiting.len())
    }
}

impl<P> Line<P> {
    /// In flight is what is really there, not what the other counts leave over: so a frame that is lost
    /// or counted twice shows.
    fn recount(&mut self) {
        self.counts.in_flight = self.waiting.len() as u64 + u64::from(self.judging);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::testing::{FakePicture, Random};

    const MS: Duration = Duration::from_millis(1);

    fn terms(queue: usize, policy: DropPolicy, deadline_ms: u32) -> Terms {
        Terms { queue, policy, deadline: (deadline_ms > 0).then_some(MS * deadline_ms) }
    }

    fn late(desk: &mut Desk<FakePicture>, now: Instant) -> Vec<(usize, u64)> {
        let mut found = Vec::new();
        desk.expire(now, |id| found.push((id.line, id.sequence)));
        found
    }

    #[test]
    fn a_full_queue_drops_by_policy() {
        let start = Instant::now();
        for (policy, gone, first) in [(DropPolicy::Oldest, 0, 1), (DropPolicy::Newest, 2, 0)] {
            let mut desk = Desk::new([terms(2, policy, 0)]);
            let pictures = (0..3).map(|n| FakePicture::new(n, start + MS * n as u32));
            let dropped: Vec<u64> =
                pictures.filter_map(|p| desk.arrive(0, p)).map(|p| p.sequence()).collect();
            assert_eq!(dropped, [gone], "{policy:?}");
            assert_eq!(desk.next_frame().map(|(_, p)| p.sequence()), Some(first), "{policy:?}");
            assert_eq!(desk.counts(0).queue_full, 1);
            assert!(desk.counts(0).balances());
        }
    }

    #[test]
    fn a_blocking_line_accepts_only_what_fits() {
        let mut desk = Desk::new([terms(1, DropPolicy::Block, 0), terms(1, DropPolicy::Oldest, 0)]);
        assert!(desk.accepts(0));
        desk.arrive(0, FakePicture::new(0, Instant::now()));
        desk.arrive(1, FakePicture::new(0, Instant::now()));
        assert!(!desk.accepts(0), "the camera has to wait");
        assert!(desk.accepts(1), "a line that drops takes all");
        desk.next_frame();
        assert!(desk.accepts(0));
        assert!(!desk.accepts(7), "there is no such line");
    }

    #[test]
    fn the_nearest_deadline_is_judged_first_and_lines_without_one_last() {
        let start = Instant::now();
        let mut desk = Desk::new([
            terms(2, DropPolicy::Oldest, 0),
            terms(2, DropPolicy::Oldest, 500),
            terms(2, DropPolicy::Oldest, 50),
        ]);
        desk.arrive(0, FakePicture::new(0, start));
        desk.arrive(1, FakePicture::new(0, start));
        desk.arrive(2, FakePicture::new(0, start + MS * 10));
        let mut order = Vec::new();
        while let Some((line, _)) = desk.next_frame() {
            order.push(line);
            assert!(desk.next_frame().is_none(), "one at a time");
            let id = desk.returned().unwrap();
            desk.settle(id, Verdict::Good);
        }
        assert_eq!(order, [2, 1, 0]);
    }

    #[test]
    fn a_frame_that_waits_past_its_deadline_is_late_at_the_deadline_and_not_before() {
        let start = Instant::now();
        let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100)]);
        desk.arrive(0, FakePicture::new(7, start));
        desk.arrive(0, FakePicture::new(8, start + MS * 30));
        assert_eq!(desk.next_deadline(), Some(start + MS * 100));
        assert_eq!(late(&mut desk, start + MS * 99), []);
        assert_eq!(late(&mut desk, start + MS * 100), [(0, 7)]);
        assert_eq!(desk.next_deadline(), Some(start + MS * 130));
        assert_eq!(desk.next_frame().map(|(_, p)| p.sequence()), Some(8), "the late one is not judged");
    }

    #[test]
    fn a_judgement_that_comes_after_late_is_discarded() {
        let start = Instant::now();
        let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100)]);
        desk.arrive(0, FakePicture::new(7, start));
        desk.next_frame();
        assert_eq!(late(&mut desk, start + MS * 100), [(0, 7)]);
        assert_eq!(late(&mut desk, start + MS * 101), [], "once");
        assert_eq!(desk.next_deadline(), None);
        assert_eq!(desk.returned(), None);
        assert_eq!(desk.counts(0).verdicts, [0, 0, 0, 1, 0]);
        assert!(desk.counts(0).balances());
    }

    #[test]
    fn a_damaged_frame_is_unjudged_at_once_and_takes_nobodys_place() {
        let mut desk = Desk::new([terms(1, DropPolicy::Oldest, 100)]);
        desk.arrive(0, FakePicture::new(0, Instant::now()));
        let id = desk.arrive_damaged(0, &FakePicture::new(1, Instant::now()));
        assert_eq!((id.line, id.sequence), (0, 1));
        let counts = desk.counts(0);
        assert_eq!((counts.received, counts.verdicts, counts.in_flight), (2, [0, 0, 0, 0, 1], 1));
        assert!(counts.balances());
        assert_eq!(desk.next_frame().map(|(_, p)| p.sequence()), Some(0));
    }

    #[test]
    fn clearing_counts_what_waited_and_what_was_judged() {
        let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100)]);
        for n in 0..3 {
            desk.arrive(0, FakePicture::new(n, Instant::now()));
        }
        desk.next_frame();
        assert_eq!(desk.clear(), 3);
        assert_eq!(desk.returned(), None, "a judgement after the end has no one to tell");
        assert_eq!(desk.counts(0).shutdown, 3);
        assert!(desk.counts(0).balances() && desk.is_idle());
    }

    /// Any order of events, with judgements slow and fast: the books balance after every step, no frame
    /// has two ends, and no frame is late before its time or much after it.
    #[test]
    fn the_books_balance_after_every_step_of_any_history() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut now = Instant::now();
            let policies = [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Block];
            let terms: Vec<Terms> = (0..1 + random.below(3))
                .map(|_| terms(1 + random.below(4), policies[random.below(3)], random.below(2) as u32 * 20))
                .collect();
            let mut desk = Desk::new(terms.clone());
            let mut sequence = 0;
            let mut ends = std::collections::BTreeMap::new();
            let mut end = |line: usize, sequence: u64, how: &'static str| {
                let before = ends.insert((line, sequence), how);
                assert_eq!(before, None, "seed {seed}: frame {sequence} has a second end, {how}");
            };
            for _ in 0..300 {
                match random.below(6) {
                    5 => {
                        let id = desk.arrive_damaged(0, &FakePicture::new(sequence, now));
                        end(id.line, id.sequence, "unjudged");
                        sequence += 1;
                    }
                    0 | 1 => {
                        let line = random.below(terms.len());
                        if desk.accepts(line) {
                            if let Some(gone) = desk.arrive(line, FakePicture::new(sequence, now)) {
                                end(line, gone.sequence(), "dropped");
                            }
                            sequence += 1;
                        }
                    }
                    2 => {
                        desk.next_frame();
                    }
                    3 => {
                        if let Some(id) = desk.returned() {
                            desk.settle(id, Verdict::Good);
                            end(id.line, id.sequence, "judged");
                        }
                    }
                    _ => {
                        now += MS * random.below(15) as u32;
                        desk.expire(now, |id| {
                            let age = now - id.captured_at;
                            // Time advances by less than 15 ms between two calls.
                            assert!(age >= MS * 20 && age < MS * 35, "seed {seed}: late at {age:?}");
                            end(id.line, id.sequence, "late");
                        });
                    }
                }
                for (line, terms) in terms.iter().enumerate() {
                    assert!(desk.counts(line).balances(), "seed {seed}: {:?}", desk.counts(line));
                    assert!(desk.waiting(line) <= terms.queue, "seed {seed}");
                }
            }
            desk.clear();
            let settled: u64 = (0..terms.len()).map(|line| desk.counts(line).settled()).sum();
            assert_eq!(settled, sequence, "seed {seed}: every frame has its end");
        }
    }
}
