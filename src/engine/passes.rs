//! Rewrites of a graph that change how it is computed, not what. Each replaces nodes in place: a fused
//! node stands where the last of its parts stood, the parts stay as dead nodes, and `live` says which
//! nodes an executor needs. Parameters made by a pass are appended; sources may stand anywhere.

use half::f16;

use super::autodiff::is_batch_norm_by_parameter;
use super::graph::{Graph, Value};
use super::op::{Act, Binary, Epilogue, Op, Reduce, Residual, Resize, Unary};
use super::shape::Shape;
use super::tensor::{ParamStore, Tensor};

/// Runs all passes. `outputs` are the values that must stay readable. Returns the parameters that were
/// made; the graph needs them beside `params`.
pub fn optimise(g: &mut Graph, params: &ParamStore, outputs: &[Value]) -> ParamStore {
    let made = fold_batch_norm(g, params, outputs);
    fuse_epilogues(g, outputs);
    select_residuals(g, outputs);
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

/// Makes the values of parameters such that all executors multiply by the same numbers: batch norms by
/// parameters are folded into the convolution before them, what is left of them is a shift, and what
/// convolutions and products read is rounded to fp16, as a GPU holds it. Of the difference between the
/// two executors, rounded weights are otherwise the larger part: unlike rounded activations they err
/// the same way in every picture. Doing it again changes nothing. Parameters that `params` lacks stay away.
pub fn settle_weights(g: &Graph, params: &mut ParamStore, outputs: &[Value]) {
    let uses = uses(g, outputs);
    for v in g.values() {
        let Some((.., name, weight, shift)) = folded(g, [params, &ParamStore::new()], &uses, v) else {
            continue;
        };
        let norm = g.node(v);
        let (Op::Normalize { eps, .. }, conv) = (&norm.op, g.node(norm.inputs[0])) else { continue };
        // Shared with another node, they could not be changed for this one alone.
        if norm.inputs[1..].iter().chain(&conv.inputs[1..]).any(|p| uses[p.index()] != 1) {
            continue;
        }
        let channels = shift.len();
        let of = |i: usize| g.node(norm.inputs[i]).op.param_name().unwrap_or_default().to_owned();
        // Mean 0 and a scale of √(1 + eps)/√(1 + eps), which is 1 exactly.
        let moments = [vec![0.0; channels], vec![1.0; channels]].concat();
        params.insert(of(1), Tensor::new(g.shape(norm.inputs[1]), moments));
        params.insert(of(2), Tensor::full(Shape::vector(channels), (1.0 + eps).sqrt()));
        params.insert(of(3), Tensor::vector(shift));
        if let Some(bias) = conv.inputs.get(2).and_then(|b| g.node(*b).op.param_name()) {
            params.insert(bias, Tensor::zeros(Shape::vector(channels)));
        }
        params.insert(name, weight);
    }
    for node in g.nodes() {
        let read = match node.op {
            Op::Conv2d { .. } | Op::ConvTranspose { .. } => 1..2,
            Op::MatMul { .. } => 0..2,
            _ => continue,
        };
        for name in node.inputs[read].iter().filter_map(|v| g.node(*v).op.param_name()) {
            let Some(mut tensor) = params.get(name).cloned() else { continue };
            // What fp16 cannot hold stays: infinity is no weight.
            for w in tensor.data.iter_mut().filter(|w| w.abs() <= f16::MAX.to_f32()) {
                *w = f16::from_f32(*w).to_f32();
            }
            params.insert(name, tensor);
        }
    }
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

/// Residual planes of several scales, joined only to be ranked by maximum or mean and to be chosen from,
/// are not joined: each scale ranks its own and the chosen are made from the features. Where anything
/// else reads the stack, it stays.
pub fn select_residuals(g: &mut Graph, outputs: &[Value]) {
    let uses = uses(g, outputs);
    let live = live(g, outputs);
    for v in g.values().filter(|v| live[v.index()]) {
        if let Some(stack) = residual_stack(g, &uses, &live, outputs, v) {
            replace_stack(g, v, &stack);
        }
    }
}

struct ResidualStack {
    residual: Residual,
    /// The planes of each scale, and the features and reconstruction that they come from.
    scales: Vec<(Value, [Value; 2])>,
    readers: Vec<Value>,
}

fn residual_stack(
    g: &Graph,
    uses: &[usize],
    live: &[bool],
    outputs: &[Value],
    stack: Value,
) -> Option<ResidualStack> {
    let shape = g.shape(stack);
    let parts = match g.node(stack).op {
        Op::Concat { axis: 3 } => g.node(stack).inputs.clone(),
        // One scale has nothing to be joined to.
        Op::Resize { .. } | Op::Unary(Unary::Square | Unary::Log1p) => vec![stack],
        _ => return None,
    };
    if outputs.contains(&stack) {
        return None;
    }
    let readers: Vec<Value> =
        g.values().filter(|v| live[v.index()] && g.node(*v).inputs.contains(&stack)).collect();
    let ranks = |v: &Value| {
        let over_pixels = [false, true, true, false];
        matches!(g.node(*v).op, Op::Reduce { reduce: Reduce::Max | Reduce::Mean, axes } if axes == over_pixels)
    };
    let chooses = |v: &Value| g.node(*v).op == Op::Gather && g.node(*v).inputs[1] != stack;
    if !readers.iter().any(ranks) || !readers.iter().all(|v| ranks(v) || chooses(v)) {
        return None;
    }
    let mut scales = vec![];
    let mut kinds: Vec<(bool, Option<Resize>)> = vec![];
    for part in parts {
        // A scale that is read twice is no plain part of the stack.
        if part != stack && uses[part.index()] != 1 {
            return None;
        }
        let (log, resize, pair) = squared_difference(g, uses, part)?;
        kinds.push((log, resize));
        scales.push((part, pair));
    }
    let log = kinds.first()?.0;
    // Maps that have the grid's size already are not resized; any rule leaves them as they are.
    let mut rules = kinds.iter().filter_map(|k| k.1);
    let resize = rules.next().unwrap_or(Resize::Bilinear);
    if kinds.iter().any(|k| k.0 != log) || rules.any(|r| r != resize) || resize == Resize::Area {
        return None;
    }
    let residual = Residual { log, resize, h: shape.h(), w: shape.w() };
    Some(ResidualStack { residual, scales, readers })
}

/// Whether `v` is (a − b)² or its logarithm, resized or not: (logarithm, resizing, [a, b]).
fn squared_difference(g: &Graph, uses: &[usize], v: Value) -> Option<(bool, Option<Resize>, [Value; 2])> {
    let alone = |v: Value| uses[v.index()] == 1;
    let below = |v: Value| g.node(v).inputs.first().copied();
    let (mut at, mut resize, mut log) = (v, None, false);
    if let Op::Resize { resize: rule, .. } = g.node(at).op {
        resize = Some(rule);
        at = below(at).filter(|v| alone(*v))?;
    }
    if g.node(at).op == Op::Unary(Unary::Log1p) {
        log = true;
        at = below(at).filter(|v| alone(*v))?;
    }
    if g.node(at).op != Op::Unary(Unary::Square) {
        return None;
    }
    let difference = g.node(below(at).filter(|v| alone(*v))?);
    if difference.op != Op::Binary(Binary::Sub) {
        return None;
    }
    let pair = [difference.inputs[0], difference.inputs[1]];
    // A feature map, not something that stretches to one.
    pair.iter().all(|v| g.shape(*v) == difference.shape).then_some((log, resize, pair))
}

/// The planes of a scale become their ranks, the stack joins those, and readers take their row of it.
fn replace_stack(g: &mut Graph, stack: Value, found: &ResidualStack) {
    let pairs: Vec<Value> = found.scales.iter().flat_map(|(_, pair)| *pair).collect();
    for (part, pair) in &found.scales {
        let shape = g.shape(pair[0]);
        let node = &mut g.nodes[part.index()];
        node.op = Op::ResidualRank(found.residual);
        node.inputs = pair.to_vec();
        node.shape = Shape::new(shape.n(), 1, 2, shape.c());
    }
    let joined = g.shape(stack);
    g.nodes[stack.index()].shape = Shape::new(joined.n(), 1, 2, joined.c());
    for reader in &found.readers {
        let node = &mut g.nodes[reader.index()];
        match node.op {
            Op::Reduce { reduce, .. } => {
                let row = if reduce == Reduce::Max { 0 } else { 1 };
                node.op = Op::Slice { axis: 2, start: row, len: 1 };
            }
            _ => {
                let indices = node.inputs[1];
                node.op = Op::ResidualGather(found.residual);
                node.inputs = [indices].into_iter().chain(pairs.iter().copied()).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpu::Program;
    use super::super::{Options, Threads};
    use super::*;
    use crate::engine::philox::Stream;
    use crate::nets::rrs_head::{Mode, Selection, select};

    /// Residuals of three scales and a selection, as the network has them; the shapes of two pictures.
    fn selected(selection: Selection, log: bool, resize: Resize) -> (Graph, Value, ParamStore) {
        let mut g = Graph::new();
        let mut params = ParamStore::new();
        let mut rng = Stream::new(7, 0, 0, 1).rng();
        let mut random = |shape: Shape, lo: f32| {
            Tensor::new(shape, (0..shape.len()).map(|_| rng.range(lo, 1.0)).collect())
        };
        let mut parts = vec![];
        for (i, (side, c)) in [(12, 6), (5, 11), (3, 4)].into_iter().enumerate() {
            let pair = ["f", "r"].map(|name| {
                let (name, shape) = (format!("{name}{i}"), Shape::new(2, side, side, c));
                params.insert(name.clone(), random(shape, -1.0));
                g.param(&name, shape).unwrap()
            });
            let difference = g.sub(pair[0], pair[1]).unwrap();
            let mut e = g.unary(Unary::Square, difference).unwrap();
            if log {
                e = g.unary(Unary::Log1p, e).unwrap();
            }
            parts.push(g.resize(resize, e, 12, 12).unwrap());
        }
        params.insert("rrs.bn_idx.moments", random(Shape::new(1, 1, 2, 21), 0.1));
        let joined = g.concat(3, &parts).unwrap();
        let y = select(&mut g, joined, selection, Mode::Judge, "rrs").unwrap();
        (g, y, params)
    }

    /// Positions of the largest live value of that many channels.
    fn largest_live(g: &Graph, outputs: &[Value], channels: usize) -> usize {
        let live = live(g, outputs);
        let nodes = g.nodes().iter().zip(live).filter(|(n, live)| *live && n.shape.c() == channels);
        nodes.map(|(n, _)| n.shape.h() * n.shape.w()).max().unwrap_or(0)
    }

    #[test]
    fn settled_weights_are_fp16_once_folded_and_the_network_stays_what_it_was() {
        let mut g = Graph::new();
        let mut params = ParamStore::new();
        let mut rng = Stream::new(3, 0, 0, 1).rng();
        let mut y = g.input("x", Shape::new(1, 6, 5, 4));
        for i in 0..3 {
            let w = g.param(&format!("w{i}"), Shape::new(3, 3, 4, 4)).unwrap();
            let b = g.param(&format!("b{i}"), Shape::vector(4)).unwrap();
            y = g.conv2d(y, w, Some(b), super::super::Conv::new(1, 1)).unwrap();
            y = g.batch_norm_eval(y, 1e-3, &format!("n{i}")).unwrap();
            y = g.unary(Unary::Relu6, y).unwrap();
        }
        for (name, v) in g.params() {
            let shape = g.shape(v);
            params.insert(name, Tensor::new(shape, (0..shape.len()).map(|_| rng.range(0.1, 1.3)).collect()));
        }
        let x: Vec<f32> = (0..120).map(|_| rng.range(-1.0, 1.0)).collect();
        let run = |params: &ParamStore, options| {
            let mut p = Program::compile(&g, &[("y", y)], params, &Threads::new(1), options).unwrap();
            p.input_mut("x").unwrap().copy_from_slice(&x);
            p.run();
            p.output("y").unwrap().to_vec()
        };
        let mut settled = params.clone();
        settle_weights(&g, &mut settled, &[y]);
        assert_ne!(settled, params);
        // Three layers, each weight off by at most 2⁻¹¹ of itself, all of one sign.
        for (a, b) in run(&settled, Options::REFERENCE).iter().zip(run(&params, Options::REFERENCE)) {
            assert!((a - b).abs() <= 3.0 / 2048.0 * 6.0, "{a} {b}");
        }
        let mut again = settled.clone();
        settle_weights(&g, &mut again, &[y]);
        assert_eq!(again, settled);
        let made = fold_batch_norm(&mut g.clone(), &settled, &[y]);
        assert_eq!(made.len(), 6);
        for (name, tensor) in made.iter().filter(|(name, _)| name.ends_with(".folded")) {
            assert!(tensor.data.iter().all(|w| f16::from_f32(*w).to_f32() == *w), "{name}");
        }
    }

    #[test]
    fn ranked_residuals_are_chosen_without_their_stack_and_stay_what_they_were() {
        for (log, resize) in [(false, Resize::BilinearAligned), (true, Resize::Bilinear)] {
            let selection = Selection::Ranked { by_max: 7, by_mean: 5 };
            let (g, y, params) = selected(selection, log, resize);
            let mut fused = g.clone();
            select_residuals(&mut fused, &[y]);
            assert_eq!(largest_live(&g, &[y], 21), 144);
            assert_eq!(largest_live(&fused, &[y], 21), 2, "ranks, and no planes");
            let run = |g: &Graph| {
                let threads = Threads::new(1);
                let outputs = [("y", y)];
                let mut p = Program::compile(g, &outputs, &params, &threads, Options::REFERENCE).unwrap();
                p.run();
                p.output("y").unwrap().to_vec()
            };
            for (a, b) in run(&fused).iter().zip(run(&g)) {
                // Five roundings of numbers up to 4.
                assert!((a - b).abs() < 3e-6, "{a} and {b}");
            }
        }
    }

    #[test]
    fn a_stack_that_something_else_reads_stays() {
        for selection in [Selection::All, Selection::Beside { by_max: 3, by_mean: 3 }] {
            let (mut g, y, _) = selected(selection, true, Resize::Bilinear);
            select_residuals(&mut g, &[y]);
            assert!(g.nodes().iter().all(|n| !matches!(n.op, Op::ResidualRank(_) | Op::ResidualGather(_))));
        }
    }
}
