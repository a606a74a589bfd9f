//! Memory that frames live in: whole pages, mapped once, locked into RAM where the limits allow, so that a
//! frame never waits for a page fault. A room of its own, because cameras fill it and a GPU copies from it,
//! and neither knows the other.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

/// One mapping of this process; unmapped when the last owner lets go. It gives out its address, never its
/// bytes: those belong to whoever divides it up.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    len: usize,
    locked: bool,
}

// SAFETY: `base` points at a mapping that this value owns alone until it is dropped, and that no thread has
// an affinity to. `Pages` never reads or writes through it.
unsafe impl Send for Pages {}
// SAFETY: as above: a shared `Pages` gives out numbers and an address, nothing that could race.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps at least `bytes` bytes, zeroed. Fails when the kernel refuses the memory; a refused lock is only
    /// noted ([`is_locked`](Self::is_locked)).
    pub fn new(bytes: usize) -> io::Result<Arc<Self>> {
        let len = bytes.checked_next_multiple_of(Self::size()).filter(|&l| l > 0 && l <= isize::MAX as usize);
        let len = len.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the size of the memory is zero or too large")
        })?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours, and
        // the arguments are plain numbers.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(base) = NonNull::new(address.cast::<u8>()) else {
            return Err(io::Error::other("the kernel mapped the memory at address 0"));
        };
        // SAFETY: the range was mapped just now with exactly this length; locking changes no contents.
        let locked = unsafe { libc::mlock(address, len) } == 0;
        Ok(Arc::new(Pages { base, len, locked }))
    }

    /// Bytes of one page.
    pub fn size() -> usize {
        // SAFETY: sysconf reads a constant of the system and has no preconditions.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).ok().filter(|b| b.is_power_of_two()).unwrap_or(4096)
    }

    /// Start and length in bytes. Mapped for as long as `self` lives.
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.base, self.len)
    }

    /// Whether the pages are locked into RAM.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// Whether all of the bytes lie in here.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let (start, first) = (self.base.as_ptr().addr(), bytes.as_ptr().addr());
        first >= start && first - start <= self.len && bytes.len() <= self.len - (first - start)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this address and length, and unmapped only here. Whoever hands out
        // slices or registers the region holds an `Arc` of this, so none of them is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole_and_know_what_lies_in_them() {
        let pages = Pages::new(5000).unwrap();
        let (base, len) = pages.region();
        assert_eq!((base.as_ptr().addr() % Pages::size(), len % Pages::size()), (0, 0));
        assert!(len >= 5000);
        assert!(!pages.contains(&[0; 4]));
    }

    #[test]
    fn sizes_that_cannot_be_mapped_are_errors() {
        assert!(Pages::new(0).is_err());
        assert!(Pages::new(usize::MAX).is_err());
        assert!(Pages::new(isize::MAX as usize).is_err());
    }
}
