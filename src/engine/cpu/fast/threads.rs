//! A fixed team of threads for data-parallel loops.
//!
//! `run(tasks, f)` calls `f(task, lane)` once for each task in `0..tasks`, on the caller and on the workers, and
//! returns when all are done. Tasks are pulled from a counter, so a thread that the operating system
//! delays takes fewer. After construction nothing is allocated.
//!
//! The protocol is one word, `state` = generation | OPEN | workers inside. A worker may enter a
//! generation only while it is open, and the caller leaves only after it closed the generation and
//! nobody is inside. So a worker that wakes too late finds the door shut and costs the caller nothing,
//! and the closure, which lives on the caller's stack, is never touched after `run` returned.
//!
//! Idle workers spin for about [`SPIN`] looks (some tens of µs: the gap between two layers), then sleep.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::simd::Isa;

const SPIN: u32 = 4000;
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 17;

/// Handle to the team; clones share it. The threads end when the last handle is dropped.
#[derive(Clone)]
pub struct Pool {
    team: Arc<Team>,
    isa: Isa,
}

struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during `run`: callers from several threads take turns.
    turn: Mutex<()>,
}

type Body<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Job>,
    next: AtomicUsize,
    /// Guards nothing but the two condition variables.
    sleep: Mutex<()>,
    work: Condvar,
    done: Condvar,
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    body: Option<*const Body<'static>>,
    tasks: usize,
}

// SAFETY: `job` is written by the caller only while the generation is closed and nobody is inside, and
// read by workers only while they are inside; `state` orders the two (release on open and leave,
// acquire on enter and close). The pointer inside it is to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only dereferenced inside a generation.
unsafe impl Send for Shared {}

thread_local! {
    /// Set while this thread executes tasks of some pool: nested calls run inline.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads, {})", self.threads(), self.isa.name())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A team of `threads` (at least 1) in all: the caller and `threads - 1` workers, with the best
    /// instruction set of this machine. Where the system refuses a thread the team is smaller.
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::detect())
    }

    /// As [`Pool::new`], with kernels of a given set.
    ///
    /// # Panics
    /// If the machine doesn't support `isa`.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        assert!(isa.is_supported(), "this machine has no {}", isa.name());
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { body: None, tasks: 0 }),
            next: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            work: Condvar::new(),
            done: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut workers = Vec::new();
        for lane in 1..threads.min(INSIDE as usize) {
            let shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new()
                .name(format!("engine-{lane}"))
                .spawn(move || shared.work_until_stopped(lane));
            match spawned {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        Self { team: Arc::new(Team { shared, workers, turn: Mutex::new(()) }), isa }
    }

    /// Threads that take part in [`Pool::run`], the caller included; lanes are `0..threads()`.
    pub fn threads(&self) -> usize {
        self.team.workers.len() + 1
    }

    /// The instruction set that the kernels of this pool use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `body(task)` once for every task in `0..tasks`, in no particular order, and returns when
    /// all calls have returned. A call from within a task runs inline on that thread.
    ///
    /// # Panics
    /// With the panic of a task, after the others have stopped; tasks not yet begun are skipped.
    pub fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        self.run_lanes(tasks, &|task, _| body(task));
    }

    /// As [`Pool::run`], with the lane of the thread as second argument: no two calls run on the same
    /// lane at the same time, so it may index per-thread scratch.
    pub fn run_lanes(&self, tasks: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.team.workers.is_empty() || IN_TASK.get() {
            // Lane 0 is the caller's; a nested call comes from a thread that holds some other lane of
            // possibly this pool, so nested bodies must bring scratch of their own. The kernels here
            // never nest.
            for task in 0..tasks {
                body(task, 0);
            }
            return;
        }
        let _turn = lock(&self.team.turn);
        self.team.shared.run(tasks, body);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn run(&self, tasks: usize, body: &Body<'_>) {
        // SAFETY: only the lifetime changes. The pointer is used by workers inside this generation, and
        // this function does not return before the generation is closed and empty.
        let body_static: *const Body<'static> =
            unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        // SAFETY: the last generation is closed and empty (or there was none), and `turn` keeps other
        // callers out, so nobody else looks at the job.
        unsafe { *self.job.get() = Job { body: Some(body_static), tasks } };
        self.next.store(0, Ordering::Relaxed);
        let generation = (self.state.load(Ordering::Relaxed) & !(OPEN | INSIDE)).wrapping_add(GENERATION);
        self.state.store(generation | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Taking the lock puts this after a worker's last look at `state` or after its sleep began.
            drop(lock(&self.sleep));
            self.work.notify_all();
        }
        self.pull(body, tasks, 0);
        // Close the door, then wait for those inside.
        let mut inside = self.state.fetch_and(!OPEN, Ordering::SeqCst) & INSIDE;
        let mut looks = 0;
        while inside != 0 {
            looks += 1;
            if looks < SPIN {
                std::hint::spin_loop();
            } else {
                let mut guard = lock(&self.sleep);
                self.caller_sleeps.store(true, Ordering::SeqCst);
                while self.state.load(Ordering::SeqCst) & INSIDE != 0 {
                    guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.caller_sleeps.store(false, Ordering::SeqCst);
            }
            inside = self.state.load(Ordering::Acquire) & INSIDE;
        }
        let panic = lock(&self.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    fn pull(&self, body: &Body<'_>, tasks: usize, lane: usize) {
        IN_TASK.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                body(task, lane);
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = result {
            self.next.store(tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn work_until_stopped(&self, lane: usize) {
        let mut seen = 0;
        loop {
            let Some(generation) = self.enter(&mut seen) else { return };
            seen = generation;
            // SAFETY: this worker is inside the generation: the acquire in `enter` made the caller's
            // write visible, and the caller waits for it to leave before it writes again.
            let job = unsafe { *self.job.get() };
            if let Some(body) = job.body {
                // SAFETY: the closure outlives the generation, see `run`.
                self.pull(unsafe { &*body }, job.tasks, lane);
            }
            let before = self.state.fetch_sub(1, Ordering::SeqCst);
            if before & INSIDE == 1 && self.caller_sleeps.load(Ordering::SeqCst) {
                drop(lock(&self.sleep));
                self.done.notify_all();
            }
        }
    }

    /// Waits for an open generation other than `seen` and enters it; `None` when the team ends.
    fn enter(&self, seen: &mut u64) -> Option<u64> {
        let mut looks = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let generation = state & !(OPEN | INSIDE);
            if state & OPEN != 0 && generation != *seen {
                let entered =
                    self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst);
                if entered.is_ok() {
                    return Some(generation);
                }
                continue;
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            looks += 1;
            if looks < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let mut guard = lock(&self.sleep);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while !self.stop.load(Ordering::SeqCst) {
                let state = self.state.load(Ordering::SeqCst);
                if state & OPEN != 0 && state & !(OPEN | INSIDE) != *seen {
                    break;
                }
                guard = self.work.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            drop(guard);
            looks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_exactly_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn many_short_runs_lose_no_task_and_never_hang() {
        let pool = Pool::new(4);
        let total = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(5, &|task| {
                total.fetch_add(task + 1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 20_000 * 15);
    }

    #[test]
    fn no_two_tasks_share_a_lane_at_one_time() {
        let pool = Pool::new(4);
        let busy: Vec<AtomicBool> = (0..pool.threads()).map(|_| AtomicBool::new(false)).collect();
        pool.run_lanes(5000, &|_, lane| {
            assert!(!busy[lane].swap(true, Ordering::SeqCst));
            std::hint::spin_loop();
            busy[lane].store(false, Ordering::SeqCst);
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_still_works() {
        let pool = Pool::new(3);
        for bad in [0, 17, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, &|task| assert!(task != bad, "task {task} fails"));
            }));
            let payload = caught.expect_err("the panic must propagate");
            let text = payload.downcast_ref::<String>().expect("assert's message");
            assert_eq!(text, &format!("task {bad} fails"));
            let count = AtomicUsize::new(0);
            pool.run(100, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 100);
        }
    }

    #[test]
    fn a_nested_run_executes_inline() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            pool.run(8, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 64);
    }

    #[test]
    fn clones_used_from_several_threads_take_turns() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for _ in 0..200 {
                        let count = AtomicUsize::new(0);
                        pool.run(9, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(count.into_inner(), 9);
                    }
                });
            }
        });
    }
}
