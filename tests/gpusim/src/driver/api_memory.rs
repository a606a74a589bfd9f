//! Device memory, pinned host memory, copies and fills.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};

use super::context::{Context, LEGACY, Pin};
use super::inject::Kind;
use super::run::{self, State, device, state};
use super::status::*;
use super::work::{Handle, Host, Work};
use super::{driver, put, refuse};

/// The only memory pool there is.
const POOL: Handle = 0x10;
/// Granularity in which memory is taken.
const GRAIN: usize = 512;
/// Pinned memory starts as garbage, as a driver's may: whoever relies on zeros is found.
const GARBAGE: u8 = 0xcd;
const PAGE: usize = 4096;

driver! {
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let mut s = state();
        let used = s.live()?.used;
        let memory = s.settings.memory;
        put(free, memory.saturating_sub(used))?;
        put(total, memory)
    }
    fn cuMemAlloc_v2(to: *mut u64, bytes: usize) {
        state().live()?.refuse_unsafe_call()?;
        put(to, allocate(bytes)?)
    }
    fn cuMemAllocAsync(to: *mut u64, bytes: usize, stream: Handle) {
        named(stream, |context, stream| context.refuse_in_capture(stream))?;
        put(to, allocate(bytes)?)
    }
    fn cuMemAllocFromPoolAsync(to: *mut u64, bytes: usize, _pool: Handle, stream: Handle) {
        named(stream, |context, stream| context.refuse_in_capture(stream))?;
        put(to, allocate(bytes)?)
    }
    fn cuMemAllocManaged(_to: *mut u64, _bytes: usize, _flags: c_uint) {
        refuse(NOT_SUPPORTED, format_args!("there is no managed memory"))
    }
    /// Does not wait: work that is still queued for this memory will fault.
    fn cuMemFree_v2(address: u64) {
        if address == 0 { state().live()?; return Ok(()) }
        let mut device = device();
        let mut s = state();
        let context = s.live()?;
        context.refuse_unsafe_call()?;
        forget(context, address)?;
        context.release(address);
        device.free(address).map_err(|fault| fault.status)
    }
    fn cuMemFreeAsync(address: u64, stream: Handle) {
        named(stream, |context, stream| {
            context.refuse_in_capture(stream)?;
            if address == 0 { return Ok(()) }
            forget(context, address)?;
            context.submit(stream, Work::Free(address))
        })
    }
    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) {
        let mut s = state();
        let context = s.live()?;
        let (start, len) = context.buffers.range(..=address).next_back().ok_or(NOT_FOUND)?;
        if address >= start + *len as u64 { return Err(NOT_FOUND) }
        if !base.is_null() { put(base, *start)? }
        if bytes.is_null() { Ok(()) } else { put(bytes, *len) }
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut Handle, _ordinal: c_int) { put(pool, POOL) }
    fn cuDeviceGetMemPool(pool: *mut Handle, _ordinal: c_int) { put(pool, POOL) }
    fn cuDeviceSetMemPool(_ordinal: c_int, pool: Handle) { the_pool(pool) }
    fn cuMemPoolCreate(_pool: *mut Handle, _properties: *const c_void) { Err(NOT_SUPPORTED) }
    fn cuMemPoolDestroy(_pool: Handle) { Err(NOT_SUPPORTED) }
    fn cuMemPoolTrimTo(pool: Handle, _keep: usize) { the_pool(pool) }
    fn cuMemPoolSetAttribute(pool: Handle, _which: c_uint, _value: *mut c_void) { the_pool(pool) }
    fn cuMemPoolGetAttribute(pool: Handle, which: c_uint, value: *mut c_void) {
        the_pool(pool)?;
        let used = state().current()?.used as u64;
        // Reservations and uses are 64 bits wide, the rest are flags of 32.
        match which { 4..=8 => put(value.cast::<u64>(), used), _ => put(value.cast::<c_int>(), 1) }
    }

    fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, _flags: c_uint) { put(to, pinned(bytes)?) }
    fn cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize) { put(to, pinned(bytes)?) }
    /// Does not wait: copies that are still queued for this memory will fault.
    fn cuMemFreeHost(at: *mut c_void) {
        let _running = device();
        let mut s = state();
        let context = s.live()?;
        context.refuse_unsafe_call()?;
        match context.pins.get(&(at as usize)) {
            Some(pin) if !pin.registered => {}
            _ => return Err(INVALID_VALUE),
        }
        let pin = context.pins.remove(&(at as usize)).ok_or(INVALID_VALUE)?;
        // SAFETY: came from `pinned` with this very layout and is forgotten now.
        unsafe { dealloc(at.cast(), layout(pin.bytes)?) };
        Ok(())
    }
    fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, _flags: c_uint) {
        let mut s = state();
        s.live()?.refuse_unsafe_call()?;
        s.settings.fail.count(Kind::HostAlloc)?;
        if at.is_null() || bytes == 0 { return Err(INVALID_VALUE) }
        let id = s.handle();
        let context = s.live()?;
        let start = at as usize;
        let before = context.pins.range(..start + bytes).next_back();
        if before.is_some_and(|(other, pin)| other + pin.bytes > start) {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        context.pins.insert(start, Pin { id, bytes, registered: true });
        Ok(())
    }
    fn cuMemHostUnregister(at: *mut c_void) {
        let _running = device();
        let mut s = state();
        let context = s.live()?;
        context.refuse_unsafe_call()?;
        match context.pins.get(&(at as usize)) {
            Some(pin) if pin.registered => {}
            _ => return Err(HOST_MEMORY_NOT_REGISTERED),
        }
        context.pins.remove(&(at as usize));
        Ok(())
    }
    fn cuMemHostGetDevicePointer_v2(_to: *mut u64, _at: *mut c_void, _flags: c_uint) {
        refuse(NOT_SUPPORTED, format_args!("kernels cannot reach host memory"))
    }
    fn cuMemHostGetFlags(flags: *mut c_uint, at: *mut c_void) {
        state().live()?.pin(at as usize, 1).ok_or(INVALID_VALUE)?;
        put(flags, 0)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) {
        upload(to, from as usize, bytes, stream)
    }
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) {
        state().live()?.refuse_unsafe_call()?;
        upload(to, from as usize, bytes, LEGACY)?;
        wait(LEGACY)
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) {
        match download(to as usize, from, bytes, stream)? { true => Ok(()), false => wait(stream) }
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) {
        state().live()?.refuse_unsafe_call()?;
        download(to as usize, from, bytes, LEGACY)?;
        wait(LEGACY)
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) { copy(to, from, bytes, stream) }
    /// Within the device the host does not wait.
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) {
        state().live()?.refuse_unsafe_call()?;
        copy(to, from, bytes, LEGACY)
    }
    fn cuMemcpyPeerAsync(_to: u64, _tc: Handle, _from: u64, _fc: Handle, _bytes: usize, _stream: Handle) {
        refuse(NOT_SUPPORTED, format_args!("there is one device only"))
    }

    fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: Handle) { fill(to, value.into(), 1, count, stream) }
    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: Handle) { fill(to, value.into(), 2, count, stream) }
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: Handle) { fill(to, value, 4, count, stream) }
    fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) {
        state().live()?.refuse_unsafe_call()?;
        fill(to, value.into(), 1, count, LEGACY)
    }
    fn cuMemsetD16_v2(to: u64, value: c_ushort, count: usize) {
        state().live()?.refuse_unsafe_call()?;
        fill(to, value.into(), 2, count, LEGACY)
    }
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) {
        state().live()?.refuse_unsafe_call()?;
        fill(to, value, 4, count, LEGACY)
    }

    fn cuMemAdvise_v2(_at: u64, _bytes: usize, _advice: c_uint, _kind: c_uint, _id: c_int) { Err(NOT_SUPPORTED) }
    fn cuMemPrefetchAsync_v2(_at: u64, _bytes: usize, _kind: c_uint, _id: c_int, _flags: c_uint, _stream: Handle) { Err(NOT_SUPPORTED) }
    fn cuImportExternalMemory(_memory: *mut Handle, _what: *const c_void) { Err(NOT_SUPPORTED) }
    fn cuExternalMemoryGetMappedBuffer(_to: *mut u64, _memory: Handle, _what: *const c_void) { Err(NOT_SUPPORTED) }
    fn cuDestroyExternalMemory(_memory: Handle) { Err(NOT_SUPPORTED) }
}

fn the_pool(pool: Handle) -> Answer {
    if pool == POOL { Ok(()) } else { Err(INVALID_HANDLE) }
}

/// Does something with the context and the stream that the caller named.
pub(super) fn named<T>(stream: Handle, what: impl FnOnce(&mut Context, Handle) -> Answer<T>) -> Answer<T> {
    let mut s = state();
    let (context, stream) = resolve(&mut s, stream)?;
    what(context, stream)
}

pub(super) fn resolve(s: &mut State, stream: Handle) -> Answer<(&mut Context, Handle)> {
    let fresh = s.handle();
    let context = s.live()?;
    let stream = context.stream(stream, || fresh)?;
    Ok((context, stream))
}

/// Waits for what a synchronisation with the stream means.
pub(super) fn wait(stream: Handle) -> Answer {
    let targets = named(stream, |context, stream| {
        context.refuse_in_capture(stream)?;
        Ok(context.all_of(stream))
    })?;
    run::wait_for(&targets)
}

fn allocate(bytes: usize) -> Answer<u64> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let taken = bytes.checked_next_multiple_of(GRAIN).ok_or(OUT_OF_MEMORY)?;
    let fits = |s: &mut State| -> Answer<bool> {
        let memory = s.settings.memory;
        Ok(s.live()?.used.checked_add(taken).is_some_and(|sum| sum <= memory))
    };
    let pending = {
        let mut s = state();
        s.live()?;
        s.settings.fail.count(Kind::Alloc)?;
        if fits(&mut s)? { Vec::new() } else { s.live()?.everything() }
    };
    // Memory that streams are yet to free may be what is missing.
    if !pending.is_empty() {
        run::wait_for(&pending)?;
    }
    let mut device = device();
    let mut s = state();
    if !fits(&mut s)? {
        return Err(OUT_OF_MEMORY);
    }
    let context = s.live()?;
    let address = device.alloc(bytes).ok_or(OUT_OF_MEMORY)?;
    context.buffers.insert(address, bytes);
    context.taken.insert(address, taken);
    context.used += taken;
    Ok(address)
}

/// From now on no caller may name the buffer.
fn forget(context: &mut Context, address: u64) -> Answer {
    match context.buffers.remove(&address) {
        Some(_) => Ok(()),
        None => refuse(INVALID_VALUE, format_args!("a free of {address:#x}, which is not allocated")),
    }
}

fn layout(bytes: usize) -> Answer<Layout> {
    Layout::from_size_align(bytes, PAGE).map_err(|_| OUT_OF_MEMORY)
}

fn pinned(bytes: usize) -> Answer<*mut c_void> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let mut s = state();
    s.live()?.refuse_unsafe_call()?;
    s.settings.fail.count(Kind::HostAlloc)?;
    let id = s.handle();
    // SAFETY: the size is not 0.
    let at = unsafe { alloc(layout(bytes)?) };
    if at.is_null() {
        return Err(OUT_OF_MEMORY);
    }
    // SAFETY: just allocated with that size.
    unsafe { at.write_bytes(GARBAGE, bytes) };
    s.live()?.pins.insert(at as usize, Pin { id, bytes, registered: false });
    Ok(at.cast())
}

/// A range that no single live buffer holds is refused at the call, and nothing is queued.
fn within(context: &Context, what: &str, address: u64, bytes: usize) -> Answer {
    if context.holds(address, bytes) {
        return Ok(());
    }
    refuse(INVALID_VALUE, format_args!("{what} of {bytes} bytes at {address:#x}, which no buffer holds"))
}

fn upload(to: u64, from: usize, bytes: usize, stream: Handle) -> Answer {
    let mut s = state();
    s.live()?;
    s.settings.fail.count(Kind::Copy)?;
    let (context, stream) = resolve(&mut s, stream)?;
    if bytes == 0 {
        return Ok(());
    }
    within(context, "a copy to the device", to, bytes)?;
    let from = match context.pin(from, bytes) {
        Some(pin) => Host::Pinned { address: from, pin },
        None if context.capturing(stream)? => {
            context.refuse_in_capture(stream).ok();
            return refuse(
                CAPTURE_UNSUPPORTED,
                format_args!("a captured copy reads memory that is not pinned"),
            );
        }
        None => {
            // SAFETY: by contract the caller's memory is valid for reading during the call.
            let data = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
            Host::Staged(data.into())
        }
    };
    context.submit(stream, Work::Upload { to, from, bytes })
}

/// Whether the call may return before the copy is done.
fn download(to: usize, from: u64, bytes: usize, stream: Handle) -> Answer<bool> {
    let mut s = state();
    s.live()?;
    s.settings.fail.count(Kind::Copy)?;
    let (context, stream) = resolve(&mut s, stream)?;
    if bytes == 0 {
        return Ok(true);
    }
    within(context, "a copy to the host", from, bytes)?;
    let (to, late) = match context.pin(to, bytes) {
        Some(pin) => (Host::Pinned { address: to, pin }, true),
        None if context.capturing(stream)? => {
            context.refuse_in_capture(stream).ok();
            return refuse(
                CAPTURE_UNSUPPORTED,
                format_args!("a captured copy writes memory that is not pinned"),
            );
        }
        None => (Host::Pageable { address: to }, false),
    };
    context.submit(stream, Work::Download { to, from, bytes })?;
    Ok(late)
}

fn copy(to: u64, from: u64, bytes: usize, stream: Handle) -> Answer {
    let mut s = state();
    s.live()?;
    s.settings.fail.count(Kind::Copy)?;
    let (context, stream) = resolve(&mut s, stream)?;
    if bytes == 0 {
        return Ok(());
    }
    within(context, "a copy within the device, to", to, bytes)?;
    within(context, "a copy within the device, from", from, bytes)?;
    context.submit(stream, Work::Copy { to, from, bytes })
}

fn fill(to: u64, value: u32, width: usize, count: usize, stream: Handle) -> Answer {
    let mut s = state();
    s.live()?;
    s.settings.fail.count(Kind::Copy)?;
    let (context, stream) = resolve(&mut s, stream)?;
    if count == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(width as u64) {
        return Err(INVALID_VALUE);
    }
    within(context, "a fill", to, width.checked_mul(count).ok_or(INVALID_VALUE)?)?;
    context.submit(stream, Work::Fill { to, value, width, count })
}
