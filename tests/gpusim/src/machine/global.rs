//! Checks of global memory: does a byte hold a value, and do two threads of a launch use it without an
//! order between them.
//!
//! For each two bytes two words. The writer: launch (8 bits), block (8: its number modulo 251, plus 1),
//! thread (10), barriers passed (5, from 31 on unknown), whether it was atomic (1). The readers: launch
//! (8), block (24, all ones for several). A race between blocks whose numbers agree modulo 251 is missed,
//! as are those of single bytes and those between lanes of a warp in different instructions; none of this
//! can make a false alarm. Blocks are never ordered within a launch, also not by atomics and fences.

use std::sync::atomic::Ordering::Relaxed;

use super::memory::Allocation;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Uninitialised,
    RaceReadAfterWrite,
    RaceWriteAfterWrite,
    RaceWriteAfterRead,
    Atomicity,
}

/// Who accesses.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    pub epoch: u32,
    pub block: u32,
    pub thread: u32,
    pub interval: u32,
}

const SEVERAL: u32 = 0x00ff_ffff;

impl Who {
    #[inline(always)]
    fn writer(self, atomic: bool) -> u32 {
        let block = self.block % 251 + 1;
        self.epoch << 24 | block << 16 | self.thread << 6 | self.interval.min(31) << 1 | u32::from(atomic)
    }

    #[inline(always)]
    fn reader(self) -> u32 {
        self.epoch << 24 | self.block & 0x007f_ffff
    }

    /// Whether a write of this launch is not ordered before an access of mine.
    #[inline(always)]
    fn conflicts(self, writer: u32, atomic: bool) -> bool {
        if writer >> 24 != self.epoch || (atomic && writer & 1 == 1) {
            return false;
        }
        if writer >> 16 & 255 != self.block % 251 + 1 {
            return true;
        }
        let (thread, interval) = (writer >> 6 & 1023, writer >> 1 & 31);
        thread >> 5 != self.thread >> 5 && interval == self.interval && interval < 31
    }
}

impl Allocation {
    #[inline(always)]
    pub fn initialised(&self, offset: usize, bytes: usize) -> bool {
        match bytes {
            1 => self.init.u8(offset).load(Relaxed) == u8::MAX,
            2 => self.init.u16(offset).load(Relaxed) == u16::MAX,
            4 => self.init.u32(offset).load(Relaxed) == u32::MAX,
            8 => self.init.u64(offset).load(Relaxed) == u64::MAX,
            _ => self.init.u64(offset).load(Relaxed) & self.init.u64(offset + 8).load(Relaxed) == u64::MAX,
        }
    }

    #[inline(always)]
    fn initialise(&self, offset: usize, bytes: usize) {
        match bytes {
            1 => self.init.u8(offset).store(u8::MAX, Relaxed),
            2 => self.init.u16(offset).store(u16::MAX, Relaxed),
            4 => self.init.u32(offset).store(u32::MAX, Relaxed),
            8 => self.init.u64(offset).store(u64::MAX, Relaxed),
            _ => {
                self.init.u64(offset).store(u64::MAX, Relaxed);
                self.init.u64(offset + 8).store(u64::MAX, Relaxed);
            }
        }
    }

    #[inline(always)]
    pub fn check_read(&self, offset: usize, bytes: usize, who: Who) -> Option<Wrong> {
        if !self.initialised(offset, bytes) {
            return Some(Wrong::Uninitialised);
        }
        let mine = who.reader();
        let mut wrong = None;
        for cell in offset / 2..(offset + bytes).div_ceil(2) {
            let writer = self.writers.u32(cell * 4).load(Relaxed);
            if writer >> 24 == who.epoch && bytes > 1 && who.conflicts(writer, false) {
                wrong = Some(Wrong::RaceReadAfterWrite);
            }
            let reader = self.readers.u32(cell * 4);
            let before = reader.load(Relaxed);
            if before != mine && before != (who.epoch << 24 | SEVERAL) {
                let several = before >> 24 == who.epoch;
                reader.store(if several { who.epoch << 24 | SEVERAL } else { mine }, Relaxed);
            }
        }
        wrong
    }

    #[inline(always)]
    pub fn check_write(&self, offset: usize, bytes: usize, who: Who, atomic: bool) -> Option<Wrong> {
        let mine = who.writer(atomic);
        let mut wrong = None;
        for cell in offset / 2..(offset + bytes).div_ceil(2) {
            let writer = self.writers.u32(cell * 4).swap_relaxed(mine);
            if bytes > 1 {
                if who.conflicts(writer, atomic) {
                    wrong = Some(Wrong::RaceWriteAfterWrite);
                }
                let reader = self.readers.u32(cell * 4).load(Relaxed);
                if reader >> 24 == who.epoch && reader != who.reader() {
                    wrong = Some(Wrong::RaceWriteAfterRead);
                }
            }
        }
        if atomic && !self.initialised(offset, bytes) {
            return Some(Wrong::Uninitialised);
        }
        self.initialise(offset, bytes);
        wrong
    }
}

/// A load and a store: what is lost between them costs at most one missed race.
trait SwapRelaxed {
    fn swap_relaxed(&self, value: u32) -> u32;
}

impl SwapRelaxed for std::sync::atomic::AtomicU32 {
    #[inline(always)]
    fn swap_relaxed(&self, value: u32) -> u32 {
        let before = self.load(Relaxed);
        self.store(value, Relaxed);
        before
    }
}
