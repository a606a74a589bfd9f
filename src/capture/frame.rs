//! A captured frame in the consumer's hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gstreamer as gst;

use super::layout::Layout;
use super::slots::Slot;
use super::stats::{DropReason, Ticket};
use crate::imaging::{FrameView, PixelFormat};
use crate::pages::Pages;

/// A frame in a slot of its camera's pool. Dropping it gives the slot back, so hold it no longer than
/// needed: a camera whose slots are all held has nowhere to put the next frame.
#[derive(Debug)]
pub struct Frame {
    // Before the storage: the ledger's line closes first, then the slot returns.
    ticket: Ticket,
    storage: Storage,
    layout: Layout,
    sequence: u64,
    captured_at: Instant,
    pts: Option<Duration>,
}

#[derive(Debug)]
pub(super) enum Storage {
    /// Copied into a slot of ours.
    Copied(Slot),
    /// Upstream's buffer, whose memory is a slot. It returns to upstream's pool.
    InPlace(gst::buffer::MappedBuffer<gst::buffer::Readable>, Arc<Pages>),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Copied(slot) => slot.bytes(),
            Storage::InPlace(buffer, _) => buffer.as_slice(),
        }
    }

    fn pages(&self) -> &Arc<Pages> {
        match self {
            Storage::Copied(slot) => slot.pages(),
            Storage::InPlace(_, pages) => pages,
        }
    }
}

impl Frame {
    pub(super) fn new(
        storage: Storage,
        layout: Layout,
        ticket: Ticket,
        sequence: u64,
        captured_at: Instant,
        pts: Option<Duration>,
    ) -> Self {
        Frame { ticket, storage, layout, sequence, captured_at, pts }
    }

    /// The pixels. Strides may exceed the rows' bytes; padding is undefined.
    pub fn view(&self) -> FrameView<'_> {
        self.layout.view(self.storage.bytes())
    }

    /// The memory that the pixels lie in, with those of the camera's other frames.
    pub fn pages(&self) -> &Arc<Pages> {
        self.storage.pages()
    }

    /// Counts the camera's captured frames from 0, over restarts. A gap is a dropped frame.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the frame arrived, by the camera's clock.
    pub fn captured_at(&self) -> Instant {
        self.captured_at
    }

    /// The source's timestamp, since the pipeline's start; begins anew after a restart.
    pub fn pts(&self) -> Option<Duration> {
        self.pts
    }

    pub fn format(&self) -> PixelFormat {
        self.layout.format
    }

    /// Width and height, pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.layout.width, self.layout.height)
    }

    /// From here on the consumer's: letting go of it counts as delivered.
    pub(super) fn deliver(&mut self) {
        self.ticket.deliver();
    }

    /// Lets go of the frame for `reason`.
    pub(super) fn discard(mut self, reason: DropReason) {
        self.ticket.discard(reason);
    }
}
