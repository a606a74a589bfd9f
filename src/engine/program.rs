//! A graph compiled for a device, whichever it is.

use std::fmt;
use std::str::FromStr;

use super::cpu;
use super::cpu::fast::Pool as Threads;
use super::cuda::launch::Unsupported;
use super::cuda::{self, DeviceError, Gpu, Priority};
use super::graph::{Graph, GraphError, Value};
use super::shape::{DType, Shape};
use super::tensor::{ParamStore, Tensor};

/// Why a graph cannot be compiled, or a compiled one not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    #[error("the weights lack `{0}`")]
    MissingParam(String),
    #[error("weight `{name}` is {found}, the network needs {needed}")]
    ParamShape { name: String, found: Shape, needed: Shape },
    #[error("index {index} of `{name}` is not a whole number from 0 to 16777216")]
    NotAnIndex { name: String, index: usize },
    #[error("the program has no {kind} called `{name}`; it has {known}")]
    Unknown { kind: &'static str, name: String, known: String },
    #[error("`{name}` holds {needed} elements, {found} were given")]
    Length { name: String, needed: usize, found: usize },
    #[error("two inputs are called `{0}`")]
    TwoInputs(String),
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("no GPU kernel for {0}; use --device cpu")]
    Unsupported(#[from] Unsupported),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ProgramError {
    /// `name` is none of `known`.
    pub(super) fn unknown<'a>(
        kind: &'static str,
        name: &str,
        known: impl ExactSizeIterator<Item = &'a str>,
    ) -> Self {
        let all = known.len();
        let mut names: Vec<&str> = known.take(12).collect();
        if all > names.len() {
            names.push("…");
        }
        ProgramError::Unknown { kind, name: name.into(), known: names.join(", ") }
    }
}

/// The value of a parameter: of the first store that has it, in the shape that the graph says.
pub(super) fn param_of<'s>(
    stores: [&'s ParamStore; 2],
    name: &str,
    needed: Shape,
) -> Result<&'s Tensor, ProgramError> {
    let tensor = stores
        .into_iter()
        .find_map(|store| store.get(name))
        .ok_or_else(|| ProgramError::MissingParam(name.to_owned()))?;
    if tensor.shape != needed {
        return Err(ProgramError::ParamShape { name: name.to_owned(), found: tensor.shape, needed });
    }
    Ok(tensor)
}

/// The 32-bit words of a parameter: fp32, or whole numbers as u32.
pub(super) fn param_words(tensor: &Tensor, dtype: DType, name: &str) -> Result<Vec<u32>, ProgramError> {
    let word = |(index, x): (usize, &f32)| match dtype {
        DType::Real => Ok(x.to_bits()),
        DType::Index if x.fract() == 0.0 && (0.0..=16_777_216.0).contains(x) => Ok(*x as u32),
        DType::Index => Err(ProgramError::NotAnIndex { name: name.to_owned(), index }),
    };
    tensor.data.iter().enumerate().map(word).collect()
}

/// How to compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Run the plain specification of every operation. Slow, single-threaded, and it allocates. CPU only.
    pub reference: bool,
    /// Fold batch norms and fuse epilogues first.
    pub passes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { reference: false, passes: true }
    }
}

impl Options {
    pub const REFERENCE: Options = Options { reference: true, passes: false };
}

/// A device as it is typed: `cpu`, or `cuda:0` for the first GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DeviceName {
    #[default]
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse().ok()).flatten();
        match text.split_once(':') {
            None if text == "cpu" => Ok(DeviceName::Cpu),
            None if text == "cuda" => Ok(DeviceName::Cuda(0)),
            Some(("cuda", n)) if index(n).is_some() => Ok(DeviceName::Cuda(index(n).unwrap_or(0))),
            _ => Err(format!("`{text}` is no device; `cpu` and `cuda:0` are")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Where programs run: on threads of the CPU, or on a GPU with threads for what stays on the CPU.
#[derive(Clone, Debug)]
pub struct Device {
    threads: Threads,
    gpu: Option<(Gpu, Priority)>,
}

impl From<Threads> for Device {
    fn from(threads: Threads) -> Self {
        Device { threads, gpu: None }
    }
}

impl Device {
    /// Opens a device. `threads`: how many work on what runs on the CPU.
    pub fn open(name: DeviceName, threads: usize, priority: Priority) -> Result<Self, DeviceError> {
        let gpu = match name {
            DeviceName::Cpu => None,
            DeviceName::Cuda(index) => Some((Gpu::open(index)?, priority)),
        };
        Ok(Device { threads: Threads::new(threads.max(1)), gpu })
    }

    /// A GPU that is open, with one thread beside it.
    #[cfg(test)]
    pub(crate) fn on(gpu: Gpu) -> Self {
        Device { threads: Threads::new(1), gpu: Some((gpu, Priority::High)) }
    }

    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// As its maker calls it.
    pub fn name(&self) -> &str {
        self.gpu().map_or("the CPU", Gpu::name)
    }

    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref().map(|(gpu, _)| gpu)
    }

    /// How urgent work on the GPU is.
    pub fn priority(&self) -> Priority {
        self.gpu.as_ref().map_or(Priority::Low, |(_, priority)| *priority)
    }
}

/// A compiled graph: compile once, fill inputs, run, read outputs, for ever.
#[derive(Debug)]
pub enum Program {
    Cpu(cpu::Program),
    Cuda(Box<cuda::Program>),
}

impl Program {
    /// Compiles what `outputs` and the writers of parameters need. Values of parameters come from
    /// `params`; each must be there in the graph's shape.
    pub fn compile(
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: &ParamStore,
        device: &Device,
        options: Options,
    ) -> Result<Self, ProgramError> {
        match &device.gpu {
            None => cpu::Program::compile(graph, outputs, params, &device.threads, options).map(Program::Cpu),
            Some((gpu, priority)) => {
                let program = cuda::Program::compile(graph, outputs, params, gpu, *priority, options)?;
                Ok(Program::Cuda(Box::new(program)))
            }
        }
    }

    /// Runs every step once. Allocates nothing.
    pub fn run(&mut self) -> Result<(), ProgramError> {
        match self {
            Program::Cpu(p) => {
                p.run();
                Ok(())
            }
            Program::Cuda(p) => p.run(),
        }
    }

    /// The buffer of an input, to be filled before `run`; it keeps its contents between runs.
    pub fn input_mut(&mut self, name: &str) -> Result<&mut [f32], ProgramError> {
        match self {
            Program::Cpu(p) => p.input_mut(name),
            Program::Cuda(p) => p.input_mut(name),
        }
    }

    pub fn set_indices(&mut self, name: &str, values: &[u32]) -> Result<(), ProgramError> {
        match self {
            Program::Cpu(p) => p.set_indices(name, values),
            Program::Cuda(p) => p.set_indices(name, values),
        }
    }

    /// An output of the last run.
    pub fn output(&self, name: &str) -> Result<&[f32], ProgramError> {
        match self {
            Program::Cpu(p) => p.output(name),
            Program::Cuda(p) => p.output(name),
        }
    }

    pub fn output_indices(&self, name: &str) -> Result<&[u32], ProgramError> {
        match self {
            Program::Cpu(p) => p.output_indices(name),
            Program::Cuda(p) => p.output_indices(name),
        }
    }

    pub fn output_shape(&self, name: &str) -> Result<Shape, ProgramError> {
        match self {
            Program::Cpu(p) => p.output_shape(name),
            Program::Cuda(p) => p.output_shape(name),
        }
    }

    /// Current values of all parameters of the compiled graph. Those that passes replaced (a folded
    /// convolution's weight, say) are there under their new names only.
    pub fn export_params(&self) -> Result<ParamStore, ProgramError> {
        match self {
            Program::Cpu(p) => Ok(p.export_params()),
            Program::Cuda(p) => p.export_params(),
        }
    }

    /// Bytes of intermediates and scratch, and bytes of parameters.
    pub fn memory_bytes(&self) -> (usize, usize) {
        match self {
            Program::Cpu(p) => p.memory_bytes(),
            Program::Cuda(p) => p.memory_bytes(),
        }
    }

    /// The plan as text: one line a step with its shape and place.
    pub fn describe(&self) -> String {
        match self {
            Program::Cpu(p) => p.describe(),
            Program::Cuda(p) => p.describe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_typed() {
        for (text, name) in
            [("cpu", DeviceName::Cpu), ("cuda:0", DeviceName::Cuda(0)), ("cuda:11", DeviceName::Cuda(11))]
        {
            assert_eq!(text.parse(), Ok(name));
            assert_eq!(name.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cpu:0", "cuda:99999999999999999999"] {
            assert!(text.parse::<DeviceName>().is_err_and(|e| e.contains("cuda:0")), "{text}");
        }
    }
}
