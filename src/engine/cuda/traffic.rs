//! What kernels move, counted by the simulated GPU, beside the least that their shapes allow.
//!
//! The least of a kernel that streams is every operand read once and the result written once. A product
//! on tensor cores reads operands once per tile: of an m×n result with sums of k, cut into tiles of
//! a×b, that is k·(m·⌈n/b⌉ + n·⌈m/a⌉) values and the result.

use serde::Serialize;

use super::counters::{Counted, counted};
use super::feed::Addresses;
use super::preprocess;
use super::schedule::{Lying, Schedule, Step};
use super::{Gpu, Priority, Program};
use crate::engine::*;

/// What is asked of a kernel's traffic: at most `ratio` times the minimum, at least `sectors` of each sector
/// used, at most `conflicts` per access to shared memory where there are tensor cores. `why` is empty where
/// these are the project's goals, and says why they are looser where they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    pub ratio: f64,
    pub sectors: f64,
    pub conflicts: f64,
    pub why: &'static str,
}

impl Bound {
    /// Kernels that stream: operands and result once.
    pub const STREAM: Bound = Bound { ratio: 1.15, sectors: 0.9, conflicts: 0.05, why: "" };
    /// Products: operands once per tile.
    pub const TILES: Bound = Bound { ratio: 1.5, ..Bound::STREAM };

    pub const fn looser(self, ratio: f64, sectors: f64, why: &'static str) -> Bound {
        Bound { ratio, sectors, why, ..self }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: &'static str,
    pub bound: Bound,
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
    fn new(case: &'static str, bound: Bound) -> Row {
        Row {
            case,
            bound,
            kernels: Vec::new(),
            load_bytes: 0,
            store_bytes: 0,
            sectors: 0,
            paper_bytes: 0,
            minimum_bytes: 0,
            mma: 0,
            minimum_mma: 0,
            shared_accesses: 0,
            shared_bank_conflicts: 0,
        }
    }

    fn add(&mut self, run: &Counted) {
        self.kernels.push(run.kernel.clone());
        self.load_bytes += run.global_load_bytes;
        self.store_bytes += run.global_store_bytes;
        self.sectors += run.sectors;
        self.mma += run.mma;
        self.shared_accesses += run.shared_accesses;
        self.shared_bank_conflicts += run.shared_bank_conflicts;
    }

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

    /// What of its bound this row misses.
    pub fn misses(&self) -> Vec<String> {
        let (mut missed, bound) = (Vec::new(), &self.bound);
        if self.ratio() > bound.ratio {
            missed.push(format!("{:.2} times the minimum, {} at most", self.ratio(), bound.ratio));
        }
        if self.sector_efficiency() < bound.sectors {
            missed.push(format!(
                "sector efficiency {:.2}, {} at least",
                self.sector_efficiency(),
                bound.sectors
            ));
        }
        if self.mma > 0 && self.conflicts() > bound.conflicts {
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

mod cases;
mod painting;

use cases::{Case, Frame, SIDE, cases, frames, random};

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
    let mut rows = cases()?.iter().map(|case| measure_one(gpu, case)).collect::<Result<Vec<Row>, _>>()?;
    for frame in frames() {
        rows.push(measure_frame(gpu, &frame)?);
    }
    rows.extend(painting::measure(gpu)?);
    Ok(rows)
}

/// The launch that makes an input of a frame.
fn measure_frame(gpu: &Gpu, frame: &Frame) -> Result<Row, TrafficError> {
    let failed = |error: ProgramError| TrafficError::Program { case: frame.name, error };
    let mut graph = Graph::new();
    let x = graph.input("image", Shape::new(1, SIDE, SIDE, 3));
    let y = graph.unary(Unary::Silu, x)?;
    let (params, options) = (ParamStore::new(), Options::default());
    let mut program =
        Program::compile(&graph, &[("y", y)], &params, gpu, Priority::Low, options).map_err(failed)?;
    let tables: Vec<&[u8]> = frame.tables.iter().map(Vec::as_slice).collect();
    let launch = |at: &Addresses| preprocess::launch(&frame.geometry, at);
    let feed = program.attach("image", &frame.planes, &tables, launch).map_err(failed)?;
    let planes: Vec<Vec<u8>> =
        frame.planes.iter().map(|len| (0..*len).map(|i| (i * 31 % 251) as u8).collect()).collect();
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let stream = program.stream_number();
    let (ran, runs) =
        counted(gpu, stream, || program.run_fed(feed, &planes)).ok_or(TrafficError::NotCounted)?;
    ran.map_err(failed)?;
    let mut row = Row::new(frame.name, frame.bound);
    let tables = frame.tables.iter().map(Vec::len).sum::<usize>();
    row.paper_bytes = (frame.planes.iter().sum::<usize>() + tables + 2 * 3 * SIDE * SIDE) as u64;
    row.minimum_bytes = row.paper_bytes;
    runs.iter().filter(|run| run.kernel.starts_with("preprocess_")).for_each(|run| row.add(run));
    match row.kernels.len() {
        1 => Ok(row),
        counted => Err(TrafficError::Lost { case: frame.name, counted, planned: 1 }),
    }
}

fn measure_one(gpu: &Gpu, case: &Case) -> Result<Row, TrafficError> {
    let failed = |error: ProgramError| TrafficError::Program { case: case.name, error };
    let outputs = [("y", case.y)];
    let options = Options::default();
    let mut program =
        Program::compile(&case.graph, &outputs, &case.params, gpu, Priority::Low, options).map_err(failed)?;
    for (i, node) in case.graph.nodes().iter().enumerate() {
        if let Op::Input { name } = &node.op {
            if let Some(indices) = &case.indices
                && name == cases::INDICES
            {
                program.set_indices(name, indices).map_err(failed)?;
                continue;
            }
            let tensor = random(node.shape, i as u64);
            program.input_mut(name).map_err(failed)?.copy_from_slice(&tensor.data);
        }
    }
    let stream = program.stream_number();
    let (ran, runs) = counted(gpu, stream, || program.run()).ok_or(TrafficError::NotCounted)?;
    ran.map_err(failed)?;
    let schedule = program.schedule();
    let planned = schedule.launches();
    if planned != runs.len() {
        return Err(TrafficError::Lost { case: case.name, counted: runs.len(), planned });
    }
    Ok(row(case, schedule, &runs))
}

/// Conversions at the ends of the program are not the operation's.
fn is_conversion(step: &Step) -> bool {
    step.launches.iter().all(|l| l.kernel.starts_with("convert_"))
}

fn row(case: &Case, schedule: &Schedule, runs: &[Counted]) -> Row {
    let mut row = Row::new(case.name, case.bound);
    row.minimum_mma = case.products.map_or(0, Products::mma);
    let mut out_bytes = 0;
    for step in schedule.steps.iter().filter(|step| !is_conversion(step)) {
        row.paper_bytes += paper_bytes(step);
        out_bytes = step.out.loc.bytes as u64;
    }
    for (run, counted) in schedule.runs.iter().zip(runs) {
        let mut steps = run.parts.iter().filter_map(|part| schedule.launch(*part));
        if !steps.all(|(step, _)| is_conversion(step)) {
            row.add(counted);
        }
    }
    let tile = row.kernels.iter().find_map(|k| tile(k));
    row.minimum_bytes = match (case.products, tile) {
        (Some(products), Some(tile)) => products.tile_bytes(tile, out_bytes),
        _ => row.paper_bytes,
    };
    if let Some(bytes) = case.paper_bytes {
        (row.paper_bytes, row.minimum_bytes) = (bytes, bytes);
    }
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
    fn every_kernel_moves_no_more_than_its_bound_allows() {
        let rows = measure(&super::super::simulator::gpu()).unwrap();
        let missed: Vec<String> = rows
            .iter()
            .flat_map(|row| {
                row.misses().into_iter().map(move |m| format!("{} {:?}: {m}", row.case, row.kernels))
            })
            .collect();
        assert!(missed.is_empty(), "{}", missed.join("\n"));
    }

    #[test]
    fn a_row_that_moves_too_much_or_in_pieces_misses_its_bound() {
        let row = Row {
            load_bytes: 100,
            store_bytes: 20,
            sectors: 5,
            minimum_bytes: 100,
            mma: 1,
            shared_accesses: 100,
            shared_bank_conflicts: 6,
            ..Row::new("", Bound::STREAM)
        };
        assert_eq!(row.misses().len(), 3, "{:?}", row.misses());
        let better = Row { load_bytes: 95, sectors: 3, shared_bank_conflicts: 5, ..row };
        assert!(better.misses().is_empty(), "{:?}", better.misses());
    }

    #[test]
    fn a_looser_bound_says_why() {
        let cases = cases().unwrap();
        let painted = painting::WANTED.iter().map(|w| (w.name, w.bound));
        let bounds = cases
            .iter()
            .map(|c| (c.name, c.bound))
            .chain(frames().into_iter().map(|f| (f.name, f.bound)).chain(painted));
        for (name, bound) in bounds {
            let goal = [Bound::STREAM.ratio, Bound::TILES.ratio].contains(&bound.ratio)
                && bound.sectors == Bound::STREAM.sectors
                && bound.conflicts == Bound::STREAM.conflicts;
            assert!(goal || !bound.why.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_tile_is_in_the_kernels_name() {
        assert_eq!(tile("conv_dense_128x64"), Some((128, 64)));
        assert_eq!(tile("silu_f16"), None);
    }
}
