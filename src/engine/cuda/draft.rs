//! What a graph consists of on a GPU before anything has its place or its time: one draft for each
//! operation and each conversion between, the buffers that they name, parameters and constants.

use std::collections::HashMap;

use super::elementwise;
use super::join::{Family, Item, family};
use super::launch::{Launch, Limits, Lowered, Task, Typed};
use super::lower::{lower, together};
use super::norm;
use super::schedule::{ALIGN, Loc, Lying, Port};
use super::sources::Sources;
use super::storage::{Storage, Wanted, result, wanted};
use crate::engine::graph::{Graph, GraphError, Value};
use crate::engine::op::Op;
use crate::engine::passes;
use crate::engine::program::ProgramError;
use crate::engine::tensor::ParamStore;

/// What an operand is made of, before offsets are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    Value(Value),
    /// The fp16 copy of a parameter or constant.
    Shadow(Value),
    /// A buffer of its own.
    Temporary(usize, Storage),
}

/// Something that needs a place in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub bytes: usize,
}

/// What a draft computes.
#[derive(Clone, Debug)]
enum Work {
    /// Operands as the operation asks for them.
    Operation(Value, Vec<Typed>),
    /// Moments and the normalisation by them, at once.
    Norms {
        moments: Value,
        normalize: Value,
    },
    Convert(Box<Launch>),
}

/// One operation, or a conversion before it.
#[derive(Clone, Debug)]
pub struct Draft {
    pub name: String,
    work: Work,
    pub inputs: Vec<Operand>,
    pub shadows: Vec<Option<Value>>,
    pub out: Operand,
    /// Inputs that are written.
    writes: Vec<usize>,
    /// Its launches wait for none of each other.
    pub beside: bool,
    pub converts: Option<usize>,
}

impl Draft {
    pub fn buffers(&self) -> impl Iterator<Item = Operand> {
        self.inputs.iter().copied().chain([self.out])
    }
}

/// An input or output of the program: its value, and from or to where it is copied.
#[derive(Clone, Debug)]
pub struct DraftPort {
    name: String,
    value: Value,
    landing: Operand,
    offset: usize,
}

pub struct Drafts<'a> {
    graph: &'a Graph,
    limits: Limits,
    storage: Vec<Storage>,
    pub sources: Sources,
    pub buffers: Vec<Buffer>,
    owner: HashMap<Value, usize>,
    pub all: Vec<Draft>,
    /// Buffers that the host fills, and those that it reads.
    pub from_start: Vec<usize>,
    pub to_end: Vec<usize>,
    pub inputs: Vec<DraftPort>,
    pub outputs: Vec<DraftPort>,
}

impl<'a> Drafts<'a> {
    pub fn new(
        graph: &'a Graph,
        outputs: &[(&str, Value)],
        stores: [&ParamStore; 2],
        limits: Limits,
    ) -> Result<Self, ProgramError> {
        let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
        let live = passes::live(graph, &kept);
        let live: Vec<Value> = graph.values().filter(|v| live[v.index()]).collect();
        let storage = storages(graph, &live, &kept);
        let sources = Sources::new(graph, &live, &storage, outputs, stores)?;
        let mut drafts = Drafts {
            graph,
            limits,
            storage,
            sources,
            buffers: Vec::new(),
            owner: HashMap::new(),
            all: Vec::new(),
            from_start: Vec::new(),
            to_end: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        drafts.add_inputs(&live)?;
        let order: Vec<Value> = live.into_iter().filter(|v| !graph.node(*v).op.is_source()).collect();
        let fused = drafts.fusable_norms(&order);
        for v in order {
            drafts.own(v);
            // Moments that come with their normalisation have a place, but no draft.
            if !fused.contains_key(&v) {
                drafts.operation(v, &fused);
            }
        }
        drafts.add_outputs(outputs);
        Ok(drafts)
    }

    fn typed(&self, v: Value) -> Typed {
        Typed { shape: self.graph.shape(v), storage: self.storage[v.index()] }
    }

    fn reserve(&mut self, bytes: usize) -> usize {
        self.buffers.push(Buffer { bytes });
        self.buffers.len() - 1
    }

    /// Gives a value its place in the arena.
    fn own(&mut self, v: Value) -> usize {
        let buffer = self.reserve(self.graph.shape(v).len() * self.storage[v.index()].bytes());
        self.owner.insert(v, buffer);
        buffer
    }

    /// The buffer that an operand lies in; `None` for what is persistent.
    pub fn buffer(&self, operand: Operand) -> Option<usize> {
        match operand {
            Operand::Value(v) => self.owner.get(&v).copied(),
            Operand::Shadow(_) => None,
            Operand::Temporary(buffer, _) => Some(buffer),
        }
    }

    /// Moments that can be lowered with their normalisation → that normalisation.
    fn fusable_norms(&self, order: &[Value]) -> HashMap<Value, Value> {
        let mut readers: HashMap<Value, Vec<Value>> = HashMap::new();
        for v in order {
            for input in &self.graph.node(*v).inputs {
                readers.entry(*input).or_default().push(*v);
            }
        }
        let mut fused = HashMap::new();
        for moments in order.iter().filter(|v| matches!(self.graph.node(**v).op, Op::Moments { .. })) {
            // The first reader must be the normalisation of the same x.
            let Some(first) = readers.get(moments).and_then(|r| r.iter().min()) else { continue };
            let node = self.graph.node(*first);
            let same = node.inputs.first() == self.graph.node(*moments).inputs.first();
            if !matches!(node.op, Op::Normalize { .. }) || !same || node.inputs.get(1) != Some(moments) {
                continue;
            }
            let wanted_as_is = node.inputs.iter().enumerate().all(|(i, v)| self.suits(&node.op, i, *v));
            if wanted_as_is && self.lower_norms(*moments, *first).is_some() {
                fused.insert(*moments, *first);
            }
        }
        fused
    }

    fn lower_norms(&self, moments: Value, normalize: Value) -> Option<Lowered> {
        let (m, n) = (self.graph.node(moments), self.graph.node(normalize));
        let m_inputs: Vec<Typed> = m.inputs.iter().map(|v| self.typed(*v)).collect();
        let n_inputs: Vec<Typed> = n.inputs.iter().map(|v| self.typed(*v)).collect();
        let limits = self.limits;
        norm::lower_both(
            &Task { op: &m.op, inputs: &m_inputs, out: self.typed(moments), limits },
            &Task { op: &n.op, inputs: &n_inputs, out: self.typed(normalize), limits },
        )
    }

    /// Whether input `i` of `op` can be read as it lies.
    fn suits(&self, op: &Op, i: usize, v: Value) -> bool {
        match wanted(op, i) {
            Wanted::F16 => self.storage[v.index()] == Storage::F16,
            Wanted::F32 => self.storage[v.index()] == Storage::F32,
            Wanted::Real | Wanted::U32 => true,
        }
    }

    fn operation(&mut self, v: Value, fused: &HashMap<Value, Value>) {
        let node = self.graph.node(v);
        let mut inputs = Vec::with_capacity(node.inputs.len());
        let mut typed = Vec::with_capacity(node.inputs.len());
        for (i, input) in node.inputs.iter().enumerate() {
            let (operand, storage) = self.operand(&node.op, i, *input);
            inputs.push(operand);
            typed.push(Typed { shape: self.graph.shape(*input), storage });
        }
        let moments = node.inputs.get(1).copied().filter(|m| fused.get(m) == Some(&v));
        let (work, writes) = match moments {
            Some(moments) => (Work::Norms { moments, normalize: v }, vec![1]),
            None => (Work::Operation(v, typed), node.op.writes().to_vec()),
        };
        let shadow = |input: &Value| self.sources.shadow(*input).map(|_| *input);
        self.all.push(Draft {
            name: node.name.clone(),
            work,
            inputs,
            shadows: node.inputs.iter().map(shadow).collect(),
            out: Operand::Value(v),
            writes,
            beside: matches!(node.op, Op::Concat { .. }),
            converts: None,
        });
    }

    /// Input `i` of `op` as it asks for it, converted where it lies otherwise.
    fn operand(&mut self, op: &Op, i: usize, v: Value) -> (Operand, Storage) {
        let from = self.storage[v.index()];
        let to = match wanted(op, i) {
            Wanted::F16 => Storage::F16,
            Wanted::F32 => Storage::F32,
            Wanted::Real | Wanted::U32 => from,
        };
        if from == to {
            return (Operand::Value(v), to);
        }
        if to == Storage::F16 && self.sources.shadow(v).is_some() {
            return (Operand::Shadow(v), to);
        }
        let len = self.graph.shape(v).len();
        let temporary = Operand::Temporary(self.reserve(len * to.bytes()), to);
        let name = format!("{} as {to:?}", self.graph.node(v).name);
        self.convert(name, Operand::Value(v), from, temporary, to, len);
        (temporary, to)
    }

    fn convert(&mut self, name: String, x: Operand, from: Storage, out: Operand, to: Storage, len: usize) {
        let launch = elementwise::convert(from, to, len, &self.limits);
        self.all.push(Draft {
            name,
            work: Work::Convert(Box::new(launch)),
            inputs: vec![x],
            shadows: vec![None],
            out,
            writes: Vec::new(),
            beside: false,
            converts: None,
        });
    }

    /// Places of inputs, and their conversions.
    fn add_inputs(&mut self, live: &[Value]) -> Result<(), ProgramError> {
        let mut offset = 0;
        for v in live.iter().copied() {
            let node = self.graph.node(v);
            if !matches!(node.op, Op::Input { .. }) {
                continue;
            }
            if self.inputs.iter().any(|other| other.name == node.name) {
                return Err(ProgramError::TwoInputs(node.name.clone()));
            }
            // A feed fills the value itself before anything else runs.
            let own = self.own(v);
            self.from_start.push(own);
            let len = node.shape.len();
            let landing = match self.storage[v.index()] {
                Storage::F16 => {
                    let buffer = self.reserve(len * 4);
                    self.from_start.push(buffer);
                    let landing = Operand::Temporary(buffer, Storage::F32);
                    let name = format!("{} as F16", node.name);
                    self.convert(name, landing, Storage::F32, Operand::Value(v), Storage::F16, len);
                    if let Some(draft) = self.all.last_mut() {
                        draft.converts = Some(self.inputs.len());
                    }
                    landing
                }
                Storage::F32 | Storage::U32 => Operand::Value(v),
            };
            self.inputs.push(DraftPort { name: node.name.clone(), value: v, landing, offset });
            offset += len.next_multiple_of(ALIGN / 4);
        }
        Ok(())
    }

    /// Conversions of fp16 outputs, and from where each is fetched.
    fn add_outputs(&mut self, outputs: &[(&str, Value)]) {
        let mut offset = 0;
        for (name, v) in outputs {
            let len = self.graph.shape(*v).len();
            let value = Operand::Value(*v);
            let landing = if self.storage[v.index()] == Storage::F16 {
                let to = Operand::Temporary(self.reserve(len * 4), Storage::F32);
                self.convert(format!("{name} as F32"), value, Storage::F16, to, Storage::F32, len);
                to
            } else {
                value
            };
            let fetched = [value, landing].map(|operand| self.buffer(operand));
            self.to_end.extend(fetched.into_iter().flatten());
            self.outputs.push(DraftPort { name: (*name).to_owned(), value: *v, landing, offset });
            offset += len.next_multiple_of(ALIGN / 4);
        }
    }

    /// The drafts as `join` sees them.
    pub fn items(&self) -> Result<Vec<Item>, ProgramError> {
        let mut numbers: HashMap<Operand, usize> = HashMap::new();
        // Whoever writes a parameter writes its copy too.
        let mut number = |operand: Operand| {
            let whole = match operand {
                Operand::Shadow(v) => Operand::Value(v),
                other => other,
            };
            let next = numbers.len();
            *numbers.entry(whole).or_insert(next)
        };
        let mut items = Vec::with_capacity(self.all.len());
        for (i, draft) in self.all.iter().enumerate() {
            let written = draft.writes.iter().filter_map(|i| draft.inputs.get(*i)).copied();
            let writes = written.chain([draft.out]).map(&mut number).collect();
            let reads = draft.inputs.iter().copied().map(&mut number).collect();
            items.push(Item { reads, writes, family: self.family(i)? });
        }
        Ok(items)
    }

    fn family(&self, draft: usize) -> Result<Option<Family>, ProgramError> {
        Ok(match &self.all[draft].work {
            Work::Convert(_) => None,
            _ => self.lower(&[draft])?.first().and_then(|lowered| family(&lowered.launches)),
        })
    }

    /// The launches of drafts of one family.
    pub fn lower(&self, group: &[usize]) -> Result<Vec<Lowered>, ProgramError> {
        let mut tasks: Vec<Task> = Vec::with_capacity(group.len());
        let mut lowered: Vec<Option<Lowered>> = vec![None; group.len()];
        for (draft, lowered) in group.iter().map(|i| &self.all[*i]).zip(&mut lowered) {
            match &draft.work {
                Work::Operation(v, typed) => {
                    let op = &self.graph.node(*v).op;
                    tasks.push(Task { op, inputs: typed, out: self.typed(*v), limits: self.limits });
                }
                Work::Norms { moments, normalize } => {
                    let both = self.lower_norms(*moments, *normalize);
                    *lowered = Some(both.ok_or_else(|| self.misplaced(*normalize))?);
                }
                Work::Convert(launch) => *lowered = Some(Lowered::one((**launch).clone())),
            }
        }
        let mut rest = match &tasks[..] {
            [] => Vec::new(),
            [one] => vec![lower(one)?],
            several => together(several)?,
        }
        .into_iter();
        let mut all: Vec<Lowered> = Vec::with_capacity(group.len());
        for own in lowered {
            all.extend(own.or_else(|| rest.next()));
        }
        norm::same_variant(&mut all);
        Ok(all)
    }

    pub fn lying(&self, operand: Operand, arena: impl Fn(usize) -> Loc) -> Result<Lying, ProgramError> {
        let (v, loc, storage) = match operand {
            Operand::Temporary(buffer, storage) => return Ok(Lying { loc: arena(buffer), storage }),
            Operand::Shadow(v) => (v, self.sources.shadow(v), Storage::F16),
            Operand::Value(v) => {
                let own = || self.owner.get(&v).map(|b| arena(*b));
                (v, self.sources.original(v).or_else(own), self.storage[v.index()])
            }
        };
        loc.map(|loc| Lying { loc, storage }).ok_or_else(|| self.misplaced(v))
    }

    pub fn port(&self, port: &DraftPort, arena: impl Fn(usize) -> Loc) -> Result<Port, ProgramError> {
        let node = self.graph.node(port.value);
        Ok(Port {
            name: port.name.clone(),
            shape: node.shape,
            dtype: node.dtype,
            offset: port.offset,
            loc: self.lying(port.landing, &arena)?.loc,
            value: self.lying(Operand::Value(port.value), &arena)?,
        })
    }

    fn misplaced(&self, v: Value) -> ProgramError {
        ProgramError::Graph(GraphError {
            node: self.graph.node(v).name.clone(),
            message: "stands after a node that reads it".into(),
        })
    }
}

/// How every value is stored.
fn storages(graph: &Graph, live: &[Value], outputs: &[Value]) -> Vec<Storage> {
    let mut only_reduced = vec![true; graph.nodes().len()];
    let mut read = vec![false; graph.nodes().len()];
    for v in live {
        let node = graph.node(*v);
        let reduces = matches!(node.op, Op::Reduce { .. } | Op::SumSquares);
        for input in &node.inputs {
            read[input.index()] = true;
            only_reduced[input.index()] &= reduces;
        }
    }
    for v in outputs {
        only_reduced[v.index()] = false;
    }
    let mut storage = vec![Storage::F32; graph.nodes().len()];
    for v in live {
        let node = graph.node(*v);
        let inputs: Vec<Storage> = node.inputs.iter().map(|i| storage[i.index()]).collect();
        let reduced = only_reduced[v.index()] && read[v.index()];
        storage[v.index()] = result(&node.op, node.dtype, node.shape.len(), &inputs, reduced);
    }
    storage
}
