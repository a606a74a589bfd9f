//! Device memory and launches.
use std::fmt;

pub use crate::ptx::{Kernel, Module, Param, ParseError, parse};
use crate::spike::Gpu;

/// The range is not inside one living allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds {
    pub address: u64,
    pub bytes: usize,
}
impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} are not inside an allocation", self.bytes, self.address)
    }
}
impl std::error::Error for OutOfBounds {}

/// Device memory. What changes it takes `&mut self`.
#[derive(Default)]
pub struct Memory {
    gpu: Gpu,
}
impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}
impl Memory {
    pub fn new() -> Self {
        Self::default()
    }
    /// `None` where memory is used up. 256-byte aligned.
    pub fn alloc(&mut self, bytes: usize) -> Option<u64> {
        Some(self.gpu.alloc(bytes))
    }
    pub fn free(&mut self, address: u64) -> bool {
        self.gpu.free(address)
    }
    /// Whether the range lies inside one allocation.
    pub fn contains(&self, address: u64, bytes: usize) -> bool {
        self.gpu.in_bounds(address, bytes)
    }
    fn check(&self, address: u64, bytes: usize) -> Result<(), OutOfBounds> {
        if self.contains(address, bytes) { Ok(()) } else { Err(OutOfBounds { address, bytes }) }
    }
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), OutOfBounds> {
        self.check(address, data.len())?;
        self.gpu.write(address, data);
        Ok(())
    }
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check(address, data.len())?;
        data.copy_from_slice(self.gpu.read(address, data.len()));
        Ok(())
    }
    pub fn fill(&mut self, address: u64, value: u8, bytes: usize) -> Result<(), OutOfBounds> {
        self.write(address, &vec![value; bytes])
    }
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), OutOfBounds> {
        let mut data = vec![0; bytes];
        self.read(from, &mut data)?;
        self.write(to, &data)
    }
    /// The first byte of the range that nothing has written.
    pub fn uninitialised(&self, _address: u64, _bytes: usize) -> Option<u64> {
        None
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}
/// The order of warps, and of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Forward,
    Reverse,
    Random(u64),
}
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub check: bool,
    pub order: Order,
    pub threads: usize,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions, by class.
    pub integer: u64,
    pub float: u64,
    pub half: u64,
    pub memory: u64,
    pub control: u64,
    pub special: u64,
    /// Warp-wide products, in units of m16n8k16.
    pub mma: u64,
    /// Distinct bytes of each warp request.
    pub global_load_bytes: u64,
    pub global_store_bytes: u64,
    /// 32-byte sectors touched, over all warp requests.
    pub sectors: u64,
    pub shared_accesses: u64,
    /// Extra cycles.
    pub shared_bank_conflicts: u64,
}
impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, o: Self) {
        self.integer += o.integer;
        self.float += o.float;
        self.half += o.half;
        self.memory += o.memory;
        self.control += o.control;
        self.special += o.special;
        self.mma += o.mma;
        self.global_load_bytes += o.global_load_bytes;
        self.global_store_bytes += o.global_store_bytes;
        self.sectors += o.sectors;
        self.shared_accesses += o.shared_accesses;
        self.shared_bank_conflicts += o.shared_bank_conflicts;
    }
}
/// One thing that is wrong with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: String,
    /// `file.cu:line`
    pub place: String,
    pub block: [u32; 3],
    pub thread: u32,
}
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}, block {:?} thread {}", self.what, self.place, self.block, self.thread)
    }
}
#[derive(Clone, Debug)]
pub enum LaunchError {
    /// Geometry or arguments do not fit the kernel.
    Invalid(String),
    Faults(Vec<Fault>),
}
impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaunchError::Invalid(why) => f.write_str(why),
            LaunchError::Faults(faults) => {
                for (i, fault) in faults.iter().enumerate() {
                    write!(f, "{}{fault}", if i > 0 { "\n" } else { "" })?;
                }
                Ok(())
            }
        }
    }
}
impl std::error::Error for LaunchError {}

/// Runs a kernel to its end. `params`: the bytes of each parameter.
pub fn launch(
    kernel: &Kernel,
    memory: &mut Memory,
    config: &Config,
    params: &[Vec<u8>],
    options: &Options,
) -> Result<Counters, LaunchError> {
    let gpu = &mut memory.gpu;
    let before = gpu.nerr;
    gpu.errors.clear();
    let reverse = options.order == Order::Reverse;
    gpu.launch(&kernel.inner, config.grid, config.block, config.shared, params, reverse)
        .map_err(LaunchError::Invalid)?;
    if gpu.nerr != before {
        let faults = gpu.errors.iter().map(|e| Fault {
            what: e.clone(),
            place: String::new(),
            block: [0; 3],
            thread: 0,
        });
        return Err(LaunchError::Faults(faults.collect()));
    }
    Ok(Counters::default())
}
