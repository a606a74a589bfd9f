//! A graph laid out for a GPU: which launches in which order, and where every value lies. A pure
//! function of graph, weights and limits; no driver is asked.
//!
//! `draft` says which operations there are, `join` in which order they run and which of them together;
//! here they are lowered, and every value gets its place. At time 0 inputs are copied, times 1 … n are the
//! launches, at time n + 1 outputs are copied. Values that are never alive together share memory
//! (`engine::plan`, counted here in units of 16 bytes).

use super::draft::{Buffer, Draft, Drafts, Operand};
use super::join::{self, Part, Run};
use super::launch::{Launch, Limits, Lowered, Place};
use super::sources::Sources;
use super::storage::Storage;
use crate::engine::graph::{Graph, Value};
use crate::engine::plan::{Plan, Request, plan};
use crate::engine::program::ProgramError;
use crate::engine::shape::{DType, Shape};
use crate::engine::tensor::ParamStore;

/// Bytes per unit of the plan: its alignment of 16 units makes 256 bytes.
const UNIT: usize = 16;
pub(super) const ALIGN: usize = 256;

/// What joining launches may cost: the arena of the operations as they come, times this over four.
const MOST_ARENA: usize = 6;

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
    /// The input of the program that this converts, by number.
    pub converts: Option<usize>,
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
            converts: None,
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
    /// The launches of all steps, in order, those together that run as one.
    pub runs: Vec<Run>,
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
        let drafts = Drafts::new(graph, outputs, params, limits)?;
        let arrangement = Arrangement::best(&drafts)?;
        arrangement.schedule(drafts)
    }

    /// Kernel launches of one run.
    pub fn launches(&self) -> usize {
        self.runs.len()
    }

    pub fn launch(&self, part: Part) -> Option<(&Step, &Launch)> {
        let step = self.steps.get(part.step)?;
        Some((step, step.launches.get(part.launch)?))
    }

    /// Every operation as it comes and by itself.
    #[cfg(test)]
    pub fn in_order(
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: [&ParamStore; 2],
        limits: Limits,
    ) -> Result<Self, ProgramError> {
        let drafts = Drafts::new(graph, outputs, params, limits)?;
        Arrangement::of(&drafts, &join::in_order(&drafts.items()?))?.schedule(drafts)
    }

    /// The same with every launch by itself.
    #[cfg(test)]
    pub(super) fn taken_apart(mut self) -> Self {
        let parts = self.runs.iter().flat_map(|run| &run.parts);
        self.runs = parts.map(|part| Run { parts: vec![*part] }).collect();
        self
    }
}

/// An order of all drafts, what each launches in it, and where everything lies.
struct Arrangement {
    lowered: Vec<Lowered>,
    runs: Vec<Run>,
    plan: Plan,
    requests: Vec<Request>,
}

impl Arrangement {
    /// The one of fewest launches whose arena is not much larger than that of the drafts as they come.
    fn best(drafts: &Drafts) -> Result<Self, ProgramError> {
        let items = drafts.items()?;
        let before = join::dependences(&items);
        let mut best = Self::of(drafts, &join::in_order(&items))?;
        let most = best.plan.len.saturating_mul(MOST_ARENA) / 4;
        let by_levels = [usize::MAX, 16, 0].map(|slack| join::by_levels(&items, &before, slack));
        for groups in by_levels.into_iter().chain([join::in_lockstep(&items, &before)]) {
            let candidate = Self::of(drafts, &groups)?;
            if candidate.runs.len() < best.runs.len() && candidate.plan.len <= most {
                best = candidate;
            }
        }
        Ok(best)
    }

    fn of(drafts: &Drafts, groups: &[Vec<usize>]) -> Result<Self, ProgramError> {
        let mut lowered = vec![Lowered::default(); drafts.all.len()];
        for group in groups {
            for (i, own) in group.iter().zip(drafts.lower(group)?) {
                lowered[*i] = own;
            }
        }
        let launches: Vec<Vec<Launch>> = lowered.iter().map(|l| l.launches.clone()).collect();
        let runs = join::runs(groups, &launches, |i| drafts.all[i].beside);
        let end = runs.len() + 1;

        // From when to when each draft runs. One without launches takes no time.
        let mut when: Vec<Option<(usize, usize)>> = vec![None; drafts.all.len()];
        for (time, run) in (1..).zip(&runs) {
            for part in &run.parts {
                let (first, _) = when[part.step].unwrap_or((time, time));
                when[part.step] = Some((first, time));
            }
        }
        let mut alive: Vec<Option<(usize, usize)>> = vec![None; drafts.buffers.len()];
        let mut live = |buffer: usize, (first, last): (usize, usize)| {
            let (a, b) = alive[buffer].unwrap_or((first, last));
            alive[buffer] = Some((a.min(first), b.max(last)));
        };
        for (draft, when) in drafts.all.iter().zip(&when) {
            let when = when.unwrap_or((0, 0));
            draft.buffers().filter_map(|operand| drafts.buffer(operand)).for_each(|b| live(b, when));
        }
        drafts.from_start.iter().for_each(|b| live(*b, (0, 0)));
        drafts.to_end.iter().for_each(|b| live(*b, (end, end)));
        let request =
            |bytes: usize, (first, last): (usize, usize)| Request { len: bytes.div_ceil(UNIT), first, last };
        let mut requests: Vec<Request> = drafts
            .buffers
            .iter()
            .zip(&alive)
            .map(|(Buffer { bytes }, alive)| request(*bytes, alive.unwrap_or((0, 0))))
            .collect();
        // Then the scratch of each draft.
        requests.extend(
            lowered.iter().zip(&when).map(|(l, when)| request(l.scratch_bytes, when.unwrap_or((0, 0)))),
        );
        Ok(Arrangement { lowered, runs, plan: plan(&requests), requests })
    }

    fn schedule(self, drafts: Drafts) -> Result<Schedule, ProgramError> {
        let arena = |request: usize| Loc {
            block: Block::Arena,
            offset: self.plan.offsets[request] * UNIT,
            bytes: self.requests[request].len * UNIT,
        };
        let lying = |operand: Operand| drafts.lying(operand, arena);
        let mut steps = Vec::with_capacity(drafts.all.len());
        for (i, (draft, lowered)) in drafts.all.iter().zip(self.lowered).enumerate() {
            let Draft { name, inputs, shadows, out, converts, .. } = draft;
            steps.push(Step {
                name: name.clone(),
                launches: lowered.launches,
                inputs: inputs.iter().map(|o| lying(*o)).collect::<Result<_, _>>()?,
                shadows: shadows.iter().map(|s| s.and_then(|v| drafts.sources.shadow(v))).collect(),
                out: lying(*out)?,
                scratch: arena(drafts.buffers.len() + i),
                converts: *converts,
            });
        }
        let inputs = drafts.inputs.iter().map(|p| drafts.port(p, arena)).collect::<Result<_, _>>()?;
        let outputs = drafts.outputs.iter().map(|p| drafts.port(p, arena)).collect::<Result<_, _>>()?;
        let Sources { block, params, .. } = drafts.sources;
        Ok(Schedule {
            steps,
            runs: self.runs,
            inputs,
            outputs,
            params,
            arena_bytes: self.plan.len * UNIT,
            persistent: block,
        })
    }
}
