//! `inspectd eval`: a model's figures on a labelled dataset.

use std::path::PathBuf;

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, as written by `inspectd teach`
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// An MVTec category: test/good, test/DEFECT, and ground_truth/DEFECT where there are masks
    #[arg(long, value_name = "DIR")]
    pub dataset: PathBuf,
    /// Write a self-contained report page
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// The figures as one JSON object even on a terminal
    #[arg(long)]
    pub json: bool,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd eval` is not built yet"))
}
