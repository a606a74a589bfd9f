//! `inspectd serve`: the daemon.

use std::path::PathBuf;

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd serve` is not built yet"))
}
