//! `inspectd forward`: one network on given tensors.

use std::path::PathBuf;

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network, e.g. efficientnet_lite0 or wide_resnet50_2
    #[arg(long, value_name = "NAME")]
    pub arch: String,
    /// Its weights: ours, .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// safetensors with `image`, N×3×H×W float32, already normalised
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where to write the taps, each N×C×H×W float32
    #[arg(long, value_name = "OUT.safetensors")]
    pub out: PathBuf,
    /// Device to run on
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub device: String,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd forward` is not built yet"))
}
