//! Cameras: GStreamer pipelines whose frames land in a fixed pool of page-aligned slots.
//!
//! A [`Camera`] is one supervised pipeline. Its source is a fragment in GStreamer's launch syntax
//! (`videotestsrc`, `v4l2src device=/dev/video0`, `rtspsrc location=… ! …`, `aravissrc`,
//! `multifilesrc … ! pngdec`); this room appends the conversion, the caps and the sink.
//!
//! | constraint | value |
//! |---|---|
//! | formats handed on | GRAY8, RGB, BGR, BGRx, NV12, I420, YUY2; Bayer of 8 bits: rggb, grbg, gbrg, bggr ([`PixelFormat`](crate::imaging::PixelFormat)); JPEG, decoded to GRAY8 or RGB |
//! | damaged frames | handed on without pixels ([`Damage`]): a part passed |
//! | memory for frames | `slots` × the frame's bytes rounded up to pages, mapped once per frame size, never grown |
//! | queue to the consumer | `queue` frames, full: [`DropPolicy`] |
//! | restart after a fault | 0.2 s, doubled up to 5 s, back to 0.2 s after 3 s of frames |
//! | our own allocations per frame | none |
//! | image statistics | of each frame, on its camera's thread: under 0.5 ms ([`imaging::statistics`](crate::imaging::statistics)) |
//!
//! Threads: GStreamer's streaming thread runs [`intake`] for each frame (it fills the queue and never
//! waits, except under [`DropPolicy::Block`]); one supervisor thread per camera watches the bus and
//! the clock, and tears down and rebuilds the pipeline after a fault.
//!
//! Two ways into a slot: upstream accepts the buffer pool that we offer on its ALLOCATION query and
//! writes straight into our memory (counted as `zero_copy`), or the frame is copied once, row by row
//! (`copied`). 1080p costs 0.2–0.6 ms per copy, so the copy is a cost, not a defect.
//!
//! Every frame that reaches the sink is entered in the [`Ledger`] and leaves it exactly once:
//! captured = delivered + dropped(reason) + in flight.
//!
//! Absent on purpose: CUDA (who copies to a GPU registers the slots from outside, [`SlotPool::pages`]), config files,
//! verdicts. No other room speaks GStreamer.

mod allocator;
mod camera;
mod clock;
mod config;
mod error;
mod frame;
mod intake;
mod jpeg;
mod layout;
mod packages;
mod pipeline;
mod slots;
mod stats;
mod supervisor;
#[cfg(test)]
mod tests;

pub use camera::Camera;
pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{CameraConfig, DropPolicy, OnEos};
pub use error::CaptureError;
pub use frame::{Damage, Frame};
pub use pipeline::{check_fragment, gstreamer_version, missing_plugins};
pub use slots::SlotPool;
pub use stats::{CaptureStats, DropReason, Ledger, RestartReason};
