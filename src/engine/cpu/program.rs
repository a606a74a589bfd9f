//! A graph compiled for the CPU: one arena, one list of steps, no allocation in `run`.
//!
//! Every value and every scratch buffer has its place in the arena from `compile` on; weights and
//! optimiser state lie in a second block that outlives runs.

use std::collections::HashMap;

use super::fast::{AlignedBuf, Pool as Threads};
use super::memory::{Loc, Memory};
use super::step::{self, Step};
use crate::engine::graph::{Graph, GraphError, Node, Value};
use crate::engine::op::Op;
use crate::engine::passes;
use crate::engine::plan::{ALIGN, Request, plan};
use crate::engine::program::{Options, ProgramError, param_of, param_words};
use crate::engine::shape::{DType, Shape};
use crate::engine::tensor::{ParamStore, Tensor};

#[derive(Clone, Debug)]
struct Binding {
    name: String,
    loc: Loc,
    shape: Shape,
    dtype: DType,
}

/// A compiled graph. Owns its memory; shares its threads.
#[derive(Debug)]
pub struct Program {
    memory: Memory,
    steps: Vec<Step>,
    inputs: Vec<Binding>,
    outputs: Vec<Binding>,
    params: Vec<Binding>,
    threads: Threads,
    reference: bool,
}

impl Program {
    /// Compiles what `outputs` and the writers of parameters need. Values of parameters come from
    /// `params`; each must be there in the graph's shape.
    pub fn compile(
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: &ParamStore,
        threads: &Threads,
        options: Options,
    ) -> Result<Self, ProgramError> {
        let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
        let mut graph = graph.clone();
        let made = match options.passes {
            true => passes::optimise(&mut graph, params, &kept),
            false => ParamStore::new(),
        };
        Compiler::new(&graph, [params, &made], threads, options, &kept).compile(outputs)
    }

    /// Runs every step once.
    pub fn run(&mut self) {
        for step in &self.steps {
            if self.reference {
                step::run_reference(step, &self.memory);
            } else {
                step::run(step, &self.memory, &self.threads);
            }
        }
    }

    /// The buffer of an input, to be filled before `run`; it keeps its contents between runs.
    pub fn input_mut(&mut self, name: &str) -> Result<&mut [f32], ProgramError> {
        let b = find(&self.inputs, "input", name)?;
        // SAFETY: &mut self; the slice's lifetime is tied to it by the signature.
        Ok(unsafe { self.memory.write(b.loc) })
    }

    pub fn set_indices(&mut self, name: &str, values: &[u32]) -> Result<(), ProgramError> {
        let b = find(&self.inputs, "input", name)?;
        if b.loc.len != values.len() {
            return Err(ProgramError::Length { name: name.into(), needed: b.loc.len, found: values.len() });
        }
        // SAFETY: &mut self.
        unsafe { self.memory.write_indices(b.loc) }.copy_from_slice(values);
        Ok(())
    }

    pub fn output(&self, name: &str) -> Result<&[f32], ProgramError> {
        let b = find(&self.outputs, "output", name)?;
        // SAFETY: &self: nothing writes while the slice, tied to it by the signature, lives.
        Ok(unsafe { self.memory.read(b.loc) })
    }

    pub fn output_indices(&self, name: &str) -> Result<&[u32], ProgramError> {
        let b = find(&self.outputs, "output", name)?;
        // SAFETY: as for `output`.
        Ok(unsafe { self.memory.read_indices(b.loc) })
    }

    pub fn output_shape(&self, name: &str) -> Result<Shape, ProgramError> {
        Ok(find(&self.outputs, "output", name)?.shape)
    }

    /// The current value of a parameter.
    pub fn param(&self, name: &str) -> Result<&[f32], ProgramError> {
        let b = find(&self.params, "parameter", name)?;
        // SAFETY: as for `output`.
        Ok(unsafe { self.memory.read(b.loc) })
    }

    /// Current values of all parameters of the compiled graph. Those that passes replaced (a folded
    /// convolution's weight, say) are there under their new names only.
    pub fn export_params(&self) -> ParamStore {
        let mut store = ParamStore::new();
        for b in &self.params {
            // SAFETY: as for `output`.
            let data = unsafe {
                match b.dtype {
                    DType::Real => self.memory.read(b.loc).to_vec(),
                    DType::Index => self.memory.read_indices(b.loc).iter().map(|i| *i as f32).collect(),
                }
            };
            store.insert(b.name.clone(), Tensor::new(b.shape, data));
        }
        store
    }

    /// Fills intermediates and scratch with NaN, so that reading what no step wrote shows. Inputs keep
    /// their contents.
    #[cfg(test)]
    pub(crate) fn poison(&mut self) {
        let kept: Vec<Loc> = self.inputs.iter().map(|b| b.loc).collect();
        self.memory.poison(&kept);
    }

    /// Bytes of intermediates and scratch, and bytes of parameters.
    pub fn memory_bytes(&self) -> (usize, usize) {
        self.memory.bytes()
    }

    /// The plan as text: one line a step with its shape and place.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for s in &self.steps {
            let [n, h, w, c] = s.shape.0;
            text.push_str(&format!(
                "{:<48} {:>20} at {:>10}, {:>9} bytes, {:>9} scratch\n",
                s.name,
                format!("{n}×{h}×{w}×{c}"),
                s.out.offset * 4,
                s.out.len * 4,
                s.scratch.len * 4
            ));
        }
        text
    }
}

fn find<'a>(all: &'a [Binding], kind: &'static str, name: &str) -> Result<&'a Binding, ProgramError> {
    all.iter()
        .find(|b| b.name == name)
        .ok_or_else(|| ProgramError::unknown(kind, name, all.iter().map(|b| b.name.as_str())))
}

/// The state of one compilation.
struct Compiler<'a> {
    graph: &'a Graph,
    /// What the caller gave, and what the passes made of it.
    params: [&'a ParamStore; 2],
    threads: &'a Threads,
    options: Options,
    live: Vec<bool>,
    /// Values that live in the persistent block: parameters and constants.
    persistent: HashMap<Value, Loc>,
    block: Vec<f32>,
}

impl<'a> Compiler<'a> {
    fn new(
        graph: &'a Graph,
        params: [&'a ParamStore; 2],
        threads: &'a Threads,
        options: Options,
        outputs: &[Value],
    ) -> Self {
        let live = passes::live(graph, outputs);
        Compiler { graph, params, threads, options, live, persistent: HashMap::new(), block: Vec::new() }
    }

    fn compile(mut self, outputs: &[(&str, Value)]) -> Result<Program, ProgramError> {
        let graph = self.graph;
        let live: Vec<Value> = graph.values().filter(|v| self.live[v.index()]).collect();
        let params = self.place_sources(&live)?;

        // Time is the index in `order`; inputs are filled before step 0.
        let order: Vec<Value> = live.iter().copied().filter(|v| !graph.node(*v).op.is_source()).collect();
        let inputs: Vec<Value> =
            live.iter().copied().filter(|v| matches!(graph.node(*v).op, Op::Input { .. })).collect();
        let end = order.len();
        let mut last: HashMap<Value, usize> = HashMap::new();
        for (time, v) in order.iter().enumerate() {
            for input in &graph.node(*v).inputs {
                last.insert(*input, time);
            }
        }
        for v in inputs.iter().copied().chain(outputs.iter().map(|o| o.1)) {
            last.insert(v, end);
        }

        let mut requests = Vec::new();
        let mut owner: HashMap<Value, usize> = HashMap::new();
        for v in &inputs {
            owner.insert(*v, requests.len());
            requests.push(Request { len: graph.shape(*v).len(), first: 0, last: end });
        }
        let mut scratch_at = Vec::new();
        for (time, v) in order.iter().enumerate() {
            owner.insert(*v, requests.len());
            let until = last.get(v).copied().unwrap_or(time);
            requests.push(Request { len: graph.shape(*v).len(), first: time, last: until });
            let shapes: Vec<Shape> = graph.node(*v).inputs.iter().map(|i| graph.shape(*i)).collect();
            let node = graph.node(*v);
            let len = if self.options.reference {
                step::reference_scratch_len(&node.op, &shapes)
            } else {
                step::scratch_len(&node.op, &shapes, node.shape, self.threads)
            };
            scratch_at.push(requests.len());
            requests.push(Request { len, first: time, last: time });
        }
        let plan = plan(&requests);
        let arena = |request: usize| Loc {
            persistent: false,
            offset: plan.offsets[request],
            len: requests[request].len,
        };
        let place = |v: Value| self.persistent.get(&v).copied().or_else(|| owner.get(&v).map(|r| arena(*r)));
        let missing = |v: Value| GraphError {
            node: graph.node(v).name.clone(),
            message: "stands after a node that reads it".into(),
        };

        let mut steps = Vec::with_capacity(order.len());
        for (time, v) in order.iter().enumerate() {
            let node = graph.node(*v);
            let locs: Result<Vec<Loc>, GraphError> =
                node.inputs.iter().map(|i| place(*i).ok_or_else(|| missing(*i))).collect();
            let shapes = node.inputs.iter().map(|i| graph.shape(*i)).collect();
            let packed = self.pack(node);
            steps.push(Step {
                op: node.op.clone(),
                inputs: locs?,
                shapes,
                out: place(*v).ok_or_else(|| missing(*v))?,
                shape: node.shape,
                scratch: arena(scratch_at[time]),
                packed,
                name: node.name.clone(),
            });
        }
        let bind = |name: &str, v: Value| -> Result<Binding, ProgramError> {
            let node = graph.node(v);
            let loc = place(v).ok_or_else(|| missing(v))?;
            Ok(Binding { name: name.into(), loc, shape: node.shape, dtype: node.dtype })
        };
        let mut bound: Vec<Binding> = Vec::new();
        for v in &inputs {
            let name = &graph.node(*v).name;
            if bound.iter().any(|b| b.name == *name) {
                return Err(ProgramError::TwoInputs(name.clone()));
            }
            bound.push(bind(name, *v)?);
        }
        let outputs: Result<Vec<Binding>, _> = outputs.iter().map(|(name, v)| bind(name, *v)).collect();
        let outputs = outputs?;
        let mut persistent = AlignedBuf::zeroed(self.block.len());
        persistent.as_mut_slice().copy_from_slice(&self.block);
        Ok(Program {
            memory: Memory::new(AlignedBuf::zeroed(plan.len), persistent),
            steps,
            inputs: bound,
            outputs,
            params,
            threads: self.threads.clone(),
            reference: self.options.reference,
        })
    }

    /// Gives parameters and constants their place and value in the persistent block.
    fn place_sources(&mut self, live: &[Value]) -> Result<Vec<Binding>, ProgramError> {
        let mut params = Vec::new();
        for v in live {
            let node = self.graph.node(*v);
            let loc = Loc { persistent: true, offset: self.block.len(), len: node.shape.len() };
            match &node.op {
                Op::Param { name } => {
                    let tensor = param_of(self.params, name, node.shape)?;
                    let words = param_words(tensor, node.dtype, name)?;
                    self.block.extend(words.into_iter().map(f32::from_bits));
                    params.push(Binding { name: name.clone(), loc, shape: node.shape, dtype: node.dtype });
                }
                Op::Fill { value } => self.block.resize(loc.offset + loc.len, *value),
                _ => continue,
            }
            let padded = self.block.len().next_multiple_of(ALIGN);
            self.block.resize(padded, 0.0);
            self.persistent.insert(*v, loc);
        }
        Ok(params)
    }

    /// The packed weight of a convolution whose weight is a parameter that nothing writes.
    fn pack(&self, node: &Node) -> Option<step::Packed> {
        if self.options.reference || !matches!(node.op, Op::Conv2d { .. } | Op::ConvTranspose { .. }) {
            return None;
        }
        let weight = node.inputs[1];
        let constant = matches!(self.graph.node(weight).op, Op::Param { .. })
            && !self.graph.nodes().iter().enumerate().any(|(i, n)| {
                self.live[i] && n.op.writes().iter().any(|w| n.inputs.get(*w) == Some(&weight))
            });
        let loc = self.persistent.get(&weight).filter(|_| constant)?;
        let shapes: Vec<Shape> = node.inputs.iter().map(|i| self.graph.shape(*i)).collect();
        step::pack(&node.op, &shapes, node.shape, &self.block[loc.offset..][..loc.len], self.threads)
    }
}
