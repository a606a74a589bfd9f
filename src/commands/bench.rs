//! `inspectd bench`: times per operation, network and frame.

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what has S in its name, e.g. op/conv3x3 or net/
    #[arg(long, value_name = "S")]
    pub filter: Option<String>,
    /// JSON lines: name, us, gflops, peak_fraction
    #[arg(long)]
    pub json: bool,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd bench` is not built yet"))
}
