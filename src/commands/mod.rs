//! The command line: parse, dispatch, print. One file per subcommand, each with its `Args` and a
//! `run` that ends in `Ok` or a [`exit::Failure`].

pub mod archive;
pub mod bench;
pub mod check;
pub mod device;
pub mod doctor;
pub mod eval;
pub mod exit;
pub mod forward;
pub mod import;
mod inspect;
pub mod judge;
pub mod kernels;
pub mod plan;
pub mod replay;
pub mod serve;
pub mod teach;

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};

use crate::kernels as embedded;

pub use exit::{Exit, Failure, OrExit};

/// Visual inspection for production lines.
///
/// Learns from pictures of good parts what good looks like, watches cameras, and says of every
/// part, in time: good, unsure, or bad, with a heatmap that shows where.
#[derive(Debug, Parser)]
#[command(name = "inspectd", version = version(), propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Teach a model from a folder of pictures of good parts
    Teach(teach::Args),
    /// Judge pictures with a model: one JSON line per picture
    Judge(judge::Args),
    /// Measure a model on a labelled dataset in MVTec layout
    Eval(eval::Args),
    /// Run the daemon
    Serve(serve::Args),
    /// Judge a part of the archive again and compare
    Replay(replay::Args),
    /// Look into the archive, review parts, make a data set of them
    Archive(archive::Args),
    /// Check a configuration without running it
    Check(check::Args),
    /// Say what a reload would do with a configuration, before anybody does it
    Plan(plan::Args),
    /// Convert PyTorch or safetensors weights to our own file
    Import(import::Args),
    /// Time the operations, the networks and a whole frame
    Bench(bench::Args),
    /// Run one network on given tensors, to hold it against another implementation
    Forward(forward::Args),
    /// Say what is there, what is missing, and what to type
    Doctor(doctor::Args),
    /// List the embedded GPU kernels: registers, memory, occupancy, and what they move
    Kernels(kernels::Args),
}

/// The version, and whether CUDA kernels are embedded in this binary.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let archs = embedded::cubin_archs(embedded::IMAGES);
        let kernels = match (archs.first(), archs.last()) {
            (Some(first), Some(last)) => format!("GPU kernels for sm_{first} to sm_{last}"),
            _ => "no GPU kernels".to_owned(),
        };
        format!("{} ({kernels})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}

/// Entry point of the binary: runs the command line of this process.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => match dispatch(cli.command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        },
        Err(message) => {
            // `--help` and `--version` come here too. A closed pipe is no reason to fail.
            let _ = message.print();
            if message.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS }
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Teach(args) => teach::run(args),
        Command::Judge(args) => judge::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Archive(args) => archive::run(args),
        Command::Check(args) => check::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Import(args) => import::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Forward(args) => forward::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Kernels(args) => kernels::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_command_line_parses() {
        for line in [
            "inspectd teach --images d --out m --preset small --seed 7 --minutes 2.5 --textures t --json",
            "inspectd judge --model m a.png b.png --heatmaps h --maps r --json",
            "inspectd eval --model m --dataset d --report r.html --json",
            "inspectd serve --config c.toml",
            "inspectd replay 7 --config c.toml --model m --device cpu --within 1e-3 --json",
            "inspectd replay cam1_20261124T093045.123Z_00000007 --config c.toml",
            "inspectd archive list --config c.toml --line a --verdict bad --verdict unsure --since 2026-11-24 --reviewed \
             --with-image --limit 9 --json",
            "inspectd archive show 7 --folder d --json",
            "inspectd archive review 7 false_alarm --by Ada --folder d",
            "inspectd archive export --out o --line a --folder d",
            "inspectd check --config c.toml",
            "inspectd plan --config c.toml --against d.toml --json",
            "inspectd import --from a.pth --arch efficientnet_lite0 --out b.safetensors",
            "inspectd bench --filter conv --json",
            "inspectd forward --arch wide_resnet50_2 --weights w --input i --out o --device cpu",
            "inspectd doctor",
            "inspectd kernels --arch 80 --json",
            "inspectd kernels --traffic",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn a_wrong_option_is_a_usage_error() {
        let error = Cli::try_parse_from(["inspectd", "judge", "--modle", "m", "a.png"]).unwrap_err();
        assert!(error.use_stderr());
        assert!(error.to_string().contains("--model"), "{error}");
    }
}
