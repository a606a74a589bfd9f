//! The two blocks of memory of a program, and the places in them.

use super::fast::AlignedBuf;

/// A stretch of one of the two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loc {
    pub persistent: bool,
    pub offset: usize,
    pub len: usize,
}

/// The two blocks of memory. Steps see disjoint parts of them, by the plan.
#[derive(Debug)]
pub(super) struct Memory {
    arena: AlignedBuf,
    persistent: AlignedBuf,
}

impl Memory {
    pub fn new(arena: AlignedBuf, persistent: AlignedBuf) -> Self {
        Memory { arena, persistent }
    }

    /// Bytes of the arena and of the persistent block.
    pub fn bytes(&self) -> (usize, usize) {
        (self.arena.len() * 4, self.persistent.len() * 4)
    }

    fn base(&self, loc: Loc) -> *const f32 {
        let block = if loc.persistent { &self.persistent } else { &self.arena };
        assert!(loc.offset + loc.len <= block.len(), "the plan lies inside the memory");
        // SAFETY: just checked to lie inside the block (one past the end for an empty part).
        unsafe { block.as_ptr().add(loc.offset) }
    }

    /// Fills the arena but for `kept` with NaN.
    #[cfg(test)]
    pub fn poison(&mut self, kept: &[Loc]) {
        for (i, v) in self.arena.as_mut_slice().iter_mut().enumerate() {
            if !kept.iter().any(|l| (l.offset..l.offset + l.len).contains(&i)) {
                *v = f32::NAN;
            }
        }
    }

    /// # Safety
    /// No part that overlaps `loc` may be borrowed mutably while the result lives.
    pub unsafe fn read<'a>(&self, loc: Loc) -> &'a [f32] {
        // SAFETY: inside one allocation (base), initialised with zeros, unaliased by the caller's word.
        unsafe { std::slice::from_raw_parts(self.base(loc), loc.len) }
    }

    /// # Safety
    /// As for `read`.
    pub unsafe fn read_indices<'a>(&self, loc: Loc) -> &'a [u32] {
        // SAFETY: u32 has the size and alignment of f32 and every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(self.base(loc).cast(), loc.len) }
    }

    /// # Safety
    /// No part that overlaps `loc` may be borrowed at all while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write<'a>(&self, loc: Loc) -> &'a mut [f32] {
        // SAFETY: inside one allocation owned by self; exclusive by the caller's word. The blocks are
        // reached only through `Program`, whose methods take &mut self to write.
        unsafe { std::slice::from_raw_parts_mut(self.base(loc).cast_mut(), loc.len) }
    }

    /// # Safety
    /// As for `write`.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write_indices<'a>(&self, loc: Loc) -> &'a mut [u32] {
        // SAFETY: as for `write` and `read_indices`.
        unsafe { std::slice::from_raw_parts_mut(self.base(loc).cast_mut().cast(), loc.len) }
    }
}
