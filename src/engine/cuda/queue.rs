//! Copies and launches one by one, on a stream of their own: for work whose host decides between its
//! launches, so that no CUDA graph can hold it.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::{Pod, cast_slice};
use cudarc::driver::{CudaFunction, CudaStream, result, sys};

use super::buffer::{DeviceBuffer, Pinned};
use super::device::{DeviceError, Gpu, Priority, call};
use super::launch::{Arg, Launch};

/// Puts a launch on a stream. `packed` are its arguments' bytes.
pub(super) fn launch_packed(
    stream: &CudaStream,
    function: &CudaFunction,
    launch: &Launch,
    packed: &mut [Vec<u8>],
) -> Result<(), DeviceError> {
    let mut pointers: Vec<*mut std::ffi::c_void> =
        packed.iter_mut().map(|bytes| bytes.as_mut_ptr().cast()).collect();
    let three = |d: [u32; 3]| (d[0], d[1], d[2]);
    // SAFETY: one pointer for each of the kernel's parameters, to as many bytes as it reads: whoever made
    // the launch lists them in the kernel's order, and the tests run every kernel under a checker. The
    // driver copies them before it returns.
    unsafe {
        result::launch_kernel(
            function.cu_function(),
            three(launch.grid),
            three(launch.block),
            launch.shared,
            stream.cu_stream(),
            &mut pointers,
        )
    }
    .map_err(call("cuLaunchKernel"))
}

/// An address as an argument.
pub(super) fn at(buffer: &DeviceBuffer) -> Arg {
    Arg::Struct(buffer.address.to_le_bytes().to_vec())
}

/// A stream and the kernels used so far.
pub(super) struct Queue {
    gpu: Gpu,
    stream: Arc<CudaStream>,
    functions: HashMap<(&'static str, &'static str), CudaFunction>,
}

/// What goes to the device together and is waited for together. Host memory that takes part is borrowed
/// for `'env`, which outlives the call of `Queue::batch`, and so the device's use of it.
pub(super) struct Batch<'q, 'env> {
    queue: &'q mut Queue,
    borrows: PhantomData<&'env mut &'env ()>,
}

impl Queue {
    pub fn new(gpu: &Gpu, priority: Priority) -> Result<Self, DeviceError> {
        Ok(Queue { gpu: gpu.clone(), stream: gpu.stream(priority)?, functions: HashMap::new() })
    }

    /// The number by which the driver knows the stream.
    pub fn stream_number(&self) -> u64 {
        self.stream.cu_stream() as usize as u64
    }

    /// Runs what `fill` puts in, and returns when it has ended, also where `fill` fails.
    pub fn batch<'env>(
        &mut self,
        fill: impl FnOnce(&mut Batch<'_, 'env>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut batch = Batch { queue: self, borrows: PhantomData };
        let filled = fill(&mut batch);
        let waited = batch.queue.stream.synchronize().map_err(call("cuStreamSynchronize"));
        filled.and(waited)
    }

    /// Copies bytes to the start of a buffer, and returns when they are there.
    pub fn upload_now<T: Pod>(&mut self, to: &DeviceBuffer, from: &[T]) -> Result<(), DeviceError> {
        let bytes: &[u8] = cast_slice(from);
        let bytes = &bytes[..bytes.len().min(to.bytes)];
        // SAFETY: no more bytes than the buffer holds; waited for below, while `from` is borrowed.
        let copied = unsafe { result::memcpy_htod_async(to.address, bytes, self.stream.cu_stream()) }
            .map_err(call("cuMemcpyHtoDAsync"));
        let waited = self.stream.synchronize().map_err(call("cuStreamSynchronize"));
        copied.and(waited)
    }
}

impl Drop for Batch<'_, '_> {
    /// Where `fill` panics, the copies still must end before the memory they use is free again.
    fn drop(&mut self) {
        let _ = self.queue.stream.synchronize();
    }
}

impl<'env> Batch<'_, 'env> {
    /// Copies `count` elements from `first` on to the same place of a buffer.
    pub fn upload<T: Pod>(
        &mut self,
        to: &DeviceBuffer,
        from: &'env Pinned<T>,
        first: usize,
        count: usize,
    ) -> Result<(), DeviceError> {
        let (offset, part) = (first * size_of::<T>(), &from.as_slice()[first..][..count]);
        let room = to.bytes.saturating_sub(offset);
        let bytes: &[u8] = cast_slice(part);
        let bytes = &bytes[..bytes.len().min(room)];
        // SAFETY: no more bytes than the buffer has behind `offset`; `from` stays borrowed until the
        // stream was waited for.
        unsafe { result::memcpy_htod_async(to.address + offset as u64, bytes, self.queue.stream.cu_stream()) }
            .map_err(call("cuMemcpyHtoDAsync"))
    }

    /// Fills `to` from the start of a buffer.
    pub fn download<T: Pod>(
        &mut self,
        to: &'env mut Pinned<T>,
        from: &DeviceBuffer,
    ) -> Result<(), DeviceError> {
        let slice = to.as_mut_slice();
        let bytes = size_of_val(slice).min(from.bytes);
        let (host, stream) = (slice.as_mut_ptr().cast(), self.queue.stream.cu_stream());
        // SAFETY: no more bytes than either side holds; `to` stays borrowed until the stream was waited
        // for, and any bytes are a T.
        unsafe { sys::cuMemcpyDtoHAsync_v2(host, from.address, bytes, stream) }
            .result()
            .map_err(call("cuMemcpyDtoHAsync"))
    }

    /// A launch whose arguments name no places: their addresses are there already.
    pub fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        let key = (launch.module, launch.kernel);
        if !self.queue.functions.contains_key(&key) {
            let function = self.queue.gpu.function(launch.module, launch.kernel)?;
            self.queue.functions.insert(key, function);
        }
        let Some(function) = self.queue.functions.get(&key) else { return Ok(()) };
        debug_assert!(!launch.args.iter().any(|a| matches!(a, Arg::Pointer(_) | Arg::Real(_))));
        let mut packed: Vec<Vec<u8>> = launch.args.iter().map(|arg| arg.bytes(|_| None)).collect();
        launch_packed(&self.queue.stream, function, launch, &mut packed)
    }
}
