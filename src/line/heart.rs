//! Signs of life of the threads that every line shares, for `/healthz` and systemd's watchdog.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The verdict thread wakes at least this often.
pub const TICK: Duration = Duration::from_millis(500);

/// After this long the verdict thread is taken for dead.
const TICK_LIMIT: Duration = Duration::from_secs(5);

/// After this long a single judgement is taken for stuck: 300 times the promised latency.
const JUDGE_LIMIT: Duration = Duration::from_secs(10);

/// Times in milliseconds since `start`, plus 1; 0 is never.
#[derive(Debug)]
pub struct Heart {
    start: Instant,
    tick: AtomicU64,
    judging: AtomicU64,
}

impl Heart {
    pub fn new(start: Instant) -> Self {
        Heart { start, tick: AtomicU64::new(1), judging: AtomicU64::new(0) }
    }

    fn stamp(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64 + 1
    }

    fn age(&self, stamp: u64, now: Instant) -> Duration {
        Duration::from_millis(self.stamp(now).saturating_sub(stamp))
    }

    /// The verdict thread went round.
    pub fn tick(&self, now: Instant) {
        self.tick.store(self.stamp(now), Relaxed);
    }

    /// The inference thread began a frame, or ended one.
    pub fn judging(&self, since: Option<Instant>) {
        self.judging.store(since.map_or(0, |since| self.stamp(since)), Relaxed);
    }

    /// What is stuck, if anything.
    pub fn arrest(&self, now: Instant) -> Option<String> {
        let judging = self.judging.load(Relaxed);
        if judging > 0 && self.age(judging, now) > JUDGE_LIMIT {
            return Some(format!("one frame has been judged for {} s", self.age(judging, now).as_secs()));
        }
        let tick = self.age(self.tick.load(Relaxed), now);
        (tick > TICK_LIMIT).then(|| format!("the verdict thread has stood still for {} s", tick.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judgement_or_a_verdict_thread_that_stands_still_is_an_arrest() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let heart = Heart::new(start);
        assert_eq!(heart.arrest(at(5)), None);
        assert_eq!(heart.arrest(at(6)).as_deref(), Some("the verdict thread has stood still for 6 s"));
        heart.tick(at(6));
        heart.judging(Some(at(6)));
        assert_eq!(heart.arrest(at(11)), None);
        heart.tick(at(17));
        assert_eq!(heart.arrest(at(17)).as_deref(), Some("one frame has been judged for 11 s"));
        heart.judging(None);
        assert_eq!(heart.arrest(at(17)), None);
    }
}
