//! Parameters and constants of a program: which of them lie where in the persistent block, as fp32, as the
//! fp16 copy that products read, or both.

use std::collections::HashMap;

use half::f16;

use super::schedule::{ALIGN, Block, Loc, Lying, Param};
use super::storage::{Storage, Wanted, wanted};
use crate::engine::graph::{Graph, Value};
use crate::engine::op::Op;
use crate::engine::program::{ProgramError, param_of, param_words};
use crate::engine::shape::DType;
use crate::engine::tensor::{ParamStore, Tensor};

/// Parameters and constants, in both forms.
#[derive(Debug, Default)]
pub struct Sources {
    originals: HashMap<Value, Loc>,
    shadows: HashMap<Value, Loc>,
    pub block: Vec<u8>,
    pub params: Vec<Param>,
}

impl Sources {
    /// Parameters and constants, in the forms that somebody reads.
    pub fn new(
        graph: &Graph,
        live: &[Value],
        storage: &[Storage],
        outputs: &[(&str, Value)],
        stores: [&ParamStore; 2],
    ) -> Result<Self, ProgramError> {
        let mut sources = Sources::default();
        let mut original: Vec<bool> = vec![false; graph.nodes().len()];
        let mut shadow = original.clone();
        for (_, v) in outputs {
            original[v.index()] = true;
        }
        for v in live {
            let node = graph.node(*v);
            for (i, input) in node.inputs.iter().enumerate() {
                let real = graph.node(*input).dtype == DType::Real;
                match wanted(&node.op, i) {
                    Wanted::F16 if real => shadow[input.index()] = true,
                    _ => original[input.index()] = true,
                }
            }
        }
        for v in live.iter().copied() {
            let node = graph.node(v);
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
                let loc = sources.append(words.iter().flat_map(|w| w.to_le_bytes()), node.shape.len() * 4);
                sources.originals.insert(v, loc);
            }
            if shadow {
                let halves = tensor.data.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes());
                let loc = sources.append(halves, node.shape.len() * 2);
                sources.shadows.insert(v, loc);
            }
            if let Op::Param { name } = &node.op {
                let whole = sources.originals.get(&v).map(|loc| (*loc, storage[v.index()]));
                let lying = whole.or_else(|| sources.shadows.get(&v).map(|loc| (*loc, Storage::F16)));
                if let Some((loc, storage)) = lying {
                    let (name, shape, dtype) = (name.clone(), node.shape, node.dtype);
                    sources.params.push(Param { name, shape, dtype, lying: Lying { loc, storage } });
                }
            }
        }
        Ok(sources)
    }

    /// Where the value itself lies, if anybody reads that.
    pub fn original(&self, v: Value) -> Option<Loc> {
        self.originals.get(&v).copied()
    }

    /// Its fp16 copy.
    pub fn shadow(&self, v: Value) -> Option<Loc> {
        self.shadows.get(&v).copied()
    }

    fn append(&mut self, bytes: impl Iterator<Item = u8>, len: usize) -> Loc {
        let offset = self.block.len();
        self.block.reserve(len);
        self.block.extend(bytes);
        self.block.resize(self.block.len().next_multiple_of(ALIGN), 0);
        Loc { block: Block::Persistent, offset, bytes: len }
    }
}
