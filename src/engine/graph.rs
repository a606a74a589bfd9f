//! The static graph: nodes with inferred shapes, appended in execution order.
//!
//! A node's inputs always stand before it, and operations that write a parameter run where they stand:
//! after every reader appended before them, before every reader appended after them.

use std::collections::HashMap;

use super::infer::infer;
use super::op::{
    Act, Adam, Attention, Binary, Conv, Distribution, Epilogue, Norm, Op, Pool, Reduce, Residual, Resize,
    Unary, Window,
};
use super::shape::{DType, Shape};

/// A shape or type that does not fit, with the name of the node that it would have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {message}")]
pub struct GraphError {
    pub node: String,
    pub message: String,
}

/// What a node yields; an index into its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(super) u32);

impl Value {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<Value>,
    pub shape: Shape,
    pub dtype: DType,
    pub name: String,
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(super) nodes: Vec<Node>,
    params: HashMap<String, Value>,
}

pub type GraphResult = Result<Value, GraphError>;

impl Graph {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, value: Value) -> &Node {
        &self.nodes[value.index()]
    }

    pub fn shape(&self, value: Value) -> Shape {
        self.node(value).shape
    }

    pub fn values(&self) -> impl Iterator<Item = Value> + use<> {
        (0..self.nodes.len() as u32).map(Value)
    }

    /// Names and shapes of all parameters, in the order in which they were first used.
    pub fn params(&self) -> impl Iterator<Item = (&str, Value)> {
        self.values().filter_map(|v| match &self.node(v).op {
            Op::Param { name } => Some((name.as_str(), v)),
            _ => None,
        })
    }

    fn push(&mut self, op: Op, inputs: Vec<Value>, shape: Shape, dtype: DType, name: String) -> Value {
        self.nodes.push(Node { op, inputs, shape, dtype, name });
        Value(self.nodes.len() as u32 - 1)
    }

    /// Appends `op`; the general form of the methods below.
    pub fn apply(&mut self, op: Op, inputs: &[Value]) -> GraphResult {
        let kinds: Vec<_> = inputs.iter().map(|v| (self.node(*v).shape, self.node(*v).dtype)).collect();
        let stem = inputs
            .iter()
            .find_map(|v| match &self.node(*v).op {
                Op::Param { name } => Some(name.clone()),
                _ => None,
            })
            .unwrap_or_else(|| self.nodes.len().to_string());
        let name = format!("{}({stem})", op.name());
        for written in op.writes() {
            let is_param = inputs.get(*written).is_some_and(|v| matches!(self.node(*v).op, Op::Param { .. }));
            if !is_param {
                return Err(GraphError {
                    node: name,
                    message: format!("input {written} is written, so it must be a parameter"),
                });
            }
        }
        let (shape, dtype) =
            infer(&op, &kinds).map_err(|message| GraphError { node: name.clone(), message })?;
        Ok(self.push(op, inputs.to_vec(), shape, dtype, name))
    }

    pub fn input(&mut self, name: &str, shape: Shape) -> Value {
        self.push(Op::Input { name: name.into() }, vec![], shape, DType::Real, name.into())
    }

    /// Indices fed by the caller as whole numbers.
    pub fn index_input(&mut self, name: &str, shape: Shape) -> Value {
        self.push(Op::Input { name: name.into() }, vec![], shape, DType::Index, name.into())
    }

    /// The same name is the same parameter.
    pub fn param(&mut self, name: &str, shape: Shape) -> GraphResult {
        self.source_param(name, shape, DType::Real)
    }

    /// A parameter of indices (for example the channels that feature selection kept).
    pub fn index_param(&mut self, name: &str, shape: Shape) -> GraphResult {
        self.source_param(name, shape, DType::Index)
    }

    fn source_param(&mut self, name: &str, shape: Shape, dtype: DType) -> GraphResult {
        if let Some(&v) = self.params.get(name) {
            let known = self.shape(v);
            if known != shape {
                let message = format!("was {known} before, now {shape}");
                return Err(GraphError { node: name.into(), message });
            }
            return Ok(v);
        }
        let v = self.push(Op::Param { name: name.into() }, vec![], shape, dtype, name.into());
        self.params.insert(name.into(), v);
        Ok(v)
    }

    pub fn fill(&mut self, shape: Shape, value: f32) -> Value {
        let name = format!("fill({value})");
        self.push(Op::Fill { value }, vec![], shape, DType::Real, name)
    }

    /// `key`: 1×1×1×4 indices, see `Op::Random`.
    pub fn random(
        &mut self,
        key: Value,
        shape: Shape,
        distribution: Distribution,
        purpose: u32,
    ) -> GraphResult {
        let node = format!("random({purpose})");
        let k = self.node(key);
        if k.shape != Shape::vector(4) || k.dtype != DType::Index {
            return Err(GraphError { node, message: format!("the key must be 4 indices, got {}", k.shape) });
        }
        Ok(self.push(Op::Random { distribution, purpose }, vec![key], shape, DType::Real, node))
    }

    pub fn conv2d(&mut self, x: Value, w: Value, bias: Option<Value>, conv: Conv) -> GraphResult {
        let epilogue = Epilogue { bias: bias.is_some(), ..Default::default() };
        let inputs: Vec<_> = [x, w].into_iter().chain(bias).collect();
        self.apply(Op::Conv2d { conv, epilogue }, &inputs)
    }

    /// Transposed convolution with output (h−1)·stride − padding + kernel, as PyTorch's without output
    /// padding. `w` is kh×kw×cout×cin: the last axis is x's channels.
    pub fn conv_transpose2d(&mut self, x: Value, w: Value, bias: Option<Value>, conv: Conv) -> GraphResult {
        let (xs, ws) = (self.shape(x), self.shape(w));
        let grown = |s: usize, k: usize, pad: usize| (s.max(1) - 1) * conv.stride + k - pad.min(k);
        let h = grown(xs.h(), ws.n(), conv.pad[0] + conv.pad[2]);
        let width = grown(xs.w(), ws.h(), conv.pad[1] + conv.pad[3]);
        let epilogue = Epilogue { bias: bias.is_some(), ..Default::default() };
        let inputs: Vec<_> = [x, w].into_iter().chain(bias).collect();
        self.apply(Op::ConvTranspose { conv, h, w: width, epilogue }, &inputs)
    }

    pub fn matmul(&mut self, a: Value, b: Value, transpose_a: bool, transpose_b: bool) -> GraphResult {
        self.apply(Op::MatMul { transpose_a, transpose_b, alpha: 1.0 }, &[a, b])
    }

    pub fn unary(&mut self, unary: Unary, x: Value) -> GraphResult {
        self.apply(Op::Unary(unary), &[x])
    }

    pub fn act(&mut self, act: Act, x: Value) -> GraphResult {
        match act {
            Act::None => Ok(x),
            Act::Relu => self.unary(Unary::Relu, x),
            Act::Relu6 => self.unary(Unary::Relu6, x),
            Act::Silu => self.unary(Unary::Silu, x),
        }
    }

    pub fn scale(&mut self, x: Value, factor: f32) -> GraphResult {
        self.unary(Unary::Affine { factor, offset: 0.0 }, x)
    }

    pub fn binary(&mut self, binary: Binary, a: Value, b: Value) -> GraphResult {
        self.apply(Op::Binary(binary), &[a, b])
    }

    pub fn add(&mut self, a: Value, b: Value) -> GraphResult {
        self.binary(Binary::Add, a, b)
    }

    pub fn sub(&mut self, a: Value, b: Value) -> GraphResult {
        self.binary(Binary::Sub, a, b)
    }

    pub fn mul(&mut self, a: Value, b: Value) -> GraphResult {
        self.binary(Binary::Mul, a, b)
    }

    pub fn reduce(&mut self, reduce: Reduce, x: Value, axes: [bool; 4]) -> GraphResult {
        self.apply(Op::Reduce { reduce, axes }, &[x])
    }

    /// Mean of everything, a scalar.
    pub fn mean(&mut self, x: Value) -> GraphResult {
        self.reduce(Reduce::Mean, x, [true; 4])
    }

    /// Mean squared difference, a scalar.
    pub fn mse(&mut self, a: Value, b: Value) -> GraphResult {
        let d = self.sub(a, b)?;
        let sq = self.unary(Unary::Square, d)?;
        self.mean(sq)
    }

    pub fn moments(&mut self, norm: Norm, x: Value) -> GraphResult {
        self.apply(Op::Moments { norm }, &[x])
    }

    /// `affine`: gamma and beta.
    pub fn normalize(
        &mut self,
        norm: Norm,
        eps: f32,
        x: Value,
        moments: Value,
        affine: Option<(Value, Value)>,
    ) -> GraphResult {
        let inputs: Vec<_> =
            [x, moments].into_iter().chain(affine.into_iter().flat_map(|(g, b)| [g, b])).collect();
        self.apply(Op::Normalize { norm, eps, affine: affine.is_some(), act: Act::None }, &inputs)
    }

    /// Group norm with affine parameters `{name}.weight` and `{name}.bias`.
    pub fn group_norm(&mut self, x: Value, groups: usize, eps: f32, name: &str) -> GraphResult {
        let c = Shape::vector(self.shape(x).c());
        let gamma = self.param(&format!("{name}.weight"), c)?;
        let beta = self.param(&format!("{name}.bias"), c)?;
        let moments = self.moments(Norm::Group(groups), x)?;
        self.normalize(Norm::Group(groups), eps, x, moments, Some((gamma, beta)))
    }

    /// Batch norm by running moments: parameters `{name}.weight`, `{name}.bias`, `{name}.moments`
    /// (1×1×2×C: mean, variance).
    pub fn batch_norm_eval(&mut self, x: Value, eps: f32, name: &str) -> GraphResult {
        let c = self.shape(x).c();
        let gamma = self.param(&format!("{name}.weight"), Shape::vector(c))?;
        let beta = self.param(&format!("{name}.bias"), Shape::vector(c))?;
        let moments = self.param(&format!("{name}.moments"), Shape::new(1, 1, 2, c))?;
        self.normalize(Norm::Batch, eps, x, moments, Some((gamma, beta)))
    }

    /// Batch norm by the batch's own moments, which also move `{name}.moments` by `momentum`.
    pub fn batch_norm_train(&mut self, x: Value, eps: f32, momentum: f32, name: &str) -> GraphResult {
        let s = self.shape(x);
        let gamma = self.param(&format!("{name}.weight"), Shape::vector(s.c()))?;
        let beta = self.param(&format!("{name}.bias"), Shape::vector(s.c()))?;
        let running = self.param(&format!("{name}.moments"), Shape::new(1, 1, 2, s.c()))?;
        let moments = self.moments(Norm::Batch, x)?;
        let n = s.rows() as f32;
        let variance_factor = if n > 1.0 { n / (n - 1.0) } else { 1.0 };
        self.apply(Op::MovingAverage { momentum, variance_factor }, &[running, moments])?;
        self.normalize(Norm::Batch, eps, x, moments, Some((gamma, beta)))
    }

    pub fn pool(&mut self, pool: Pool, x: Value, window: Window) -> GraphResult {
        self.apply(Op::Pool { pool, window }, &[x])
    }

    pub fn resize(&mut self, resize: Resize, x: Value, h: usize, w: usize) -> GraphResult {
        let s = self.shape(x);
        if (s.h(), s.w()) == (h, w) {
            return Ok(x);
        }
        self.apply(Op::Resize { resize, h, w }, &[x])
    }

    pub fn softmax(&mut self, x: Value) -> GraphResult {
        self.apply(Op::Softmax, &[x])
    }

    pub fn cross_entropy(&mut self, logits: Value, target: Value) -> GraphResult {
        self.apply(Op::CrossEntropy, &[logits, target])
    }

    pub fn attention(&mut self, qkv: Value, attention: Attention) -> GraphResult {
        self.apply(Op::Attention(attention), &[qkv])
    }

    pub fn concat(&mut self, axis: usize, xs: &[Value]) -> GraphResult {
        match xs {
            [only] => Ok(*only),
            _ => self.apply(Op::Concat { axis }, xs),
        }
    }

    pub fn slice(&mut self, x: Value, axis: usize, start: usize, len: usize) -> GraphResult {
        self.apply(Op::Slice { axis, start, len }, &[x])
    }

    pub fn reshape(&mut self, x: Value, shape: Shape) -> GraphResult {
        self.apply(Op::Reshape { shape }, &[x])
    }

    pub fn transpose(&mut self, x: Value, perm: [usize; 4]) -> GraphResult {
        self.apply(Op::Transpose { perm }, &[x])
    }

    pub fn top_k(&mut self, keys: Value, k: usize) -> GraphResult {
        self.apply(Op::TopK { k }, &[keys])
    }

    pub fn gather(&mut self, x: Value, indices: Value) -> GraphResult {
        self.apply(Op::Gather, &[x, indices])
    }

    /// See `Op::ResidualRank`.
    pub fn residual_rank(&mut self, residual: Residual, f: Value, r: Value) -> GraphResult {
        self.apply(Op::ResidualRank(residual), &[f, r])
    }

    /// The chosen residual planes of all scales, each features and their reconstruction.
    pub fn residual_gather(
        &mut self,
        residual: Residual,
        indices: Value,
        scales: &[(Value, Value)],
    ) -> GraphResult {
        let pairs = scales.iter().flat_map(|(f, r)| [*f, *r]);
        let inputs: Vec<_> = [indices].into_iter().chain(pairs).collect();
        self.apply(Op::ResidualGather(residual), &inputs)
    }

    /// See `Op::LogitDifference`.
    pub fn logit_difference(&mut self, logits: Value) -> GraphResult {
        self.apply(Op::LogitDifference, &[logits])
    }

    /// See `Op::AnomalyMap`.
    pub fn anomaly_map(&mut self, logits: Value, resize: Resize, h: usize, w: usize) -> GraphResult {
        self.apply(Op::AnomalyMap { resize, h, w }, &[logits])
    }

    /// See `Op::LargestMean`.
    pub fn largest_mean(&mut self, map: Value, size: usize) -> GraphResult {
        self.apply(Op::LargestMean { size }, &[map])
    }

    /// One AdamW step on `param`, whose moments are the parameters `{prefix}.m.{name}` and
    /// `{prefix}.v.{name}`. `rate`: lr, 1−beta1^t, 1−beta2^t; `scale` multiplies the gradient.
    pub fn adam(
        &mut self,
        param: Value,
        grad: Value,
        rate: Value,
        scale: Value,
        adam: Adam,
        prefix: &str,
    ) -> GraphResult {
        let (shape, name) = (self.shape(param), self.node(param).name.clone());
        let m = self.param(&format!("{prefix}.m.{name}"), shape)?;
        let v = self.param(&format!("{prefix}.v.{name}"), shape)?;
        self.apply(Op::Adam(adam), &[param, grad, m, v, rate, scale])
    }
}
