//! What the simulated GPU counts of each kernel run. A real driver has no such function.

use std::ffi::{CStr, c_char, c_void};

use cudarc::driver::sys;
use serde::Deserialize;

use super::Gpu;

/// Of one kernel run, in the order of running.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Counted {
    pub kernel: String,
    pub grid: [u64; 3],
    /// The number by which the driver knows its stream.
    pub stream: u64,
    /// Warp-wide products, in units of m16n8k16.
    pub mma: u64,
    /// Distinct bytes of each warp's request.
    pub global_load_bytes: u64,
    pub global_store_bytes: u64,
    /// 32-byte sectors that the requests touch.
    pub sectors: u64,
    pub shared_accesses: u64,
    /// Accesses more than one for each request.
    pub shared_bank_conflicts: u64,
}

type Listener = unsafe extern "C" fn(*const c_char, *mut c_void);
type Install = unsafe extern "C" fn(Option<Listener>, *mut c_void) -> u32;

unsafe extern "C" fn note(line: *const c_char, data: *mut c_void) {
    // SAFETY: `listen` passed this pointer, and takes the listener off before the list goes.
    let list = unsafe { &mut *data.cast::<Vec<Counted>>() };
    // SAFETY: the simulator passes a C string that lives during the call.
    let line = unsafe { CStr::from_ptr(line) };
    if let Ok(counted) = serde_json::from_slice(line.to_bytes()) {
        list.push(counted);
    }
}

/// Does something and returns what was counted meanwhile of the kernels on a stream, whatever else uses the
/// device; `None` on a device that counts nothing. One caller at a time.
pub fn counted<T>(gpu: &Gpu, stream: u64, what: impl FnOnce() -> T) -> Option<(T, Vec<Counted>)> {
    if !gpu.is_simulated() {
        return None;
    }
    // SAFETY: a GPU is open, so the library is there; the function's type is that of the simulator.
    let install = unsafe { sys::culib().get::<Install>(b"gpusim_counters") }.ok()?;
    let mut list = Box::new(Vec::<Counted>::new());
    let data: *mut c_void = (&raw mut *list).cast();
    // SAFETY: `list` outlives the listener, which is taken off below.
    unsafe { install(Some(note), data) };
    let done = what();
    // SAFETY: as above. The simulator calls nobody after this has returned.
    unsafe { install(None, std::ptr::null_mut()) };
    list.retain(|run| run.stream == stream);
    Some((done, *list))
}
