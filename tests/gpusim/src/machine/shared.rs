//! Shared memory of a block, with what each two bytes went through, and the order of accesses.
//!
//! Time is a counter that every barrier raises. A thread knows of another thread's accesses up to some
//! time: that of the last barrier both took part in (whole block, part of it, or `bar.warp.sync`). An
//! access that the other does not know of is unordered, whatever order the simulator happens to run.

use super::global::Wrong;
use crate::ptx::Variable;

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    written: u32,
    read: u32,
    writer: u16,
    reader: u16,
    /// Others than `reader` have read since the last write: 1.
    several: u8,
    /// Which of the two bytes hold a value, in this block.
    init: u8,
    /// cp.async is copying here.
    pending: bool,
    atomic: bool,
}

/// Who knows of whose accesses, up to when.
#[derive(Debug, Default)]
pub struct Order {
    pub now: u32,
    warps: usize,
    /// `warps²`: what a warp knows of another.
    known: Vec<u32>,
    /// For each warp, what all its lanes know of each other, and of all other warps.
    pub all: Vec<u32>,
    pub within: Vec<u32>,
    /// What lanes of a warp know of each other by barriers of a part of it.
    lanes: Vec<Option<Box<[[u32; 32]; 32]>>>,
}

impl Order {
    pub fn start(&mut self, warps: usize) {
        if self.now > u32::MAX / 2 {
            self.now = 0;
        }
        self.now += 1;
        self.warps = warps;
        self.known.clear();
        self.known.resize(warps * warps, 0);
        self.all.clear();
        self.all.resize(warps, 0);
        self.within.clear();
        self.within.resize(warps, 0);
        self.lanes.clear();
        self.lanes.resize_with(warps, || None);
    }

    /// A barrier of these warps.
    pub fn barrier(&mut self, members: &[usize]) {
        let now = self.now;
        self.now += 1;
        if members.len() == self.warps {
            self.all.fill(now);
            self.within.fill(now);
            self.known.fill(now);
            return;
        }
        for other in 0..self.warps {
            let most = members.iter().map(|m| self.known[m * self.warps + other]).max().unwrap_or(0);
            let most = if members.contains(&other) { now } else { most };
            for m in members {
                self.known[m * self.warps + other] = most;
            }
        }
        for &m in members {
            self.within[m] = now;
        }
    }

    pub fn warp_barrier(&mut self, warp: usize, mask: u32, live: u32) {
        let now = self.now;
        self.now += 1;
        if live & !mask == 0 {
            self.within[warp] = now;
            return;
        }
        let lanes = self.lanes[warp].get_or_insert_with(|| Box::new([[0; 32]; 32]));
        let members: Vec<usize> = (0..32).filter(|l| mask >> l & 1 == 1).collect();
        for other in 0..32 {
            let most = members.iter().map(|m| lanes[*m][other]).max().unwrap_or(0);
            let most = if mask >> other & 1 == 1 { now } else { most };
            for &m in &members {
                lanes[m][other] = most;
            }
        }
    }

    #[inline(always)]
    fn knows(&self, me: u16, who: u16, time: u32) -> bool {
        let (warp, other) = (usize::from(me >> 5), usize::from(who >> 5));
        if time <= self.all[warp] || me == who {
            return true;
        }
        if warp == other {
            let known = |l: &[[u32; 32]; 32]| l[usize::from(me & 31)][usize::from(who & 31)] >= time;
            return time <= self.within[warp] || self.lanes[warp].as_deref().is_some_and(known);
        }
        self.known[warp * self.warps + other] >= time
    }
}

#[derive(Debug, Default)]
pub struct Shared {
    /// As words of 64 bits, for alignment.
    words: Vec<u64>,
    cells: Vec<Cell>,
    /// Parts that may be used: start, end, index of the variable (or its number for the dynamic part).
    ranges: Vec<(usize, usize)>,
    last: usize,
    start: u32,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedWrong {
    Memory(Wrong),
    Pending,
}

impl Shared {
    pub fn resize(&mut self, bytes: usize, variables: &[Variable], dynamic: (usize, usize)) {
        self.len = bytes;
        self.words.resize(bytes.div_ceil(8) + 2, 0);
        self.cells.resize(bytes.div_ceil(2) + 8, Cell::default());
        self.ranges.clear();
        self.ranges.extend(variables.iter().map(|v| (v.offset, v.offset + v.bytes)));
        self.ranges.push((dynamic.0, dynamic.0 + dynamic.1));
        self.last = 0;
    }

    /// A new block: nothing holds a value.
    pub fn start(&mut self, now: u32, poison: bool) {
        if now < self.start {
            self.cells.fill(Cell::default());
        }
        self.start = now;
        if poison {
            self.words.fill(0x7fff_dead_7fff_dead);
        }
    }

    /// Whether the bytes lie in one variable.
    #[inline(always)]
    pub fn inside(&mut self, offset: u64, bytes: usize) -> bool {
        let Some(end) = offset.checked_add(bytes as u64) else { return false };
        let fits = |r: &(usize, usize)| offset >= r.0 as u64 && end <= r.1 as u64;
        if self.ranges.get(self.last).is_some_and(fits) {
            return true;
        }
        match self.ranges.iter().position(fits) {
            Some(i) => {
                self.last = i;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised words, seen as bytes, of which any pattern is valid.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 8) }
    }

    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.words.len() * 8) }
    }

    #[inline(always)]
    pub fn load(&self, offset: usize, bytes: usize) -> u64 {
        let b = &self.bytes()[offset..];
        match bytes {
            1 => u64::from(b[0]),
            2 => u64::from(u16::from_le_bytes([b[0], b[1]])),
            4 => u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            _ => u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        }
    }

    #[inline(always)]
    pub fn store(&mut self, offset: usize, bytes: usize, value: u64) {
        self.bytes_mut()[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    /// The bytes of a cell that an access covers.
    #[inline(always)]
    fn half(offset: usize, bytes: usize) -> u8 {
        if bytes == 1 { 1 << (offset & 1) } else { 3 }
    }

    #[inline(always)]
    pub fn check_read(
        &mut self,
        offset: usize,
        bytes: usize,
        me: u16,
        several: bool,
        order: &Order,
    ) -> Option<SharedWrong> {
        let mut wrong = None;
        let half = Self::half(offset, bytes);
        let (start, now, all) = (self.start, order.now, order.all[usize::from(me >> 5)]);
        for cell in &mut self.cells[offset / 2..(offset + bytes).div_ceil(2)] {
            if cell.pending && cell.written >= start {
                wrong = Some(SharedWrong::Pending);
                continue;
            }
            if cell.written < start || cell.init & half != half {
                wrong = Some(SharedWrong::Memory(Wrong::Uninitialised));
                continue;
            }
            if cell.written > all && bytes > 1 && !order.knows(me, cell.writer, cell.written) {
                wrong = Some(SharedWrong::Memory(Wrong::RaceReadAfterWrite));
            }
            let known = cell.read < start || cell.read <= all;
            if known || (cell.reader != me && order.knows(me, cell.reader, cell.read)) {
                cell.several = u8::from(several);
            } else if cell.reader != me || several {
                cell.several = 1;
            }
            cell.reader = me;
            cell.read = now;
        }
        wrong
    }

    /// `same`: the bytes there already are those that are written.
    #[inline(always)]
    pub fn check_write(
        &mut self,
        offset: usize,
        bytes: usize,
        me: u16,
        same: bool,
        atomic: bool,
        order: &Order,
    ) -> Option<SharedWrong> {
        let mut wrong = None;
        let half = Self::half(offset, bytes);
        let (start, now, all) = (self.start, order.now, order.all[usize::from(me >> 5)]);
        for cell in &mut self.cells[offset / 2..(offset + bytes).div_ceil(2)] {
            let old = cell.written < start;
            if cell.pending && !old {
                wrong = Some(SharedWrong::Pending);
                continue;
            }
            if atomic && (old || cell.init & half != half) {
                wrong = Some(SharedWrong::Memory(Wrong::Uninitialised));
            }
            if bytes > 1 {
                let both_atomic = atomic && cell.atomic;
                let lockstep = same && cell.writer >> 5 == me >> 5;
                if !old
                    && cell.written > all
                    && !both_atomic
                    && !lockstep
                    && !order.knows(me, cell.writer, cell.written)
                {
                    wrong = Some(SharedWrong::Memory(Wrong::RaceWriteAfterWrite));
                }
                if cell.read >= start
                    && cell.read > all
                    && (!order.knows(me, cell.reader, cell.read)
                        || (cell.several == 1 && cell.read > order.within[usize::from(me >> 5)]))
                {
                    wrong = Some(SharedWrong::Memory(Wrong::RaceWriteAfterRead));
                }
            }
            cell.init = if old { half } else { cell.init | half };
            cell.writer = me;
            cell.written = now;
            cell.pending = false;
            cell.atomic = atomic;
        }
        wrong
    }

    /// cp.async starts or ends its copy.
    pub fn set_pending(&mut self, offset: usize, bytes: usize, pending: bool, me: u16, now: u32) {
        for cell in &mut self.cells[offset / 2..(offset + bytes).div_ceil(2)] {
            cell.pending = pending;
            cell.writer = me;
            cell.written = now;
            cell.init = 3;
        }
    }
}
