//! A GPU that was opened: its context, the stream that programs run on, and the kernels loaded so far.
//! With `buffer` and `program` the only place that talks to the driver.
//!
//! Two habits of the driver's bindings are kept from users: without libcuda the first call would end the
//! process, so it is looked for first; and formatting an error calls the driver, so only codes are kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::launch::Limits;
use super::peak::Clocks;
use crate::kernels::{self, Kind};

/// Why a GPU cannot be used, or stopped being usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("this binary holds no GPU kernels: it was built without NVRTC")]
    NoKernels,
    #[error("there is no NVIDIA driver (libcuda.so.1 was not found)")]
    NoDriver,
    #[error("the NVIDIA driver is too old: it lacks `{0}`")]
    DriverTooOld(&'static str),
    #[error("there is no GPU {index}; {count} found")]
    NoSuchGpu { index: usize, count: usize },
    #[error("GPU {index} has compute capability {major}.{minor}, 7.5 is needed")]
    TooOld { index: usize, major: u32, minor: u32 },
    #[error("the GPU's memory does not hold {bytes} bytes more ({free} are free)")]
    OutOfMemory { bytes: usize, free: usize },
    #[error("the driver refused every image of the kernels in {module}.cu (the last one with {code})")]
    Refused { module: &'static str, code: Code },
    #[error("the GPU failed in {call}: {code}")]
    Call { call: &'static str, code: Code },
}

/// The driver's result code, by name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(sys::CUresult);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.0, self.0 as u32)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl DeviceError {
    /// What to type.
    pub fn hint(&self) -> &'static str {
        match self {
            DeviceError::NoKernels => "scripts/setup.sh --only nvrtc && cargo build --release",
            DeviceError::DriverTooOld(_) => "install NVIDIA driver 525 or newer, or use --device cpu",
            DeviceError::NoSuchGpu { .. } => "nvidia-smi -L lists what is there; --device cpu needs none",
            _ => "--device cpu",
        }
    }
}

/// Keeps the code alone: formatting a `DriverError` would call the driver.
pub(super) fn call(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |e| DeviceError::Call { call, code: Code(e.0) }
}

/// What every program needs of the driver, resolved when first called; probed so that an old driver
/// is an error and no panic.
const NEEDED: &[&str] = &[
    "cuInit",
    "cuMemAlloc_v2",
    "cuMemHostAlloc",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuModuleLoadData",
    "cuStreamBeginCapture_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuStreamWaitEvent",
];

#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    name: String,
    capability: (u32, u32),
    limits: Limits,
    total_bytes: usize,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.0.name, self.0.limits)
    }
}

/// How urgent a stream's work is beside that of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Frames of a line.
    High,
    /// Teaching and refreshing beside lines.
    Low,
}

/// How many GPUs the driver shows.
pub fn count() -> Result<usize, DeviceError> {
    // SAFETY: loads libcuda if it is there, which runs the constructors of the driver that the
    // administrator installed.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    // SAFETY: it is present, just asked.
    let library = unsafe { sys::culib() };
    for name in NEEDED {
        // SAFETY: the symbol is only looked up, never called through this type.
        if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(DeviceError::DriverTooOld(name));
        }
    }
    match result::init() {
        Ok(()) => {}
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
        Err(e) => return Err(call("cuInit")(e)),
    }
    let count = CudaContext::device_count().map_err(call("cuDeviceGetCount"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

impl Gpu {
    /// Opens GPU `index` as the driver counts.
    pub fn open(index: usize) -> Result<Self, DeviceError> {
        if !kernels::embedded() {
            return Err(DeviceError::NoKernels);
        }
        let count = count()?;
        if index >= count {
            return Err(DeviceError::NoSuchGpu { index, count });
        }
        let context = CudaContext::new(index).map_err(call("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: streams are ordered by this module's own events; nothing was allocated yet.
        unsafe { context.disable_event_tracking() };
        let attribute = |a| context.attribute(a).map_err(call("cuDeviceGetAttribute"));
        use sys::CUdevice_attribute as A;
        let (major, minor) = context.compute_capability().map_err(call("cuDeviceGetAttribute"))?;
        let capability = (major.max(0) as u32, minor.max(0) as u32);
        if capability < (7, 5) {
            return Err(DeviceError::TooOld { index, major: capability.0, minor: capability.1 });
        }
        let limits = Limits {
            arch: capability.0 * 10 + capability.1,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32,
            shared_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(49_152)
                as u32,
        };
        let name = context.name().map_err(call("cuDeviceGetName"))?;
        let total_bytes = context.total_mem().map_err(call("cuDeviceTotalMem"))?;
        let modules = Mutex::default();
        Ok(Gpu(Arc::new(Inner { context, name, capability, limits, total_bytes, modules })))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    pub fn total_bytes(&self) -> usize {
        self.0.total_bytes
    }

    /// `None` on the simulated GPU, which has no clock that means anything.
    pub fn clocks(&self) -> Result<Option<Clocks>, DeviceError> {
        if self.is_simulated() {
            return Ok(None);
        }
        use sys::CUdevice_attribute as A;
        let attribute = |a| {
            let value = self.0.context.attribute(a).map_err(call("cuDeviceGetAttribute"))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(Some(Clocks {
            arch: self.0.limits.arch,
            multiprocessors: self.0.limits.multiprocessors,
            core_khz: attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
            memory_khz: attribute(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            bus_bits: attribute(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        }))
    }

    /// Whether this is the PTX interpreter of the tests: no time taken on it says anything of silicon.
    pub fn is_simulated(&self) -> bool {
        self.0.name.contains("simulated")
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    pub(super) fn stream(&self, priority: Priority) -> Result<Arc<CudaStream>, DeviceError> {
        let context = &self.0.context;
        context.bind_to_thread().map_err(call("cuCtxSetCurrent"))?;
        let (least, greatest) =
            result::stream::get_priority_range().map_err(call("cuCtxGetStreamPriorityRange"))?;
        let priority = if priority == Priority::High { greatest } else { least };
        context.new_stream_with_priority(priority).map_err(call("cuStreamCreateWithPriority"))
    }

    /// Loads a kernel, and its module at the first time: the best image that the driver takes.
    pub(super) fn function(
        &self,
        module: &'static str,
        kernel: &'static str,
    ) -> Result<CudaFunction, DeviceError> {
        // Whoever panicked with the lock held left the map whole: it is only ever inserted into.
        let mut modules = self.0.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match modules.get(module) {
            Some(loaded) => Arc::clone(loaded),
            None => {
                let loaded = self.load(module)?;
                modules.insert(module, Arc::clone(&loaded));
                loaded
            }
        };
        loaded.load_function(kernel).map_err(call("cuModuleGetFunction"))
    }

    fn load(&self, module: &'static str) -> Result<Arc<CudaModule>, DeviceError> {
        let mut last = Code(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        for image in kernels::choose(kernels::IMAGES, module, self.0.capability) {
            let ptx = match image.kind {
                Kind::Cubin => Ptx::from_binary(image.data.to_vec()),
                Kind::Ptx => match std::str::from_utf8(image.data) {
                    Ok(text) => Ptx::from_src(text),
                    Err(_) => continue,
                },
            };
            match self.0.context.load_module(ptx) {
                Ok(module) => return Ok(module),
                Err(e) => last = Code(e.0),
            }
        }
        Err(DeviceError::Refused { module, code: last })
    }
}
