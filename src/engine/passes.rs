//! Rewrites of a graph that change how it is computed, not what. Each replaces nodes in place: a fused
//! node stands where the last of its parts stood, the parts stay as dead nodes, and `live` says which
//! nodes an executor needs. Parameters made by a pass are appended; sources may stand anywhere.

use super::autodiff::is_batch_norm_by_parameter;
use super::graph::{Graph, Value};
use super::op::{Act, Binary, Epilogue, Op, Unary};
use super::shape::Shape;
use super::tensor::{ParamStore, Tensor};

/// Runs all passes. `outputs` are the values that must stay readable. Returns the parameters that were
/// made; the graph needs them beside `params`.
pub fn optimise(g: &mut Graph, params: &ParamStore, outputs: &[Value]) -> ParamStore {
    let made = fold_batch_norm(g, params, outputs);
    fuse_epilogues(g, outputs);
    made
}

/// Marks the nodes that `outputs` and the writers of parameters depend on.
pub fn live(g: &Graph, outputs: &[Value]) -> Vec<bool> {
    let mut live = vec![false; g.nodes().len()];
    let mut stack: Vec<Value> = outputs.to_vec();
    stack.extend(g.values().filter(|v| !g.node(*v).op.writes().is_empty()));
    while let Some(v) = stack.pop() {
        if !std::mem::replace(&mut live[v.index()], true) {
            stack.extend(&g.node(v).inputs);
        }
    }
    live
}

/// How often each value is read by live nodes or as an output.
fn uses(g: &Graph, outputs: &[Value]) -> Vec<usize> {
    let live = live(g, outputs);
    let mut uses = vec![0; g.nodes().len()];
    for v in outputs {
        uses[v.index()] += 1;
    }
    for (node, _) in g.nodes().iter().zip(live).filter(|(_, live)| *live) {
        for v in &node.inputs {
            uses[v.index()] += 1;
        }
    }
    uses
}

/// True where some node writes this parameter.
fn is_written(g: &Graph, param: Value) -> bool {
    g.nodes().iter().any(|n| n.op.writes().iter().any(|i| n.inputs.get(*i) == Some(&param)))
}

/// conv → batch norm by parameters becomes a convolution with scaled weights and a bias. Only where
/// neither is trained and the convolution has no other reader. y = (w·x + b − mean)·s + beta with
/// s = gamma/√(var + eps). Returns the scaled weights and the biases.
pub fn fold_batch_norm(g: &mut Graph, params: &ParamStore, outputs: &[Value]) -> ParamStore {
    let mut made = ParamStore::new();
    let uses = uses(g, outputs);
    for v in g.values() {
        if let Some(folded) = folded(g, [params, &made], &uses, v) {
            let (conv, epilogue, x, weight_name, weight, bias) = folded;
            let channels = Shape::vector(weight.shape.c());
            let (Ok(w), Ok(b)) = (
                g.param(&format!("{weight_name}.folded"), weight.shape),
                g.param(&format!("{weight_name}.folded_bias"), channels),
            ) else {
                continue;
            };
            made.insert(format!("{weight_name}.folded"), weight);
            made.insert(format!("{weight_name}.folded_bias"), Tensor::vector(bias));
            let node = &mut g.nodes[v.index()];
            node.op = Op::Conv2d { conv, epilogue };
            node.inputs = vec![x, w, b];
        }
    }
    made
}

type Folded = (super::op::Conv, Epilogue, Value, String, Tensor, Vec<f32>);

fn folded(g: &Graph, params: [&ParamStore; 2], uses: &[usize], v: Value) -> Option<Folded> {
    let norm = g.node(v);
    let Op::Normalize { eps, affine: true, act: Act::None, .. } = norm.op else { return None };
    if !is_batch_norm_by_parameter(g, v) || uses[norm.inputs[0].index()] != 1 {
        return None;
    }
    let conv_node = g.node(norm.inputs[0]);
    let Op::Conv2d { conv, epilogue } = conv_node.op else { return None };
    if epilogue.residual || epilogue.act != Act::None {
        return None;
    }
    let value_of = |v: Value| match &g.node(v).op {
        Op::Param { name } if !is_written(g, v) => {
            params.iter().find_map(|store| store.get(name)).map(|t| (name.as_str(), t))
        }
        _ => None,
    };
    let (weight_name, weight) = value_of(conv_node.inputs[1])?;
    let moments = value_of(norm.inputs[1])?.1;
    let (gamma, beta) = (value_of(norm.inputs[2])?.1, value_of(norm.inputs[3])?.1);
    let bias = if epilogue.bias { Some(value_of(conv_node.inputs[2])?.1) } else { None };
    let channels = weight.shape.c();
    let fits = moments.data.len() == 2 * channels
        && [Some(gamma), Some(beta), bias].into_iter().flatten().all(|t| t.data.len() == channels);
    if !fits {
        return None;
    }
    let (mean, variance) = moments.data.split_at(channels);
    let scale: Vec<f32> = (0..channels).map(|c| gamma.data[c] / (variance[c] + eps).sqrt()).collect();
    let mut weight = weight.clone();
    for row in weight.data.chunks_exact_mut(channels) {
        row.iter_mut().zip(&scale).for_each(|(w, s)| *w *= s);
    }
    let shifted = (0..channels)
        .map(|c| (bias.map_or(0.0, |b| b.data[c]) - mean[c]) * scale[c] + beta.data[c])
        .collect();
    let epilogue = Epilogue { bias: true, ..Default::default() };
    Some((conv, epilogue, conv_node.inputs[0], weight_name.into(), weight, shifted))
}

/// A convolution followed by an addition, an activation, or both in this order, and a norm followed by
/// an activation, become one node, where no other node reads the parts.
pub fn fuse_epilogues(g: &mut Graph, outputs: &[Value]) {
    let uses = uses(g, outputs);
    for v in g.values() {
        let node = g.node(v).clone();
        let act = match node.op {
            Op::Unary(Unary::Relu) => Some(Act::Relu),
            Op::Unary(Unary::Relu6) => Some(Act::Relu6),
            Op::Unary(Unary::Silu) => Some(Act::Silu),
            _ => None,
        };
        if let Some(act) = act {
            fuse_act(g, v, node.inputs[0], act, &uses);
        } else if node.op == Op::Binary(Binary::Add) {
            let (a, b) = (node.inputs[0], node.inputs[1]);
            // The later operand first: its sum is the one that can wait for the other.
            let (late, early) = if a.index() > b.index() { (a, b) } else { (b, a) };
            if !fuse_residual(g, v, late, early, &uses) {
                fuse_residual(g, v, early, late, &uses);
            }
        }
    }
}

/// True where a parameter that node `v` reads is written between `v` and `until`.
fn written_between(g: &Graph, v: Value, until: Value) -> bool {
    let inputs = &g.node(v).inputs;
    g.nodes()[v.index()..until.index()]
        .iter()
        .any(|n| n.op.writes().iter().any(|i| n.inputs.get(*i).is_some_and(|p| inputs.contains(p))))
}

fn fuse_act(g: &mut Graph, at: Value, x: Value, act: Act, uses: &[usize]) {
    if uses[x.index()] != 1 || written_between(g, x, at) {
        return;
    }
    let mut op = g.node(x).op.clone();
    match &mut op {
        Op::Conv2d { epilogue, .. } | Op::ConvTranspose { epilogue, .. } if epilogue.act == Act::None => {
            epilogue.act = act;
        }
        Op::Normalize { act: a, .. } if *a == Act::None => *a = act,
        _ => return,
    }
    let inputs = g.node(x).inputs.clone();
    let node = &mut g.nodes[at.index()];
    (node.op, node.inputs) = (op, inputs);
}

fn fuse_residual(g: &mut Graph, at: Value, x: Value, residual: Value, uses: &[usize]) -> bool {
    let whole = g.shape(x) == g.shape(at) && g.shape(residual) == g.shape(at);
    if !whole || x == residual || uses[x.index()] != 1 || written_between(g, x, at) {
        return false;
    }
    let mut op = g.node(x).op.clone();
    match &mut op {
        Op::Conv2d { epilogue, .. } | Op::ConvTranspose { epilogue, .. }
            if epilogue.act == Act::None && !epilogue.residual =>
        {
            epilogue.residual = true;
        }
        _ => return false,
    }
    let mut inputs = g.node(x).inputs.clone();
    inputs.push(residual);
    let node = &mut g.nodes[at.index()];
    (node.op, node.inputs) = (op, inputs);
    true
}
