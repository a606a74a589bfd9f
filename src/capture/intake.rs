//! From the sink into the queue: runs on GStreamer's streaming thread, once for each frame.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError};
use gstreamer as gst;

use super::allocator::CameraMemory;
use super::clock::Clock;
use super::config::DropPolicy;
use super::frame::{Frame, Storage};
use super::layout::{Layout, Stream};
use super::slots::{Slot, SlotPool};
use super::stats::{CaptureStats, DropReason};

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
}

/// What follows from the stream's caps; made anew when they change.
struct Geometry {
    caps: gst::Caps,
    stream: Stream,
    pool: Arc<SlotPool>,
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
        Intake { camera, policy, clock, stats, memory, sender, queue, sequence, geometry: None }
    }

    /// No frames will follow.
    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    /// Takes one frame in. Never fails for a frame's sake: what cannot be handed on is dropped and counted.
    pub(super) fn accept(&mut self, sample: &gst::Sample, run: &Run) -> Result<(), gst::FlowError> {
        let now = self.clock.now();
        let mut ticket = self.stats.enter(now);
        let sequence = self.sequence;
        self.sequence += 1;
        let _ = run.first_frame_at.set(now);
        self.stats.up.store(true, Relaxed);
        if run.halt.load(Relaxed) {
            return Err(gst::FlowError::Flushing);
        }

        let (storage, layout, pts) = match self.place(sample, run) {
            Ok(placed) => placed,
            Err(reason) => {
                ticket.discard(reason);
                return Ok(());
            }
        };
        match storage {
            Storage::InPlace(..) => self.stats.count_zero_copy(),
            Storage::Copied(_) => self.stats.count_copied(),
        }
        self.hand_on(Frame::new(storage, layout, ticket, sequence, now, pts), run);
        Ok(())
    }

    /// Finds the frame's pixels a slot: the one that they are in already, or a free one to copy them to.
    fn place(
        &mut self,
        sample: &gst::Sample,
        run: &Run,
    ) -> Result<(Storage, Layout, Option<Duration>), DropReason> {
        let buffer = sample.buffer_owned().ok_or(DropReason::Corrupt)?;
        if buffer.flags().contains(gst::BufferFlags::CORRUPTED) {
            return Err(DropReason::Corrupt);
        }
        self.follow_caps(sample.caps_owned().ok_or(DropReason::Unsupported)?)?;
        let geometry = self.geometry.as_ref().ok_or(DropReason::Unsupported)?;
        if self.policy == DropPolicy::DropNewest && self.queue.is_full() {
            return Err(DropReason::QueueFull);
        }

        let pts = buffer.pts().map(|pts| Duration::from_nanos(pts.nseconds()));
        let source = geometry.stream.layout_of(&buffer).ok_or(DropReason::Unsupported)?;
        let buffer = buffer.into_mapped_buffer_readable().map_err(|_| DropReason::Corrupt)?;
        if !source.fits(buffer.len()) {
            return Err(DropReason::Corrupt);
        }
        if geometry.pool.contains(buffer.as_slice()) {
            let pages = Arc::clone(geometry.pool.pages());
            return Ok((Storage::InPlace(buffer, pages), source, pts));
        }
        let mut slot = self.free_slot(geometry, run).ok_or_else(|| self.no_slot_reason(run))?;
        let target = geometry.stream.layout;
        if !source.copy_to(buffer.as_slice(), &target, slot.bytes_mut()) {
            return Err(DropReason::Corrupt);
        }
        Ok((Storage::Copied(slot), target, pts))
    }

    /// Sets up for `caps` when they are new.
    fn follow_caps(&mut self, caps: gst::Caps) -> Result<(), DropReason> {
        // The same pointer nearly always; the comparison by value is for sources that make caps anew.
        if self.geometry.as_ref().is_some_and(|g| g.caps.as_ptr() == caps.as_ptr() || g.caps == caps) {
            return Ok(());
        }
        let before = self.geometry.take();
        let stream = Stream::of_caps(&caps).ok_or_else(|| {
            tracing::error!(camera = self.camera, %caps, "The source's format or size cannot be handed on.");
            DropReason::Unsupported
        })?;
        let (layout, bytes) = (stream.layout, stream.bytes);
        let pool = self.memory.pool_for(bytes).map_err(|error| {
            tracing::error!(camera = self.camera, %error, bytes, "There is no memory for frames.");
            DropReason::NoSlot
        })?;
        if before.is_some_and(|before| !before.stream.layout.same_picture(&layout)) {
            self.stats.caps_changes.fetch_add(1, Relaxed);
        }
        let (format, width, height) = (layout.format.name(), layout.width, layout.height);
        tracing::info!(camera = self.camera, format, width, height, "The camera's format is set.");
        self.geometry = Some(Geometry { caps, stream, pool });
        Ok(())
    }

    fn free_slot(&self, geometry: &Geometry, run: &Run) -> Option<Slot> {
        let bytes = geometry.stream.bytes;
        match self.policy {
            DropPolicy::DropOldest => {
                // The frame that will have to make room in the queue may as well give up its slot now.
                if self.queue.is_full() {
                    self.evict(DropReason::QueueFull);
                }
                geometry.pool.take(bytes).or_else(|| {
                    self.evict(DropReason::NoSlot);
                    geometry.pool.take(bytes)
                })
            }
            DropPolicy::DropNewest => geometry.pool.take(bytes),
            DropPolicy::Block => geometry.pool.take(bytes).or_else(|| {
                run.blocked.store(true, Relaxed);
                let mut slot = None;
                while slot.is_none() && !run.halt.load(Relaxed) {
                    slot = geometry.pool.take_within(bytes, HALT_CHECK);
                }
                run.blocked.store(false, Relaxed);
                slot
            }),
        }
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
mod tests {
    use super::*;
    use crate::capture::SystemClock;
    use crossbeam_channel::bounded;
    use gstreamer_video as gst_video;

    struct Bench {
        intake: Intake,
        run: Run,
        caps: gst::Caps,
    }

    /// An intake for I420 of 5×3 pixels.
    fn bench() -> Bench {
        gst::init().unwrap();
        let stats = Arc::new(CaptureStats::default());
        let memory = Arc::new(CameraMemory::new(8, Arc::clone(&stats)));
        let clock = Arc::new(SystemClock);
        let intake = Intake::new("test".into(), DropPolicy::DropOldest, clock, stats, memory, bounded(2), 0);
        let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::I420);
        let caps = caps.width(5).height(3).framerate(gst::Fraction::new(30, 1)).build();
        Bench { intake, run: Run::default(), caps }
    }

    impl Bench {
        fn accept(&mut self, buffer: gst::Buffer) -> Result<(), gst::FlowError> {
            let sample = gst::Sample::builder().buffer(&buffer).caps(&self.caps).build();
            self.intake.accept(&sample, &self.run)
        }

        fn dropped(&self, reason: DropReason) -> u64 {
            let ledger = self.intake.stats.ledger();
            assert!(ledger.balances());
            ledger.dropped(reason)
        }
    }

    fn add_meta(buffer: &mut gst::Buffer, (width, height): (u32, u32), offsets: &[usize], strides: &[i32]) {
        gst_video::VideoMeta::add_full(
            buffer.get_mut().unwrap(),
            gst_video::VideoFrameFlags::empty(),
            gst_video::VideoFormat::I420,
            width,
            height,
            offsets,
            strides,
        )
        .unwrap();
    }

    #[test]
    fn planes_that_a_decoder_padded_are_found_by_their_meta_even_in_separate_memories() {
        // Y in 16-byte rows, chroma in 8-byte rows, a gap behind each plane; byte = its offset.
        let bytes: Vec<u8> = (0..128).collect();
        for cuts in [&[0, 128][..], &[0, 64, 96, 128]] {
            let mut bench = bench();
            let mut buffer = gst::Buffer::new();
            for cut in cuts.windows(2) {
                let memory = gst::Memory::from_slice(bytes[cut[0]..cut[1]].to_vec());
                buffer.get_mut().unwrap().append_memory(memory);
            }
            add_meta(&mut buffer, (5, 3), &[0, 64, 96], &[16, 8, 8]);
            bench.accept(buffer).unwrap();
            let frame = bench.intake.queue.try_recv().unwrap();
            let view = frame.view();
            let rows = |plane: usize, row_bytes: usize, rows: usize| -> Vec<u8> {
                let plane = view.planes[plane];
                (0..rows).flat_map(|y| &plane.data[y * plane.stride..][..row_bytes]).copied().collect()
            };
            assert_eq!(rows(0, 5, 3), [0, 1, 2, 3, 4, 16, 17, 18, 19, 20, 32, 33, 34, 35, 36]);
            assert_eq!(rows(1, 3, 2), [64, 65, 66, 72, 73, 74]);
            assert_eq!(rows(2, 3, 2), [96, 97, 98, 104, 105, 106]);
        }
    }

    #[test]
    fn damaged_and_impossible_frames_are_dropped_with_their_reason() {
        let mut bench = bench();
        let mut marked = gst::Buffer::from_mut_slice(vec![0u8; 128]);
        marked.get_mut().unwrap().set_flags(gst::BufferFlags::CORRUPTED);
        bench.accept(marked).unwrap();
        assert_eq!(bench.dropped(DropReason::Corrupt), 1);

        bench.accept(gst::Buffer::from_mut_slice(vec![0u8; 20])).unwrap();
        bench.accept(gst::Buffer::new()).unwrap();
        assert_eq!(bench.dropped(DropReason::Corrupt), 3);

        for (size, strides) in [((5, 3), [-16, 8, 8]), ((5, 3), [4, 8, 8]), ((4, 2), [16, 8, 8])] {
            let mut odd = gst::Buffer::from_mut_slice(vec![0u8; 128]);
            add_meta(&mut odd, size, &[0, 64, 96], &strides);
            bench.accept(odd).unwrap();
        }
        assert_eq!(bench.dropped(DropReason::Unsupported), 3);

        bench.caps = gst::Caps::builder("image/png").build();
        bench.accept(gst::Buffer::from_mut_slice(vec![0u8; 128])).unwrap();
        assert_eq!(bench.dropped(DropReason::Unsupported), 4);
        assert!(bench.intake.queue.is_empty());
    }

    #[test]
    fn a_halted_intake_takes_nothing_more() {
        let mut bench = bench();
        bench.run.halt.store(true, Relaxed);
        let refused = bench.accept(gst::Buffer::from_mut_slice(vec![0u8; 128]));
        assert_eq!(refused, Err(gst::FlowError::Flushing));
        assert_eq!(bench.dropped(DropReason::Shutdown), 1);
    }
}
