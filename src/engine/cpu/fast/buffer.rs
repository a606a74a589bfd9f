//! Memory for kernels: aligned storage, aligned views of scratch, and a pointer that tasks may share.

/// One cache line. A vector load that crosses lines costs twice.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; 16]);

/// Floats aligned to a cache line.
#[derive(Clone)]
pub struct AlignedBuf {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBuf {
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }

    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` contiguous, initialised floats.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} floats)", self.len)
    }
}

/// The part of `scratch` from its first cache line on; scratch sizes include 16 floats for it.
pub(super) fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(64).min(scratch.len());
    &mut scratch[skip..]
}

/// A pointer to a buffer that the tasks of one `Pool::run` share, each using its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

// SAFETY: a bare address. Dereferencing is unsafe, and those who do so argue disjointness.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl Shared<f32> {
    pub fn new(buffer: &mut [f32]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// For reading only; null if there is none.
    pub fn from_const(buffer: Option<&[f32]>) -> Self {
        Self(buffer.map_or(std::ptr::null_mut(), |b| b.as_ptr().cast_mut()))
    }

    pub fn ptr(self) -> *mut f32 {
        self.0
    }

    /// The address `floats` further on; null stays null.
    pub fn offset(self, floats: usize) -> *mut f32 {
        if self.0.is_null() { self.0 } else { self.0.wrapping_add(floats) }
    }
}
