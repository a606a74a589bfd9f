//! Keeps a fault that repeats with every frame from filling the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// At most one log line of a kind in this time.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets one through per period and counts the others.
#[derive(Debug, Default)]
pub struct Limit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Limit {
    /// The number of log lines left out since the last one, if one may be written now.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            state.unsaid += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_passes_and_the_next_after_the_period_says_how_many_were_left_out() {
        let (limit, start) = (Limit::default(), Instant::now());
        assert_eq!(limit.pass_at(start), Some(0));
        assert_eq!(limit.pass_at(start), None);
        assert_eq!(limit.pass_at(start + PERIOD - Duration::from_millis(1)), None);
        assert_eq!(limit.pass_at(start + PERIOD), Some(2));
        assert_eq!(limit.pass_at(start + 2 * PERIOD), Some(0));
    }
}
