//! A graph laid out for a GPU: which launches in which order, and where every value lies. A pure
//! function of graph, weights and limits; no driver is asked.
//!
//! Time 0 converts inputs, times 1 … n are the operations, time n + 1 converts outputs. Values that are
//! never alive together share memory (`engine::plan`, counted here in units of 16 bytes).

use std::collections::HashMap;

use half::f16;

use super::elementwise;
use super::launch::{Launch, Limits, Lowered, Place, Task, Typed};
use super::lower;
use super::norm;
use super::storage::{Storage, Wanted, result, wanted};
use crate::engine::graph::{Graph, GraphError, Value};
use crate::engine::op::Op;
use crate::engine::passes;
use crate::engine::plan::{Request, plan};
use crate::engine::program::{ProgramError, param_of, param_words};
use crate::engine::shape::{DType, Shape};
use crate::engine::tensor::{ParamStore, Tensor};

/// Bytes per unit of the plan: its alignment of 16 units makes 256 bytes.
const UNIT: usize = 16;
const ALIGN: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Intermediates: their contents last for one run at most.
    Arena,
    /// Parameters and constants.
    Persistent,
}

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loc {
    pub block: Block,
    pub offset: usize,
    pub bytes: usize,
}

/// A value as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lying {
    pub loc: Loc,
    pub storage: Storage,
}

/// One operation, or a conversion before it.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub launches: Vec<Launch>,
    pub inputs: Vec<Lying>,
    /// fp16 copies of the parameters among the inputs.
    pub shadows: Vec<Option<Loc>>,
    pub out: Lying,
    pub scratch: Loc,
}

impl Step {
    /// For launches whose arguments name no operand.
    pub const NOWHERE: Step = {
        let loc = Loc { block: Block::Arena, offset: 0, bytes: 0 };
        Step {
            name: String::new(),
            launches: Vec::new(),
            inputs: Vec::new(),
            shadows: Vec::new(),
            out: Lying { loc, storage: Storage::F16 },
            scratch: loc,
        }
    };

    /// Where a launch's operand lies, and how. `None` for a shadow that the program has no use for.
    pub fn place(&self, place: Place) -> Option<Lying> {
        let at = |loc: Loc, offset: usize| Loc {
            offset: loc.offset + offset,
            bytes: loc.bytes.saturating_sub(offset),
            ..loc
        };
        match place {
            Place::Input(i) => self.inputs.get(i).copied(),
            Place::Out => Some(self.out),
            Place::Scratch(offset) => Some(Lying { loc: at(self.scratch, offset), storage: Storage::F32 }),
            Place::Shadow(i) => {
                self.shadows.get(i).copied().flatten().map(|loc| Lying { loc, storage: Storage::F16 })
            }
        }
    }
}

/// An input or output of the program. On the host it is fp32 (or u32), `offset` elements into the block
/// of all inputs or outputs.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
    pub offset: usize,
    /// Where it is copied to or from.
    pub loc: Loc,
    /// The value itself.
    pub value: Lying,
}

/// A parameter: the fp32 (u32) original, where anything but products reads or writes it, else its fp16
/// copy alone.
#[derive(Clone, Debug)]
pub struct Param {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
    pub lying: Lying,
}

#[derive(Debug)]
pub struct Schedule {
    pub steps: Vec<Step>,
    /// Steps at the start that convert inputs.
    pub conversions: usize,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub params: Vec<Param>,
    pub arena_bytes: usize,
    /// What the persistent block holds at the start.
    pub persistent: Vec<u8>,
}

impl Schedule {
    pub fn new(
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: [&ParamStore; 2],
        limits: Limits,
    ) -> Result<Self, ProgramError> {
        Layout::new(graph, outputs, limits).schedule(outputs, params)
    }

    /// Kernel launches of one run.
    pub fn launches(&self) -> usize {
        self.steps.iter().map(|s| s.launches.len()).sum()
    }
}

/// What an operand of a step is made of, before offsets are known.
#[derive(Clone, Copy, Debug)]
enum Operand {
    Value(Value),
    /// The fp16 copy of a parameter or constant.
    Shadow(Value),
    /// A request of the arena of its own.
    Temporary(usize, Storage),
}

struct Draft {
    name: String,
    launches: Vec<Launch>,
    inputs: Vec<Operand>,
    shadows: Vec<Option<Value>>,
    out: Operand,
    scratch: Option<usize>,
}

struct Layout<'a> {
    graph: &'a Graph,
    limits: Limits,
    live: Vec<Value>,
    storage: Vec<Storage>,
    /// Parameters and constants, in both forms.
    originals: HashMap<Value, Loc>,
    shadows: HashMap<Value, Loc>,
    block: Vec<u8>,
    requests: Vec<Request>,
    owner: HashMap<Value, usize>,
    last: HashMap<Value, usize>,
    drafts: Vec<Draft>,
}

impl<'a> Layout<'a> {
    fn new(graph: &'a Graph, outputs: &[(&str, Value)], limits: Limits) -> Self {
        let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
        let live = passes::live(graph, &kept);
        let live: Vec<Value> = graph.values().filter(|v| live[v.index()]).collect();
        let storage = storages(graph, &live, &kept);
        Layout {
            graph,
            limits,
            live,
            storage,
            originals: HashMap::new(),
            shadows: HashMap::new(),
            block: Vec::new(),
            requests: Vec::new(),
            owner: HashMap::new(),
            last: HashMap::new(),
            drafts: Vec::new(),
        }
    }

    fn schedule(
        mut self,
        outputs: &[(&str, Value)],
        stores: [&ParamStore; 2],
    ) -> Result<Schedule, ProgramError> {
        let graph = self.graph;
        let order: Vec<Value> =
            self.live.iter().copied().filter(|v| !graph.node(*v).op.is_source()).collect();
        let end = order.len() + 1;
        for (i, v) in order.iter().enumerate() {
            for input in &graph.node(*v).inputs {
                self.last.insert(*input, i + 1);
            }
        }
        for (_, v) in outputs {
            self.last.insert(*v, end);
        }
        let params = self.place_sources(outputs, stores)?;
        let inputs = self.inputs()?;
        let conversions = self.drafts.len();
        let fused = self.fusable_norms(&order);
        for (i, v) in order.iter().enumerate() {
            if fused.contains_key(v) {
                // Its launch happens with the normalisation; the moments get their place all the same.
                self.own(*v, i + 1);
                continue;
            }
            self.operation(*v, i + 1, &fused)?;
        }
        let downloads = self.outputs(outputs, end);
        let schedule = self.finish(inputs, outputs, downloads, params)?;
        Ok(Schedule { conversions, ..schedule })
    }

    fn typed(&self, v: Value) -> Typed {
        Typed { shape: self.graph.shape(v), storage: self.storage[v.index()] }
    }

    fn request(&mut self, bytes: usize, first: usize, last: usize) -> usize {
        self.requests.push(Request { len: bytes.div_ceil(UNIT), first, last });
        self.requests.len() - 1
    }

    /// Gives a value its place in the arena from `time` on.
    fn own(&mut self, v: Value, time: usize) {
        let bytes = self.graph.shape(v).len() * self.storage[v.index()].bytes();
        let last = self.last.get(&v).copied().unwrap_or(time);
        let request = self.request(bytes, time, last);
        self.owner.insert(v, request);
    }

    /// Moments whose normalisation can be had in the same launch → that normalisation.
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
        norm::lower_fused(
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

    fn operation(
        &mut self,
        v: Value,
        time: usize,
        fused: &HashMap<Value, Value>,
    ) -> Result<(), ProgramError> {
        let node = self.graph.node(v);
        let mut operands = Vec::with_capacity(node.inputs.len());
        let mut typed = Vec::with_capacity(node.inputs.len());
        for (i, input) in node.inputs.iter().enumerate() {
            let (operand, storage) = self.operand(&node.op, i, *input, time);
            operands.push(operand);
            typed.push(Typed { shape: self.graph.shape(*input), storage });
        }
        self.own(v, time);
        let of_moments = node.inputs.get(1).filter(|m| fused.get(*m) == Some(&v));
        let joined = of_moments.and_then(|m| self.lower_norms(*m, v));
        let lowered = match joined {
            Some(lowered) => lowered,
            None => lower(&Task { op: &node.op, inputs: &typed, out: self.typed(v), limits: self.limits })?,
        };
        let scratch = (lowered.scratch_bytes > 0).then(|| self.request(lowered.scratch_bytes, time, time));
        let shadow = |input: &Value| self.shadows.contains_key(input).then_some(*input);
        self.drafts.push(Draft {
            name: node.name.clone(),
            launches: lowered.launches,
            inputs: operands,
            shadows: node.inputs.iter().map(shadow).collect(),
            out: Operand::Value(v),
            scratch,
        });
        Ok(())
    }

    /// Input `i` of `op` as it asks for it, converted where it lies otherwise.
    fn operand(&mut self, op: &Op, i: usize, v: Value, time: usize) -> (Operand, Storage) {
        let from = self.storage[v.index()];
        let to = match wanted(op, i) {
            Wanted::F16 => Storage::F16,
            Wanted::F32 => Storage::F32,
            Wanted::Real | Wanted::U32 => from,
        };
        if from == to {
            return (Operand::Value(v), to);
        }
        if to == Storage::F16 && self.shadows.contains_key(&v) {
            return (Operand::Shadow(v), to);
        }
        let len = self.graph.shape(v).len();
        let temporary = Operand::Temporary(self.request(len * to.bytes(), time, time), to);
        let name = format!("{} as {to:?}", self.graph.node(v).name);
        self.convert(name, Operand::Value(v), from, temporary, to, len);
        (temporary, to)
    }

    fn convert(&mut self, name: String, x: Operand, from: Storage, out: Operand, to: Storage, len: usize) {
        let launches = vec![elementwise::convert(from, to, len, &self.limits)];
        self.drafts.push(Draft { name, launches, inputs: vec![x], shadows: vec![None], out, scratch: None });
    }

    /// Places of inputs, and the conversions that run before everything else.
    fn inputs(&mut self) -> Result<Vec<(Value, Operand, usize)>, ProgramError> {
        let mut ports: Vec<(Value, Operand, usize)> = Vec::new();
        let mut offset = 0;
        for v in self.live.clone() {
            let node = self.graph.node(v);
            if !matches!(node.op, Op::Input { .. }) {
                continue;
            }
            if ports.iter().any(|(other, ..)| self.graph.node(*other).name == node.name) {
                return Err(ProgramError::TwoInputs(node.name.clone()));
            }
            self.own(v, 0);
            let len = node.shape.len();
            let landing = match self.storage[v.index()] {
                Storage::F16 => {
                    let landing = Operand::Temporary(self.request(len * 4, 0, 0), Storage::F32);
                    let name = format!("{} as F16", node.name);
                    self.convert(name, landing, Storage::F32, Operand::Value(v), Storage::F16, len);
                    landing
                }
                Storage::F32 | Storage::U32 => Operand::Value(v),
            };
            ports.push((v, landing, offset));
            offset += len.next_multiple_of(ALIGN / 4);
        }
        Ok(ports)
    }

    /// Conversions of fp16 outputs, and from where each is fetched.
    fn outputs(&mut self, outputs: &[(&str, Value)], end: usize) -> Vec<Operand> {
        let mut fetched = Vec::with_capacity(outputs.len());
        for (name, v) in outputs {
            let len = self.graph.shape(*v).len();
            let from = Operand::Value(*v);
            fetched.push(if self.storage[v.index()] == Storage::F16 {
                let to = Operand::Temporary(self.request(len * 4, end, end), Storage::F32);
                self.convert(format!("{name} as F32"), from, Storage::F16, to, Storage::F32, len);
                to
            } else {
                from
            });
        }
        fetched
    }

    fn finish(
        self,
        inputs: Vec<(Value, Operand, usize)>,
        outputs: &[(&str, Value)],
        fetched: Vec<Operand>,
        params: Vec<Param>,
    ) -> Result<Schedule, ProgramError> {
        let plan = plan(&self.requests);
        let arena = |request: usize| Loc {
            block: Block::Arena,
            offset: plan.offsets[request] * UNIT,
            bytes: self.requests[request].len * UNIT,
        };
        let lying = |operand: Operand| -> Result<Lying, ProgramError> {
            match operand {
                Operand::Temporary(request, storage) => Ok(Lying { loc: arena(request), storage }),
                Operand::Shadow(v) => match self.shadows.get(&v) {
                    Some(loc) => Ok(Lying { loc: *loc, storage: Storage::F16 }),
                    None => Err(self.misplaced(v)),
                },
                Operand::Value(v) => {
                    let storage = self.storage[v.index()];
                    let original = self.originals.get(&v).copied();
                    let loc = original.or_else(|| self.owner.get(&v).map(|r| arena(*r)));
                    loc.map(|loc| Lying { loc, storage }).ok_or_else(|| self.misplaced(v))
                }
            }
        };
        let mut steps = Vec::with_capacity(self.drafts.len());
        for draft in &self.drafts {
            let none = Loc { block: Block::Arena, offset: 0, bytes: 0 };
            steps.push(Step {
                name: draft.name.clone(),
                launches: draft.launches.clone(),
                inputs: draft.inputs.iter().map(|o| lying(*o)).collect::<Result<_, _>>()?,
                shadows: draft
                    .shadows
                    .iter()
                    .map(|s| s.and_then(|v| self.shadows.get(&v).copied()))
                    .collect(),
                out: lying(draft.out)?,
                scratch: draft.scratch.map_or(none, arena),
            });
        }
        let port = |name: &str, v: Value, landing: Operand, offset: usize| -> Result<Port, ProgramError> {
            let node = self.graph.node(v);
            let (shape, dtype) = (node.shape, node.dtype);
            let value = lying(Operand::Value(v))?;
            Ok(Port { name: name.to_owned(), shape, dtype, offset, loc: lying(landing)?.loc, value })
        };
        let mut in_ports = Vec::with_capacity(inputs.len());
        for (v, landing, offset) in inputs {
            in_ports.push(port(&self.graph.node(v).name, v, landing, offset)?);
        }
        let mut out_ports = Vec::with_capacity(outputs.len());
        let mut offset = 0;
        for ((name, v), from) in outputs.iter().zip(fetched) {
            out_ports.push(port(name, *v, from, offset)?);
            offset += self.graph.shape(*v).len().next_multiple_of(ALIGN / 4);
        }
        Ok(Schedule {
            steps,
            conversions: 0,
            inputs: in_ports,
            outputs: out_ports,
            params,
            arena_bytes: plan.len * UNIT,
            persistent: self.block,
        })
    }

    fn misplaced(&self, v: Value) -> ProgramError {
        ProgramError::Graph(GraphError {
            node: self.graph.node(v).name.clone(),
            message: "stands after a node that reads it".into(),
        })
    }

    /// Parameters and constants, in the forms that somebody reads.
    fn place_sources(
        &mut self,
        outputs: &[(&str, Value)],
        stores: [&ParamStore; 2],
    ) -> Result<Vec<Param>, ProgramError> {
        let mut original: Vec<bool> = vec![false; self.graph.nodes().len()];
        let mut shadow = original.clone();
        for (_, v) in outputs {
            original[v.index()] = true;
        }
        for v in &self.live {
            let node = self.graph.node(*v);
            for (i, input) in node.inputs.iter().enumerate() {
                let real = self.graph.node(*input).dtype == DType::Real;
                match wanted(&node.op, i) {
                    Wanted::F16 if real => shadow[input.index()] = true,
                    _ => original[input.index()] = true,
                }
            }
        }
        let mut params = Vec::new();
        for v in self.live.clone() {
            let node = self.graph.node(v);
            let filled;
            let tensor = match &node.op {
                Op::Param { name } => param_of(stores, name, node.shape)?,
                Op::Fill { value } => {
                    filled = Tensor::full(node.shape, *value);
                    &filled
                }
                _ => continue,
            };
            let (original, shadow) = (original[v.index()], shadow[v.index()]);
            if original || !shadow {
                let words = param_words(tensor, node.dtype, &node.name)?;
                let loc = self.append(words.iter().flat_map(|w| w.to_le_bytes()), node.shape.len() * 4);
                self.originals.insert(v, loc);
            }
            if shadow {
                let halves = tensor.data.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes());
                let loc = self.append(halves, node.shape.len() * 2);
                self.shadows.insert(v, loc);
            }
            if let Op::Param { name } = &node.op {
                let whole = self.originals.get(&v).map(|loc| (*loc, self.storage[v.index()]));
                let lying = whole.or_else(|| self.shadows.get(&v).map(|loc| (*loc, Storage::F16)));
                if let Some((loc, storage)) = lying {
                    let (name, shape, dtype) = (name.clone(), node.shape, node.dtype);
                    params.push(Param { name, shape, dtype, lying: Lying { loc, storage } });
                }
            }
        }
        Ok(params)
    }

    fn append(&mut self, bytes: impl Iterator<Item = u8>, len: usize) -> Loc {
        let offset = self.block.len();
        self.block.reserve(len);
        self.block.extend(bytes);
        self.block.resize(self.block.len().next_multiple_of(ALIGN), 0);
        Loc { block: Block::Persistent, offset, bytes: len }
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
