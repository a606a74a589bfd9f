//! What kernels move, counted by the simulated GPU, beside the least that their shapes allow.
//!
//! The least of a kernel that streams is every operand read once and the result written once. A product
//! on tensor cores reads operands once per tile: of an m×n result with sums of k, cut into tiles of
//! a×b, that is k·(m·⌈n/b⌉ + n·⌈m/a⌉) values and the result.

use serde::Serialize;

use super::counters::{Counted, counted};
use super::schedule::{Lying, Step};
use super::{Gpu, Priority, Program};
use crate::engine::philox::Stream;
use crate::engine::*;

/// What is asked of a kernel's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// At most 1.15 times operands and result.
    Stream,
    /// At most 1.5 times the least for its tiles.
    Tiles,
    /// Printed only.
    None,
}

impl Goal {
    pub fn bound(self) -> f64 {
        match self {
            Goal::Stream => 1.15,
            Goal::Tiles => 1.5,
            Goal::None => f64::INFINITY,
        }
    }
}

/// The least sector efficiency, and the most bank conflicts of kernels on tensor cores.
pub const SECTOR_EFFICIENCY: f64 = 0.9;
pub const CONFLICTS: f64 = 0.05;

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: &'static str,
    pub goal: Goal,
    pub kernels: Vec<String>,
    pub load_bytes: u64,
    pub store_bytes: u64,
    pub sectors: u64,
    /// Operands and result once.
    pub paper_bytes: u64,
    /// What the goal is measured by.
    pub minimum_bytes: u64,
    pub mma: u64,
    pub minimum_mma: u64,
    pub shared_accesses: u64,
    pub shared_bank_conflicts: u64,
}

fn quotient(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Row {
    pub fn bytes(&self) -> u64 {
        self.load_bytes + self.store_bytes
    }

    pub fn ratio(&self) -> f64 {
        quotient(self.bytes(), self.minimum_bytes)
    }

    pub fn mma_ratio(&self) -> Option<f64> {
        (self.minimum_mma > 0).then(|| quotient(self.mma, self.minimum_mma))
    }

    pub fn sector_efficiency(&self) -> f64 {
        quotient(self.bytes(), 32 * self.sectors)
    }

    pub fn conflicts(&self) -> f64 {
        quotient(self.shared_bank_conflicts, self.shared_accesses)
    }

    /// The goals that this row misses.
    pub fn misses(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.ratio() > self.goal.bound() {
            missed.push(format!("{:.2} times the minimum, {} at most", self.ratio(), self.goal.bound()));
        }
        if self.goal != Goal::None && self.sector_efficiency() < SECTOR_EFFICIENCY {
            missed.push(format!("sector efficiency {:.2}", self.sector_efficiency()));
        }
        if self.mma > 0 && self.conflicts() > CONFLICTS {
            missed.push(format!("{:.1} % bank conflicts", 100.0 * self.conflicts()));
        }
        missed
    }
}

/// The shape of a product: rows, columns, length of the sums, and how many of them.
#[derive(Clone, Copy, Debug)]
struct Products {
    m: u64,
    n: u64,
    k: u64,
    batch: u64,
}

impl Products {
    fn mma(self) -> u64 {
        self.batch * self.m.div_ceil(16) * self.n.div_ceil(8) * self.k.div_ceil(16)
    }

    fn tile_bytes(self, tile: (u64, u64), out_bytes: u64) -> u64 {
        let read = self.k * (self.m * self.n.div_ceil(tile.1) + self.n * self.m.div_ceil(tile.0));
        self.batch * 2 * read + out_bytes
    }
}

struct Case {
    name: &'static str,
    goal: Goal,
    graph: Graph,
    y: Value,
    params: ParamStore,
    products: Option<Products>,
}

fn s(n: usize, h: usize, w: usize, c: usize) -> Shape {
    Shape::new(n, h, w, c)
}

fn random(shape: Shape, seed: u64) -> Tensor {
    let mut rng = Stream::new(seed, 0, 0, 41).rng();
    Tensor::new(shape, (0..shape.len()).map(|_| rng.range(-1.0, 1.0)).collect())
}

/// An operation on inputs of the given shapes.
fn case(
    name: &'static str,
    goal: Goal,
    shapes: &[Shape],
    f: impl FnOnce(&mut Graph, &[Value]) -> GraphResult,
) -> Result<Case, GraphError> {
    let mut graph = Graph::new();
    let inputs: Vec<Value> =
        shapes.iter().enumerate().map(|(i, s)| graph.input(&format!("x{i}"), *s)).collect();
    let y = f(&mut graph, &inputs)?;
    // What `f` adds under a name is a parameter.
    let mut params = ParamStore::new();
    let named: Vec<(String, Shape)> = graph.params().map(|(n, v)| (n.to_owned(), graph.shape(v))).collect();
    for (i, (name, shape)) in named.into_iter().enumerate() {
        let mut tensor = random(shape, 100 + i as u64);
        tensor.data.iter_mut().for_each(|v| *v = v.abs() + 0.5);
        params.insert(name, tensor);
    }
    Ok(Case { name, goal, graph, y, params, products: None })
}

fn conv(name: &'static str, x: Shape, k: usize, co: usize, conv: Conv) -> Result<Case, GraphError> {
    let goal = if conv.groups == 1 { Goal::Tiles } else { Goal::Stream };
    let mut case = case(name, goal, &[x], |g, v| {
        let w = g.param("w", s(k, k, x.c() / conv.groups, co))?;
        let b = g.param("b", Shape::vector(co))?;
        g.conv2d(v[0], w, Some(b), conv)
    })?;
    let y = case.graph.shape(case.y);
    case.products = (conv.groups == 1).then_some(Products {
        m: (y.n() * y.h() * y.w()) as u64,
        n: co as u64,
        k: (k * k * x.c()) as u64,
        batch: 1,
    });
    Ok(case)
}

/// Shapes of the networks, scaled to what an interpreter runs in a second or two.
fn cases() -> Result<Vec<Case>, GraphError> {
    use Goal::{None, Stream};
    let map = s(1, 32, 32, 64);
    let twice = [map, map];
    let mut all = vec![
        conv("conv 1×1, 40 to 240", s(1, 28, 28, 40), 1, 240, Conv::new(1, 0))?,
        conv("conv 1×1, 240 to 40", s(1, 28, 28, 240), 1, 40, Conv::new(1, 0))?,
        conv("conv 3×3, 64 to 64", s(1, 24, 24, 64), 3, 64, Conv::new(1, 1))?,
        conv("conv 3×3 stride 2, 64 to 128", s(1, 24, 24, 64), 3, 128, Conv::new(2, 1))?,
        conv("conv 3×3 stride 2, 3 to 32", s(1, 64, 64, 3), 3, 32, Conv::new(2, 1))?,
        conv("depthwise 3×3, 96", s(1, 28, 28, 96), 3, 96, Conv::grouped(1, 1, 96))?,
        conv("depthwise 5×5 stride 2, 96", s(1, 28, 28, 96), 5, 96, Conv::grouped(2, 2, 96))?,
    ];
    let mut product =
        case("product 256×64 · 64×256", Goal::Tiles, &[s(1, 1, 256, 64), s(1, 1, 64, 256)], |g, v| {
            g.matmul(v[0], v[1], false, false)
        })?;
    product.products = Some(Products { m: 256, n: 256, k: 64, batch: 1 });
    all.push(product);
    all.extend([
        case("SiLU", Stream, &[map], |g, v| g.unary(Unary::Silu, v[0]))?,
        case("sum of two", Stream, &twice, |g, v| g.add(v[0], v[1]))?,
        case("sum with a number per channel", Stream, &[map, s(1, 1, 1, 64)], |g, v| g.add(v[0], v[1]))?,
        case("group norm, 32 groups", Stream, &[map], |g, v| g.group_norm(v[0], 32, 1e-5, "n"))?,
        case("layer norm, 192", Stream, &[s(1, 1, 256, 192)], |g, v| {
            let m = g.moments(Norm::Layer, v[0])?;
            g.normalize(Norm::Layer, 1e-5, v[0], m, Option::None)
        })?,
        case("maximum pool 3×3 stride 2", Stream, &[map], |g, v| {
            g.pool(Pool::Max, v[0], Window { size: 3, stride: 2, pad: 1 })
        })?,
        case("average pool 3×3", Stream, &[map], |g, v| {
            g.pool(Pool::Avg, v[0], Window { size: 3, stride: 1, pad: 1 })
        })?,
        case("resize ×2, nearest", Stream, &[map], |g, v| g.resize(Resize::Nearest, v[0], 64, 64))?,
        case("resize ×2, bilinear", Stream, &[map], |g, v| g.resize(Resize::Bilinear, v[0], 64, 64))?,
        case("mean of each channel", Stream, &[map], |g, v| {
            g.reduce(Reduce::Mean, v[0], [false, true, true, false])
        })?,
        case("mean of each pixel", Stream, &[map], |g, v| {
            g.reduce(Reduce::Mean, v[0], [false, false, false, true])
        })?,
        case("softmax over 64", Stream, &[map], |g, v| g.softmax(v[0]))?,
        case("concat of channels", Stream, &twice, |g, v| g.concat(3, v))?,
        case("transpose to planes", Stream, &[map], |g, v| g.transpose(v[0], [0, 3, 1, 2]))?,
        case("attention, 4 heads of 32, 128 tokens", None, &[s(1, 1, 128, 384)], |g, v| {
            g.attention(v[0], Attention { heads: 4, layout: QkvLayout::Blocks, causal: false })
        })?,
    ]);
    Ok(all)
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    #[error("only the simulated GPU counts what kernels move")]
    NotCounted,
    #[error("{case}: {error}")]
    Program { case: &'static str, error: ProgramError },
    #[error("{case}: {counted} kernels ran, {planned} were planned")]
    Lost { case: &'static str, counted: usize, planned: usize },
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Runs every case once.
pub fn measure(gpu: &Gpu) -> Result<Vec<Row>, TrafficError> {
    cases()?.iter().map(|case| measure_one(gpu, case)).collect()
}

fn measure_one(gpu: &Gpu, case: &Case) -> Result<Row, TrafficError> {
    let failed = |error: ProgramError| TrafficError::Program { case: case.name, error };
    let outputs = [("y", case.y)];
    let options = Options::default();
    let mut program =
        Program::compile(&case.graph, &outputs, &case.params, gpu, Priority::Low, options).map_err(failed)?;
    for (i, node) in case.graph.nodes().iter().enumerate() {
        if let Op::Input { name } = &node.op {
            let tensor = random(node.shape, i as u64);
            program.input_mut(name).map_err(failed)?.copy_from_slice(&tensor.data);
        }
    }
    let (ran, runs) = counted(gpu, || program.run()).ok_or(TrafficError::NotCounted)?;
    ran.map_err(failed)?;
    let steps = program.steps();
    let planned = steps.iter().map(|s| s.launches.len()).sum();
    if planned != runs.len() {
        return Err(TrafficError::Lost { case: case.name, counted: runs.len(), planned });
    }
    Ok(row(case, steps, &runs))
}

/// Conversions at the ends of the program are not the operation's.
fn is_conversion(step: &Step) -> bool {
    step.launches.iter().all(|l| l.kernel.starts_with("convert_"))
}

fn row(case: &Case, steps: &[Step], runs: &[Counted]) -> Row {
    let mut row = Row {
        case: case.name,
        goal: case.goal,
        kernels: Vec::new(),
        load_bytes: 0,
        store_bytes: 0,
        sectors: 0,
        paper_bytes: 0,
        minimum_bytes: 0,
        mma: 0,
        minimum_mma: case.products.map_or(0, Products::mma),
        shared_accesses: 0,
        shared_bank_conflicts: 0,
    };
    let mut runs = runs.iter();
    let mut out_bytes = 0;
    for step in steps {
        let own: Vec<&Counted> = runs.by_ref().take(step.launches.len()).collect();
        if is_conversion(step) {
            continue;
        }
        row.paper_bytes += paper_bytes(step);
        out_bytes = step.out.loc.bytes as u64;
        for run in own {
            row.kernels.push(run.kernel.clone());
            row.load_bytes += run.global_load_bytes;
            row.store_bytes += run.global_store_bytes;
            row.sectors += run.sectors;
            row.mma += run.mma;
            row.shared_accesses += run.shared_accesses;
            row.shared_bank_conflicts += run.shared_bank_conflicts;
        }
    }
    let tile = row.kernels.iter().find_map(|k| tile(k));
    row.minimum_bytes = match (case.products, tile) {
        (Some(products), Some(tile)) => products.tile_bytes(tile, out_bytes),
        _ => row.paper_bytes,
    };
    row
}

/// Every operand and the result once; of a parameter that has an fp16 copy, that.
fn paper_bytes(step: &Step) -> u64 {
    let mut seen: Vec<Lying> = Vec::new();
    let mut bytes = step.out.loc.bytes;
    for (i, input) in step.inputs.iter().enumerate() {
        if !seen.contains(input) {
            seen.push(*input);
            bytes += step.shadows.get(i).copied().flatten().map_or(input.loc.bytes, |s| s.bytes);
        }
    }
    bytes as u64
}

/// The tile that a kernel's name ends in: `conv_dense_128x64`.
fn tile(kernel: &str) -> Option<(u64, u64)> {
    let (a, b) = kernel.rsplit('_').next()?.split_once('x')?;
    Some((a.parse().ok()?, b.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_reads_its_operands_once_per_tile() {
        let p = Products { m: 256, n: 128, k: 64, batch: 1 };
        assert_eq!(p.tile_bytes((256, 128), 100), 2 * 64 * (256 + 128) + 100);
        assert_eq!(p.tile_bytes((128, 64), 0), 2 * 64 * (256 * 2 + 128 * 2));
        assert_eq!(p.mma(), 16 * 16 * 4);
    }

    #[test]
    fn the_tile_is_in_the_kernels_name() {
        assert_eq!(tile("conv_dense_128x64"), Some((128, 64)));
        assert_eq!(tile("silu_f16"), None);
    }
}
