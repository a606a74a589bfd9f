//! A compiled program's `run` allocates nothing: counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use inspectd::engine::cpu::Program;
use inspectd::engine::{
    Adam, Attention, Binary, Conv, Graph, GraphError, Norm, Options, ParamStore, Pool, QkvLayout, Reduce,
    Resize, Shape, Tensor, Threads, Unary, Value, Window, gradients,
};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A training step that uses every kind of operation once.
fn training_step(g: &mut Graph) -> Result<Vec<Value>, GraphError> {
    let x = g.input("x", Shape::new(2, 16, 16, 8));
    let target = g.input("target", Shape::new(2, 8, 8, 1));
    let w = |g: &mut Graph, name: &str, shape: [usize; 4]| g.param(name, Shape(shape));
    let stem = w(g, "stem.weight", [3, 3, 8, 16])?;
    let bias = w(g, "stem.bias", [1, 1, 1, 16])?;
    let mut y = g.conv2d(x, stem, Some(bias), Conv::new(1, 1))?;
    y = g.batch_norm_train(y, 1e-5, 0.1, "bn")?;
    y = g.unary(Unary::Silu, y)?;
    let depthwise = w(g, "depthwise.weight", [3, 3, 1, 16])?;
    y = g.conv2d(y, depthwise, None, Conv::grouped(1, 1, 16))?;
    y = g.group_norm(y, 4, 1e-5, "gn")?;
    y = g.pool(Pool::Avg, y, Window { size: 2, stride: 2, pad: 0 })?;
    let qkv = w(g, "qkv.weight", [1, 1, 16, 48])?;
    let qkv = g.conv2d(y, qkv, None, Conv::new(1, 0))?;
    let mixed = g.attention(qkv, Attention { heads: 2, layout: QkvLayout::PerHead, causal: false })?;
    y = g.add(y, mixed)?;
    let layer = g.moments(Norm::Layer, y)?;
    y = g.normalize(Norm::Layer, 1e-5, y, layer, None)?;
    let up = w(g, "up.weight", [4, 4, 8, 16])?;
    let up = g.conv_transpose2d(y, up, None, Conv::new(2, 1))?;
    let small = g.resize(Resize::Bilinear, up, 8, 8)?;
    let joined = g.concat(3, &[small, y])?;
    let keys = g.reduce(Reduce::Max, joined, [false, true, true, false])?;
    let top = g.top_k(keys, 6)?;
    let chosen = g.gather(joined, top)?;
    let head = w(g, "head.weight", [1, 1, 6, 2])?;
    let logits = g.conv2d(chosen, head, None, Conv::new(1, 0))?;
    let ce = g.cross_entropy(logits, target)?;
    let square = g.unary(Unary::Square, up)?;
    let energy = g.mean(square)?;
    let loss = g.binary(Binary::Add, ce, energy)?;

    let names = [
        "stem.weight",
        "stem.bias",
        "depthwise.weight",
        "bn.weight",
        "gn.bias",
        "qkv.weight",
        "up.weight",
        "head.weight",
    ];
    let params: Vec<Value> =
        names.iter().filter_map(|n| g.params().find(|p| p.0 == *n).map(|p| p.1)).collect();
    assert_eq!(params.len(), names.len());
    let grads = gradients(g, loss, &params)?;
    let rate = g.input("rate", Shape::vector(3));
    let norm = g.apply(inspectd::engine::Op::SumSquares, &grads)?;
    let norm = g.unary(Unary::Sqrt, norm)?;
    let scale = g.unary(Unary::Affine { factor: 0.0, offset: 1.0 }, norm)?;
    let adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 1e-4 };
    for (p, grad) in params.into_iter().zip(grads) {
        g.adam(p, grad, rate, scale, adam, "adam")?;
    }
    Ok(vec![loss, logits])
}

#[test]
fn a_compiled_training_step_allocates_nothing_and_learns() {
    let mut g = Graph::new();
    let out = training_step(&mut g).unwrap();
    let mut params = ParamStore::new();
    for (i, (name, value)) in g.params().enumerate() {
        let shape = g.shape(value);
        let start = if name.starts_with("adam") { 0.0 } else { 0.2 };
        let data =
            (0..shape.len()).map(|e| start * ((e * 37 + i * 11) % 17) as f32 / 17.0 - start * 0.4).collect();
        let mut t = Tensor::new(shape, data);
        if name.ends_with("moments") {
            t.data.fill(1.0);
        }
        params.insert(name, t);
    }
    let threads = Threads::new(2);
    let outputs = [("loss", out[0]), ("logits", out[1])];
    let mut program = Program::compile(&g, &outputs, &params, &threads, Options::default()).unwrap();
    let x = program.input_mut("x").unwrap();
    x.iter_mut().enumerate().for_each(|(i, v)| *v = ((i * 13) % 31) as f32 / 31.0 - 0.5);
    let t = program.input_mut("target").unwrap();
    t.iter_mut().enumerate().for_each(|(i, v)| *v = (i % 2) as f32);
    program.input_mut("rate").unwrap().copy_from_slice(&[1e-2, 0.1, 0.01]);
    program.run();
    let first = program.output("loss").unwrap()[0];
    // The counter sees the test harness's threads too, which may allocate once beside a round; a step
    // that allocates would do so in every round.
    let round = |program: &mut Program| {
        let before = COUNT.load(Ordering::SeqCst);
        for _ in 0..20 {
            program.run();
        }
        COUNT.load(Ordering::SeqCst) - before
    };
    let allocations = (0..3).map(|_| round(&mut program)).min().unwrap();
    let last = program.output("loss").unwrap()[0];
    assert_eq!(allocations, 0, "allocations in 20 runs of the program");
    assert!(first.is_finite() && last < first, "the loss fell from {first} to {last}");
}
