//! `inspectd kernels`: what each embedded GPU kernel takes, and how many blocks of it a multiprocessor
//! holds; on the simulated GPU also what it moves (`--traffic`).

use std::io::Write;

use serde::Serialize;

use super::{Exit, Failure};
use crate::engine::cuda::traffic::{self, Row};
use crate::engine::{DeviceError, Gpu};
use crate::kernels::{self, Usage};
use crate::occupancy::{Needs, multiprocessor, occupancy};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this architecture, 80 for sm_80
    #[arg(long, value_name = "N", conflicts_with = "traffic")]
    pub arch: Option<u32>,
    /// Run representative shapes on the simulated GPU and print what they move beside the paper minimum
    #[arg(long)]
    pub traffic: bool,
    /// One JSON object per line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// One kernel on one architecture.
#[derive(Clone, Debug, Serialize)]
struct Resources {
    module: &'static str,
    kernel: &'static str,
    arch: u32,
    registers: u32,
    shared_bytes: u32,
    /// Local memory per thread; spills make it grow.
    local_bytes: u32,
    spill_bytes: u32,
    /// By its launch bounds.
    threads: u32,
    blocks_per_sm: u32,
    warps_per_sm: u32,
    limited_by: &'static str,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let text = if args.traffic { traffic_text(args.json)? } else { resources_text(args.arch, args.json)? };
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(Failure::stdout)
}

// ---------------------------------------------------------------- resources

fn resources() -> Vec<Resources> {
    kernels::REPORT.iter().filter_map(of_usage).collect()
}

fn of_usage(usage: &Usage) -> Option<Resources> {
    let sm = multiprocessor(usage.arch)?;
    let threads = kernels::launch_bound(kernels::IMAGES, usage.module, usage.kernel).unwrap_or(1024);
    let needs = Needs { threads, registers: usage.registers, shared: usage.shared_bytes };
    let held = occupancy(&sm, &needs);
    Some(Resources {
        module: usage.module,
        kernel: usage.kernel,
        arch: usage.arch,
        registers: usage.registers,
        shared_bytes: usage.shared_bytes,
        local_bytes: usage.stack_bytes,
        spill_bytes: usage.spill_store_bytes + usage.spill_load_bytes,
        threads,
        blocks_per_sm: held.blocks,
        warps_per_sm: held.warps,
        limited_by: held.limit,
    })
}

fn resources_text(arch: Option<u32>, json: bool) -> Result<String, Failure> {
    if !kernels::embedded() {
        return Err(no_kernels(DeviceError::NoKernels));
    }
    let all = resources();
    let chosen: Vec<&Resources> = all.iter().filter(|r| arch.is_none_or(|a| r.arch == a)).collect();
    if chosen.is_empty() {
        let archs: Vec<String> = kernels::cubin_archs(kernels::IMAGES).iter().map(u32::to_string).collect();
        let message = format!("no kernel was compiled for sm_{}", arch.unwrap_or_default());
        return Err(Failure::say(Exit::Usage, message).hint(format!("--arch {}", archs.join(" | "))));
    }
    if json {
        return lines(&chosen);
    }
    let mut out = format!(
        "{:<12} {:<28} {:>7} {:>9} {:>7} {:>6} {:>6} {:>8} {:>9} {:>8}  {}\n",
        "module",
        "kernel",
        "arch",
        "registers",
        "shared",
        "local",
        "spills",
        "threads",
        "blocks/SM",
        "warps/SM",
        "limited by"
    );
    for r in chosen {
        out += &format!(
            "{:<12} {:<28} {:>7} {:>9} {:>7} {:>6} {:>6} {:>8} {:>9} {:>8}  {}\n",
            r.module,
            r.kernel,
            format!("sm_{}", r.arch),
            r.registers,
            r.shared_bytes,
            r.local_bytes,
            r.spill_bytes,
            r.threads,
            r.blocks_per_sm,
            r.warps_per_sm,
            r.limited_by
        );
    }
    Ok(out)
}

fn lines<T: Serialize>(rows: &[T]) -> Result<String, Failure> {
    let mut out = String::new();
    for row in rows {
        out += &serde_json::to_string(row).map_err(|e| Failure::new(Exit::Internal, e))?;
        out.push('\n');
    }
    Ok(out)
}

// ---------------------------------------------------------------- traffic

fn traffic_text(json: bool) -> Result<String, Failure> {
    let gpu = Gpu::open(0).map_err(no_kernels)?;
    if !gpu.is_simulated() {
        let message = format!("{} does not count what kernels move; the simulated GPU does", gpu.name());
        return Err(simulator_hint(Failure::say(Exit::Unavailable, message)));
    }
    let rows = traffic::measure(&gpu).map_err(|e| Failure::new(Exit::Unavailable, e))?;
    if json {
        return lines(&rows);
    }
    Ok(table(&rows))
}

fn no_kernels(error: DeviceError) -> Failure {
    match error {
        DeviceError::NoKernels => {
            let hint = error.hint();
            Failure::new(Exit::Unavailable, error).hint(hint)
        }
        other => simulator_hint(Failure::new(Exit::Unavailable, other)),
    }
}

fn simulator_hint(failure: Failure) -> Failure {
    failure.hint("scripts/on-simulated-gpu.sh inspectd kernels --traffic")
}

fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<47} {:<40} {:>10} {:>10} {:>6} {:>5} {:>8} {:>9} {:>6} {:>10}\n",
        "shape", "kernels", "bytes", "minimum", "ratio", "bound", "sectors", "mma", "ratio", "conflicts"
    );
    for r in rows {
        let mma = if r.mma == 0 { "-".to_owned() } else { r.mma.to_string() };
        let mma_ratio = r.mma_ratio().map_or("-".to_owned(), |x| format!("{x:.2}"));
        out += &format!(
            "{:<47} {:<40} {:>10} {:>10} {:>6.2} {:>5} {:>7.0}% {:>9} {:>6} {:>9.1}%{}\n",
            r.case,
            r.kernels.join(" + "),
            r.bytes(),
            r.minimum_bytes,
            r.ratio(),
            r.bound.ratio,
            100.0 * r.sector_efficiency(),
            mma,
            mma_ratio,
            100.0 * r.conflicts(),
            if r.misses().is_empty() { "" } else { "  misses" }
        );
    }
    for r in rows.iter().filter(|r| !r.bound.why.is_empty()) {
        out += &format!("{}: {}\n", r.case, r.bound.why);
    }
    out + "Counted by the simulated GPU: bytes that warps ask for, before any cache.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_line_per_report_and_json_as_many() {
        if !kernels::embedded() {
            assert_eq!(resources_text(None, false).unwrap_err().exit(), Exit::Unavailable);
            return;
        }
        assert_eq!(resources().len(), kernels::REPORT.len());
        if kernels::REPORT.is_empty() {
            return;
        }
        assert_eq!(resources_text(None, false).unwrap().lines().count(), 1 + kernels::REPORT.len());
        assert_eq!(resources_text(None, true).unwrap().lines().count(), kernels::REPORT.len());
    }

    #[test]
    fn an_architecture_without_kernels_is_a_usage_error_that_lists_those_there_are() {
        if kernels::embedded() {
            assert_eq!(resources_text(Some(61), false).unwrap_err().exit(), Exit::Usage);
        }
    }

    #[test]
    fn every_kernel_has_launch_bounds_and_fits_a_multiprocessor() {
        for r in resources() {
            assert!(kernels::launch_bound(kernels::IMAGES, r.module, r.kernel).is_some(), "{r:?}");
            assert!(r.blocks_per_sm >= 1, "{r:?}");
        }
    }

    #[test]
    fn kernels_on_tensor_cores_hold_two_blocks_or_eight_warps() {
        for r in resources() {
            if kernels::uses_tensor_cores(kernels::IMAGES, r.module, r.kernel) {
                assert!(r.blocks_per_sm >= 2 || r.warps_per_sm >= 8, "{r:?}");
            }
        }
    }
}
