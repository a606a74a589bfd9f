//! Device memory: allocations that never touch and whose addresses are never given out twice, each with
//! its bytes, which of them hold a value, and who used them in the running launch.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::worker::Worker;
use crate::ptx::Globals;

const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;
/// Between allocations, so that leaving one is found.
const RED_ZONE: u64 = 512;

/// The range is not inside one living allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds {
    pub address: u64,
    pub bytes: usize,
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} are not inside an allocation", self.bytes, self.address)
    }
}

impl std::error::Error for OutOfBounds {}

/// Zeroed bytes that several threads read and write, by atomic accesses only.
pub(super) struct Bytes {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are owned by this value, and reached only by relaxed atomic accesses or through
// `&mut self`, so that a simulated kernel's race is no data race of this program.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.checked_next_multiple_of(64)?.max(64), 64).ok()
    }

    fn new(len: usize) -> Option<Self> {
        let layout = Self::layout(len)?;
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Bytes { start, len })
    }

    fn slice_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes are allocated and were initialised; `&mut self` keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// While nothing runs that writes: `&Memory` is shared with a launch's threads only during it.
    fn slice(&self) -> &[u8] {
        // SAFETY: `len` bytes are allocated; writers hold `&mut Memory`, by way of `launch`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

macro_rules! atomic_views {
    ($($name:ident: $atomic:ty),*) => { $(
        #[inline(always)]
        pub fn $name(&self, offset: usize) -> &$atomic {
            const N: usize = size_of::<$atomic>();
            assert!(offset.is_multiple_of(N) && offset < self.len && self.len - offset >= N, "inside, aligned");
            // SAFETY: inside the allocation and aligned (its start is aligned to 64); all accesses while
            // it is shared are atomic.
            unsafe { &*self.start.as_ptr().add(offset).cast::<$atomic>() }
        }
    )* }
}

impl Bytes {
    atomic_views!(u8: AtomicU8, u16: AtomicU16, u32: AtomicU32, u64: AtomicU64);
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: allocated with this layout in `new`.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

pub(super) struct Allocation {
    pub address: u64,
    pub bytes: usize,
    pub data: Bytes,
    /// 255 for each byte that holds a value.
    pub init: Bytes,
    /// For each two bytes, 32 bits: the last writer and the readers in a launch (`global.rs`).
    pub writers: Bytes,
    pub readers: Bytes,
    /// Since the shadows were last cleared.
    pub used: AtomicBool,
}

/// Device memory. What changes it takes `&mut self`; a launch shares it among its threads.
pub struct Memory {
    /// By address.
    pub(super) allocations: Vec<Allocation>,
    freed: Vec<(u64, usize)>,
    next: u64,
    modules: HashMap<u64, u64>,
    /// Of the running launch, 1 to 255: what shadows of others hold is void.
    pub(super) epoch: u32,
    /// Kept from launch to launch, for their buffers.
    pub(super) workers: Vec<Worker>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.allocations.iter().map(|a| a.bytes).sum();
        write!(f, "Memory {{ {} allocations, {bytes} bytes }}", self.allocations.len())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    pub fn new() -> Self {
        Memory {
            allocations: Vec::new(),
            freed: Vec::new(),
            next: FIRST_ADDRESS,
            modules: HashMap::new(),
            epoch: 0,
            workers: Vec::new(),
        }
    }

    /// The address, a multiple of 256; `None` where the host has no more. The bytes hold no value.
    pub fn alloc(&mut self, bytes: usize) -> Option<u64> {
        let padded = bytes.checked_next_multiple_of(16)?;
        let allocation = Allocation {
            address: self.next,
            bytes,
            data: Bytes::new(padded)?,
            init: Bytes::new(padded)?,
            writers: Bytes::new(padded.checked_mul(2)?)?,
            readers: Bytes::new(padded.checked_mul(2)?)?,
            used: AtomicBool::new(false),
        };
        let address = self.next;
        self.next = (self.next + bytes as u64 + RED_ZONE).next_multiple_of(256);
        self.allocations.push(allocation);
        Some(address)
    }

    /// `false` where no allocation starts there.
    pub fn free(&mut self, address: u64) -> bool {
        match self.allocations.binary_search_by_key(&address, |a| a.address) {
            Ok(i) => {
                let gone = self.allocations.remove(i);
                if self.freed.len() > 10_000 {
                    self.freed.drain(..5_000);
                }
                self.freed.push((gone.address, gone.bytes));
                true
            }
            Err(_) => false,
        }
    }

    #[inline]
    pub(super) fn find(&self, address: u64) -> Option<usize> {
        let i = self.allocations.partition_point(|a| a.address <= address).checked_sub(1)?;
        let a = &self.allocations[i];
        (address - a.address < a.bytes as u64).then_some(i)
    }

    fn range(&self, address: u64, bytes: usize) -> Result<(usize, usize), OutOfBounds> {
        let error = OutOfBounds { address, bytes };
        let i = self.allocations.partition_point(|a| a.address <= address).checked_sub(1).ok_or(error)?;
        let a = &self.allocations[i];
        let offset = (address - a.address) as usize;
        match offset.checked_add(bytes) {
            Some(end) if end <= a.bytes => Ok((i, offset)),
            _ => Err(error),
        }
    }

    /// Whether the range lies inside one allocation.
    pub fn contains(&self, address: u64, bytes: usize) -> bool {
        self.range(address, bytes).is_ok()
    }

    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), OutOfBounds> {
        let (i, offset) = self.range(address, data.len())?;
        let a = &mut self.allocations[i];
        a.data.slice_mut()[offset..offset + data.len()].copy_from_slice(data);
        a.init.slice_mut()[offset..offset + data.len()].fill(255);
        Ok(())
    }

    /// Whether or not the bytes hold values; see `uninitialised`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutOfBounds> {
        let (i, offset) = self.range(address, data.len())?;
        data.copy_from_slice(&self.allocations[i].data.slice()[offset..offset + data.len()]);
        Ok(())
    }

    pub fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<(), OutOfBounds> {
        let (i, offset) = self.range(address, bytes)?;
        let a = &mut self.allocations[i];
        a.data.slice_mut()[offset..offset + bytes].fill(value);
        a.init.slice_mut()[offset..offset + bytes].fill(255);
        Ok(())
    }

    /// Bytes without a value stay so.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), OutOfBounds> {
        let (source, at) = self.range(from, bytes)?;
        let (target, offset) = self.range(to, bytes)?;
        let data = self.allocations[source].data.slice()[at..at + bytes].to_vec();
        let init = self.allocations[source].init.slice()[at..at + bytes].to_vec();
        let a = &mut self.allocations[target];
        a.data.slice_mut()[offset..offset + bytes].copy_from_slice(&data);
        a.init.slice_mut()[offset..offset + bytes].copy_from_slice(&init);
        Ok(())
    }

    /// The first byte of the range that nothing has written, or that is outside.
    pub fn uninitialised(&self, address: u64, bytes: usize) -> Option<u64> {
        let Ok((i, offset)) = self.range(address, bytes) else { return Some(address) };
        let init = &self.allocations[i].init.slice()[offset..offset + bytes];
        init.iter().position(|b| *b == 0).map(|n| address + n as u64)
    }

    /// Where an address that is in no allocation lies.
    pub(super) fn describe(&self, address: u64) -> String {
        if let Some((start, bytes)) =
            self.freed.iter().rfind(|f| address.wrapping_sub(f.0) < f.1.max(1) as u64)
        {
            return format!("in memory that was freed ({bytes} bytes at {start:#x})");
        }
        let i = self.allocations.partition_point(|a| a.address <= address);
        if let Some(before) = i.checked_sub(1).map(|i| &self.allocations[i]) {
            let past = (address - before.address) as i128 - before.bytes as i128;
            if past < 0 {
                return format!("{} bytes before the end of an allocation of {}", -past, before.bytes);
            }
            if past < 1 << 30 {
                return format!("{past} bytes behind an allocation of {}", before.bytes);
            }
        }
        match self.allocations.get(i) {
            Some(after) if after.address - address < 1 << 30 => {
                format!("{} bytes before an allocation of {}", after.address - address, after.bytes)
            }
            _ => "near no allocation".to_owned(),
        }
    }

    /// Where a module's variables lie; they get memory when first asked for.
    pub(super) fn globals(&mut self, globals: &Globals) -> Option<u64> {
        if let Some(address) = self.modules.get(&globals.id) {
            return Some(*address);
        }
        let address = self.alloc(globals.bytes.len())?;
        self.write(address, &globals.bytes).ok()?;
        self.modules.insert(globals.id, address);
        Some(address)
    }

    /// Voids what the shadows hold of earlier launches.
    pub(super) fn next_epoch(&mut self) {
        if self.epoch == 255 {
            self.epoch = 0;
            for a in &mut self.allocations {
                if std::mem::take(a.used.get_mut()) {
                    a.writers.slice_mut().fill(0);
                    a.readers.slice_mut().fill(0);
                }
            }
        }
        self.epoch += 1;
    }
}

impl Allocation {
    /// Little-endian, 1 to 8 bytes.
    #[inline(always)]
    pub fn load(&self, offset: usize, bytes: usize) -> u64 {
        match bytes {
            1 => u64::from(self.data.u8(offset).load(Relaxed)),
            2 => u64::from(self.data.u16(offset).load(Relaxed)),
            4 => u64::from(self.data.u32(offset).load(Relaxed)),
            _ => self.data.u64(offset).load(Relaxed),
        }
    }

    #[inline(always)]
    pub fn store(&self, offset: usize, bytes: usize, value: u64) {
        match bytes {
            1 => self.data.u8(offset).store(value as u8, Relaxed),
            2 => self.data.u16(offset).store(value as u16, Relaxed),
            4 => self.data.u32(offset).store(value as u32, Relaxed),
            _ => self.data.u64(offset).store(value, Relaxed),
        }
    }
}
