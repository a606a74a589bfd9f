//! The machine: device memory, and launches that run a kernel's blocks with every access checked.
//!
//! A launch runs blocks on several threads, each block from start to end on one of them, its warps in
//! turns from barrier to barrier. Races are found by what is ordered before what, not by what happened to
//! run first, so that any order of running finds them.

mod access;
mod across;
mod alu;
mod block;
mod counters;
mod execute;
mod float;
mod global;
mod memory;
mod shared;
mod staged;
mod tensor;
mod warp;
mod worker;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

pub use counters::Counters;
pub use memory::{Memory, OutOfBounds};
pub use worker::Fault;
use worker::{Run, Worker};

pub use crate::ptx::{Kernel, Module, Param, ParseError, parse};

/// A launch's geometry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// The order of warps, and of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Forward,
    Reverse,
    Random(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Uninitialised reads and races; bounds, alignment, barriers and lanes are checked always.
    pub check: bool,
    pub order: Order,
    /// How many blocks run at a time.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Options { check: true, order: Order::Forward, threads }
    }
}

#[derive(Clone, Debug)]
pub enum LaunchError {
    /// Geometry or arguments do not fit the kernel.
    Invalid(String),
    Faults(Vec<Fault>),
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaunchError::Invalid(why) => f.write_str(why),
            LaunchError::Faults(faults) => {
                for (i, fault) in faults.iter().enumerate() {
                    write!(f, "{}{fault}", if i > 0 { "\n" } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LaunchError {}

/// Lays the arguments out as the kernel expects them.
fn arguments(kernel: &Kernel, params: &[Vec<u8>]) -> Result<Vec<u8>, LaunchError> {
    if params.len() != kernel.params.len() {
        let (wanted, got) = (kernel.params.len(), params.len());
        return Err(LaunchError::Invalid(format!("{} takes {wanted} parameters, got {got}", kernel.name)));
    }
    let mut bytes = vec![0; kernel.param_bytes()];
    for (i, (given, param)) in params.iter().zip(&kernel.params).enumerate() {
        if given.len() != param.size {
            let (wanted, got) = (param.size, given.len());
            let what = format!("parameter {i} of {} has {wanted} bytes, got {got}", kernel.name);
            return Err(LaunchError::Invalid(what));
        }
        bytes[param.offset..param.offset + param.size].copy_from_slice(given);
    }
    Ok(bytes)
}

/// Runs a kernel to its end. `params`: the bytes of each parameter.
pub fn launch(
    kernel: &Kernel,
    memory: &mut Memory,
    config: &Config,
    params: &[Vec<u8>],
    options: &Options,
) -> Result<Counters, LaunchError> {
    let params = arguments(kernel, params)?;
    let threads: u64 = config.block.iter().map(|n| u64::from(*n)).product();
    let blocks: u128 = config.grid.iter().map(|n| u128::from(*n)).product();
    if threads == 0 || threads > 1024 || blocks == 0 || blocks > 1 << 40 {
        let (grid, block) = (config.grid, config.block);
        return Err(LaunchError::Invalid(format!("{}: grid {grid:?}, block {block:?}", kernel.name)));
    }
    if let Some(most) = kernel.max_threads.filter(|most| threads > u64::from(*most)) {
        let what = format!("{} is compiled for at most {most} threads, launched with {threads}", kernel.name);
        return Err(LaunchError::Invalid(what));
    }
    let blocks = blocks as u64;
    let globals = if kernel.uses_globals {
        let no_room = || LaunchError::Invalid("no memory for the module's variables".to_owned());
        memory.globals(&kernel.globals).ok_or_else(no_room)?
    } else {
        0
    };
    memory.next_epoch();
    let mut workers = std::mem::take(&mut memory.workers);
    workers.resize_with(options.threads.max(1), Worker::new);
    let run = Run { memory, kernel, config, params, check: options.check, globals };
    let shared = Progress {
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        blocks,
        order: options.order,
        stride: stride(blocks, options.order),
    };
    let (first, rest) = workers.split_at_mut(1);
    // Helpers come when the first block has shown that they pay.
    let start = Instant::now();
    first[0].prepare(&run);
    shared.step(&run, &mut first[0]);
    let left = (blocks - 1).min(rest.len() as u64) as usize;
    let worth = start.elapsed().as_micros() as u64 * (blocks - 1) > 150;
    let helpers = if worth { left } else { 0 };
    if helpers == 0 {
        while shared.step(&run, &mut first[0]) {}
    } else {
        std::thread::scope(|scope| {
            for worker in &mut rest[..helpers] {
                scope.spawn(|| {
                    worker.prepare(&run);
                    while shared.step(&run, worker) {}
                });
            }
            while shared.step(&run, &mut first[0]) {}
        });
    }
    let mut counters = Counters::default();
    let mut faults = Vec::new();
    for worker in &mut workers[..=helpers] {
        counters += worker.state.counters;
        faults.append(&mut worker.state.faults);
    }
    memory.workers = workers;
    if !faults.is_empty() {
        return Err(LaunchError::Faults(faults));
    }
    counters.mma /= 2;
    Ok(counters)
}

/// How far a launch has come.
struct Progress {
    next: AtomicU64,
    failed: AtomicBool,
    blocks: u64,
    order: Order,
    stride: (u64, u64),
}

/// For a random order: a step that visits every block once, and where to start.
fn stride(blocks: u64, order: Order) -> (u64, u64) {
    let Order::Random(seed) = order else { return (1, 0) };
    let mut random = block::Random::new(seed);
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let start = random.below(blocks as usize) as u64;
    let mut step = random.below(blocks as usize) as u64 | 1;
    while gcd(step, blocks) != 1 {
        step += 1;
    }
    (step, start)
}

impl Progress {
    /// Runs one more block; `false`: there is none.
    fn step(&self, run: &Run<'_>, worker: &mut Worker) -> bool {
        let i = self.next.fetch_add(1, Relaxed);
        if i >= self.blocks || self.failed.load(Relaxed) {
            return false;
        }
        let index = match self.order {
            Order::Forward => i,
            Order::Reverse => self.blocks - 1 - i,
            Order::Random(_) => {
                let wide = u128::from(i) * u128::from(self.stride.0) + u128::from(self.stride.1);
                (wide % u128::from(self.blocks)) as u64
            }
        };
        block::run_block(run, worker, index, self.order);
        if worker.state.dead {
            self.failed.store(true, Relaxed);
        }
        true
    }
}
