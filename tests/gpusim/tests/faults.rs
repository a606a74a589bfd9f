//! Errors: those of the caller, those that lose the context, and those that were asked for.

mod rig;

use std::ffi::{CStr, CString, c_char, c_void};

use gpusim::driver::*;
use rig::*;

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NO_DEVICE: u32 = 100;
const NO_BINARY: u32 = 209;
const INVALID_PTX: u32 = 218;
const DESTROYED: u32 = 709;
const LAUNCH_FAILED: u32 = 719;

fn read_uninitialised(rig: &Rig) -> u64 {
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(launch(rig.increment, x, y, s), 0);
    assert_eq!(sync(s), LAUNCH_FAILED);
    s
}

#[test]
fn after_a_fault_every_call_fails_until_the_context_is_reset() {
    let rig = rig(1);
    let s = read_uninitialised(&rig);
    let mut out = 0;
    assert_eq!(unsafe { cuMemAlloc_v2(&mut out, BYTES) }, LAUNCH_FAILED);
    assert_eq!(sync(s), LAUNCH_FAILED);
    assert_eq!(unsafe { cuStreamDestroy_v2(s) }, LAUNCH_FAILED);
    assert_eq!(unsafe { cuCtxSynchronize() }, LAUNCH_FAILED);
    // Whoever retains it meanwhile gets the same lost one.
    made(|c: *mut u64| unsafe { cuDevicePrimaryCtxRetain(c, 0) });
    assert_eq!(unsafe { cuMemAlloc_v2(&mut out, BYTES) }, LAUNCH_FAILED);

    assert_eq!(unsafe { cuDevicePrimaryCtxReset_v2(0) }, 0);
    assert_eq!(sync(s), DESTROYED, "handles of the old context are stale");
    let (increment, _) = renew();
    assert_eq!(sync(s), 400);
    let (s, x, y, mut out) = (stream(), buffer(), buffer(), vec![0; N]);
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(launch(increment, x, y, s), 0);
    assert_eq!(download(&mut out, y, s), 0);
    assert_eq!(out, plus(1));
}

#[test]
fn the_last_release_ends_the_context_and_its_fault() {
    let rig = rig(1);
    made(|c: *mut u64| unsafe { cuDevicePrimaryCtxRetain(c, 0) });
    read_uninitialised(&rig);
    assert_eq!(unsafe { cuDevicePrimaryCtxRelease_v2(0) }, 0);
    assert_eq!(unsafe { cuCtxSynchronize() }, LAUNCH_FAILED);
    assert_eq!(unsafe { cuDevicePrimaryCtxRelease_v2(0) }, 0);
    assert_eq!(unsafe { cuDevicePrimaryCtxRelease_v2(0) }, 201, "nobody holds it any more");
    renew();
    assert_eq!(unsafe { cuCtxSynchronize() }, 0);
}

#[test]
fn memory_is_as_large_as_it_was_set() {
    let rig = rig(1);
    set("MEMORY", "4096");
    let big = |bytes: usize| {
        let mut at = 0;
        (unsafe { cuMemAlloc_v2(&mut at, bytes) }, at)
    };
    let (status, first) = big(3000);
    assert_eq!(status, 0);
    assert_eq!(big(2048).0, OUT_OF_MEMORY);
    let (mut free, mut total) = (0, 0);
    assert_eq!(unsafe { cuMemGetInfo_v2(&mut free, &mut total) }, 0);
    assert_eq!((free, total), (1024, 4096));
    let s = stream();
    assert_eq!(unsafe { cuMemFreeAsync(first, s) }, 0);
    assert_eq!(big(2048).0, 0, "what a stream is yet to free is waited for");
    assert_eq!(unsafe { cuMemFree_v2(first) }, INVALID_VALUE, "freed already");
    drop(rig);
}

#[test]
fn copies_outside_of_buffers_are_refused_at_the_call_and_lose_nothing() {
    let _rig = rig(1);
    let (s, x) = (stream(), buffer());
    assert_eq!(upload(x + 4, &counting(), s), INVALID_VALUE);
    let mut out = vec![0; N];
    assert_eq!(download(&mut out, 64, s), INVALID_VALUE);
    assert_eq!(sync(s), 0);
}

#[test]
fn what_was_never_written_does_not_leave_the_device() {
    let _rig = rig(1);
    let (s, x, mut out) = (stream(), buffer(), vec![0; N]);
    assert_eq!(download(&mut out, x, s), LAUNCH_FAILED);
}

#[test]
fn launches_that_a_driver_refuses_are_refused() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(launch_with(rig.increment, x, y, s, 0, 0), INVALID_VALUE);
    assert_eq!(launch_with(rig.increment, x, y, s, 1, 50_000), INVALID_VALUE);
    assert_eq!(unsafe { cuFuncSetAttribute(rig.increment, 8, 200_000) }, INVALID_VALUE);
    assert_eq!(unsafe { cuFuncSetAttribute(rig.increment, 8, 50_000) }, 0);
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(launch_with(rig.increment, x, y, s, 1, 50_000), 0);
    assert_eq!(sync(s), 0);
    let most = made(|v| unsafe { cuFuncGetAttribute(v, 0, rig.increment) });
    assert_eq!(most, 32, "by its launch bounds");
}

#[test]
fn images_that_are_no_ptx_are_refused_with_the_code_that_says_so() {
    let _rig = rig(1);
    let mut module = 0;
    let cubin = b"\x7fELF\x02\x01\x01\0";
    assert_eq!(unsafe { cuModuleLoadData(&mut module, cubin.as_ptr().cast()) }, NO_BINARY);
    let nonsense = INCREMENT.replace("add.s32", "conjure.s32");
    let text = CString::new(nonsense).unwrap();
    assert_eq!(unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) }, INVALID_PTX);
}

#[test]
fn the_nth_call_fails_as_asked_and_the_next_one_does_not() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    fail("alloc", 2);
    fail("launch", 2);
    set("FAIL", "alloc:2,launch:2,copy:1,host-alloc:1");
    let mut at = 0;
    let alloc = |at: &mut u64| unsafe { cuMemAlloc_v2(at, BYTES) };
    assert_eq!([alloc(&mut at), alloc(&mut at), alloc(&mut at)], [0, OUT_OF_MEMORY, 0]);
    assert_eq!([upload(x, &counting(), s), upload(x, &counting(), s)], [304, 0]);
    let launches = [0; 3].map(|_| launch(rig.increment, x, y, s));
    assert_eq!(launches, [0, 701, 0]);
    let mut host: *mut c_void = std::ptr::null_mut();
    assert_eq!(unsafe { cuMemHostAlloc(&mut host, BYTES, 0) }, OUT_OF_MEMORY);
    assert_eq!(unsafe { cuMemHostAlloc(&mut host, BYTES, 0) }, 0);
    assert_eq!(sync(s), 0);
}

#[test]
fn a_kernel_of_a_replay_can_be_the_one_that_loses_the_context() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(upload(x, &counting(), s), 0);
    begin(s);
    assert_eq!(launch(rig.increment, x, y, s), 0);
    assert_eq!(launch(rig.increment, y, x, s), 0);
    let exec = instantiate(end(s).1);
    fail("launch-sticky", 3);
    assert_eq!(unsafe { cuGraphLaunch(exec, s) }, 0);
    assert_eq!(sync(s), 0);
    assert_eq!(unsafe { cuGraphLaunch(exec, s) }, 0);
    assert_eq!(sync(s), LAUNCH_FAILED);
    assert_eq!(unsafe { cuGraphLaunch(exec, s) }, LAUNCH_FAILED);
}

#[test]
fn a_device_may_stay_away_for_good() {
    let _rig = rig(1);
    set("FAIL", "context:1+");
    assert_eq!(unsafe { cuDevicePrimaryCtxReset_v2(0) }, 0);
    let mut context = 0;
    for _ in 0..3 {
        assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&mut context, 0) }, NO_DEVICE);
    }
    fail("context", 0);
    assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&mut context, 0) }, 0);
}

#[test]
fn a_call_without_a_context_says_so() {
    let _rig = rig(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            assert_eq!(unsafe { cuMemAlloc_v2(&mut at, BYTES) }, 201);
        });
    });
}

#[test]
fn each_kernel_run_is_told_to_the_listener() {
    unsafe extern "C" fn listen(line: *const c_char, data: *mut c_void) {
        let log = unsafe { &mut *data.cast::<Vec<String>>() };
        log.push(unsafe { CStr::from_ptr(line) }.to_str().unwrap().to_owned());
    }
    let rig = rig(1);
    let mut log = Vec::<String>::new();
    assert_eq!(unsafe { gpusim_counters(Some(listen), (&raw mut log).cast()) }, 0);
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(launch(rig.increment, x, y, s), 0);
    assert_eq!(sync(s), 0);
    assert_eq!(unsafe { gpusim_counters(None, std::ptr::null_mut()) }, 0);
    assert_eq!(log.len(), 1);
    assert!(
        log[0].starts_with("{\"kernel\":\"increment\",\"grid\":[1,1,1],\"block\":[32,1,1]"),
        "{}",
        log[0]
    );
}

#[test]
fn codes_have_names() {
    let mut text: *const c_char = std::ptr::null();
    assert_eq!(unsafe { cuGetErrorName(700, &mut text) }, 0);
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(unsafe { cuGetErrorString(12_345, &mut text) }, INVALID_VALUE);
    assert!(text.is_null());
}
