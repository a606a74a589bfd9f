//! The simulated device behind the driver: its memory and its kernels, with the driver's answers.

use super::run::Plan;
use super::settings::Sequence;
use super::status::*;
use super::work::{Call, Handle};
use crate::machine::{self, Counters, LaunchError, Memory, Options, Order, OutOfBounds};

/// Why work could not run.
#[derive(Debug)]
pub struct Fault {
    pub status: Status,
    pub text: String,
}

fn fault(status: Status, text: String) -> Fault {
    Fault { status, text }
}

#[derive(Default)]
pub struct Device {
    memory: Memory,
}

impl Device {
    pub fn reset(&mut self) {
        self.memory = Memory::default();
    }

    /// `None` where the host's memory is used up.
    pub fn alloc(&mut self, bytes: usize) -> Option<u64> {
        self.memory.alloc(bytes)
    }

    pub fn free(&mut self, address: u64) -> Result<(), Fault> {
        match self.memory.free(address) {
            true => Ok(()),
            false => Err(fault(ILLEGAL_ADDRESS, format!("a free of {address:#x}, which is not allocated"))),
        }
    }

    pub fn write(&mut self, to: u64, data: &[u8]) -> Result<(), Fault> {
        self.memory.write(to, data).map_err(gone("a copy to the device"))
    }

    /// With checks on, bytes that nothing was written to may not leave the device.
    pub fn read(&mut self, from: u64, data: &mut [u8], check: bool) -> Result<(), Fault> {
        let bytes = data.len();
        if check && let Some(at) = self.memory.uninitialised(from, bytes) {
            let text = format!(
                "a copy of {bytes} bytes at {from:#x} to the host reads uninitialised memory at {at:#x}"
            );
            return Err(fault(LAUNCH_FAILED, text));
        }
        self.memory.read(from, data).map_err(gone("a copy to the host"))
    }

    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), Fault> {
        self.memory.copy(to, from, bytes).map_err(gone("a copy within the device"))
    }

    pub fn fill(&mut self, to: u64, value: u32, width: usize, count: usize) -> Result<(), Fault> {
        let bytes = &value.to_le_bytes()[..width];
        let result = match bytes.iter().all(|b| *b == bytes[0]) {
            true => self.memory.fill(to, bytes[0], width * count),
            false => self.memory.write(to, &bytes.repeat(count)),
        };
        result.map_err(gone("a fill"))
    }

    /// The counters of the launch as a line of JSON.
    pub fn launch(&mut self, call: &Call, stream: Handle, plan: Plan) -> Result<String, Fault> {
        let order = match plan.sequence {
            Sequence::Forward => Order::Forward,
            Sequence::Reverse => Order::Reverse,
            Sequence::Random => Order::Random(plan.seed),
        };
        let options = Options { check: plan.check, order, threads: plan.threads };
        let kernel = call.kernel();
        match machine::launch(kernel, &mut self.memory, &call.config, &call.params, &options) {
            Ok(counters) => Ok(line(call, stream, &counters)),
            Err(e) => Err(fault(status_of(&e), format!("kernel {}: {e}", kernel.name))),
        }
    }
}

/// The range was right when the call was made.
fn gone(what: &'static str) -> impl Fn(OutOfBounds) -> Fault {
    move |e| fault(ILLEGAL_ADDRESS, format!("{what} that was queued: {e}: freed before it ran"))
}

/// What a GPU would answer; the checks that it does not have are launch failures.
fn status_of(error: &LaunchError) -> Status {
    let LaunchError::Faults(faults) = error else { return LAUNCH_FAILED };
    let what = faults.first().map_or("", |f| f.what.as_str());
    match what {
        _ if what.contains("out of bounds") => ILLEGAL_ADDRESS,
        _ if what.contains("misaligned") => MISALIGNED_ADDRESS,
        _ => LAUNCH_FAILED,
    }
}

fn line(call: &Call, stream: Handle, c: &Counters) -> String {
    let [gx, gy, gz] = call.config.grid;
    let [bx, by, bz] = call.config.block;
    let (kernel, shared) = (&call.kernel().name, call.config.shared);
    let mut line = format!(
        "{{\"kernel\":\"{kernel}\",\"grid\":[{gx},{gy},{gz}],\"block\":[{bx},{by},{bz}],\"shared\":{shared}"
    );
    let counters = [
        ("stream", stream),
        ("integer", c.integer),
        ("float", c.float),
        ("half", c.half),
        ("memory", c.memory),
        ("control", c.control),
        ("special", c.special),
        ("mma", c.mma),
        ("global_load_bytes", c.global_load_bytes),
        ("global_store_bytes", c.global_store_bytes),
        ("sectors", c.sectors),
        ("shared_accesses", c.shared_accesses),
        ("shared_bank_conflicts", c.shared_bank_conflicts),
    ];
    for (name, value) in counters {
        line += &format!(",\"{name}\":{value}");
    }
    line + "}"
}
