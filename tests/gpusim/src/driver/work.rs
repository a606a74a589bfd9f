//! What a stream holds: units of work that run some time after the call that asked for them.

use std::ffi::c_void;
use std::sync::Arc;

use crate::machine::Config;
use crate::ptx::{Kernel, Module};

/// What a caller holds: never 0, never given out twice, so that a stale one is found.
pub type Handle = u64;

/// Host memory of a copy.
#[derive(Clone, Debug)]
pub enum Host {
    /// Pageable memory, taken at the call, as a driver stages it.
    Staged(Arc<[u8]>),
    /// Pinned memory, read or written when the copy runs; `pin` says which allocation was meant.
    Pinned { address: usize, pin: Handle },
    /// Pageable memory that a copy writes; its call returns when that is done.
    Pageable { address: usize },
}

/// A module as it was loaded.
#[derive(Debug)]
pub struct Loaded {
    pub module: Module,
    /// Threads per block by each kernel's launch bounds.
    pub max_threads: Vec<usize>,
}

/// One kernel launch. Keeps the module it comes from alive.
#[derive(Debug)]
pub struct Call {
    pub module: Arc<Loaded>,
    pub kernel: usize,
    pub config: Config,
    pub params: Vec<Vec<u8>>,
}

impl Call {
    pub fn kernel(&self) -> &Kernel {
        &self.module.module.kernels[self.kernel]
    }
}

/// A host function in a stream.
#[derive(Clone, Copy, Debug)]
pub struct Callback {
    pub function: unsafe extern "C" fn(*mut c_void),
    pub data: *mut c_void,
}

// SAFETY: the caller of cuLaunchHostFunc has to expect the call on any thread.
unsafe impl Send for Callback {}
// SAFETY: shared only inside graphs, where it is copied out and not touched.
unsafe impl Sync for Callback {}

#[derive(Clone, Debug)]
pub enum Work {
    Kernel(Arc<Call>),
    /// `count` values of `width` bytes.
    Fill {
        to: u64,
        value: u32,
        width: usize,
        count: usize,
    },
    Upload {
        to: u64,
        from: Host,
        bytes: usize,
    },
    Download {
        to: Host,
        from: u64,
        bytes: usize,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Free(u64),
    Callback(Callback),
    /// The n-th record of an event.
    Record {
        event: Handle,
        nth: u64,
    },
    /// A join or a wait: only its dependencies matter.
    Nothing,
}

/// A captured piece of work and the indices of those it comes after.
#[derive(Clone, Debug)]
pub struct Node {
    pub work: Work,
    pub after: Vec<usize>,
}

/// Nodes come after the nodes they depend on.
#[derive(Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
}

/// One launch of a graph under way.
#[derive(Debug)]
pub struct Run {
    pub graph: Arc<Graph>,
    pub done: Vec<bool>,
    pub left: usize,
}

impl Run {
    pub fn new(graph: Arc<Graph>) -> Self {
        let n = graph.nodes.len();
        Run { graph, done: vec![false; n], left: n }
    }

    /// Nodes that may run now.
    pub fn ready(&self) -> impl DoubleEndedIterator<Item = usize> {
        let free =
            |i: &usize| !self.done[*i] && self.graph.nodes[*i].after.iter().all(|&before| self.done[before]);
        (0..self.done.len()).filter(free)
    }
}

#[derive(Debug)]
pub enum Body {
    One(Work),
    Graph(Run),
}

/// One entry of a stream.
#[derive(Debug)]
pub struct Item {
    /// Streams and how many of their entries must be done before.
    pub waits: Vec<(Handle, u64)>,
    pub body: Body,
}
