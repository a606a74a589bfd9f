//! Fakes for the tests of this room: pictures, cameras and judges without GStreamer and without a model.

use std::time::Instant;

use super::desk::Picture;
use crate::imaging::FrameView;

/// A grey picture of 4 by 4 pixels.
#[derive(Debug)]
pub struct FakePicture {
    sequence: u64,
    captured_at: Instant,
    pixels: [u8; 48],
}

impl FakePicture {
    pub fn new(sequence: u64, captured_at: Instant) -> Self {
        FakePicture { sequence, captured_at, pixels: [sequence as u8; 48] }
    }
}

impl Picture for FakePicture {
    fn view(&self) -> FrameView<'_> {
        FrameView::rgb(&self.pixels, 4, 4)
    }

    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn captured_at(&self) -> Instant {
        self.captured_at
    }
}

/// SplitMix64: enough for choosing test cases, and the seed is in the assertion's message.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}
