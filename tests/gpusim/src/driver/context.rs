//! The primary context: streams, events, modules, graphs and who may use which memory. Nothing here
//! runs work; [`super::run`] does.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Instant;

use super::settings::{Chance, Sequence};
use super::status::*;
use super::work::{Body, Graph, Handle, Item, Loaded, Node, Run, Work};

/// The legacy stream, which callers also name 0.
pub const LEGACY: Handle = 1;
/// "The stream of this thread."
pub const PER_THREAD: Handle = 2;
/// Handles that are given out start here.
pub const FIRST_HANDLE: Handle = 0x100;

#[derive(Debug)]
pub struct Stream {
    /// Ordered with the legacy stream, as streams are that were not created as non-blocking.
    pub blocking: bool,
    pub priority: i32,
    queue: VecDeque<Item>,
    enqueued: u64,
    done: u64,
    destroyed: bool,
    /// How likely it is picked next.
    weight: u64,
    pub capture: Option<Handle>,
}

impl Stream {
    pub fn new(blocking: bool, priority: i32) -> Self {
        Stream {
            blocking,
            priority,
            queue: VecDeque::new(),
            enqueued: 0,
            done: 0,
            destroyed: false,
            weight: 1,
            capture: None,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Mark {
    Never,
    /// Done when that many entries of the stream are.
    At(Handle, u64),
    /// Recorded while its stream was captured: a place in that capture.
    Captured(Handle, Vec<usize>),
}

#[derive(Debug)]
pub struct Event {
    pub timing: bool,
    pub mark: Mark,
    pub records: u64,
    /// When its latest record that ran did so.
    pub time: Option<(u64, Instant)>,
}

/// A kernel as a caller holds it.
#[derive(Clone, Debug)]
pub struct Function {
    pub owner: Handle,
    pub module: Arc<Loaded>,
    pub kernel: usize,
    /// Dynamic shared memory that was opted in to.
    pub dynamic_shared: usize,
}

#[derive(Debug)]
pub struct Exec {
    pub graph: Arc<Graph>,
    /// Its latest launch: a graph does not run beside itself.
    pub last: Option<(Handle, u64)>,
}

#[derive(Debug)]
pub struct Capture {
    pub origin: Handle,
    pub mode: u32,
    pub thread: ThreadId,
    pub nodes: Vec<Node>,
    /// What the next work of a stream comes after.
    pub tips: BTreeMap<Handle, Vec<usize>>,
    /// Something that a capture does not allow happened.
    pub broken: bool,
}

/// Pinned host memory.
#[derive(Debug)]
pub struct Pin {
    pub id: Handle,
    pub bytes: usize,
    /// Came from the application, which also frees it.
    pub registered: bool,
}

#[derive(Debug)]
pub struct Context {
    pub handle: Handle,
    pub retained: usize,
    pub streams: BTreeMap<Handle, Stream>,
    per_thread: HashMap<ThreadId, Handle>,
    pub events: HashMap<Handle, Event>,
    pub modules: HashMap<Handle, Arc<Loaded>>,
    pub functions: BTreeMap<Handle, Function>,
    pub captures: HashMap<Handle, Capture>,
    pub graphs: HashMap<Handle, Arc<Graph>>,
    pub execs: HashMap<Handle, Exec>,
    pub pins: BTreeMap<usize, Pin>,
    /// Device memory that callers may name, by address.
    pub buffers: BTreeMap<u64, usize>,
    /// Device memory that is taken, by address, including what a stream is yet to free; rounded up.
    pub taken: HashMap<u64, usize>,
    /// The sum of it.
    pub used: usize,
    /// What every call answers since something went wrong for good.
    pub fault: Option<Status>,
}

/// One unit of work that was picked.
#[derive(Debug)]
pub struct Ticket {
    pub stream: Handle,
    pub node: Option<usize>,
    pub work: Work,
}

impl Context {
    pub fn new(handle: Handle) -> Self {
        Context {
            handle,
            retained: 0,
            streams: BTreeMap::from([(LEGACY, Stream::new(true, 0))]),
            per_thread: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: BTreeMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            execs: HashMap::new(),
            pins: BTreeMap::new(),
            buffers: BTreeMap::new(),
            taken: HashMap::new(),
            used: 0,
            fault: None,
        }
    }

    // ------------------------------------------------------------ names

    /// The stream that a caller means; `fresh` is a handle for this thread's own, should it be new.
    pub fn stream(&mut self, named: Handle, fresh: impl FnOnce() -> Handle) -> Answer<Handle> {
        match named {
            0 | LEGACY => Ok(LEGACY),
            PER_THREAD => {
                let handle = *self.per_thread.entry(thread::current().id()).or_insert_with(fresh);
                self.streams.entry(handle).or_insert_with(|| Stream::new(true, 0));
                Ok(handle)
            }
            other => match self.streams.get(&other) {
                Some(stream) if !stream.destroyed => Ok(other),
                _ => Err(INVALID_HANDLE),
            },
        }
    }

    /// The pinned range that holds all of `[address, address + bytes)`.
    pub fn pin(&self, address: usize, bytes: usize) -> Option<Handle> {
        let (start, pin) = self.pins.range(..=address).next_back()?;
        let end = address.checked_add(bytes)?;
        (end <= start + pin.bytes).then_some(pin.id)
    }

    /// Whether a live buffer holds all of the range.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let Some((start, len)) = self.buffers.range(..=address).next_back() else { return false };
        address.checked_add(bytes as u64).is_some_and(|end| end <= start + *len as u64)
    }

    /// Device memory that is no longer taken.
    pub fn release(&mut self, address: u64) {
        if let Some(bytes) = self.taken.remove(&address) {
            self.used -= bytes;
        }
    }

    // ------------------------------------------------------------ order

    /// Appends work to a stream, or to the capture that the stream is part of.
    pub fn submit(&mut self, stream: Handle, work: Work) -> Answer {
        if self.capturing(stream)? {
            return self.record_node(stream, work).map(|_| ());
        }
        self.enqueue(stream, Vec::new(), Body::One(work)).map(|_| ())
    }

    /// Entry number of the work in its stream.
    fn enqueue(&mut self, stream: Handle, mut waits: Vec<(Handle, u64)>, body: Body) -> Answer<u64> {
        if stream == LEGACY {
            self.refuse_implicit_dependency()?;
            let others = self.streams.iter().filter(|(h, s)| **h != LEGACY && s.blocking);
            waits.extend(others.map(|(h, s)| (*h, s.enqueued)));
        } else if self.streams.get(&stream).is_some_and(|s| s.blocking) {
            waits.extend(self.streams.get(&LEGACY).map(|s| (LEGACY, s.enqueued)));
        }
        waits.retain(|(handle, count)| !self.reached(*handle, *count));
        let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        stream.queue.push_back(Item { waits, body });
        stream.enqueued += 1;
        Ok(stream.enqueued)
    }

    /// Whether that many entries of a stream are done. A stream that is gone had all done.
    pub fn reached(&self, stream: Handle, count: u64) -> bool {
        self.streams.get(&stream).is_none_or(|s| s.done >= count)
    }

    /// What a synchronisation with the stream has to wait for: the legacy stream means all blocking ones.
    pub fn all_of(&self, stream: Handle) -> Vec<(Handle, u64)> {
        let meant = |(h, s): &(&Handle, &Stream)| **h == stream || (stream == LEGACY && s.blocking);
        self.streams.iter().filter(meant).map(|(h, s)| (*h, s.enqueued)).collect()
    }

    pub fn everything(&self) -> Vec<(Handle, u64)> {
        self.streams.iter().map(|(h, s)| (*h, s.enqueued)).collect()
    }

    pub fn launch_graph(&mut self, exec: Handle, stream: Handle) -> Answer {
        if self.capturing(stream)? {
            // A child graph: its nodes become nodes of the capture.
            let graph = self.execs.get(&exec).ok_or(INVALID_HANDLE)?.graph.clone();
            return self.record_graph(stream, &graph);
        }
        let (graph, last) = self.execs.get(&exec).map(|e| (e.graph.clone(), e.last)).ok_or(INVALID_HANDLE)?;
        let seq = self.enqueue(stream, last.into_iter().collect(), Body::Graph(Run::new(graph)))?;
        if let Some(exec) = self.execs.get_mut(&exec) {
            exec.last = Some((stream, seq));
        }
        Ok(())
    }

    pub fn record(&mut self, event: Handle, stream: Handle) -> Answer {
        let nth = self.events.get(&event).ok_or(INVALID_HANDLE)?.records + 1;
        let mark = if self.capturing(stream)? {
            let id = self.streams.get(&stream).and_then(|s| s.capture).ok_or(INVALID_HANDLE)?;
            let tips = self.captures.get(&id).and_then(|c| c.tips.get(&stream).cloned()).unwrap_or_default();
            Mark::Captured(id, tips)
        } else {
            let seq = self.enqueue(stream, Vec::new(), Body::One(Work::Record { event, nth }))?;
            Mark::At(stream, seq)
        };
        let event = self.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        event.records = nth;
        event.mark = mark;
        Ok(())
    }

    pub fn wait(&mut self, stream: Handle, event: Handle) -> Answer {
        let mark = self.events.get(&event).ok_or(INVALID_HANDLE)?.mark.clone();
        match mark {
            Mark::Captured(capture, tips) => self.join(stream, capture, &tips),
            Mark::At(..) if self.capturing(stream)? => Err(self.break_capture_of(stream, CAPTURE_ISOLATION)),
            Mark::Never => Ok(()),
            Mark::At(on, seq) => self.enqueue(stream, vec![(on, seq)], Body::One(Work::Nothing)).map(|_| ()),
        }
    }

    /// Marks a stream as gone; its work still runs.
    pub fn destroy_stream(&mut self, handle: Handle) -> Answer {
        let stream = self.streams.get_mut(&handle).filter(|s| !s.destroyed).ok_or(INVALID_HANDLE)?;
        stream.destroyed = true;
        let capture = stream.capture.take();
        if stream.queue.is_empty() {
            self.streams.remove(&handle);
        }
        if let Some(capture) = capture.and_then(|id| self.captures.get_mut(&id)) {
            capture.broken = true;
        }
        Ok(())
    }

    // ------------------------------------------------------------ picking

    /// Speeds of the streams relative to each other are drawn anew: any may be far behind.
    pub fn shuffle(&mut self, chance: &mut Chance) {
        for stream in self.streams.values_mut() {
            stream.weight = 1 << (3 * chance.below(4));
        }
    }

    /// One unit of work that may run now.
    pub fn pick(&mut self, sequence: Sequence, chance: &mut Chance) -> Option<Ticket> {
        if sequence == Sequence::Random && chance.below(16) == 0 {
            self.shuffle(chance);
        }
        let free = |s: &Stream| {
            s.queue.front().is_some_and(|item| item.waits.iter().all(|(on, n)| self.reached(*on, *n)))
        };
        let heads: Vec<(Handle, u64)> =
            self.streams.iter().filter(|(_, s)| free(s)).map(|(h, s)| (*h, s.weight)).collect();
        let stream = match sequence {
            Sequence::Forward => heads.first()?.0,
            Sequence::Reverse => heads.last()?.0,
            Sequence::Random => {
                let total: u64 = heads.iter().map(|(_, weight)| weight).sum();
                let mut at = chance.below(total.max(1));
                let chosen = heads.iter().find(|(_, weight)| {
                    let here = at < *weight;
                    at = at.saturating_sub(*weight);
                    here
                });
                chosen?.0
            }
        };
        match &self.streams.get(&stream)?.queue.front()?.body {
            Body::One(work) => Some(Ticket { stream, node: None, work: work.clone() }),
            Body::Graph(run) => {
                let node = match sequence {
                    Sequence::Forward => run.ready().next(),
                    Sequence::Reverse => run.ready().next_back(),
                    Sequence::Random => {
                        let ready: Vec<usize> = run.ready().collect();
                        (!ready.is_empty()).then(|| ready[chance.below(ready.len() as u64) as usize])
                    }
                };
                let work = node.map_or(Work::Nothing, |i| run.graph.nodes[i].work.clone());
                Some(Ticket { stream, node, work })
            }
        }
    }

    /// The picked work has run.
    pub fn finish(&mut self, ticket: &Ticket) {
        let Some(stream) = self.streams.get_mut(&ticket.stream) else { return };
        let over = match stream.queue.front_mut().map(|item| &mut item.body) {
            Some(Body::Graph(run)) => {
                if let Some(done) = ticket.node.and_then(|node| run.done.get_mut(node)) {
                    *done = true;
                    run.left -= 1;
                }
                run.left == 0
            }
            Some(Body::One(_)) => true,
            None => false,
        };
        if over {
            stream.queue.pop_front();
            stream.done += 1;
        }
        if let Work::Record { event, nth } = ticket.work
            && let Some(event) = self.events.get_mut(&event)
        {
            event.time = Some((nth, Instant::now()));
        }
        if over && stream.destroyed && stream.queue.is_empty() {
            self.streams.remove(&ticket.stream);
        }
    }

    /// From now on every call answers `status`; queued work never runs.
    pub fn lose(&mut self, status: Status) {
        self.fault.get_or_insert(status);
        for stream in self.streams.values_mut() {
            stream.queue.clear();
            stream.done = stream.enqueued;
        }
        for capture in self.captures.values_mut() {
            capture.broken = true;
        }
    }
}
