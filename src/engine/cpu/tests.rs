//! Every operation: the fast path against the specification, and its gradient against finite
//! differences of the specification. Shapes stand one either side of what the kernels cut by.

use super::Program;
use crate::engine::cpu::fast::Pool as Threads;
use crate::engine::philox::Stream;
use crate::engine::*;

/// A graph under test: its inputs are parameters `p0`, `p1`, … so that gradients can be asked for.
pub(in crate::engine) struct Case {
    pub name: &'static str,
    pub graph: Graph,
    pub y: Value,
    params: ParamStore,
    /// Parameters whose gradient is checked.
    pub wrt: Vec<Value>,
}

fn random(shape: Shape, seed: u64) -> Tensor {
    let mut rng = Stream::new(seed, 0, 0, 77).rng();
    Tensor::new(shape, (0..shape.len()).map(|_| rng.range(-1.0, 1.0)).collect())
}

/// Builds a case from shapes of its operands; `positive` moves them to [0.5, 1.5].
fn case(
    name: &'static str,
    shapes: &[Shape],
    positive: bool,
    f: impl FnOnce(&mut Graph, &[Value]) -> GraphResult,
) -> Case {
    let mut graph = Graph::new();
    let mut params = ParamStore::new();
    let mut values = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let mut tensor = random(*shape, i as u64 + 11);
        if positive {
            tensor.data.iter_mut().for_each(|v| *v = *v * 0.5 + 1.0);
        }
        params.insert(format!("p{i}"), tensor);
        values.push(graph.param(&format!("p{i}"), *shape).unwrap());
    }
    let y = f(&mut graph, &values).unwrap_or_else(|e| panic!("{name}: {e}"));
    // Running moments are state and ranking keys choose: neither has a gradient.
    let trained =
        if ["batch norm by parameter", "top 3 gathered"].contains(&name) { 1 } else { values.len() };
    let trained = if name.starts_with("residual") || name.starts_with("heatmap") { 0 } else { trained };
    values.truncate(trained);
    Case { name, graph, y, params, wrt: values }
}

fn s(n: usize, h: usize, w: usize, c: usize) -> Shape {
    Shape::new(n, h, w, c)
}

fn conv_case(name: &'static str, x: Shape, k: usize, co: usize, conv: Conv) -> Case {
    let w = s(k, k, x.c() / conv.groups, co);
    case(name, &[x, w, Shape::vector(co)], false, |g, p| g.conv2d(p[0], p[1], Some(p[2]), conv))
}

fn norm_case(name: &'static str, norm: Norm, x: Shape) -> Case {
    let c = Shape::vector(x.c());
    case(name, &[x, c, c], false, |g, p| {
        let m = g.moments(norm, p[0])?;
        g.normalize(norm, 1e-5, p[0], m, Some((p[1], p[2])))
    })
}

pub(in crate::engine) fn cases() -> Vec<Case> {
    let mut all = vec![
        conv_case("conv 1×1", s(2, 5, 7, 17), 1, 33, Conv::new(1, 0)),
        conv_case("conv 3×3", s(2, 9, 7, 5), 3, 19, Conv::new(1, 1)),
        conv_case("conv 3×3 stride 2", s(1, 9, 12, 16), 3, 8, Conv::new(2, 1)),
        conv_case("conv 7×7 stride 2", s(1, 15, 14, 3), 7, 6, Conv::new(2, 3)),
        conv_case("conv depthwise", s(2, 8, 9, 18), 3, 18, Conv::grouped(1, 1, 18)),
        conv_case("conv depthwise 5×5 stride 2", s(1, 11, 9, 16), 5, 16, Conv::grouped(2, 2, 16)),
        conv_case("conv grouped", s(1, 6, 6, 8), 3, 12, Conv::grouped(1, 1, 4)),
        conv_case(
            "conv lopsided padding",
            s(1, 6, 6, 4),
            3,
            5,
            Conv { stride: 2, pad: [0, 0, 1, 1], groups: 1 },
        ),
        case(
            "conv transposed 4×4 stride 2",
            &[s(2, 5, 4, 7), s(4, 4, 9, 7), Shape::vector(9)],
            false,
            |g, p| g.conv_transpose2d(p[0], p[1], Some(p[2]), Conv::new(2, 1)),
        ),
        norm_case("batch norm", Norm::Batch, s(3, 9, 31, 5)),
        norm_case("group norm", Norm::Group(4), s(3, 7, 9, 12)),
        norm_case("group norm, one group", Norm::Group(1), s(2, 17, 16, 3)),
        norm_case("instance norm", Norm::Group(6), s(2, 5, 5, 6)),
        norm_case("layer norm", Norm::Layer, s(2, 3, 5, 19)),
        case("batch norm by parameter", &[s(2, 3, 4, 5), s(1, 1, 2, 5)], true, |g, p| {
            g.normalize(Norm::Batch, 1e-5, p[0], p[1], None)
        }),
        case("softmax", &[s(2, 3, 2, 7)], false, |g, p| g.softmax(p[0])),
        case("squared sum", &[s(1, 3, 5, 7), s(1, 1, 1, 4)], false, |g, p| g.apply(Op::SumSquares, p)),
        case("concat", &[s(2, 3, 2, 3), s(2, 3, 2, 5)], false, |g, p| g.concat(3, p)),
        case("concat rows", &[s(2, 3, 2, 3), s(2, 1, 2, 3)], false, |g, p| g.concat(1, p)),
        case("slice", &[s(2, 5, 4, 6)], false, |g, p| g.slice(p[0], 1, 2, 2)),
        case("pad", &[s(2, 2, 3, 3)], false, |g, p| g.apply(Op::Pad { axis: 2, before: 1, after: 2 }, p)),
        case("transpose", &[s(2, 3, 4, 5)], false, |g, p| g.transpose(p[0], [0, 3, 1, 2])),
        case("reshape", &[s(2, 3, 4, 5)], false, |g, p| g.reshape(p[0], s(1, 6, 20, 1))),
        case("broadcast", &[s(2, 1, 4, 1)], false, |g, p| g.apply(Op::Broadcast { shape: s(2, 3, 4, 5) }, p)),
        case("residual rank", &[s(2, 5, 4, 19), s(2, 5, 4, 19)], false, |g, p| {
            let residual = Residual { log: true, resize: Resize::Bilinear, h: 9, w: 11 };
            g.residual_rank(residual, p[0], p[1])
        }),
        case("residual rank, aligned", &[s(1, 8, 8, 24), s(1, 8, 8, 24)], false, |g, p| {
            let residual = Residual { log: false, resize: Resize::BilinearAligned, h: 8, w: 16 };
            g.residual_rank(residual, p[0], p[1])
        }),
        case(
            "residual gather",
            &[s(2, 5, 4, 3), s(2, 5, 4, 3), s(2, 2, 3, 8), s(2, 2, 3, 8), s(2, 1, 1, 11)],
            false,
            |g, p| {
                let residual = Residual { log: true, resize: Resize::Bilinear, h: 9, w: 11 };
                let top = g.top_k(p[4], 7)?;
                g.residual_gather(residual, top, &[(p[0], p[1]), (p[2], p[3])])
            },
        ),
        case(
            "residual gather of a larger map",
            &[s(1, 12, 7, 5), s(1, 12, 7, 5), s(1, 1, 1, 5)],
            false,
            |g, p| {
                let residual = Residual { log: false, resize: Resize::BilinearAligned, h: 8, w: 9 };
                let top = g.top_k(p[2], 5)?;
                g.residual_gather(residual, top, &[(p[0], p[1])])
            },
        ),
        case("heatmap, logit difference", &[s(2, 5, 61, 2)], false, |g, p| g.logit_difference(p[0])),
        case("heatmap", &[s(2, 5, 4, 2)], false, |g, p| g.anomaly_map(p[0], Resize::Bilinear, 9, 11)),
        case("heatmap, aligned", &[s(1, 8, 9, 2)], false, |g, p| {
            g.anomaly_map(p[0], Resize::BilinearAligned, 17, 300)
        }),
        case("heatmap of the logits' size", &[s(3, 7, 33, 2)], false, |g, p| {
            g.anomaly_map(p[0], Resize::BilinearAligned, 7, 33)
        }),
        case("heatmap, smaller", &[s(2, 33, 20, 2)], false, |g, p| {
            g.anomaly_map(p[0], Resize::Bilinear, 10, 7)
        }),
        case("heatmap, nearest", &[s(1, 3, 1, 2)], false, |g, p| g.anomaly_map(p[0], Resize::Nearest, 8, 5)),
        case("heatmap, largest pixel", &[s(3, 33, 65, 1)], false, |g, p| g.largest_mean(p[0], 1)),
        case("heatmap, largest mean", &[s(2, 70, 67, 1)], false, |g, p| g.largest_mean(p[0], 16)),
        case("heatmap, largest mean of one tile", &[s(2, 34, 34, 1)], true, |g, p| g.largest_mean(p[0], 3)),
        case("heatmap, largest mean of a large window", &[s(1, 45, 72, 1)], true, |g, p| {
            g.largest_mean(p[0], 40)
        }),
        case("heatmap, mean of all", &[s(2, 5, 5, 1)], true, |g, p| g.largest_mean(p[0], 5)),
        case("top 3 gathered", &[s(2, 4, 3, 6), s(2, 1, 1, 6)], false, |g, p| {
            let top = g.top_k(p[1], 3)?;
            g.gather(p[0], top)
        }),
    ];
    for (name, ta, tb) in
        [("a·b", false, false), ("aᵀ·b", true, false), ("a·bᵀ", false, true), ("aᵀ·bᵀ", true, true)]
    {
        let (a, b) = (
            if ta { s(2, 3, 9, 17) } else { s(2, 3, 17, 9) },
            if tb { s(2, 3, 33, 9) } else { s(2, 3, 9, 33) },
        );
        all.push(case(name, &[a, b], false, |g, p| {
            g.apply(Op::MatMul { transpose_a: ta, transpose_b: tb, alpha: 0.5 }, p)
        }));
    }
    for (name, unary) in [
        ("relu", Unary::Relu),
        ("relu6", Unary::Relu6),
        ("silu", Unary::Silu),
        ("sigmoid", Unary::Sigmoid),
        ("quick gelu", Unary::QuickGelu),
        ("tanh", Unary::Tanh),
        ("exp", Unary::Exp),
        ("log1p", Unary::Log1p),
        ("square", Unary::Square),
        ("sqrt", Unary::Sqrt),
        ("affine", Unary::Affine { factor: -1.5, offset: 0.25 }),
        ("clamp", Unary::Clamp { lo: 0.6, hi: 1.2 }),
    ] {
        all.push(case(name, &[s(1, 2, 5, 13)], true, |g, p| g.unary(unary, p[0])));
    }
    for (name, binary) in
        [("add", Binary::Add), ("sub", Binary::Sub), ("mul", Binary::Mul), ("div", Binary::Div)]
    {
        let same = s(2, 3, 4, 5);
        for b in [same, s(1, 1, 1, 5), s(2, 3, 4, 1), s(2, 1, 1, 5), Shape::SCALAR] {
            all.push(case(name, &[same, b], true, |g, p| g.binary(binary, p[0], p[1])));
        }
    }
    for (name, reduce) in [("sum", Reduce::Sum), ("mean", Reduce::Mean)] {
        for axes in [
            [true; 4],
            [true, true, true, false],
            [false, true, true, false],
            [false, false, false, true],
            [true, false, true, false],
        ] {
            all.push(case(name, &[s(3, 17, 16, 5)], false, |g, p| g.reduce(reduce, p[0], axes)));
        }
    }
    for (name, pool) in [("max pool", Pool::Max), ("average pool", Pool::Avg)] {
        for window in [
            Window { size: 3, stride: 2, pad: 1 },
            Window { size: 2, stride: 2, pad: 0 },
            Window { size: 3, stride: 1, pad: 1 },
        ] {
            all.push(case(name, &[s(2, 7, 6, 5)], false, |g, p| g.pool(pool, p[0], window)));
        }
    }
    for (name, resize) in [
        ("nearest", Resize::Nearest),
        ("bilinear", Resize::Bilinear),
        ("bilinear aligned", Resize::BilinearAligned),
        ("area", Resize::Area),
    ] {
        for (h, w) in [(10, 12), (7, 5), (3, 2), (1, 1)] {
            all.push(case(name, &[s(2, 5, 6, 3)], false, |g, p| g.resize(resize, p[0], h, w)));
        }
    }
    for (name, layout, causal) in [
        ("attention per head", QkvLayout::PerHead, false),
        ("attention in blocks", QkvLayout::Blocks, false),
        ("causal attention", QkvLayout::Blocks, true),
    ] {
        let attention = Attention { heads: 2, layout, causal };
        all.push(case(name, &[s(2, 3, 3, 24)], false, |g, p| g.attention(p[0], attention)));
    }
    all
}

/// Norms and attention of the sizes at which a GPU's kernels change their way.
pub(in crate::engine) fn device_cases() -> Vec<Case> {
    let mut all = vec![
        norm_case("batch norm of few rows", Norm::Batch, s(1, 1, 1, 8)),
        norm_case("batch norm in vectors", Norm::Batch, s(2, 5, 9, 72)),
        norm_case("batch norm in chunks", Norm::Batch, s(2, 40, 41, 24)),
        norm_case("batch norm in chunks, odd", Norm::Batch, s(2, 50, 41, 3)),
        norm_case("group norm in vectors", Norm::Group(4), s(2, 12, 11, 64)),
        norm_case("group norm across vectors", Norm::Group(4), s(2, 12, 11, 24)),
        norm_case("group norm, wide", Norm::Group(1), s(2, 2, 3, 2104)),
        norm_case("group norm, wide and odd", Norm::Group(2), s(1, 2, 3, 602)),
        norm_case("group norm in chunks", Norm::Group(2), s(1, 112, 48, 16)),
        norm_case("instance norm in vectors", Norm::Group(72), s(2, 5, 5, 72)),
        norm_case("layer norm in vectors", Norm::Layer, s(2, 3, 5, 40)),
        norm_case("layer norm in registers", Norm::Layer, s(1, 3, 3, 1024)),
        norm_case("layer norm, wide", Norm::Layer, s(1, 3, 3, 1032)),
        norm_case("layer norm in chunks", Norm::Layer, s(2, 45, 40, 24)),
    ];
    for (name, act) in [("norm, relu", Act::Relu), ("norm, relu6", Act::Relu6), ("norm, silu", Act::Silu)] {
        let fused = case(name, &[s(2, 5, 3, 16)], false, |g, p| {
            let norm = Norm::Group(2);
            let m = g.moments(norm, p[0])?;
            g.apply(Op::Normalize { norm, eps: 1e-5, affine: false, act }, &[p[0], m])
        });
        // A fused activation has no gradient: graphs are differentiated before they are fused.
        all.push(Case { wrt: vec![], ..fused });
    }
    for (name, x, layout, causal) in [
        ("attention, 70 tokens", s(1, 7, 10, 192), QkvLayout::PerHead, false),
        ("causal attention, 65 tokens", s(1, 5, 13, 384), QkvLayout::Blocks, true),
        ("attention, heads of 5", s(2, 3, 11, 30), QkvLayout::PerHead, true),
        ("attention, heads of 80", s(1, 1, 33, 480), QkvLayout::Blocks, false),
    ] {
        let attention = Attention { heads: 2, layout, causal };
        all.push(case(name, &[x], false, |g, p| g.attention(p[0], attention)));
    }
    all
}

/// A scalar of y that weighs every element differently, and its gradients.
pub(in crate::engine) fn with_loss(case: &Case) -> (Graph, Value, Vec<Value>) {
    let mut g = case.graph.clone();
    let weights = g.param("loss weights", g.shape(case.y)).unwrap();
    let product = g.mul(case.y, weights).unwrap();
    let loss = g.reduce(Reduce::Sum, product, [true; 4]).unwrap();
    let grads = gradients(&mut g, loss, &case.wrt).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    (g, loss, grads)
}

pub(in crate::engine) fn params_with_weights(case: &Case) -> ParamStore {
    let mut params = case.params.clone();
    params.insert("loss weights", random(case.graph.shape(case.y), 5));
    params
}

pub(in crate::engine) fn norm_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = want.iter().map(|b| square(f64::from(*b))).sum();
    difference.sqrt() / size.sqrt().max(1e-6)
}

#[test]
fn the_fast_path_equals_the_specification_forward_and_backward() {
    for isa in super::fast::Isa::available() {
        for count in [1, 3] {
            let threads = Threads::with_isa(count, isa);
            for case in cases() {
                let (g, loss, grads) = with_loss(&case);
                let names: Vec<String> = (0..grads.len()).map(|i| format!("grad {i}")).collect();
                let mut outputs = vec![("y", case.y), ("loss", loss)];
                outputs.extend(names.iter().map(String::as_str).zip(grads.iter().copied()));
                let params = params_with_weights(&case);
                let compile = |options| Program::compile(&g, &outputs, &params, &threads, options).unwrap();
                let (mut plain, mut fast) = (compile(Options::REFERENCE), compile(Options::default()));
                plain.run();
                for _ in 0..2 {
                    fast.poison();
                    fast.run();
                }
                for (name, _) in &outputs {
                    let error = norm_error(fast.output(name).unwrap(), plain.output(name).unwrap());
                    // Sums of at most 850 products in another order: √850·6e-8 = 1.8e-6; the loss and the
                    // norms' gradients subtract two such sums and lose up to a digit.
                    assert!(
                        error < 2e-5,
                        "{} {}: `{name}` differs by {error:e} ({isa:?})",
                        case.name,
                        case.y.index()
                    );
                }
            }
        }
    }
}

#[test]
fn every_gradient_equals_finite_differences() {
    let threads = Threads::new(1);
    for case in cases() {
        let (g, loss, grads) = with_loss(&case);
        let params = params_with_weights(&case);
        for (i, grad) in grads.iter().enumerate() {
            let outputs = [("loss", loss), ("grad", *grad)];
            let run = |params: &ParamStore| {
                let mut p = Program::compile(&g, &outputs, params, &threads, Options::REFERENCE).unwrap();
                p.run();
                (f64::from(p.output("loss").unwrap()[0]), p.output("grad").unwrap().to_vec())
            };
            let (_, gradient) = run(&params);
            let name = format!("p{i}");
            let tensor = params.get(&name).unwrap().clone();
            // A direction with random signs; the gradient along it is Σ g·d.
            let mut rng = Stream::new(i as u64, 3, 0, 9).rng();
            for trial in 0..3 {
                let d: Vec<f32> =
                    tensor.data.iter().map(|_| if rng.chance(0.5) { 1.0 } else { -1.0 }).collect();
                let along: f64 = gradient.iter().zip(&d).map(|(g, d)| f64::from(g * d)).sum();
                let h = 1e-3f32;
                let moved = |sign: f32| {
                    let data = tensor.data.iter().zip(&d).map(|(x, d)| x + sign * h * d).collect();
                    let mut p = params.clone();
                    p.insert(name.clone(), Tensor::new(tensor.shape, data));
                    run(&p).0
                };
                let slope = (moved(1.0) - moved(-1.0)) / f64::from(2.0 * h);
                let size: f64 = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
                // The losses are rounded to fp32: 2·6e-8·|loss|/2h per unit of loss (|loss| < 100 here),
                // and the third derivative leaves h². Kinks crossed within h add at most a few elements.
                let tolerance = 0.02 * size + 0.02;
                assert!(
                    (along - slope).abs() < tolerance,
                    "{} by {name}, trial {trial}: gradient {along}, slope {slope}, tolerance {tolerance}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn adam_moves_a_parameter_as_written_in_the_paper() {
    let mut g = Graph::new();
    let p = g.param("w", Shape::vector(2)).unwrap();
    let grad = g.input("grad", Shape::vector(2));
    let rate = g.input("rate", Shape::vector(3));
    let scale = g.fill(Shape::SCALAR, 0.5);
    let adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    g.adam(p, grad, rate, scale, adam, "adam").unwrap();
    let mut params = ParamStore::new();
    params.insert("w", Tensor::vector(vec![1.0, -2.0]));
    for name in ["adam.m.w", "adam.v.w"] {
        params.insert(name, Tensor::zeros(Shape::vector(2)));
    }
    let threads = Threads::new(1);
    let mut program = Program::compile(&g, &[], &params, &threads, Options::default()).unwrap();
    let (mut w, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
    for t in 1..=5i32 {
        let grads = [0.3 * f64::from(t), -1.0];
        program.input_mut("grad").unwrap().copy_from_slice(&grads.map(|g| g as f32));
        let (c1, c2) = (1.0 - 0.9f64.powi(t), 1.0 - 0.99f64.powi(t));
        program.input_mut("rate").unwrap().copy_from_slice(&[0.01, c1 as f32, c2 as f32]);
        program.run();
        for i in 0..2 {
            let g = grads[i] * 0.5;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.99 * v[i] + 0.01 * g * g;
            w[i] -= 0.01 * 0.1 * w[i];
            w[i] -= 0.01 * (m[i] / c1) / ((v[i] / c2).sqrt() + 1e-8);
        }
    }
    for (got, want) in program.param("w").unwrap().iter().zip(w) {
        // Five steps of a dozen fp32 roundings on numbers of size 2.
        assert!((f64::from(*got) - want).abs() < 5e-6, "{got} and {want}");
    }
}

#[test]
fn passes_change_no_output() {
    let mut g = Graph::new();
    let x = g.input("x", s(1, 8, 8, 6));
    let mut params = ParamStore::new();
    let mut y = x;
    for (i, act) in [Act::Relu6, Act::Silu, Act::None].into_iter().enumerate() {
        let w = g.param(&format!("c{i}.weight"), s(3, 3, 6, 6)).unwrap();
        params.insert(format!("c{i}.weight"), random(s(3, 3, 6, 6), i as u64));
        let c = g.conv2d(y, w, None, Conv::new(1, 1)).unwrap();
        let b = g.batch_norm_eval(c, 1e-3, &format!("b{i}")).unwrap();
        for part in ["weight", "bias"] {
            params.insert(format!("b{i}.{part}"), random(Shape::vector(6), i as u64 + 20));
        }
        let mut moments = random(s(1, 1, 2, 6), i as u64 + 30);
        moments.data.iter_mut().for_each(|v| *v = v.abs() + 0.1);
        params.insert(format!("b{i}.moments"), moments);
        let sum = if i == 2 { g.add(b, x).unwrap() } else { b };
        y = g.act(act, sum).unwrap();
    }
    let threads = Threads::new(2);
    let outputs = [("y", y)];
    let mut plain = Program::compile(&g, &outputs, &params, &threads, Options::REFERENCE).unwrap();
    let mut fused = Program::compile(&g, &outputs, &params, &threads, Options::default()).unwrap();
    assert_eq!(fused.describe().lines().count(), 3, "three fused convolutions:\n{}", fused.describe());
    let data = random(s(1, 8, 8, 6), 99).data;
    for p in [&mut plain, &mut fused] {
        p.input_mut("x").unwrap().copy_from_slice(&data);
        p.run();
    }
    let error = norm_error(fused.output("y").unwrap(), plain.output("y").unwrap());
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn a_missing_or_misshaped_weight_is_named() {
    let mut g = Graph::new();
    let x = g.input("x", s(1, 4, 4, 2));
    let w = g.param("stem.weight", s(1, 1, 2, 3)).unwrap();
    let y = g.conv2d(x, w, None, Conv::new(1, 0)).unwrap();
    let threads = Threads::new(1);
    let mut params = ParamStore::new();
    let error = Program::compile(&g, &[("y", y)], &params, &threads, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "the weights lack `stem.weight`");
    params.insert("stem.weight", Tensor::zeros(s(1, 1, 2, 4)));
    let error = Program::compile(&g, &[("y", y)], &params, &threads, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "weight `stem.weight` is 1×1×2×4, the network needs 1×1×2×3");
    assert!(
        g.conv2d(x, w, Some(x), Conv::new(1, 0)).unwrap_err().to_string().contains("conv2d(stem.weight)")
    );
}
