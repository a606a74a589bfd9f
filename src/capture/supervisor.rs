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
/// Frames must have flowed for so long before a fault counts as the first one again.
const BACKOFF_RESET: Duration = Duration::from_secs(3);

/// Pauses between restarts: 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, … seconds.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Backoff(BACKOFF_FIRST)
    }

    /// The pause after a pipeline that delivered frames for `flowed`.
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
    Fault { reason: RestartReason, message: String, flowed: Duration },
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
                Ok(pipeline) => self.live(pipeline),
                Err(error) => Ending::Fault {
                    reason: RestartReason::StateChange,
                    message: error.to_string(),
                    flowed: Duration::ZERO,
                },
            };
            match ending {
                Ending::Stopped | Ending::Finished => break,
                Ending::Again => {
                    self.stats.loops.fetch_add(1, Relaxed);
                }
                Ending::Fault { reason, message, flowed } => {
                    let pause = backoff.pause_after(flowed);
                    self.stats.up.store(false, Relaxed);
                    self.stats.set_fault(&message);
                    self.stats.count_restart(reason);
                    let (camera, reason) = (self.config.name.as_str(), reason.label());
                    let pause_ms = pause.as_millis() as u64;
                    tracing::warn!(camera, reason, pause_ms, "The camera is restarted: {message}.");
                    if self.stops_within(pause) {
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
    fn live(&self, pipeline: Pipeline) -> Ending {
        let run = Arc::new(Run::default());
        pipeline.connect(Arc::clone(&self.intake), Arc::clone(&run), Arc::clone(&self.memory));
        let ending = self.watch(&pipeline, &run);
        // In this order: a streaming thread that waits for the consumer must give up before the pipeline
        // waits for that thread.
        run.halt.store(true, Relaxed);
        drop(pipeline);
        ending
    }

    fn watch(&self, pipeline: &Pipeline, run: &Run) -> Ending {
        let fault = |reason, message| Ending::Fault { reason, message, flowed: self.flowed(run) };
        if let Err(message) = pipeline.play() {
            return fault(RestartReason::StateChange, message);
        }
        // After `play`, which may itself take seconds to find a camera.
        let mut progress = self.clock.now();
        loop {
            if self.is_stopping() {
                return Ending::Stopped;
            }
            match pipeline.next_event(TICK) {
                Event::Quiet => {}
                Event::Warning(message) => {
                    tracing::warn!(camera = self.config.name, "The source warns: {message}.");
                }
                Event::Error { message, negotiation: true } => return fault(RestartReason::Caps, message),
                Event::Error { message, negotiation: false } => return fault(RestartReason::Error, message),
                Event::Eos => return self.ending_at_eos(run),
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

    fn ending_at_eos(&self, run: &Run) -> Ending {
        let had_frames = run.first_frame_at.get().is_some();
        match self.config.on_eos {
            OnEos::Stop if had_frames => Ending::Finished,
            OnEos::Stop => {
                self.stats.set_fault("the source ended without a frame");
                tracing::warn!(camera = self.config.name, "The source ended without a frame.");
                Ending::Finished
            }
            OnEos::Loop if had_frames => Ending::Again,
            OnEos::Loop | OnEos::Restart => Ending::Fault {
                reason: RestartReason::Eos,
                message: "the stream ended".to_owned(),
                flowed: self.flowed(run),
            },
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

    /// Waits out a pause by the camera's clock; true when told to stop meanwhile.
    fn stops_within(&self, pause: Duration) -> bool {
        let start = self.clock.now();
        while self.clock.now().saturating_duration_since(start) < pause {
            if !matches!(self.stop.recv_timeout(TICK.min(pause)), Err(RecvTimeoutError::Timeout)) {
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
}
