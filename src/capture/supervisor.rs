//! One thread per camera: keeps its pipeline running, and builds it again after every fault.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::allocator::CameraMemory;
use super::clock::Clock;
use super::config::{CameraConfig, OnEos};
use super::intake::{Intake, Run};
use super::pipeline::{Event, Pipeline};
use super::stats::{CaptureStats, RestartReason};

/// How often the supervisor looks at the clock and whether it is to stop. Messages wake it at once.
const TICK: Duration = Duration::from_millis(20);
/// Buffers that upstream elements may keep to themselves without being at fault.
const UPSTREAM_HOLDS: u64 = 2;

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A source that warns without end gets one line in so long.
const WARNINGS_APART: Duration = Duration::from_secs(10);
/// Frames must have flowed for so long before a fault counts as the first one again.
const BACKOFF_RESET: Duration = Duration::from_secs(3);

/// Pauses between restarts: 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, … seconds.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Backoff(BACKOFF_FIRST)
    }

    /// When a pipeline is built again that delivered frames for `flowed`. The pause counts from `since`: the fault, or
    /// the beginning of a start that brought no frame. So a camera that takes seconds to say no is asked as often as
    /// one that says it at once.
    fn until(&mut self, flowed: Duration, since: Instant, now: Instant) -> Instant {
        (since + self.pause_after(flowed)).max(now + BACKOFF_FIRST)
    }

    fn pause_after(&mut self, flowed: Duration) -> Duration {
        if flowed >= BACKOFF_RESET {
            self.0 = BACKOFF_FIRST;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(BACKOFF_MAX);
        pause
    }
}

/// How a pipeline's life ended.
enum Ending {
    Stopped,
    Finished,
    Again,
    /// After a fault; not before this time.
    NotBefore(Instant),
}

/// Why a pipeline has to be built again.
struct Fault {
    reason: RestartReason,
    message: String,
    /// From its first frame to the last.
    flowed: Duration,
    /// From here on the pause counts.
    since: Instant,
}

pub(super) struct Supervisor {
    pub config: CameraConfig,
    pub clock: Arc<dyn Clock>,
    pub stats: Arc<CaptureStats>,
    pub memory: Arc<CameraMemory>,
    pub intake: Arc<Mutex<Intake>>,
    /// Disconnected when the camera is to stop.
    pub stop: Receiver<()>,
}

impl Supervisor {
    pub(super) fn run(self, first: Pipeline) {
        let mut backoff = Backoff::new();
        let mut built = Some(first);
        loop {
            let pipeline = match built.take() {
                Some(pipeline) => Ok(pipeline),
                None => Pipeline::build(&self.config),
            };
            let ending = match pipeline {
                Ok(pipeline) => self.live(pipeline, &mut backoff),
                Err(error) => {
                    let (reason, message) = (RestartReason::StateChange, error.to_string());
                    let (flowed, since) = (Duration::ZERO, self.clock.now());
                    self.note(Fault { reason, message, flowed, since }, &mut backoff)
                }
            };
            match ending {
                Ending::Stopped | Ending::Finished => break,
                Ending::Again => {
                    self.stats.loops.fetch_add(1, Relaxed);
                }
                Ending::NotBefore(time) => {
                    if self.stops_before(time) {
                        break;
                    }
                }
            }
        }
        self.stats.up.store(false, Relaxed);
        self.intake.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).close();
        self.stats.finished.store(true, Relaxed);
        tracing::info!(camera = self.config.name, "The camera has ended.");
    }

    /// Runs one pipeline to its end.
    fn live(&self, pipeline: Pipeline, backoff: &mut Backoff) -> Ending {
        let run = Arc::new(Run::default());
        pipeline.connect(Arc::clone(&self.intake), Arc::clone(&run), Arc::clone(&self.memory));
        let began = self.clock.now();
        let watched = self.watch(&pipeline, &run, began);
        // In this order: a streaming thread that waits for the consumer must give up before the pipeline
        // waits for that thread.
        run.halt.store(true, Relaxed);
        // Ending a pipeline may take seconds, and whoever watches should not have to wait for it.
        let ending = watched.unwrap_or_else(|fault| self.note(fault, backoff));
        drop(pipeline);
        ending
    }

    /// Says that the camera is down, and why.
    fn note(&self, fault: Fault, backoff: &mut Backoff) -> Ending {
        let Fault { reason, message, flowed, since } = fault;
        let now = self.clock.now();
        let until = backoff.until(flowed, since, now);
        let pause_ms = until.saturating_duration_since(now).as_millis() as u64;
        let camera = self.config.name.as_str();
        tracing::warn!(camera, reason = reason.label(), pause_ms, "The camera is restarted: {message}.");
        self.stats.up.store(false, Relaxed);
        self.stats.set_fault(&message);
        self.stats.count_restart(reason);
        Ending::NotBefore(until)
    }

    fn fault(&self, reason: RestartReason, message: String, run: &Run, began: Instant) -> Fault {
        let since = if run.first_frame_at.get().is_some() { self.clock.now() } else { began };
        Fault { reason, message, flowed: self.flowed(run), since }
    }

    fn watch(&self, pipeline: &Pipeline, run: &Run, began: Instant) -> Result<Ending, Fault> {
        let fault = |reason, message| Err(self.fault(reason, message, run, began));
        let mut warned: Option<Instant> = None;
        if let Err(message) = pipeline.play() {
            return fault(RestartReason::StateChange, message);
        }
        // After `play`, which may itself take seconds to find a camera.
        let mut progress = self.clock.now();
        loop {
            if self.is_stopping() {
                return Ok(Ending::Stopped);
            }
            match pipeline.next_event(TICK) {
                Event::Quiet => {}
                // A bad link may warn with each packet.
                Event::Warning(_) if warned.is_some_and(|at| self.clock.now() - at < WARNINGS_APART) => {}
                Event::Warning(message) => {
                    warned = Some(self.clock.now());
                    tracing::warn!(camera = self.config.name, "The source warns: {message}.");
                }
                Event::Error { message, negotiation: true } => return fault(RestartReason::Caps, message),
                Event::Error { message, negotiation: false } => return fault(RestartReason::Error, message),
                Event::Eos => return self.ending_at_eos(run, began),
            }
            let now = self.clock.now();
            if let Some(at) = run.first_frame_at.get().and_then(|_| self.stats.last_frame_at()) {
                progress = progress.max(at);
            }
            if self.waits_for_consumer(run) {
                progress = now;
            }
            if let Some(limit) = self.config.stall_timeout.filter(|&t| now.duration_since(progress) >= t) {
                let message = format!("no frame came for {:.1} s", limit.as_secs_f64());
                return fault(RestartReason::Stall, message);
            }
        }
    }

    fn ending_at_eos(&self, run: &Run, began: Instant) -> Result<Ending, Fault> {
        let had_frames = run.first_frame_at.get().is_some();
        match self.config.on_eos {
            OnEos::Stop if had_frames => Ok(Ending::Finished),
            OnEos::Stop => {
                self.stats.set_fault("the source ended without a frame");
                tracing::warn!(camera = self.config.name, "The source ended without a frame.");
                Ok(Ending::Finished)
            }
            OnEos::Loop if had_frames => Ok(Ending::Again),
            OnEos::Loop | OnEos::Restart => {
                Err(self.fault(RestartReason::Eos, "the stream ended".to_owned(), run, began))
            }
        }
    }

    /// Whether the source is silent because it has nowhere to put a frame.
    fn waits_for_consumer(&self, run: &Run) -> bool {
        let held = self.stats.ledger().in_flight + UPSTREAM_HOLDS;
        run.blocked.load(Relaxed) || held >= self.memory.upstream_max() as u64
    }

    /// From this pipeline's first frame to the last.
    fn flowed(&self, run: &Run) -> Duration {
        let first: Option<&Instant> = run.first_frame_at.get();
        match (first, self.stats.last_frame_at()) {
            (Some(&first), Some(last)) => last.saturating_duration_since(first),
            _ => Duration::ZERO,
        }
    }

    fn is_stopping(&self) -> bool {
        !matches!(self.stop.try_recv(), Err(TryRecvError::Empty))
    }

    /// Waits for a time on the camera's clock; true when told to stop meanwhile.
    fn stops_before(&self, time: Instant) -> bool {
        while self.clock.now() < time {
            if !matches!(self.stop.recv_timeout(TICK), Err(RecvTimeoutError::Timeout)) {
                return true;
            }
        }
        self.is_stopping()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_to_five_seconds_and_starts_over_after_three_seconds_of_frames() {
        let mut backoff = Backoff::new();
        let pauses: Vec<u128> = (0..7).map(|_| backoff.pause_after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.pause_after(Duration::from_millis(2999)).as_millis(), 5000);
        assert_eq!(backoff.pause_after(Duration::from_secs(3)).as_millis(), 200);
        assert_eq!(backoff.pause_after(Duration::ZERO).as_millis(), 400);
    }

    #[test]
    fn the_time_that_a_start_took_is_part_of_the_pause() {
        let mut backoff = Backoff(BACKOFF_MAX);
        let since = Instant::now();
        let mut rest = |spent_ms| {
            let now = since + Duration::from_millis(spent_ms);
            (backoff.until(Duration::ZERO, since, now) - now).as_millis()
        };
        assert_eq!([rest(0), rest(2500), rest(4900), rest(9000)], [5000, 2500, 200, 200]);
    }
}
