//! Every operation, forward and backward, on the plain and on the fast path, against what PyTorch
//! computed in double precision (`tests/golden/make_ops.py`).

use std::collections::BTreeMap;
use std::path::Path;

use inspectd::engine::cpu::Program;
use inspectd::engine::{
    Act, Adam, Attention, Binary, Conv, Graph, GraphResult, Norm, Op, Options, ParamStore, Pool, QkvLayout,
    Reduce, Resize, Shape, Tensor, Threads, Unary, Value, Window, gradients,
};
use inspectd::weights::read_tensors;

type Golden = BTreeMap<String, Tensor>;

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ops.safetensors");
    let tensors = read_tensors(&path).unwrap();
    let ours = |raw: inspectd::weights::RawTensor| {
        let shape = Shape(raw.shape.as_slice().try_into().unwrap());
        Tensor::new(shape, raw.into_reals())
    };
    tensors.into_iter().map(|(name, raw)| (name, ours(raw))).collect()
}

/// A case's input values by name.
struct Inputs(BTreeMap<String, Value>);

impl Inputs {
    fn get(&self, name: &str) -> Value {
        self.0[name]
    }

    fn has(&self, name: &str) -> Option<Value> {
        self.0.get(name).copied()
    }
}

type Build = Box<dyn Fn(&mut Graph, &Inputs) -> GraphResult>;

fn conv(stride: usize, pad: [usize; 4], groups: usize) -> Build {
    Box::new(move |g, i| g.conv2d(i.get("x"), i.get("w"), i.has("b"), Conv { stride, pad, groups }))
}

fn transposed(stride: usize, pad: usize, groups: usize) -> Build {
    let conv = Conv::grouped(stride, pad, groups);
    Box::new(move |g, i| g.conv_transpose2d(i.get("x"), i.get("w"), i.has("b"), conv))
}

fn matmul(transpose_a: bool, transpose_b: bool) -> Build {
    let op = Op::MatMul { transpose_a, transpose_b, alpha: 0.5 };
    Box::new(move |g, i| g.apply(op.clone(), &[i.get("a"), i.get("c")]))
}

/// An operation on `x`, or on `a` where the case calls it so.
fn on_x(op: Op) -> Build {
    Box::new(move |g, i| g.apply(op.clone(), &[i.has("x").unwrap_or_else(|| i.get("a"))]))
}

fn normalise(norm: Norm, eps: f32) -> Build {
    Box::new(move |g, i| {
        let moments = g.moments(norm, i.get("x"))?;
        g.normalize(norm, eps, i.get("x"), moments, Some((i.get("gamma"), i.get("beta"))))
    })
}

fn cases() -> Vec<(String, Build)> {
    let mut cases: Vec<(String, Build)> = vec![];
    let mut add = |name: &str, build: Build| cases.push((name.to_owned(), build));

    add("conv1x1", conv(1, [0; 4], 1));
    add("conv1x1_s2", conv(2, [0; 4], 1));
    add("conv3x3", conv(1, [1; 4], 1));
    add("conv3x3_small", conv(1, [1; 4], 1));
    add("conv3x3_wide", conv(1, [1; 4], 1));
    add("conv3x3_s2", conv(2, [1; 4], 1));
    add("conv3x3_s2_same", conv(2, [0, 0, 1, 1], 1));
    add("conv5x5_s2", conv(2, [1, 2, 2, 1], 1));
    add("conv7x7_s2", conv(2, [3; 4], 1));
    add("depthwise3", conv(1, [1; 4], 20));
    add("depthwise3_s2", conv(2, [0, 0, 1, 1], 16));
    add("depthwise5", conv(1, [2; 4], 17));
    add("depthwise5_s2", conv(2, [2, 1, 2, 2], 16));
    add("grouped", conv(1, [1; 4], 4));
    add("grouped_s2", conv(2, [1; 4], 2));
    add(
        "conv_residual_relu",
        Box::new(|g, i| {
            let y = g.conv2d(i.get("x"), i.get("w"), i.has("b"), Conv::new(1, 1))?;
            let sum = g.add(y, i.get("res"))?;
            g.act(Act::Relu, sum)
        }),
    );
    add("transposed4x4_s2", transposed(2, 1, 1));
    add("transposed3x3", transposed(1, 1, 1));
    add("transposed2x2_s2", transposed(2, 0, 1));
    add("transposed_grouped", transposed(2, 1, 2));

    for (a, name_a) in [(false, 'n'), (true, 't')] {
        for (b, name_b) in [(false, 'n'), (true, 't')] {
            add(&format!("matmul_{name_a}{name_b}"), matmul(a, b));
        }
    }

    for (name, unary) in [
        ("relu", Unary::Relu),
        ("relu6", Unary::Relu6),
        ("silu", Unary::Silu),
        ("sigmoid", Unary::Sigmoid),
        ("quick_gelu", Unary::QuickGelu),
        ("tanh", Unary::Tanh),
        ("exp", Unary::Exp),
        ("log1p", Unary::Log1p),
        ("square", Unary::Square),
        ("sqrt", Unary::Sqrt),
        ("affine", Unary::Affine { factor: -1.5, offset: 0.25 }),
        ("clamp", Unary::Clamp { lo: -2.0, hi: 1.5 }),
    ] {
        add(&format!("unary_{name}"), on_x(Op::Unary(unary)));
    }
    for (name, binary) in [
        ("add", Binary::Add),
        ("sub", Binary::Sub),
        ("mul", Binary::Mul),
        ("div", Binary::Div),
        ("max", Binary::Max),
        ("min", Binary::Min),
    ] {
        for kind in ["binary", "stretch"] {
            add(&format!("{kind}_{name}"), Box::new(move |g, i| g.binary(binary, i.get("a"), i.get("c"))));
        }
        add(&format!("stretched_{name}"), Box::new(move |g, i| g.binary(binary, i.get("c"), i.get("a"))));
    }
    add("broadcast", on_x(Op::Broadcast { shape: Shape::new(2, 4, 3, 5) }));

    for (name, reduce) in
        [("sum", Reduce::Sum), ("mean", Reduce::Mean), ("max", Reduce::Max), ("min", Reduce::Min)]
    {
        for (over, axes) in [
            ("hw", [false, true, true, false]),
            ("c", [false, false, false, true]),
            ("n", [true, false, false, false]),
            ("all", [true; 4]),
        ] {
            add(&format!("reduce_{name}_{over}"), on_x(Op::Reduce { reduce, axes }));
        }
    }
    add("sum_squares", Box::new(|g, i| g.apply(Op::SumSquares, &[i.get("x"), i.get("res")])));

    add("group_norm", normalise(Norm::Group(4), 1e-5));
    add("group_norm_one", normalise(Norm::Group(1), 1e-6));
    add("layer_norm", normalise(Norm::Layer, 1e-5));
    add(
        "batch_norm_eval",
        Box::new(|g, i| {
            let affine = Some((i.get("gamma"), i.get("beta")));
            g.normalize(Norm::Batch, 1e-3, i.get("x"), i.get("moments"), affine)
        }),
    );
    add("batch_norm_train", normalise(Norm::Batch, 1e-5));

    for (name, pool) in [("max", Pool::Max), ("avg", Pool::Avg)] {
        for (size, stride, pad) in [(3, 2, 1), (2, 2, 0), (3, 1, 1)] {
            if (pool, stride) != (Pool::Max, 1) {
                let op = Op::Pool { pool, window: Window { size, stride, pad } };
                add(&format!("{name}_pool_{size}_{stride}_{pad}"), on_x(op));
            }
        }
    }
    for (name, resize, sizes) in [
        ("nearest", Resize::Nearest, &[(12, 8), (9, 7), (3, 2), (6, 10)][..]),
        ("bilinear", Resize::Bilinear, &[(12, 8), (9, 7), (3, 2), (6, 10)]),
        ("aligned", Resize::BilinearAligned, &[(12, 8), (9, 7), (3, 2), (6, 10)]),
        ("area", Resize::Area, &[(3, 2), (4, 3), (1, 1)]),
    ] {
        for &(h, w) in sizes {
            add(&format!("{name}_{h}_{w}"), on_x(Op::Resize { resize, h, w }));
        }
    }

    add("softmax", on_x(Op::Softmax));
    add("cross_entropy", Box::new(|g, i| g.cross_entropy(i.get("x"), i.get("target"))));

    for (name, layout, causal) in [
        ("attention_per_head", QkvLayout::PerHead, false),
        ("attention_blocks", QkvLayout::Blocks, false),
        ("attention_blocks_causal", QkvLayout::Blocks, true),
    ] {
        add(name, on_x(Op::Attention(Attention { heads: 2, layout, causal })));
    }

    add("concat_2", Box::new(|g, i| g.concat(2, &[i.get("a"), i.get("c")])));
    add("concat_3", Box::new(|g, i| g.concat(3, &[i.get("a"), i.get("c"), i.get("a")])));
    add("slice_1", on_x(Op::Slice { axis: 1, start: 1, len: 2 }));
    add("slice_3", on_x(Op::Slice { axis: 3, start: 2, len: 3 }));
    add("pad_2", on_x(Op::Pad { axis: 2, before: 1, after: 2 }));
    add("pad_0", on_x(Op::Pad { axis: 0, before: 2, after: 0 }));
    add("reshape", on_x(Op::Reshape { shape: Shape::new(1, 6, 10, 2) }));
    add("transpose", on_x(Op::Transpose { perm: [0, 3, 1, 2] }));
    add("transpose_all", on_x(Op::Transpose { perm: [3, 1, 0, 2] }));
    add("top_k", on_x(Op::TopK { k: 7 }));
    for name in ["gather_shared", "gather_each"] {
        add(name, Box::new(|g, i| g.gather(i.get("a"), i.get("index"))));
    }
    cases
}

/// Largest difference, relative to the largest expected magnitude (at least 1e-3, so that a tensor of
/// zeros is compared absolutely).
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    // NaN must not vanish in a maximum.
    let worst = found.iter().zip(expected).fold(0.0f32, |m, (a, b)| {
        let d = (a - b).abs();
        if d > m || d.is_nan() { d } else { m }
    });
    worst / scale
}

/// The tolerance, relative to the largest element. A sum of K products in fp32, in any order, is off by
/// about √K·2^-24 of its terms' size; the longest sums here have K ≈ 300 (weight gradients, wide 3×3
/// kernels): 1e-6, and 6.6e-7 is the worst that was measured. Winograd's transforms, which a fast path may
/// use, multiply it by about 10 (F(4×4, 3×3); Lavin & Gray 2016).
const TOLERANCE: f32 = 2e-5;

/// Runs one case; yields what differs.
fn check(golden: &Golden, name: &str, build: &Build, options: Options, threads: &Threads) -> Vec<String> {
    let mut g = Graph::new();
    let mut values = BTreeMap::new();
    let mut params = ParamStore::new();
    let prefix = format!("{name}/in/");
    let inputs: Vec<_> =
        golden.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor))).collect();
    for (key, tensor) in &inputs {
        // Weights are parameters, as in networks: the fast path packs them at compile.
        let value = match *key {
            "w" | "b" | "gamma" | "beta" | "moments" => {
                params.insert(*key, (*tensor).clone());
                g.param(key, tensor.shape).unwrap()
            }
            "index" => g.index_input(key, tensor.shape),
            _ => g.input(key, tensor.shape),
        };
        values.insert((*key).to_owned(), value);
    }
    let values = Inputs(values);
    let y = build(&mut g, &values).unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected = &golden[&format!("{name}/y")];
    assert_eq!(g.shape(y), expected.shape, "{name}: shape");
    let mut outputs = vec![("y".to_owned(), y)];
    if let Some(dy) = golden.get(&format!("{name}/dy")) {
        let dy_in = g.input("dy", dy.shape);
        let product = g.mul(y, dy_in).unwrap();
        let loss = g.reduce(Reduce::Sum, product, [true; 4]).unwrap();
        let wrt: Vec<_> = inputs
            .iter()
            .filter(|(key, _)| golden.contains_key(&format!("{name}/d/{key}")))
            .map(|(key, _)| (format!("d/{key}"), values.get(key)))
            .collect();
        let leaves: Vec<_> = wrt.iter().map(|(_, v)| *v).collect();
        let grads = gradients(&mut g, loss, &leaves).unwrap_or_else(|error| panic!("{name}: {error}"));
        outputs.extend(wrt.into_iter().map(|(key, _)| key).zip(grads));
    }
    let named: Vec<_> = outputs.iter().map(|(key, v)| (key.as_str(), *v)).collect();
    let mut program = Program::compile(&g, &named, &params, threads, options)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let feeds = inputs.iter().map(|(key, tensor)| (*key, *tensor));
    let dy = golden.get(&format!("{name}/dy")).map(|dy| ("dy", dy));
    for (key, tensor) in feeds.chain(dy) {
        if key == "index" {
            let indices: Vec<u32> = tensor.data.iter().map(|x| *x as u32).collect();
            program.set_indices(key, &indices).unwrap();
        } else if !params.contains(key) {
            program.input_mut(key).unwrap().copy_from_slice(&tensor.data);
        }
    }
    program.run();
    let mut wrong = vec![];
    for (key, _) in &outputs {
        let expected = &golden[&format!("{name}/{key}")];
        let found: Vec<f32> = if name == "top_k" {
            program.output_indices(key).unwrap().iter().map(|i| *i as f32).collect()
        } else {
            program.output(key).unwrap().to_vec()
        };
        let difference = difference(&found, &expected.data);
        if difference.is_nan() || difference > TOLERANCE {
            wrong.push(format!("{name} {key}: {difference:.2e}"));
        }
    }
    wrong
}

#[test]
fn operations_and_gradients_equal_pytorch_on_both_paths() {
    let golden = golden();
    let threads = Threads::new(2);
    let mut wrong = vec![];
    for (name, build) in cases() {
        for (path, options) in [("plain", Options::REFERENCE), ("fast", Options::default())] {
            let differing = check(&golden, &name, &build, options, &threads);
            wrong.extend(differing.into_iter().map(|what| format!("{path} path: {what}")));
        }
    }
    assert!(wrong.is_empty(), "above {TOLERANCE:e}:\n{}", wrong.join("\n"));
}

#[test]
fn every_golden_case_is_tested() {
    let tested: Vec<String> = cases().into_iter().map(|(name, _)| name).collect();
    let golden = golden();
    let untested: std::collections::BTreeSet<_> = golden
        .keys()
        .filter_map(|key| key.split('/').next())
        .filter(|name| !tested.iter().any(|t| t == name) && !name.starts_with("adam"))
        .collect();
    assert!(untested.is_empty(), "{untested:?}");
}

#[test]
fn batch_norm_moves_its_running_moments_as_pytorch_does() {
    let golden = golden();
    let of = |key: &str| &golden[&format!("batch_norm_train/{key}")];
    let mut g = Graph::new();
    let x = g.input("x", of("in/x").shape);
    let y = g.batch_norm_train(x, 1e-5, 0.1, "bn").unwrap();
    let mut params = ParamStore::new();
    params.insert("bn.weight", of("in/gamma").clone());
    params.insert("bn.bias", of("in/beta").clone());
    params.insert("bn.moments", of("in/moments").clone());
    for options in [Options::REFERENCE, Options::default()] {
        let threads = Threads::new(2);
        let mut program = Program::compile(&g, &[("y", y)], &params, &threads, options).unwrap();
        program.input_mut("x").unwrap().copy_from_slice(&of("in/x").data);
        program.run();
        let y = difference(program.output("y").unwrap(), &of("y").data);
        let moments = difference(program.param("bn.moments").unwrap(), &of("moments_after").data);
        assert!(y < TOLERANCE && moments < TOLERANCE, "{options:?}: y {y:e}, moments {moments:e}");
    }
}

#[test]
fn three_steps_of_adam_and_adamw_equal_pytorch() {
    let golden = golden();
    for (name, weight_decay) in [("adam", 0.0), ("adamw", 0.1)] {
        let of = |key: String| &golden[&format!("{name}/{key}")];
        let shape = of("p".into()).shape;
        let adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay };
        for options in [Options::REFERENCE, Options::default()] {
            let mut g = Graph::new();
            let p = g.param("p", shape).unwrap();
            let grad = g.input("grad", shape);
            let rate = g.input("rate", Shape::vector(3));
            // The gradient is fed fourfold and scaled back.
            let scale = g.fill(Shape::SCALAR, 0.25);
            g.adam(p, grad, rate, scale, adam, "adam").unwrap();
            let mut params = ParamStore::new();
            params.insert("p", of("p".into()).clone());
            params.insert("adam.m.p", Tensor::zeros(shape));
            params.insert("adam.v.p", Tensor::zeros(shape));
            let mut program = Program::compile(&g, &[], &params, &Threads::new(2), options).unwrap();
            for t in 0..3 {
                let grads = of(format!("g{t}"));
                for (to, from) in program.input_mut("grad").unwrap().iter_mut().zip(&grads.data) {
                    *to = 4.0 * from;
                }
                let step = t + 1;
                let rate = [0.05, 1.0 - 0.9f32.powi(step), 1.0 - 0.99f32.powi(step)];
                program.input_mut("rate").unwrap().copy_from_slice(&rate);
                program.run();
                let found = difference(program.param("p").unwrap(), &of(format!("p{t}")).data);
                // 1 − beta2 has 0.01 from a number near 1: its relative error of 6e-6 halves in the root.
                assert!(found < TOLERANCE, "{name}, step {step}, {options:?}: {found:e}");
            }
        }
    }
}
