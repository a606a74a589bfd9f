//! One thread's share of a launch: a block at a time, its warps, shared memory and findings.

use std::collections::HashSet;
use std::fmt;

use super::Config;
use super::alu::{Doubles, Words};
use super::counters::Counters;
use super::global::{Who, Wrong};
use super::memory::Memory;
use super::shared::{Order, Shared, SharedWrong};
use crate::ptx::instruction::Register;
use crate::ptx::{Kernel, Value};

/// One thing that is wrong with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: String,
    /// `file.cu:12`
    pub place: String,
    pub block: [u32; 3],
    pub thread: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{} at {}, block ({x},{y},{z}) thread {}", self.what, self.place, self.thread)
    }
}

/// Kinds of faults: of each kind one is kept for an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Bounds,
    Alignment,
    Uninitialised,
    Race,
    Pending,
    Divergence,
    Lanes,
    Deadlock,
    Trap,
}

/// So many are kept; the launch then stops.
const FAULTS: usize = 24;

/// What all workers of a launch share.
pub(super) struct Run<'a> {
    pub memory: &'a Memory,
    pub kernel: &'a Kernel,
    pub config: &'a Config,
    pub params: Vec<u8>,
    pub check: bool,
    pub globals: u64,
}

/// A part of a warp that is elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub pc: u32,
    pub mask: u32,
    /// Waits at `bar.warp.sync` for these lanes; 0: runs.
    pub waits_for: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ready,
    Waiting { id: u32, count: u32 },
    Done,
}

/// An instruction's share of asynchronous copies.
pub(super) struct Copy {
    pub mask: u32,
    pub group: [u32; 32],
    pub to: [u32; 32],
    pub bytes: usize,
    pub data: [[u8; 16]; 32],
}

pub(super) struct Warp {
    pub index: usize,
    pub words: Vec<Words>,
    pub doubles: Vec<Doubles>,
    pub predicates: Vec<u32>,
    pub pc: u32,
    pub mask: u32,
    pub live: u32,
    pub groups: Vec<Group>,
    /// The lowest pc of groups that run: where the current one must look around.
    pub look: u32,
    pub carry: u32,
    pub status: Status,
    pub copies: Vec<Copy>,
    pub commits: [u32; 32],
    pub local: Vec<u8>,
    /// Of a reducing barrier: lanes that voted yes, and where the result goes.
    pub votes: u32,
    pub result: (u32, u32),
}

pub(super) struct State {
    pub shared: Shared,
    pub order: Order,
    pub counters: Counters,
    pub faults: Vec<Fault>,
    seen: HashSet<(u32, Kind)>,
    pub block: [u32; 3],
    pub linear: u32,
    /// Barriers passed in this block.
    pub interval: u32,
    pub steps: u64,
    /// The block can't go on.
    pub dead: bool,
}

pub(super) struct Worker {
    pub warps: Vec<Warp>,
    pub state: State,
}

impl Worker {
    pub fn new() -> Self {
        Worker {
            warps: Vec::new(),
            state: State {
                shared: Shared::default(),
                order: Order::default(),
                counters: Counters::default(),
                faults: Vec::new(),
                seen: HashSet::new(),
                block: [0; 3],
                linear: 0,
                interval: 0,
                steps: 0,
                dead: false,
            },
        }
    }

    /// Sizes buffers for a kernel, and fills the rows that no block changes.
    pub fn prepare(&mut self, run: &Run<'_>) {
        let kernel = run.kernel;
        let threads = run.config.block.iter().product::<u32>() as usize;
        self.warps.resize_with(threads.div_ceil(32), || Warp {
            index: 0,
            words: Vec::new(),
            doubles: Vec::new(),
            predicates: Vec::new(),
            pc: 0,
            mask: 0,
            live: 0,
            groups: Vec::new(),
            look: u32::MAX,
            carry: 0,
            status: Status::Done,
            copies: Vec::new(),
            commits: [0; 32],
            local: Vec::new(),
            votes: 0,
            result: (0, 0),
        });
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.index = index;
            warp.words.resize(kernel.words, [0; 32]);
            warp.doubles.resize(kernel.doubles, [0; 32]);
            warp.predicates.resize(kernel.predicates, 0);
            warp.local.resize(kernel.local_bytes * 32, 0);
            for &(register, value) in &kernel.constants {
                if !matches!(value, Value::Block(_)) {
                    fill(warp, run, [0; 3], register, value);
                }
            }
        }
        let dynamic = (kernel.dynamic_base, run.config.shared);
        self.state.shared.resize(dynamic.0 + dynamic.1 + 64, &kernel.shared, dynamic);
        self.state.counters = Counters::default();
        self.state.faults.clear();
        self.state.seen.clear();
    }

    pub fn start_block(&mut self, run: &Run<'_>, block: [u32; 3], linear: u32) {
        let state = &mut self.state;
        state.block = block;
        state.linear = linear;
        state.interval = 0;
        state.steps = 0;
        state.dead = false;
        state.order.start(self.warps.len());
        state.shared.start(state.order.now, run.check);
        let threads = run.config.block.iter().product::<u32>();
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let lanes = (threads - index as u32 * 32).min(32);
            warp.live = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
            warp.mask = warp.live;
            warp.pc = 0;
            warp.groups.clear();
            warp.look = u32::MAX;
            warp.status = Status::Ready;
            warp.copies.clear();
            warp.commits = [0; 32];
            for &(register, value) in &run.kernel.constants {
                if matches!(value, Value::Block(_)) {
                    fill(warp, run, block, register, value);
                }
            }
        }
    }
}

fn fill(warp: &mut Warp, run: &Run<'_>, block: [u32; 3], register: Register, value: Value) {
    let size = run.config.block;
    let base = warp.index as u32 * 32;
    let of = |lane: u32| -> u64 {
        let thread = base + lane;
        u64::from(match value {
            Value::Bits(bits) => return bits,
            Value::GlobalAddress(offset) => return run.globals + offset,
            Value::DynamicShared => return run.kernel.dynamic_base as u64,
            Value::Thread(0) => thread % size[0],
            Value::Thread(1) => thread / size[0] % size[1],
            Value::Thread(_) => thread / size[0] / size[1],
            Value::Block(axis) => block[usize::from(axis)],
            Value::BlockSize(axis) => size[usize::from(axis)],
            Value::GridSize(axis) => run.config.grid[usize::from(axis)],
            Value::Lane => lane,
            Value::Warp => warp.index as u32,
            Value::Warps => size.iter().product::<u32>().div_ceil(32),
            Value::LaneMaskEq => 1 << lane,
            Value::LaneMaskLt => (1 << lane) - 1,
            Value::LaneMaskLe => u32::MAX >> (31 - lane),
            Value::LaneMaskGt => !(u32::MAX >> (31 - lane)),
            Value::LaneMaskGe => !((1 << lane) - 1),
        })
    };
    match register {
        Register::Word(row) => warp.words[row as usize] = std::array::from_fn(|i| of(i as u32) as u32),
        Register::Double(row) => warp.doubles[row as usize] = std::array::from_fn(|i| of(i as u32)),
        Register::Predicate(row) => {
            warp.predicates[row as usize] = if of(0) != 0 { u32::MAX } else { 0 };
        }
    }
}

impl State {
    pub fn fault(&mut self, run: &Run<'_>, kind: Kind, place: u32, thread: usize, what: String) {
        if !self.seen.insert((place, kind)) {
            return;
        }
        let place = run.kernel.place(place);
        if self.faults.len() < FAULTS {
            self.faults.push(Fault { what, place, block: self.block, thread: thread as u32 });
        }
        if self.faults.len() == FAULTS {
            self.dead = true;
        }
    }

    pub fn fatal(&mut self, run: &Run<'_>, kind: Kind, place: u32, thread: usize, what: String) {
        self.fault(run, kind, place, thread, what);
        self.dead = true;
    }

    #[inline(always)]
    pub fn who(&self, run: &Run<'_>, warp: usize, lane: usize) -> Who {
        Who {
            epoch: run.memory.epoch,
            block: self.linear,
            thread: (warp * 32 + lane) as u32,
            interval: self.interval,
        }
    }

    #[cold]
    pub fn wrong(&mut self, run: &Run<'_>, wrong: Wrong, space: &str, place: u32, thread: usize, at: u64) {
        let (kind, what) = match wrong {
            Wrong::Uninitialised => (Kind::Uninitialised, "read of uninitialised"),
            Wrong::RaceReadAfterWrite => {
                (Kind::Race, "race: read of what another thread wrote, unordered, in")
            }
            Wrong::RaceWriteAfterWrite => {
                (Kind::Race, "race: write over what another thread wrote, unordered, in")
            }
            Wrong::RaceWriteAfterRead => {
                (Kind::Race, "race: write over what another thread read, unordered, in")
            }
            Wrong::Atomicity => (Kind::Race, "race: two lanes write different values in one instruction to"),
        };
        self.fault(run, kind, place, thread, format!("{what} {space} memory at {at:#x}"));
    }

    #[cold]
    pub fn shared_wrong(&mut self, run: &Run<'_>, wrong: SharedWrong, place: u32, thread: usize, at: u64) {
        match wrong {
            SharedWrong::Memory(wrong) => self.wrong(run, wrong, "shared", place, thread, at),
            SharedWrong::Pending => self.fault(
                run,
                Kind::Pending,
                place,
                thread,
                format!("use of shared memory at {at:#x} that cp.async is still filling"),
            ),
        }
    }
}
