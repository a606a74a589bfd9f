//! From the sink into the queue: runs on GStreamer's streaming thread, once for each frame.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError};
use gstreamer as gst;

use super::allocator::CameraMemory;
use super::clock::Clock;
use super::config::DropPolicy;
use super::frame::{Damage, Frame, Storage};
use super::jpeg::{Decoder, JPEG};
use super::layout::{Layout, Stream};
use super::slots::{Slot, SlotPool};
use super::stats::{CaptureStats, DropReason};
use crate::imaging::statistics::Watch;

/// How often a waiting source looks whether it is being stopped.
const HALT_CHECK: Duration = Duration::from_millis(10);

/// What the supervisor and the streaming thread of one pipeline tell each other.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The pipeline is being torn down: take no more frames, wait for nobody.
    pub halt: AtomicBool,
    /// The source waits for the consumer, so silence is not the source's fault.
    pub blocked: AtomicBool,
    pub first_frame_at: OnceLock<Instant>,
}

/// A camera's end of the queue. Outlives pipelines: the sequence and the queue go on after a restart.
pub(super) struct Intake {
    camera: String,
    policy: DropPolicy,
    clock: Arc<dyn Clock>,
    stats: Arc<CaptureStats>,
    memory: Arc<CameraMemory>,
    /// Gone once the camera has ended, which is how the consumer learns of it.
    sender: Option<Sender<Frame>>,
    /// The other end, to take the longest waiting frame back out.
    queue: Receiver<Frame>,
    sequence: u64,
    geometry: Option<Geometry>,
    /// Made for the first JPEG picture.
    decoder: Option<Decoder>,
    watch: Watch,
}

/// What follows from the stream's caps; made anew when they change.
struct Geometry {
    caps: gst::Caps,
    /// `None`: JPEG.
    stream: Option<Stream>,
    /// `None` until the first whole JPEG picture, whose caps need not say its size.
    room: Option<Room>,
}

/// Where pictures go.
#[derive(Clone)]
struct Room {
    layout: Layout,
    bytes: usize,
    pool: Arc<SlotPool>,
}

/// Why a frame has no pixels to hand on.
enum Lost {
    Dropped(DropReason),
    Damaged(Damage),
}

impl From<DropReason> for Lost {
    fn from(reason: DropReason) -> Self {
        Lost::Dropped(reason)
    }
}

impl From<Damage> for Lost {
    fn from(damage: Damage) -> Self {
        Lost::Damaged(damage)
    }
}

impl Intake {
    pub(super) fn new(
        camera: String,
        policy: DropPolicy,
        clock: Arc<dyn Clock>,
        stats: Arc<CaptureStats>,
        memory: Arc<CameraMemory>,
        (sender, queue): (Sender<Frame>, Receiver<Frame>),
        sequence: u64,
    ) -> Self {
        let sender = Some(sender);
        let (geometry, decoder, watch) = (None, None, Watch::default());
        Intake { camera, policy, clock, stats, memory, sender, queue, sequence, geometry, decoder, watch }
    }

    /// No frames will follow.
    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    /// Takes one frame in. Never fails for a frame's sake: what cannot be handed on is dropped and counted, and
    /// what came damaged is handed on without pixels, because a part passed all the same.
    pub(super) fn accept(&mut self, sample: &gst::Sample, run: &Run) -> Result<(), gst::FlowError> {
        let now = self.clock.now();
        let mut ticket = self.stats.enter(now);
        let sequence = self.sequence;
        self.sequence += 1;
        if run.halt.load(Relaxed) {
            return Err(gst::FlowError::Flushing);
        }
        let _ = run.first_frame_at.set(now);
        self.stats.up.store(true, Relaxed);

        let pts = sample.buffer().and_then(|buffer| buffer.pts());
        let pts = pts.map(|pts| Duration::from_nanos(pts.nseconds()));
        let content = match self.place(sample, run) {
            Ok((storage, layout)) => {
                match storage {
                    Storage::InPlace(..) => self.stats.count_zero_copy(),
                    Storage::Copied(_) => self.stats.count_copied(),
                }
                Ok((storage, layout))
            }
            Err(Lost::Damaged(damage)) => {
                self.stats.count_damaged();
                Err(damage)
            }
            Err(Lost::Dropped(reason)) => {
                ticket.discard(reason);
                return Ok(());
            }
        };
        let frame = Frame::new(content, ticket, sequence, now, pts);
        if let Some(image) = self.watch.look(&frame.view()) {
            self.stats.set_image(image);
        }
        self.hand_on(frame, run);
        Ok(())
    }

    /// Finds the frame's pixels a slot: the one that they are in already, or a free one to put them in.
    fn place(&mut self, sample: &gst::Sample, run: &Run) -> Result<(Storage, Layout), Lost> {
        let buffer = sample.buffer_owned().ok_or(Damage::Short)?;
        if buffer.flags().contains(gst::BufferFlags::CORRUPTED) {
            return Err(Damage::Marked.into());
        }
        self.follow_caps(sample.caps_owned().ok_or(DropReason::Unsupported)?)?;
        if self.policy == DropPolicy::DropNewest && self.queue.is_full() {
            return Err(DropReason::QueueFull.into());
        }
        let geometry = self.geometry.as_ref().ok_or(DropReason::Unsupported)?;
        let (Some(stream), Some(room)) = (&geometry.stream, &geometry.room) else {
            return self.decode(buffer, run);
        };

        let source = stream.layout_of(&buffer).ok_or(DropReason::Unsupported)?;
        let buffer = buffer.into_mapped_buffer_readable().map_err(|_| Damage::Short)?;
        if !source.fits(buffer.len()) {
            return Err(Damage::Short.into());
        }
        if room.pool.contains(buffer.as_slice()) {
            let pages = Arc::clone(room.pool.pages());
            return Ok((Storage::InPlace(buffer, pages), source));
        }
        let mut slot = self.free_slot(room, run)?;
        if !source.copy_to(buffer.as_slice(), &room.layout, slot.bytes_mut()) {
            return Err(Damage::Short.into());
        }
        Ok((Storage::Copied(slot), room.layout))
    }

    /// Decodes a JPEG picture into a slot.
    fn decode(&mut self, buffer: gst::Buffer, run: &Run) -> Result<(Storage, Layout), Lost> {
        let jpeg = buffer.into_mapped_buffer_readable().map_err(|_| Damage::Short)?;
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => Decoder::new().map_err(|error| self.undecodable(&error))?,
        };
        let placed = self.decode_with(&mut decoder, &jpeg, run);
        // After a header that it cannot read libjpeg takes the next picture for that one's rest.
        if !matches!(placed, Err(Lost::Damaged(_))) {
            self.decoder = Some(decoder);
        }
        placed
    }

    fn decode_with(
        &mut self,
        decoder: &mut Decoder,
        jpeg: &[u8],
        run: &Run,
    ) -> Result<(Storage, Layout), Lost> {
        let geometry = self.geometry.as_ref().ok_or(DropReason::Unsupported)?;
        let header = decoder.header(jpeg).map_err(|error| self.undecodable(&error))?;
        match &geometry.room {
            Some(room) if room.layout.same_picture(&header.layout) => {
                let mut slot = self.free_slot(room, run)?;
                let decoded = decoder.decode(jpeg, &header, slot.bytes_mut());
                decoded.map_err(|error| self.undecodable(&error))?;
                Ok((Storage::Copied(slot), header.layout))
            }
            // A changed bit in a header must not replace the pool, so a picture of a new size proves itself outside
            // first. Once per size.
            before => {
                let mut pixels = vec![0; header.bytes];
                let decoded = decoder.decode(jpeg, &header, &mut pixels);
                decoded.map_err(|error| self.undecodable(&error))?;
                let before = before.as_ref().map(|room| room.layout);
                let room = self.room_for(header.layout, header.bytes, before)?;
                let slot = self.free_slot(&room, run);
                if let Some(geometry) = &mut self.geometry {
                    geometry.room = Some(room);
                }
                let mut slot = slot?;
                slot.bytes_mut().copy_from_slice(&pixels);
                Ok((Storage::Copied(slot), header.layout))
            }
        }
    }

    fn undecodable(&self, error: &str) -> Damage {
        tracing::debug!(camera = self.camera, "A JPEG picture is damaged: {error}.");
        Damage::Undecodable
    }

    /// Sets up for `caps` when they are new.
    fn follow_caps(&mut self, caps: gst::Caps) -> Result<(), DropReason> {
        // The same pointer nearly always; the comparison by value is for sources that make caps anew.
        if self.geometry.as_ref().is_some_and(|g| g.caps.as_ptr() == caps.as_ptr() || g.caps == caps) {
            return Ok(());
        }
        let before = self.geometry.take().and_then(|before| before.room);
        if caps.structure(0).is_some_and(|fields| fields.name() == JPEG) {
            self.geometry = Some(Geometry { caps, stream: None, room: before });
            return Ok(());
        }
        let stream = Stream::of_caps(&caps).ok_or_else(|| {
            tracing::error!(camera = self.camera, %caps, "The source's format or size cannot be handed on.");
            DropReason::Unsupported
        })?;
        let room = self.room_for(stream.layout, stream.bytes, before.map(|room| room.layout))?;
        self.geometry = Some(Geometry { caps, stream: Some(stream), room: Some(room) });
        Ok(())
    }

    /// Slots for pictures laid out like this.
    fn room_for(&self, layout: Layout, bytes: usize, before: Option<Layout>) -> Result<Room, DropReason> {
        let pool = self.memory.pool_for(bytes).map_err(|error| {
            tracing::error!(camera = self.camera, %error, bytes, "There is no memory for frames.");
            DropReason::NoSlot
        })?;
        if before.is_some_and(|before| !before.same_picture(&layout)) {
            self.stats.caps_changes.fetch_add(1, Relaxed);
        }
        let (format, width, height) = (layout.format.name(), layout.width, layout.height);
        tracing::info!(camera = self.camera, format, width, height, "The camera's format is set.");
        Ok(Room { layout, bytes, pool })
    }

    fn free_slot(&self, room: &Room, run: &Run) -> Result<Slot, DropReason> {
        let bytes = room.bytes;
        let slot = match self.policy {
            DropPolicy::DropOldest => {
                // The frame that will have to make room in the queue may as well give up its slot now.
                if self.queue.is_full() {
                    self.evict(DropReason::QueueFull);
                }
                room.pool.take(bytes).or_else(|| {
                    self.evict(DropReason::NoSlot);
                    room.pool.take(bytes)
                })
            }
            DropPolicy::DropNewest => room.pool.take(bytes),
            DropPolicy::Block => room.pool.take(bytes).or_else(|| {
                run.blocked.store(true, Relaxed);
                let mut slot = None;
                while slot.is_none() && !run.halt.load(Relaxed) {
                    slot = room.pool.take_within(bytes, HALT_CHECK);
                }
                run.blocked.store(false, Relaxed);
                slot
            }),
        };
        slot.ok_or_else(|| self.no_slot_reason(run))
    }

    fn no_slot_reason(&self, run: &Run) -> DropReason {
        if run.halt.load(Relaxed) { DropReason::Shutdown } else { DropReason::NoSlot }
    }

    fn evict(&self, reason: DropReason) {
        if let Ok(oldest) = self.queue.try_recv() {
            oldest.discard(reason);
        }
    }

    /// Puts the frame in the queue by the policy.
    fn hand_on(&self, mut frame: Frame, run: &Run) {
        let Some(sender) = &self.sender else { return frame.discard(DropReason::Shutdown) };
        frame.deliver();
        match self.policy {
            DropPolicy::DropOldest => loop {
                match sender.try_send(frame) {
                    Ok(()) => return,
                    Err(TrySendError::Full(back)) => frame = back,
                    Err(TrySendError::Disconnected(back)) => return back.discard(DropReason::Shutdown),
                }
                self.evict(DropReason::QueueFull);
            },
            DropPolicy::DropNewest => match sender.try_send(frame) {
                Ok(()) => {}
                Err(TrySendError::Full(back)) => back.discard(DropReason::QueueFull),
                Err(TrySendError::Disconnected(back)) => back.discard(DropReason::Shutdown),
            },
            DropPolicy::Block => {
                run.blocked.store(true, Relaxed);
                loop {
                    match sender.send_timeout(frame, HALT_CHECK) {
                        Ok(()) => break,
                        Err(SendTimeoutError::Timeout(back)) if !run.halt.load(Relaxed) => frame = back,
                        Err(error) => {
                            error.into_inner().discard(DropReason::Shutdown);
                            break;
                        }
                    }
                }
                run.blocked.store(false, Relaxed);
            }
        }
    }
}

/// The callback for an appsink. The lock is only ever contended while a pipeline is torn down.
pub(super) fn callback(
    intake: Arc<Mutex<Intake>>,
    run: Arc<Run>,
) -> impl FnMut(&gstreamer_app::AppSink) -> Result<gst::FlowSuccess, gst::FlowError> + Send + 'static {
    move |sink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let mut intake = intake.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        intake.accept(&sample, &run)?;
        Ok(gst::FlowSuccess::Ok)
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
