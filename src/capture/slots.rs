//! The fixed memory that frames live in: `count` slots, page-aligned, mapped once, never grown. A GPU may
//! register all of it at once ([`SlotPool::pages`]) and then copies frames straight out of their slots.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::pages::Pages;

/// A pool of equal slots. Kept alive by every slot that is out.
#[derive(Debug)]
pub struct SlotPool {
    pages: Arc<Pages>,
    slot_bytes: usize,
    count: usize,
    /// Indices of free slots. Its capacity is `count` from the start, so returning never allocates.
    free: Mutex<Vec<usize>>,
    returned: Condvar,
}

impl SlotPool {
    /// Maps `count` slots of at least `bytes` bytes each (rounded up to whole pages). Fails when the
    /// kernel refuses the memory; a refused lock is only noted ([`Pages::is_locked`]).
    pub fn new(count: usize, bytes: usize) -> io::Result<Arc<Self>> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidInput, "the size of the pool is zero or too large");
        let slot_bytes = bytes.max(1).checked_next_multiple_of(Pages::size()).ok_or_else(invalid)?;
        let total = slot_bytes.checked_mul(count).filter(|&total| total > 0).ok_or_else(invalid)?;
        let pages = Pages::new(total)?;
        let free = Mutex::new((0..count).rev().collect());
        Ok(Arc::new(SlotPool { pages, slot_bytes, count, free, returned: Condvar::new() }))
    }

    /// Bytes of one slot: a whole number of pages.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.count
    }

    /// Slots that nobody holds now.
    pub fn free_slots(&self) -> usize {
        self.lock_free().len()
    }

    /// The memory of all slots together. The bytes belong to whoever holds the slots.
    pub fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// Whether the bytes lie in one of the slots.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.pages.contains(bytes)
    }

    /// Takes a free slot of `len` bytes; `None` when all are out or `len` is larger than a slot.
    /// Its contents are whatever was there before.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Option<Slot> {
        if len > self.slot_bytes {
            return None;
        }
        let index = self.lock_free().pop()?;
        Some(Slot { pool: Arc::clone(self), index, len })
    }

    /// Like [`take`](Self::take), but waits for a slot to come back, at most `limit`.
    pub(super) fn take_within(self: &Arc<Self>, len: usize, limit: Duration) -> Option<Slot> {
        if let Some(slot) = self.take(len) {
            return Some(slot);
        }
        let free = self.lock_free();
        drop(self.returned.wait_timeout_while(free, limit, |free| free.is_empty()));
        self.take(len)
    }

    fn lock_free(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        // A single push or pop under the lock cannot leave the list half-changed.
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// One slot, owned: nobody else reads or writes it. Returns to the pool when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    pool: Arc<SlotPool>,
    index: usize,
    len: usize,
}

impl Slot {
    fn start(&self) -> *mut u8 {
        let (base, _) = self.pool.pages.region();
        // SAFETY: `index < count`, so the offset stays inside the mapping of `count * slot_bytes` bytes,
        // which is at most isize::MAX.
        unsafe { base.as_ptr().add(self.index * self.pool.slot_bytes) }
    }

    pub(super) fn pages(&self) -> &Arc<Pages> {
        &self.pool.pages
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len <= slot_bytes`, so the range is inside this slot's part of the mapping, which the
        // kernel filled with zeros and the `Arc` keeps mapped. The index is in no other `Slot`, and a
        // mutable slice needs `&mut self`, so nobody writes while this borrow lives.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`; `&mut self` makes this the only slice into the slot.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.lock_free().push(self.index);
        self.pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_page_aligned_disjoint_and_inside_the_region() {
        let pool = SlotPool::new(3, 5000).unwrap();
        assert_eq!(pool.slot_bytes() % Pages::size(), 0);
        let mut slots: Vec<Slot> = (0..3).map(|_| pool.take(5000).unwrap()).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            assert_eq!(slot.bytes().as_ptr().addr() % Pages::size(), 0);
            slot.bytes_mut().fill(i as u8 + 1);
        }
        for (i, slot) in slots.iter().enumerate() {
            assert!(pool.contains(slot.bytes()));
            assert!(slot.bytes().iter().all(|&b| b == i as u8 + 1));
        }
        assert!(!pool.contains(&[0; 4]));
    }

    #[test]
    fn a_pool_gives_no_more_than_it_has_and_takes_slots_back() {
        let pool = SlotPool::new(2, 100).unwrap();
        let first = pool.take(100).unwrap();
        let second = pool.take(100).unwrap();
        assert!(pool.take(100).is_none());
        drop(first);
        assert_eq!(pool.free_slots(), 1);
        assert!(pool.take(pool.slot_bytes() + 1).is_none());
        drop(second);
        assert_eq!(pool.free_slots(), 2);
    }

    #[test]
    fn a_slot_outlives_the_last_handle_of_its_pool() {
        let pool = SlotPool::new(1, 10).unwrap();
        let mut slot = pool.take(10).unwrap();
        drop(pool);
        slot.bytes_mut().fill(7);
        assert_eq!(slot.bytes(), [7; 10]);
    }

    #[test]
    fn sizes_that_cannot_be_mapped_are_errors() {
        assert!(SlotPool::new(0, 100).is_err());
        assert!(SlotPool::new(2, usize::MAX).is_err());
        assert!(SlotPool::new(usize::MAX, 4096).is_err());
    }
}
