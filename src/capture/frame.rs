//! A captured frame in the consumer's hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gstreamer as gst;

use super::layout::Layout;
use super::slots::Slot;
use super::stats::{DropReason, Ticket};
use crate::imaging::{FrameView, PixelFormat};
use crate::pages::Pages;

/// Why a frame came without pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The driver or decoder says so.
    Marked,
    /// Its memory is shorter than its format and size say.
    Short,
    /// Its JPEG data is cut off or changed.
    Undecodable,
}

/// A clause.
impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Damage::Marked => "its driver or decoder marked it as damaged",
            Damage::Short => "it has fewer bytes than its format and size need",
            Damage::Undecodable => "its JPEG data is cut off or damaged",
        })
    }
}

/// A frame in a slot of its camera's pool. Dropping it gives the slot back, so hold it no longer than
/// needed: a camera whose slots are all held has nowhere to put the next frame.
#[derive(Debug)]
pub struct Frame {
    // Before the storage: the ledger's line closes first, then the slot returns.
    ticket: Ticket,
    content: Result<(Storage, Layout), Damage>,
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
        content: Result<(Storage, Layout), Damage>,
        ticket: Ticket,
        sequence: u64,
        captured_at: Instant,
        pts: Option<Duration>,
    ) -> Self {
        Frame { ticket, content, sequence, captured_at, pts }
    }

    /// Why the frame has no pixels, if it has none.
    pub fn damage(&self) -> Option<Damage> {
        self.content.as_ref().err().copied()
    }

    /// The pixels. Strides may exceed the rows' bytes; padding is undefined. Of a damaged frame none: 0 × 0, which
    /// [`FrameView::check`] refuses.
    pub fn view(&self) -> FrameView<'_> {
        match &self.content {
            Ok((storage, layout)) => layout.view(storage.bytes()),
            Err(_) => {
                FrameView { format: PixelFormat::Gray8, width: 0, height: 0, planes: Default::default() }
            }
        }
    }

    /// The memory that the pixels lie in, with those of the camera's other frames.
    pub fn pages(&self) -> Option<&Arc<Pages>> {
        self.content.as_ref().ok().map(|(storage, _)| storage.pages())
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
        self.view().format
    }

    /// Width and height, pixels.
    pub fn size(&self) -> (usize, usize) {
        let view = self.view();
        (view.width, view.height)
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
