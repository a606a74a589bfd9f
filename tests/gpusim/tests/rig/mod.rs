//! A caller of the driver, as C would be one.

#![allow(dead_code)]

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpusim::driver::*;

/// `y[i] = x[i] + 1` by 32 threads.
pub const INCREMENT: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry increment(
    .param .u64 increment_param_0,
    .param .u64 increment_param_1
)
.maxntid 32, 1, 1
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [increment_param_0];
    ld.param.u64 %rd2, [increment_param_1];
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd6, %rd3, %rd5;
    add.s64 %rd7, %rd4, %rd5;
    ld.global.u32 %r2, [%rd6];
    add.s32 %r3, %r2, 1;
    st.global.u32 [%rd7], %r3;
    ret;
}
";

pub const N: usize = 32;
pub const BYTES: usize = 4 * N;
pub const NON_BLOCKING: u32 = 1;

/// One test at a time: the driver's state is the process's.
pub struct Rig {
    pub increment: u64,
    pub module: u64,
    _only: MutexGuard<'static, ()>,
}

pub fn set(key: &str, value: &str) {
    let (key, value) = (CString::new(key).unwrap(), CString::new(value).unwrap());
    assert_eq!(unsafe { gpusim_set(key.as_ptr(), value.as_ptr()) }, 0);
}

pub fn fail(kind: &str, n: u64) {
    let kind = CString::new(kind).unwrap();
    assert_eq!(unsafe { gpusim_fail(kind.as_ptr(), n) }, 0);
}

/// The call succeeds and its first parameter is what it gives.
pub fn made<T: Default>(call: impl FnOnce(*mut T) -> u32) -> T {
    let mut value = T::default();
    assert_eq!(call(&mut value), 0);
    value
}

/// A new context, and its seed and order.
pub fn rig(seed: u64) -> Rig {
    static ONLY: Mutex<()> = Mutex::new(());
    let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
    set("FAIL", "");
    set("ORDER", "random");
    set("MEMORY", "4294967296");
    set("SEED", &seed.to_string());
    assert_eq!(unsafe { cuInit(0) }, 0);
    assert_eq!(unsafe { cuDevicePrimaryCtxReset_v2(0) }, 0);
    let (increment, module) = renew();
    Rig { increment, module, _only: only }
}

/// Retains the context, makes it current and loads the kernel.
pub fn renew() -> (u64, u64) {
    let context = made(|c| unsafe { cuDevicePrimaryCtxRetain(c, 0) });
    assert_eq!(unsafe { cuCtxSetCurrent(context) }, 0);
    let module = load(INCREMENT);
    (function(module, "increment"), module)
}

pub fn load(ptx: &str) -> u64 {
    let text = CString::new(ptx).unwrap();
    made(|m| unsafe { cuModuleLoadData(m, text.as_ptr().cast()) })
}

pub fn function(module: u64, name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    made(|f| unsafe { cuModuleGetFunction(f, module, name.as_ptr()) })
}

pub fn stream() -> u64 {
    made(|s| unsafe { cuStreamCreate(s, NON_BLOCKING) })
}

pub fn event() -> u64 {
    made(|e| unsafe { cuEventCreate(e, 2) })
}

pub fn buffer() -> u64 {
    made(|b| unsafe { cuMemAlloc_v2(b, BYTES) })
}

pub fn pinned() -> &'static mut [u32] {
    let mut at: *mut c_void = null_mut();
    assert_eq!(unsafe { cuMemHostAlloc(&mut at, BYTES, 0) }, 0);
    // Lives as long as the test's context; tests do not use it beyond.
    unsafe { std::slice::from_raw_parts_mut(at.cast(), N) }
}

pub fn upload(to: u64, from: &[u32], stream: u64) -> u32 {
    unsafe { cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), BYTES, stream) }
}

pub fn download(to: &mut [u32], from: u64, stream: u64) -> u32 {
    unsafe { cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, BYTES, stream) }
}

pub fn launch(function: u64, from: u64, to: u64, stream: u64) -> u32 {
    launch_with(function, from, to, stream, 1, 0)
}

pub fn launch_with(function: u64, from: u64, to: u64, stream: u64, grid: u32, shared: u32) -> u32 {
    let (mut from, mut to) = (from, to);
    let mut params: [*mut c_void; 2] = [(&raw mut from).cast(), (&raw mut to).cast()];
    let block = N as u32;
    unsafe {
        cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, params.as_mut_ptr(), null_mut())
    }
}

pub fn sync(stream: u64) -> u32 {
    unsafe { cuStreamSynchronize(stream) }
}

pub fn record(event: u64, stream: u64) -> u32 {
    unsafe { cuEventRecord(event, stream) }
}

pub fn wait(stream: u64, event: u64) -> u32 {
    unsafe { cuStreamWaitEvent(stream, event, 0) }
}

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`
pub fn begin(stream: u64) {
    assert_eq!(unsafe { cuStreamBeginCapture_v2(stream, 1) }, 0);
}

/// What ending the capture answers, and the graph.
pub fn end(stream: u64) -> (u32, u64) {
    let mut graph = 0;
    (unsafe { cuStreamEndCapture(stream, &mut graph) }, graph)
}

pub fn instantiate(graph: u64) -> u64 {
    made(|e| unsafe { cuGraphInstantiateWithFlags(e, graph, 0) })
}

pub fn counting() -> Vec<u32> {
    (0..N as u32).collect()
}

pub fn plus(n: u32) -> Vec<u32> {
    counting().into_iter().map(|v| v + n).collect()
}

pub fn nothing() -> *const c_void {
    null()
}
