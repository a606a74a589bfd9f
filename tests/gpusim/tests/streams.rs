//! Streams run late and in any order that events and the legacy stream leave open.

mod rig;

use std::ffi::{CStr, c_void};

use gpusim::driver::*;
use rig::*;

const ILLEGAL_ADDRESS: u32 = 700;
const NOT_READY: u32 = 600;
const SEEDS: u64 = 50;

/// One stream produces, another consumes; whether the result is right.
fn hand_over(seed: u64, with_wait: bool) -> bool {
    let rig = rig(seed);
    let (a, b) = (stream(), stream());
    let (x, y, z) = (buffer(), buffer(), buffer());
    let (input, output) = (pinned(), pinned());
    input.copy_from_slice(&counting());
    let ready = event();
    assert_eq!(upload(x, input, a), 0);
    assert_eq!(launch(rig.increment, x, y, a), 0);
    assert_eq!(record(ready, a), 0);
    if with_wait {
        assert_eq!(wait(b, ready), 0);
    }
    assert_eq!(launch(rig.increment, y, z, b), 0);
    assert_eq!(download(output, z, b), 0);
    sync(b) == 0 && output == plus(2)
}

#[test]
fn a_missing_wait_for_an_event_is_found_by_some_seed() {
    let found = (1..=SEEDS).filter(|seed| !hand_over(*seed, false)).count();
    assert!(found > 0);
}

#[test]
fn a_right_wait_for_an_event_never_fails() {
    for seed in 1..=SEEDS {
        assert!(hand_over(seed, true), "seed {seed}");
    }
}

#[test]
fn the_same_seed_takes_the_same_order() {
    let outcome = |seed| hand_over(seed, false);
    for seed in 1..=10 {
        assert_eq!(outcome(seed), outcome(seed));
    }
}

#[test]
fn nothing_has_happened_until_somebody_waits() {
    let _rig = rig(1);
    let (s, x) = (stream(), buffer());
    let (input, output) = (pinned(), pinned());
    input.fill(7);
    output.fill(1);
    assert_eq!(upload(x, input, s), 0);
    assert_eq!(download(output, x, s), 0);
    assert_eq!(output, [1; N]);
    assert_eq!(sync(s), 0);
    assert_eq!(output, [7; N]);
}

#[test]
fn a_pinned_buffer_overwritten_too_early_shows_and_a_pageable_one_does_not() {
    let _rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    let early = pinned();
    early.fill(1);
    let mut staged = vec![1; N];
    assert_eq!(upload(x, early, s), 0);
    assert_eq!(upload(y, &staged, s), 0);
    early.fill(2);
    staged.fill(2);
    let mut out = vec![0; N];
    assert_eq!(download(&mut out, x, s), 0);
    assert_eq!(out, [2; N]);
    assert_eq!(download(&mut out, y, s), 0);
    assert_eq!(out, [1; N]);
}

#[test]
fn registered_memory_is_pinned_until_it_is_unregistered() {
    let _rig = rig(1);
    let (s, x) = (stream(), buffer());
    let mut host = vec![1u32; N];
    let at: *mut c_void = host.as_mut_ptr().cast();
    assert_eq!(unsafe { cuMemHostRegister_v2(at, BYTES, 0) }, 0);
    assert_eq!(unsafe { cuMemHostRegister_v2(at, BYTES, 0) }, 712);
    assert_eq!(upload(x, &host, s), 0);
    host.fill(2);
    let mut out = vec![0; N];
    assert_eq!(download(&mut out, x, s), 0);
    assert_eq!(out, [2; N]);
    assert_eq!(unsafe { cuMemHostUnregister(at) }, 0);
    assert_eq!(unsafe { cuMemHostUnregister(at) }, 713);
}

#[test]
fn memory_freed_while_queued_work_names_it_is_a_fault() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(unsafe { cuMemFree_v2(x) }, 0);
    assert_eq!(sync(s), ILLEGAL_ADDRESS);
    drop(rig);

    let rig = rig::rig(1);
    let (s, x) = (stream(), buffer());
    let y2 = buffer();
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(launch(rig.increment, x, y2, s), 0);
    assert_eq!(unsafe { cuMemFree_v2(y2) }, 0);
    assert_ne!(sync(s), 0);
    let _ = y;
    drop(rig);

    let _rig = rig::rig(1);
    let (s, x, host) = (stream(), buffer(), pinned());
    assert_eq!(upload(x, host, s), 0);
    assert_eq!(unsafe { cuMemFreeHost(host.as_mut_ptr().cast()) }, 0);
    assert_eq!(sync(s), ILLEGAL_ADDRESS);
}

#[test]
fn a_free_in_its_stream_comes_after_the_work_before_it() {
    let rig = rig(3);
    let (s, y, out) = (stream(), buffer(), pinned());
    let x = made(|b| unsafe { cuMemAllocAsync(b, BYTES, s) });
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(launch(rig.increment, x, y, s), 0);
    assert_eq!(unsafe { cuMemFreeAsync(x, s) }, 0);
    assert_eq!(upload(x, &counting(), s), 1, "no longer the caller's");
    assert_eq!(download(out, y, s), 0);
    assert_eq!(sync(s), 0);
    assert_eq!(out, plus(1));
}

#[test]
fn the_legacy_stream_is_ordered_with_blocking_streams_only() {
    let outcome = |flags: u32, seed: u64| {
        let rig = rig(seed);
        let other = made(|s| unsafe { cuStreamCreate(s, flags) });
        let (x, y, out) = (buffer(), buffer(), pinned());
        assert_eq!(unsafe { cuMemsetD32_v2(x, 5, N) }, 0);
        assert_eq!(launch(rig.increment, x, y, other), 0);
        assert_eq!(download(out, y, other), 0);
        sync(other) == 0 && out == [6; N]
    };
    assert!((1..=SEEDS).all(|seed| outcome(0, seed)));
    assert!(!(1..=SEEDS).all(|seed| outcome(NON_BLOCKING, seed)));
}

#[test]
fn asking_again_and_again_gets_the_work_done() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(upload(x, &counting(), s), 0);
    assert_eq!(launch(rig.increment, x, y, s), 0);
    let done = event();
    assert_eq!(unsafe { cuEventQuery(done) }, 0, "never recorded is complete");
    assert_eq!(record(done, s), 0);
    assert_eq!(unsafe { cuEventQuery(done) }, NOT_READY);
    let tries = (0..100).take_while(|_| unsafe { cuEventQuery(done) } == NOT_READY).count();
    assert!(tries < 10, "{tries}");
    assert_eq!(unsafe { cuStreamQuery(s) }, 0);
}

#[test]
fn a_host_function_runs_in_its_turn_and_may_not_call_the_driver() {
    unsafe extern "C" fn note(data: *mut c_void) {
        let log = unsafe { &mut *data.cast::<Vec<u32>>() };
        log.push(unsafe { cuCtxSynchronize() });
    }
    let _rig = rig(1);
    let (s, mut log) = (stream(), Vec::<u32>::new());
    let data: *mut c_void = (&raw mut log).cast();
    assert_eq!(unsafe { cuLaunchHostFunc(s, Some(note), data) }, 0);
    assert!(log.is_empty());
    assert_eq!(sync(s), 0);
    assert_eq!(log, [800]);
}

#[test]
fn many_threads_may_queue_and_wait_at_once() {
    let rig = rig(1);
    let (context, increment) = (made(|c| unsafe { cuCtxGetCurrent(c) }), rig.increment);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                assert_eq!(unsafe { cuCtxSetCurrent(context) }, 0);
                let (s, x, y) = (stream(), buffer(), buffer());
                let mut out = vec![0; N];
                for round in 0..20 {
                    let input: Vec<u32> = plus(100 * thread + round);
                    assert_eq!(upload(x, &input, s), 0);
                    assert_eq!(launch(increment, x, y, s), 0);
                    assert_eq!(download(&mut out, y, s), 0);
                    assert_eq!(out, plus(100 * thread + round + 1));
                }
            });
        }
    });
}

#[test]
fn times_between_events_are_there_once_both_are_done() {
    let _rig = rig(1);
    let s = stream();
    let (from, to) = (made(|e| unsafe { cuEventCreate(e, 0) }), made(|e| unsafe { cuEventCreate(e, 0) }));
    let mut ms = 0.0f32;
    assert_eq!(unsafe { cuEventElapsedTime(&mut ms, from, to) }, 400);
    assert_eq!((record(from, s), record(to, s)), (0, 0));
    assert_eq!(unsafe { cuEventElapsedTime(&mut ms, from, to) }, NOT_READY);
    assert_eq!(sync(s), 0);
    assert_eq!(unsafe { cuEventElapsedTime(&mut ms, from, to) }, 0);
    assert!(ms >= 0.0);
}

#[test]
fn the_device_says_that_it_is_simulated() {
    let _rig = rig(1);
    let mut name = [0; 64];
    assert_eq!(unsafe { cuDeviceGetName(name.as_mut_ptr(), 64, 0) }, 0);
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap();
    assert!(name.contains("simulated GPU"), "{name}");
}
