//! `inspectd doctor`: what is there, what is missing, what to type.

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd doctor` is not built yet"))
}
