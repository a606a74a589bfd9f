//! `inspectd bench`: times per operation, network and frame.
//!
//! Every case is a compiled program, so what is timed is what the daemon runs. One line per case:
//!
//! | field | meaning |
//! |---|---|
//! | `name` | `op/…` one operation, `net/ARCH/SIZE` a backbone to its deepest tap, `line/PRESET/SIZE` frame → judgement |
//! | `us`, `min_us` | median and least time, µs |
//! | `spread` | (90th − 10th percentile) / median: how far to trust the median |
//! | `gflops` | 2 × multiply-adds / median time; null where nothing is counted |
//! | `peak_fraction` | of what FMA on registers reaches on the same threads (`peak_gflops`) |
//! | `reference_us` | the plain specification of the operation in the same run, once; null for networks |
//! | `runs`, `threads`, `isa` | conditions |

mod cases;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Exit, Failure};
use crate::engine::cpu::fast::peak_gflops;
use crate::engine::cuda::peak::peaks;
use crate::engine::{DeviceError, DeviceName, Gpu, Threads};
use cases::{Case, Prepared};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what has S in its name, e.g. op/conv3x3 or net/
    #[arg(long, value_name = "S")]
    pub filter: Option<String>,
    /// JSON lines: name, us, gflops, peak_fraction
    #[arg(long)]
    pub json: bool,
    /// Time line/… with this model instead of one with random weights
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Only what a GPU can do at most, by its own clocks: `--peak cuda:0`
    #[arg(long, value_name = "D", conflicts_with_all = ["filter", "model", "threads"])]
    pub peak: Option<DeviceName>,
    /// Threads [default: all processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    us: f64,
    gflops: Option<f64>,
    peak_fraction: Option<f64>,
    min_us: f64,
    spread: f64,
    reference_us: Option<f64>,
    peak_gflops: f64,
    runs: usize,
    threads: usize,
    isa: &'static str,
}

/// Each case is repeated for this long, and at least and at most that often.
const DURATION: Duration = Duration::from_millis(600);
const RUNS: std::ops::RangeInclusive<usize> = 7..=400;

pub fn run(args: Args) -> Result<(), Failure> {
    if let Some(device) = args.peak {
        return peak(device, args.json);
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = Threads::new(args.threads.map_or(cpus, usize::from));
    let filter = args.filter.as_deref().unwrap_or("");
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| case.name().contains(filter)).collect();
    if cases.is_empty() {
        let names: Vec<String> = cases::all().iter().map(Case::name).collect();
        return Err(Failure::say(Exit::Usage, format!("nothing is called `{filter}`"))
            .hint(format!("--filter with a part of one of these: {}", names.join(", "))));
    }
    let mut out = std::io::stdout().lock();
    if !args.json {
        let peak = peak_gflops(&threads);
        let (n, isa) = (threads.threads(), threads.isa().name());
        writeln!(out, "{n} threads, {isa}, {peak:.0} GFLOP/s on registers").map_err(Failure::stdout)?;
        writeln!(out, "{HEADER}").map_err(Failure::stdout)?;
    }
    for case in &cases {
        let line = measure(case, &threads, &args)?;
        if args.json {
            let text = serde_json::to_string(&line).map_err(|error| Failure::new(Exit::Internal, error))?;
            writeln!(out, "{text}")
        } else {
            writeln!(out, "{}", line.text())
        }
        .map_err(Failure::stdout)?;
        out.flush().map_err(Failure::stdout)?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Peak {
    name: String,
    mma_tflops: f64,
    fp32_tflops: f64,
    gb_per_s: f64,
}

fn peak(name: DeviceName, json: bool) -> Result<(), Failure> {
    let usage = |text: String| Failure::say(Exit::Usage, text).hint("inspectd bench --peak cuda:0");
    let DeviceName::Cuda(index) = name else {
        return Err(usage("only a GPU has clocks to ask; a CPU's peak stands above its table".into()));
    };
    let unavailable = |error: DeviceError| Failure::new(Exit::Unavailable, error);
    let gpu = Gpu::open(index).map_err(|error| {
        let hint = error.hint();
        unavailable(error).hint(hint)
    })?;
    let Some(clocks) = gpu.clocks().map_err(unavailable)? else {
        return Err(Failure::say(Exit::Unavailable, format!("{name} is simulated and has no speed"))
            .hint("unset LD_LIBRARY_PATH, on a machine with a GPU"));
    };
    let Some(p) = peaks(&clocks) else {
        let arch = clocks.arch;
        return Err(Failure::say(Exit::Unavailable, format!("the rates of sm_{arch} are not known")));
    };
    let line = Peak {
        name: gpu.name().to_owned(),
        mma_tflops: round(p.mma_flops / 1e12, 1),
        fp32_tflops: round(p.fp32_flops / 1e12, 1),
        gb_per_s: round(p.bandwidth / 1e9, 0),
    };
    let text = if json {
        serde_json::to_string(&line).map_err(|error| Failure::new(Exit::Internal, error))?
    } else {
        let Peak { name, mma_tflops, fp32_tflops, gb_per_s } = &line;
        format!(
            "| card | fp16 products, TFLOP/s | fp32, TFLOP/s | memory, GB/s |\n|---|---|---|---|\n\
             | {name} | {mma_tflops} | {fp32_tflops} | {gb_per_s} |"
        )
    };
    writeln!(std::io::stdout().lock(), "{text}").map_err(Failure::stdout)
}

fn measure(case: &Case, threads: &Threads, args: &Args) -> Result<Line, Failure> {
    let Prepared { mut run, reference, macs } = case.prepare(threads, args.model.as_deref())?;
    // Beside each case, because the clock of a shared machine isn't constant.
    let peak = peak_gflops(threads);
    let times = Times::of(&mut run)?;
    let reference_us = reference.map(|mut program| {
        let start = Instant::now();
        program.run();
        micros(start.elapsed())
    });
    let gflops = macs.map(|macs| 2e-3 * macs as f64 / times.median());
    Ok(Line {
        name: case.name(),
        us: round(times.median(), 1),
        gflops: gflops.map(|g| round(g, 2)),
        peak_fraction: gflops.map(|g| round(g / peak, 4)),
        min_us: round(times.percentile(0), 1),
        spread: round((times.percentile(90) - times.percentile(10)) / times.median(), 3),
        reference_us: reference_us.map(|us| round(us, 1)),
        peak_gflops: round(peak, 1),
        runs: times.sorted.len(),
        threads: threads.threads(),
        isa: threads.isa().name(),
    })
}

/// Times of single runs, µs, ascending.
struct Times {
    sorted: Vec<f64>,
}

impl Times {
    fn of(run: &mut cases::Run) -> Result<Self, Failure> {
        run()?;
        let start = Instant::now();
        let mut sorted = Vec::with_capacity(*RUNS.end());
        while sorted.len() < *RUNS.start() || start.elapsed() < DURATION && sorted.len() < *RUNS.end() {
            let start = Instant::now();
            run()?;
            sorted.push(micros(start.elapsed()));
        }
        sorted.sort_by(f64::total_cmp);
        Ok(Self { sorted })
    }

    /// Nearest rank; 0 is the least.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted.get((last * percent + 50) / 100).copied().unwrap_or(0.0)
    }

    fn median(&self) -> f64 {
        self.percentile(50)
    }
}

const HEADER: &str = "name                                         median µs      min µs  spread  GFLOP/s  of peak  reference µs";

impl Line {
    fn text(&self) -> String {
        let optional =
            |x: Option<f64>, digits: usize| x.map_or_else(|| "-".into(), |x| format!("{x:.digits$}"));
        format!(
            "{:<42} {:>11.1} {:>11.1} {:>6.0}% {:>8} {:>8} {:>13}",
            self.name,
            self.us,
            self.min_us,
            self.spread * 100.0,
            optional(self.gflops, 1),
            self.peak_fraction.map_or_else(|| "-".into(), |f| format!("{:.0}%", f * 100.0)),
            optional(self.reference_us, 0),
        )
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn round(x: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (x * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times = Times { sorted: (1..=11).map(f64::from).collect() };
        assert_eq!((times.percentile(0), times.median(), times.percentile(90)), (1.0, 6.0, 10.0));
        let one = Times { sorted: vec![3.0] };
        assert_eq!((one.percentile(0), one.median(), one.percentile(90)), (3.0, 3.0, 3.0));
    }

    #[test]
    fn a_filter_that_matches_nothing_is_a_usage_error_that_lists_the_names() {
        let args =
            Args { filter: Some("op/conv9x9".into()), json: true, model: None, peak: None, threads: Some(1) };
        let failure = run(args).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("op/conv3x3/64x64x128"), "{failure}");
    }

    #[test]
    fn a_frame_is_timed_without_a_model_at_hand() {
        let args = Args { filter: None, json: true, model: None, peak: None, threads: Some(1) };
        let line =
            measure(&Case::Line(crate::model::Preset::Small), &Threads::new(1), &args).expect("it runs");
        assert_eq!((line.name.as_str(), line.gflops), ("line/small/256", None));
        assert!(line.us > 0.0);
    }

    #[test]
    fn a_small_operation_is_measured_beside_its_reference() {
        let args = Args { filter: None, json: true, model: None, peak: None, threads: Some(1) };
        let all = cases::all();
        let case = all.iter().find(|case| case.name() == "op/conv1x1/8x8x64").expect("the smallest case");
        let line = measure(case, &Threads::new(1), &args).expect("it runs");
        assert!(line.us > 0.0 && line.min_us <= line.us && line.reference_us > Some(0.0));
        let gflops = 2e-3 * (8 * 8 * 64 * 64) as f64 / line.us;
        assert!((line.gflops.unwrap_or(0.0) - gflops).abs() < 0.1 + gflops * 0.1);
    }
}
