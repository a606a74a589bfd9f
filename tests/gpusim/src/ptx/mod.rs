//! PTX text to decoded kernels: what NVRTC 12.9 emits for this project. An instruction that is not known is
//! an error with its line and text, never a guess.

mod decode;
mod decode_memory;
pub mod instruction;
mod lexer;
mod operand;
mod parser;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use instruction::{Instruction, Register};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    pub line: u32,
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Of its first byte among the parameters' bytes.
    pub offset: usize,
    pub size: usize,
}

#[derive(Debug)]
pub struct Module {
    pub kernels: Vec<Kernel>,
}

/// Variables of a module in global memory: one piece of memory, filled when it is first used.
#[derive(Debug)]
pub(crate) struct Globals {
    /// Tells modules apart in device memory.
    pub id: u64,
    pub bytes: Vec<u8>,
}

impl Globals {
    fn new(bytes: Vec<u8>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Globals { id: NEXT.fetch_add(1, Ordering::Relaxed), bytes }
    }
}

/// What a special register or a constant holds when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    Bits(u64),
    /// Of the module's variables.
    GlobalAddress(u64),
    Thread(u8),
    Block(u8),
    BlockSize(u8),
    GridSize(u8),
    Lane,
    Warp,
    Warps,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicShared,
}

/// A variable in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub name: String,
    pub offset: usize,
    pub bytes: usize,
}

/// Where an instruction comes from; files are indices into the kernel's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub file: u32,
    pub line: u32,
    pub inlined: Option<(u32, u32)>,
    pub ptx_line: u32,
}

#[derive(Debug)]
pub struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    /// `.maxntid`, of `__launch_bounds__`.
    pub max_threads: Option<u32>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) words: usize,
    pub(crate) doubles: usize,
    pub(crate) predicates: usize,
    pub(crate) constants: Vec<(Register, Value)>,
    pub(crate) shared: Vec<Variable>,
    /// Where dynamic shared memory starts; before it, variables with red zones between them.
    pub(crate) dynamic_base: usize,
    pub(crate) local_bytes: usize,
    pub(crate) places: Vec<Place>,
    pub(crate) files: Arc<Vec<(u32, String)>>,
    pub(crate) globals: Arc<Globals>,
    pub(crate) uses_globals: bool,
}

impl Kernel {
    /// Bytes of static shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.shared.iter().map(|v| v.bytes).sum()
    }

    /// Bytes of local memory of a thread.
    pub fn local_bytes(&self) -> usize {
        self.local_bytes
    }

    /// Bytes of all parameters.
    pub fn param_bytes(&self) -> usize {
        self.params.iter().map(|p| p.offset + p.size).max().unwrap_or(0)
    }

    /// Rows of virtual registers; a compiler would need far fewer real ones.
    pub fn registers(&self) -> usize {
        self.words + 2 * self.doubles
    }

    /// `file.cu:12`, or `ptx.cuh:40 (in conv.cu:76)` where it was inlined.
    pub(crate) fn place(&self, index: u32) -> String {
        let Some(place) = self.places.get(index as usize) else { return "an unknown place".to_owned() };
        let name = |file: u32| {
            let path = self.files.iter().find(|f| f.0 == file).map_or("?", |f| f.1.as_str());
            path.rsplit('/').next().unwrap_or(path).to_owned()
        };
        if place.line == 0 {
            return format!("PTX line {}", place.ptx_line);
        }
        let here = format!("{}:{}", name(place.file), place.line);
        match place.inlined {
            Some((file, line)) => format!("{here} (in {}:{line})", name(file)),
            None => here,
        }
    }
}

/// Parses and decodes a module.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    parser::module(text)
}
