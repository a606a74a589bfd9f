//! Capture, graphs and their rules.

mod rig;

use gpusim::driver::*;
use rig::*;

const UNSUPPORTED: u32 = 900;
const INVALIDATED: u32 = 901;
const MERGE: u32 = 902;
const UNMATCHED: u32 = 903;
const UNJOINED: u32 = 904;
const ISOLATION: u32 = 905;
const IMPLICIT: u32 = 906;
const CAPTURED_EVENT: u32 = 907;
const WRONG_THREAD: u32 = 908;

/// Queues upload → fork into two increments → join → download.
struct Fork {
    main: u64,
    side: u64,
    forked: u64,
    joined: u64,
    buffers: [u64; 3],
}

impl Fork {
    fn new() -> Self {
        Fork {
            main: stream(),
            side: stream(),
            forked: event(),
            joined: event(),
            buffers: [buffer(), buffer(), buffer()],
        }
    }

    fn queue(&self, increment: u64, input: &[u32], one: &mut [u32], other: &mut [u32], join: bool) {
        let [x, y, z] = self.buffers;
        assert_eq!(upload(x, input, self.main), 0);
        assert_eq!(record(self.forked, self.main), 0);
        assert_eq!(wait(self.side, self.forked), 0);
        assert_eq!(launch(increment, x, z, self.side), 0);
        assert_eq!(launch(increment, x, y, self.main), 0);
        assert_eq!(launch(increment, y, y, self.main), 0);
        if join {
            assert_eq!(record(self.joined, self.side), 0);
            assert_eq!(wait(self.main, self.joined), 0);
        }
        assert_eq!(download(one, y, self.main), 0);
        assert_eq!(download(other, z, self.main), 0);
    }
}

#[test]
fn a_replay_gives_what_the_calls_themselves_give() {
    for seed in 1..=20 {
        let rig = rig(seed);
        let fork = Fork::new();
        let (input, one, other) = (pinned(), pinned(), pinned());
        input.copy_from_slice(&counting());
        fork.queue(rig.increment, input, one, other, true);
        assert_eq!(sync(fork.main), 0);
        assert_eq!((&*one, &*other), (&plus(2)[..], &plus(1)[..]), "seed {seed}, without a graph");

        begin(fork.main);
        fork.queue(rig.increment, input, one, other, true);
        let (status, graph) = end(fork.main);
        assert_eq!(status, 0);
        let exec = instantiate(graph);
        assert_eq!(unsafe { cuGraphDestroy(graph) }, 0);
        one.fill(0);
        assert_eq!(sync(fork.main), 0);
        assert_eq!(one, [0; N], "a captured call does not run");
        for round in 0..3 {
            input.copy_from_slice(&plus(10 * round));
            assert_eq!(unsafe { cuGraphUpload(exec, fork.main) }, 0);
            assert_eq!(unsafe { cuGraphLaunch(exec, fork.main) }, 0);
            assert_eq!(sync(fork.main), 0);
            let want = (plus(10 * round + 2), plus(10 * round + 1));
            assert_eq!((&*one, &*other), (&want.0[..], &want.1[..]), "seed {seed}");
        }
    }
}

#[test]
fn branches_of_a_graph_that_lack_a_dependency_are_found_by_some_seed() {
    let right = |seed| {
        let rig = rig(seed);
        let (main, side) = (stream(), stream());
        let (x, y, out) = (buffer(), buffer(), pinned());
        let (forked, joined) = (event(), event());
        begin(main);
        assert_eq!(record(forked, main), 0);
        assert_eq!(wait(side, forked), 0);
        assert_eq!(unsafe { cuMemsetD32Async(x, 1, N, side) }, 0);
        assert_eq!(launch(rig.increment, x, y, main), 0);
        assert_eq!(record(joined, side), 0);
        assert_eq!(wait(main, joined), 0);
        assert_eq!(download(out, y, main), 0);
        let (status, graph) = end(main);
        assert_eq!(status, 0);
        assert_eq!(unsafe { cuGraphLaunch(instantiate(graph), main) }, 0);
        sync(main) == 0 && out == [2; N]
    };
    assert!((1..=50).any(|seed| !right(seed)));
}

#[test]
fn a_graph_does_not_run_beside_itself() {
    for seed in 1..=20 {
        let rig = rig(seed);
        let (a, b, x) = (stream(), stream(), buffer());
        assert_eq!(unsafe { cuMemsetD32Async(x, 0, N, a) }, 0);
        assert_eq!(sync(a), 0);
        begin(a);
        assert_eq!(launch(rig.increment, x, x, a), 0);
        assert_eq!(launch(rig.increment, x, x, a), 0);
        let exec = instantiate(end(a).1);
        for s in [a, b, a, b] {
            assert_eq!(unsafe { cuGraphLaunch(exec, s) }, 0);
        }
        assert_eq!(unsafe { cuCtxSynchronize() }, 0);
        let mut out = vec![0; N];
        assert_eq!(download(&mut out, x, a), 0);
        assert_eq!(out, [8; N]);
    }
}

#[test]
fn a_graph_keeps_its_kernels_when_their_module_is_unloaded() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    assert_eq!(upload(x, &counting(), s), 0);
    begin(s);
    assert_eq!(launch(rig.increment, x, y, s), 0);
    let exec = instantiate(end(s).1);
    assert_eq!(unsafe { cuModuleUnload(rig.module) }, 0);
    assert_eq!(launch(rig.increment, x, y, s), 400);
    assert_eq!(unsafe { cuGraphLaunch(exec, s) }, 0);
    let mut out = vec![0; N];
    assert_eq!(download(&mut out, y, s), 0);
    assert_eq!(out, plus(1));
}

#[test]
fn waiting_for_a_stream_under_capture_breaks_the_capture() {
    let rig = rig(1);
    let (s, x, y) = (stream(), buffer(), buffer());
    begin(s);
    assert_eq!(launch(rig.increment, x, y, s), 0);
    assert_eq!(sync(s), UNSUPPORTED);
    assert_eq!(launch(rig.increment, x, y, s), INVALIDATED);
    assert_eq!(end(s), (INVALIDATED, 0));
    begin(s);
    assert_eq!(end(s).0, 0, "the next one is a new one");
}

#[test]
fn what_may_wait_is_refused_in_the_capturing_thread_alone() {
    let _rig = rig(1);
    let s = stream();
    let context = made(|c| unsafe { cuCtxGetCurrent(c) });
    begin(s);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(unsafe { cuCtxSetCurrent(context) }, 0);
            buffer();
        });
    });
    let mut out = 0;
    assert_eq!(unsafe { cuMemAlloc_v2(&mut out, BYTES) }, UNSUPPORTED);
    assert_eq!(end(s).0, INVALIDATED);
    begin(s);
    assert_eq!(unsafe { cuCtxSynchronize() }, UNSUPPORTED);
    assert_eq!(end(s).0, INVALIDATED);
}

#[test]
fn a_capture_copies_pinned_memory_only() {
    let _rig = rig(1);
    let (s, x) = (stream(), buffer());
    begin(s);
    assert_eq!(upload(x, &counting(), s), UNSUPPORTED);
    assert_eq!(end(s).0, INVALIDATED);
}

#[test]
fn a_fork_has_to_be_joined_and_the_origin_ends_the_capture() {
    let rig = rig(1);
    let fork = Fork::new();
    let (input, one, other) = (pinned(), pinned(), pinned());
    begin(fork.main);
    fork.queue(rig.increment, input, one, other, false);
    assert_eq!(end(fork.main), (UNJOINED, 0));
    begin(fork.main);
    fork.queue(rig.increment, input, one, other, true);
    assert_eq!(end(fork.side), (UNMATCHED, 0));
    assert_eq!(end(fork.main), (INVALIDATED, 0));
    assert_eq!(end(fork.main), (401, 0), "none is under way");
}

#[test]
fn a_capture_is_ended_by_its_own_thread() {
    let _rig = rig(1);
    let s = stream();
    let context = made(|c| unsafe { cuCtxGetCurrent(c) });
    begin(s);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(unsafe { cuCtxSetCurrent(context) }, 0);
            assert_eq!(end(s), (WRONG_THREAD, 0));
        });
    });
    assert_eq!(end(s).0, 0);
}

#[test]
fn a_capture_neither_depends_on_work_outside_nor_joins_another_nor_the_legacy_stream() {
    let _rig = rig(1);
    let (a, b, outside) = (stream(), stream(), stream());
    let (before, inside) = (event(), event());
    assert_eq!(record(before, outside), 0);
    begin(a);
    assert_eq!(wait(a, before), ISOLATION);
    assert_eq!(end(a).0, INVALIDATED);

    begin(a);
    begin(b);
    assert_eq!(record(inside, a), 0);
    assert_eq!(wait(b, inside), MERGE);
    assert_eq!((end(a).0, end(b).0), (INVALIDATED, INVALIDATED));

    assert_eq!(unsafe { cuStreamBeginCapture_v2(0, 1) }, UNSUPPORTED);
    begin(a);
    assert_eq!(record(inside, a), 0);
    assert_eq!(wait(0, inside), IMPLICIT);
    assert_eq!(end(a).0, INVALIDATED);

    let blocking = made(|s| unsafe { cuStreamCreate(s, 0) });
    let x = buffer();
    begin(blocking);
    assert_eq!(unsafe { cuMemsetD8Async(x, 0, BYTES, 0) }, IMPLICIT);
    assert_eq!(end(blocking).0, INVALIDATED);
}

#[test]
fn an_event_of_a_capture_says_nothing_to_the_host() {
    let _rig = rig(1);
    let (s, e) = (stream(), event());
    begin(s);
    assert_eq!(record(e, s), 0);
    assert_eq!(unsafe { cuEventQuery(e) }, CAPTURED_EVENT);
    assert_eq!(end(s).0, INVALIDATED);
    assert_eq!(unsafe { cuEventSynchronize(e) }, CAPTURED_EVENT);
    assert_eq!(record(e, s), 0);
    assert_eq!(unsafe { cuEventSynchronize(e) }, 0);
}
