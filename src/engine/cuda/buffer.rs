//! Memory that the driver gave, on the device and pinned on the host, and memory of others that it pins.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, result, sys};

use super::device::{DeviceError, Gpu, call};
use crate::pages::Pages;

/// A block of device memory.
#[derive(Debug)]
pub(super) struct DeviceBuffer {
    pub address: sys::CUdeviceptr,
    pub bytes: usize,
    context: Arc<CudaContext>,
}

impl DeviceBuffer {
    /// Uninitialised. At least one byte, so that every buffer has an address.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, DeviceError> {
        let context = Arc::clone(gpu.context());
        context.bind_to_thread().map_err(call("cuCtxSetCurrent"))?;
        // SAFETY: the context is current; what comes back is owned by the value made here.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(DeviceBuffer { address, bytes, context }),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = context.mem_get_info().map_or(0, |(free, _)| free);
                Err(DeviceError::OutOfMemory { bytes, free })
            }
            Err(e) => Err(call("cuMemAlloc")(e)),
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // After a sticky error freeing fails too, and the driver has freed everything itself.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once; the owner has waited for the work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked host memory that the device copies from and to directly; zeroed.
#[derive(Debug)]
pub(super) struct Pinned<T> {
    data: NonNull<T>,
    len: usize,
    context: Arc<CudaContext>,
    owns: PhantomData<T>,
}

// SAFETY: it owns its memory, as a Vec does.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, DeviceError> {
        let context = Arc::clone(gpu.context());
        context.bind_to_thread().map_err(call("cuCtxSetCurrent"))?;
        let bytes = (len * size_of::<T>()).max(1);
        // Not write-combined: results are read from such buffers.
        // SAFETY: the context is current; what comes back is owned by the value made here.
        let data = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(call("cuMemHostAlloc"))?
            .cast::<T>();
        let data = NonNull::new(data).ok_or(DeviceError::OutOfMemory { bytes, free: 0 })?;
        // SAFETY: `bytes` bytes were just given; pages of the driver are aligned for any T.
        unsafe { data.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { data, len, context, owns: PhantomData })
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements, zeroed by `new`, any bit pattern is a T; the program that owns this
        // has waited for the device before it hands out slices.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as for `as_slice`, and exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { result::free_host(self.data.as_ptr().cast()) };
        }
    }
}

/// Memory of the program's own that is registered with the driver: the device copies from it directly, and
/// such copies do not hold the caller up. Unregistered when dropped; until then the pages stay mapped.
#[derive(Debug)]
pub struct PinnedPages {
    pages: Arc<Pages>,
    context: Arc<CudaContext>,
}

impl Gpu {
    /// Registers the pages. Whoever copies from them waits for the copy before letting go of this, as for
    /// the bytes themselves.
    pub fn pin(&self, pages: &Arc<Pages>) -> Result<PinnedPages, DeviceError> {
        let context = Arc::clone(self.context());
        context.bind_to_thread().map_err(call("cuCtxSetCurrent"))?;
        let (start, bytes) = pages.region();
        // For every context, not only the one that is current: the memory is the same.
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE;
        // SAFETY: the region is mapped and belongs to `pages`, which the value made here keeps. The driver
        // reads and writes none of it by itself.
        unsafe { sys::cuMemHostRegister_v2(start.as_ptr().cast(), bytes, flags) }
            .result()
            .map_err(call("cuMemHostRegister"))?;
        Ok(PinnedPages { pages: Arc::clone(pages), context })
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        let (start, _) = self.pages.region();
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: registered by `pin`, unregistered once, and still mapped. It fails after a sticky
            // error, whose context took the registration with it.
            let _ = unsafe { sys::cuMemHostUnregister(start.as_ptr().cast()) };
        }
    }
}
