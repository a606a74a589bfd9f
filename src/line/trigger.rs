//! Software triggers: the plant says that a part is in place, and the next frame is that part's. Whoever hears it
//! (HTTP now; a broker or a PLC may) holds [`Triggers`], a handle that never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::{LineConfig, TriggerMode};
use crate::outputs::PartId;
use crate::outputs::http::TriggerRefused;

/// Triggers of a line whose frame has not come. More are refused: the plant is faster than the camera.
pub const OPEN: usize = 16;

/// A part is in place.
#[derive(Debug)]
pub struct Trigger {
    pub line: usize,
    pub part: PartId,
    pub at: Instant,
    _open: Open,
}

/// Counts a trigger as long as it is there.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Trigger {
    #[cfg(test)]
    pub fn new(line: usize, part: &str, at: Instant) -> Self {
        Trigger { line, part: part.parse().unwrap(), at, _open: Open(Arc::new(AtomicUsize::new(1))) }
    }
}

/// One line.
#[derive(Debug)]
struct Bell {
    name: String,
    software: AtomicBool,
    open: Arc<AtomicUsize>,
    fired: AtomicU64,
}

/// Fires triggers, from any thread.
#[derive(Clone, Debug)]
pub struct Triggers {
    bells: Arc<[Bell]>,
    sender: Sender<Trigger>,
    receiver: Receiver<Trigger>,
}

impl Triggers {
    pub fn new(lines: &[LineConfig]) -> Self {
        let bell = |line: &LineConfig| Bell {
            name: line.name.to_string(),
            software: AtomicBool::new(line.trigger.mode == TriggerMode::Software),
            open: Arc::default(),
            fired: AtomicU64::new(0),
        };
        // Room for all that may be open, so that sending never fails.
        let (sender, receiver) = bounded(OPEN * lines.len());
        Triggers { bells: lines.iter().map(bell).collect(), sender, receiver }
    }

    /// The same lines under a new configuration.
    pub fn renew(&self, lines: &[LineConfig]) {
        for (bell, line) in self.bells.iter().zip(lines) {
            bell.software.store(line.trigger.mode == TriggerMode::Software, Relaxed);
        }
    }

    /// The next frame of `line` is `part`, or a part that gets a name. Returns the name.
    pub fn fire(&self, line: &str, part: Option<PartId>) -> Result<PartId, TriggerRefused> {
        let found = self.bells.iter().enumerate().find(|(_, bell)| bell.name == line);
        let (line, bell) = found.ok_or(TriggerRefused::NoLine)?;
        if !bell.software.load(Relaxed) {
            return Err(TriggerRefused::NotSoftware);
        }
        if bell.open.fetch_add(1, Relaxed) >= OPEN {
            bell.open.fetch_sub(1, Relaxed);
            return Err(TriggerRefused::Busy);
        }
        let open = Open(Arc::clone(&bell.open));
        let number = bell.fired.fetch_add(1, Relaxed) + 1;
        let named = || format!("trigger-{number}").parse().map_err(|_| TriggerRefused::Busy);
        let part = part.map_or_else(named, Ok)?;
        let trigger = Trigger { line, part, at: Instant::now(), _open: open };
        self.sender.try_send(trigger).map_err(|_| TriggerRefused::Busy)?;
        Ok(part)
    }

    /// Where the verdict thread hears them.
    pub fn heard(&self) -> &Receiver<Trigger> {
        &self.receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn triggers(modes: &[&str]) -> Triggers {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m"), "").unwrap();
        let line = |(name, mode): (char, &&str)| {
            format!(
                "[[line]]\nname = \"{name}\"\nmodel = \"m\"\nsource = \"s\"\n[line.trigger]\nmode = \"{mode}\"\n"
            )
        };
        let text: String = ('a'..).zip(modes).map(line).collect();
        std::fs::write(folder.path().join("c.toml"), text).unwrap();
        Triggers::new(&crate::config::load(&folder.path().join("c.toml")).unwrap().lines)
    }

    #[test]
    fn only_lines_that_wait_for_software_are_triggered() {
        let triggers = triggers(&["continuous", "software", "hardware"]);
        let refused = |line: &str| triggers.fire(line, None).unwrap_err();
        assert_eq!(refused("a"), TriggerRefused::NotSoftware);
        assert_eq!(refused("c"), TriggerRefused::NotSoftware);
        assert_eq!(refused("nowhere"), TriggerRefused::NoLine);
        assert!(triggers.heard().is_empty());
        let part: PartId = "P 7".parse().unwrap();
        assert_eq!(triggers.fire("b", Some(part)), Ok(part));
        assert_eq!(triggers.fire("b", None).unwrap().as_str(), "trigger-2");
        let heard: Vec<(usize, String)> =
            triggers.heard().try_iter().map(|trigger| (trigger.line, trigger.part.to_string())).collect();
        assert_eq!(heard, [(1, "P 7".to_owned()), (1, "trigger-2".to_owned())]);
    }

    #[test]
    fn triggers_that_nobody_answers_are_bounded_and_come_free_again() {
        let triggers = triggers(&["software", "software"]);
        for _ in 0..OPEN {
            triggers.fire("a", None).unwrap();
        }
        assert_eq!(triggers.fire("a", None), Err(TriggerRefused::Busy));
        triggers.fire("b", None).unwrap();
        let held: Vec<Trigger> = triggers.heard().try_iter().collect();
        assert_eq!(triggers.fire("a", None), Err(TriggerRefused::Busy), "heard, but not answered");
        drop(held);
        triggers.fire("a", None).unwrap();
    }
}
