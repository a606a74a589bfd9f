//! `--device`, as every command takes it.

use super::{Exit, Failure};
use crate::engine::{Device, DeviceError, DeviceName, Priority};

#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct DeviceArg {
    /// Where networks run: `cpu`, or `cuda:0` for the first GPU
    #[arg(long, value_name = "D", default_value = "cpu")]
    pub device: DeviceName,
}

impl DeviceArg {
    pub fn open(self, priority: Priority) -> Result<Device, Failure> {
        open(self.device, all_processors(), priority).map_err(|e| unavailable(self.device, e))
    }
}

pub fn open(name: DeviceName, threads: usize, priority: Priority) -> Result<Device, DeviceError> {
    let device = Device::open(name, threads, priority)?;
    if device.gpu().is_some_and(|gpu| gpu.is_simulated()) {
        tracing::warn!("{name} is a simulated GPU: its results count, its times say nothing of silicon");
    }
    Ok(device)
}

pub fn all_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn unavailable(name: DeviceName, error: DeviceError) -> Failure {
    let hint = error.hint();
    let error = anyhow::Error::new(error).context(format!("the device {name} cannot be used"));
    Failure::new(Exit::Unavailable, error).hint(hint)
}
