//! A camera as the daemon sees it: start it, receive frames, read its counters, stop it.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::allocator::CameraMemory;
use super::clock::Clock;
use super::config::CameraConfig;
use super::error::CaptureError;
use super::frame::Frame;
use super::intake::Intake;
use super::pipeline::Pipeline;
use super::slots::SlotPool;
use super::stats::CaptureStats;
use super::supervisor::Supervisor;

/// A running camera. Dropping it tells it to stop but does not wait; [`stop`](Camera::stop) waits.
#[derive(Debug)]
pub struct Camera {
    name: String,
    stats: Arc<CaptureStats>,
    memory: Arc<CameraMemory>,
    frames: Receiver<Frame>,
    stop: Sender<()>,
    /// Disconnected when the thread has ended.
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Camera {
    /// Starts a camera on a thread of its own. A source that cannot be built (syntax, missing element)
    /// is an error; one that is merely absent, unplugged or busy is not: it is tried again with backoff.
    pub fn start(config: CameraConfig, clock: Arc<dyn Clock>) -> Result<Camera, CaptureError> {
        config.validate()?;
        let pipeline = Pipeline::build(&config)?;
        let stats = Arc::new(CaptureStats::default());
        let memory = Arc::new(CameraMemory::new(config.slots, Arc::clone(&stats)));
        let (sender, frames) = bounded(config.queue);
        let intake = Intake::new(
            config.name.clone(),
            config.drop_policy,
            Arc::clone(&clock),
            Arc::clone(&stats),
            Arc::clone(&memory),
            (sender, frames.clone()),
            config.first_sequence,
        );
        let (stop, stop_receiver) = bounded(0);
        let (done_sender, done) = bounded(0);
        let name = config.name.clone();
        let supervisor = Supervisor {
            config,
            clock,
            stats: Arc::clone(&stats),
            memory: Arc::clone(&memory),
            intake: Arc::new(Mutex::new(intake)),
            stop: stop_receiver,
        };
        let thread = std::thread::Builder::new()
            .name(format!("capture {name}"))
            .spawn(move || {
                let _done: Sender<()> = done_sender;
                supervisor.run(pipeline);
            })
            .map_err(|source| CaptureError::Thread { camera: name.clone(), source })?;
        Ok(Camera { name, stats, memory, frames, stop, done, thread })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where frames arrive. Clone it into the consumer. Disconnected when the camera has ended for good
    /// and its last frame was taken.
    pub fn frames(&self) -> &Receiver<Frame> {
        &self.frames
    }

    pub fn stats(&self) -> Arc<CaptureStats> {
        Arc::clone(&self.stats)
    }

    /// The memory that frames live in, once the frames' size is known.
    pub fn pool(&self) -> Option<Arc<SlotPool>> {
        self.memory.pool()
    }

    /// Stops the camera and waits for its thread, at most `limit`. Frames in the queue stay there, to be
    /// drained by the consumer.
    pub fn stop(self, limit: Duration) -> Result<(), CaptureError> {
        let Camera { name, stop, done, thread, .. } = self;
        drop(stop);
        if let Err(RecvTimeoutError::Timeout) = done.recv_timeout(limit) {
            return Err(CaptureError::StopTimeout { camera: name, limit });
        }
        // The thread has nothing left to do, so this returns at once; a panic in it was printed already.
        let _ = thread.join();
        Ok(())
    }
}
