//! Initialisation, the device, its primary context, errors, and this simulator's own functions.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::context::Context;
use super::run::{self, CURRENT, CountersCallback, device, state};
use super::status::*;
use super::work::Handle;
use super::{driver, put, refuse};

/// What `cuDeviceGetName` answers: whoever prints it cannot pass it for silicon.
pub const NAME: &CStr = c"simulated GPU";

/// Compute capability.
const MAJOR: c_int = 8;
const MINOR: c_int = 0;
const MULTIPROCESSORS: c_int = 4;
/// Shared memory of a multiprocessor, of a block by default and at most (as compute capability 8.0).
const SHARED_SM: usize = 167_936;
pub(super) const SHARED_BLOCK: usize = 49_152;
pub(super) const SHARED_OPT_IN: usize = 166_912;
pub(super) const REGISTERS_SM: usize = 65_536;
pub(super) const THREADS_SM: usize = 2048;
pub(super) const BLOCKS_SM: usize = 32;

/// `CU_DEVICE_ATTRIBUTE_*`
fn attribute(which: c_int) -> Option<c_int> {
    Some(match which {
        1..=3 if which == 3 => 64,
        1 | 2 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65_535,
        8 => SHARED_BLOCK as c_int,
        9 => 65_536,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => REGISTERS_SM as c_int,
        13 => 1_000_000,
        14 => 512,
        15 => 1,
        16 => MULTIPROCESSORS,
        17..=20 => 0,
        31 => 1,
        32 | 35 => 0,
        33 | 34 | 50 => 0,
        36 => 1_000_000,
        37 => 256,
        38 => 4 << 20,
        39 => THREADS_SM as c_int,
        40 => 2,
        41 => 1,
        75 => MAJOR,
        76 => MINOR,
        78 => 1,
        81 => SHARED_SM as c_int,
        95 | 98 => c_int::from(which == 95),
        97 => SHARED_OPT_IN as c_int,
        99 | 113 => c_int::from(which == 99),
        106 => BLOCKS_SM as c_int,
        111 => 1024,
        115 => 1,
        1..=140 => 0,
        _ => return None,
    })
}

fn the_device(ordinal: c_int) -> Answer {
    if !state().initialized {
        return Err(NOT_INITIALIZED);
    }
    if ordinal == 0 { Ok(()) } else { Err(INVALID_DEVICE) }
}

driver! {
    fn cuInit(flags: c_uint) {
        if flags != 0 { return Err(INVALID_VALUE) }
        state().initialized = true;
        Ok(())
    }
    fn cuDriverGetVersion(version: *mut c_int) { put(version, 12_080) }
    fn cuDeviceGetCount(count: *mut c_int) { the_device(0)?; put(count, 1) }
    fn cuDeviceGet(handle: *mut c_int, ordinal: c_int) { the_device(ordinal)?; put(handle, 0) }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, ordinal: c_int) {
        the_device(ordinal)?;
        let bytes = NAME.to_bytes();
        let room = usize::try_from(len).ok().and_then(|n| n.checked_sub(1)).ok_or(INVALID_VALUE)?;
        for (i, byte) in bytes.iter().take(room).chain(&[0]).enumerate() {
            // SAFETY: at most len bytes, which the caller has room for.
            unsafe { name.add(i).write(*byte as c_char) };
        }
        Ok(())
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], ordinal: c_int) { the_device(ordinal)?; put(uuid, *b"simulated GPU..0") }
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], ordinal: c_int) { the_device(ordinal)?; put(uuid, *b"simulated GPU..0") }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) {
        the_device(ordinal)?;
        put(bytes, state().settings.memory)
    }
    fn cuDeviceGetAttribute(value: *mut c_int, which: c_int, ordinal: c_int) {
        the_device(ordinal)?;
        put(value, attribute(which).ok_or(INVALID_VALUE)?)
    }
    fn cuDeviceGetPCIBusId(name: *mut c_char, len: c_int, ordinal: c_int) {
        the_device(ordinal)?;
        let id = b"0000:00:00.0\0";
        if (len as usize) < id.len() { return Err(INVALID_VALUE) }
        for (i, byte) in id.iter().enumerate() {
            // SAFETY: the caller has room for len bytes, which is enough.
            unsafe { name.add(i).write(*byte as c_char) };
        }
        Ok(())
    }
    fn cuDeviceCanAccessPeer(can: *mut c_int, _one: c_int, _other: c_int) { put(can, 0) }

    fn cuDevicePrimaryCtxRetain(context: *mut Handle, ordinal: c_int) {
        the_device(ordinal)?;
        let mut s = state();
        s.settings.fail.count(super::inject::Kind::Context)?;
        if s.context.is_none() {
            let handle = s.handle();
            s.context = Some(Context::new(handle));
        }
        let Some(current) = &mut s.context else { return Err(UNKNOWN) };
        current.retained += 1;
        put(context, current.handle)
    }
    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) {
        the_device(ordinal)?;
        let last = {
            let mut s = state();
            let Some(context) = s.context.as_mut().filter(|c| c.retained > 0) else {
                return Err(INVALID_CONTEXT);
            };
            context.retained -= 1;
            context.retained == 0
        };
        if last { destroy() }
        Ok(())
    }
    fn cuDevicePrimaryCtxReset_v2(ordinal: c_int) { the_device(ordinal)?; destroy(); Ok(()) }
    fn cuDevicePrimaryCtxGetState(ordinal: c_int, flags: *mut c_uint, active: *mut c_int) {
        the_device(ordinal)?;
        put(flags, 0)?;
        put(active, c_int::from(state().context.is_some()))
    }
    fn cuDevicePrimaryCtxSetFlags_v2(ordinal: c_int, _flags: c_uint) { the_device(ordinal) }

    fn cuCtxSetCurrent(context: Handle) {
        if context != 0 && state().context.as_ref().is_none_or(|c| c.handle != context) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    }
    fn cuCtxGetCurrent(context: *mut Handle) { put(context, CURRENT.get()) }
    fn cuCtxPushCurrent_v2(context: Handle) { CURRENT.set(context); Ok(()) }
    fn cuCtxPopCurrent_v2(context: *mut Handle) {
        let popped = CURRENT.replace(0);
        if context.is_null() { Ok(()) } else { put(context, popped) }
    }
    fn cuCtxGetDevice(ordinal: *mut c_int) { state().current()?; put(ordinal, 0) }
    fn cuCtxSetFlags(_flags: c_uint) { state().live().map(|_| ()) }
    fn cuCtxSetLimit(_limit: c_uint, _value: usize) { state().live().map(|_| ()) }
    fn cuCtxGetLimit(value: *mut usize, _limit: c_uint) { state().live()?; put(value, 1024) }
    fn cuCtxSetCacheConfig(_config: c_uint) { state().live().map(|_| ()) }
    fn cuCtxGetCacheConfig(config: *mut c_uint) { state().live()?; put(config, 0) }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        state().live()?;
        put(least, 0)?;
        put(greatest, -5)
    }
    fn cuCtxSynchronize() {
        let targets = {
            let mut s = state();
            let context = s.live()?;
            context.refuse_unsafe_call()?;
            context.everything()
        };
        run::wait_for(&targets)
    }
    fn cuCtxCreate_v2(_context: *mut Handle, _flags: c_uint, _ordinal: c_int) { only_primary() }
    fn cuCtxCreate_v3(_context: *mut Handle, _p: *mut c_void, _n: c_int, _flags: c_uint, _ordinal: c_int) { only_primary() }
    fn cuCtxCreate_v4(_context: *mut Handle, _p: *mut c_void, _flags: c_uint, _ordinal: c_int) { only_primary() }
    fn cuCtxDestroy_v2(_context: Handle) { only_primary() }

    fn cuGetErrorName(status: c_uint, text: *mut *const c_char) {
        error_text(text, describe(status).map(|(name, _)| name))
    }
    fn cuGetErrorString(status: c_uint, text: *mut *const c_char) {
        error_text(text, describe(status).map(|(_, text)| text))
    }
    fn cuProfilerStart() { Ok(()) }
    fn cuProfilerStop() { Ok(()) }

    /// Changes a setting while the process runs: `key` as the variable without its `GPUSIM_`.
    fn gpusim_set(key: *const c_char, value: *const c_char) {
        let (key, value) = (text(key)?, text(value)?);
        match state().set(&key, &value) {
            Ok(()) => Ok(()),
            Err(why) => refuse(INVALID_VALUE, format_args!("gpusim_set {key}: {why}")),
        }
    }
    /// From now on the `n`-th call of a kind fails; 0: none. Kinds as in `GPUSIM_FAIL`.
    fn gpusim_fail(kind: *const c_char, n: u64) {
        let kind = text(kind)?;
        match state().settings.fail.plan(&kind, &n.to_string()) {
            Ok(()) => Ok(()),
            Err(why) => refuse(INVALID_VALUE, format_args!("gpusim_fail: {why}")),
        }
    }
    /// `listener` gets a line of JSON per kernel run, until it is replaced or taken off by null.
    fn gpusim_counters(listener: Option<CountersCallback>, data: *mut c_void) {
        state().listen(listener, data as usize);
        Ok(())
    }
}

fn only_primary() -> Answer {
    refuse(NOT_SUPPORTED, format_args!("there is only the primary context"))
}

fn error_text(to: *mut *const c_char, text: Option<&'static CStr>) -> Answer {
    put(to, text.map_or(std::ptr::null(), CStr::as_ptr))?;
    text.map(|_| ()).ok_or(INVALID_VALUE)
}

fn text(from: *const c_char) -> Answer<String> {
    if from.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and by contract a C string.
    Ok(unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned())
}

/// Everything of the context goes; what was queued never runs.
fn destroy() {
    let mut device = device();
    state().context = None;
    device.reset();
}
