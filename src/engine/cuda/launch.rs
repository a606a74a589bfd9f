//! What one operation becomes on a GPU: a list of kernel launches as plain values. Each family's
//! `lower` is a pure function from shapes, storages and the device's limits to such a list; it can be
//! printed and tested without a GPU.

use super::storage::Storage;
use crate::engine::op::Op;
use crate::engine::shape::Shape;

/// What of a GPU decides about kernels and tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability times ten, `80` for 8.0.
    pub arch: u32,
    pub multiprocessors: u32,
    /// Dynamic shared memory that a block may opt in to, bytes.
    pub shared_bytes: u32,
}

/// A tensor as kernels see it: NHWC without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typed {
    pub shape: Shape,
    pub storage: Storage,
}

/// One operation to be lowered. Operands have the storage that `storage::wanted` asks for.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    pub op: &'a Op,
    pub inputs: &'a [Typed],
    pub out: Typed,
    pub limits: Limits,
}

/// A place in device memory that a launch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Input(usize),
    Out,
    /// Byte offset in the task's scratch.
    Scratch(usize),
    /// The fp16 copy of a parameter (input `i`) that convolutions and products read; null where the
    /// program needs none. Whoever writes the parameter writes it too.
    Shadow(usize),
}

/// One kernel argument, in the kernel's order.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// `T*`
    Pointer(Place),
    /// `T*`, absent.
    Null,
    /// `Real` of common.cuh: a pointer with its storage, 16 bytes.
    Real(Place),
    I32(i32),
    U32(u32),
    F32(f32),
    /// A `#[repr(C)]` struct by value.
    Struct(Vec<u8>),
}

impl Arg {
    /// As the kernel reads it. `find` says where a place lies and how; what it does not know is null.
    pub(super) fn bytes(&self, find: impl Fn(Place) -> Option<(u64, Storage)>) -> Vec<u8> {
        match self {
            Arg::Pointer(place) => find(*place).map_or(0, |(address, _)| address).to_le_bytes().to_vec(),
            Arg::Null => 0u64.to_le_bytes().to_vec(),
            Arg::Real(place) => {
                let (address, storage) = find(*place).unwrap_or((0, Storage::F32));
                let kind = i32::from(storage != Storage::F16);
                [&address.to_le_bytes()[..], &kind.to_le_bytes(), &[0; 4]].concat()
            }
            Arg::I32(v) => v.to_le_bytes().to_vec(),
            Arg::U32(v) => v.to_le_bytes().to_vec(),
            Arg::F32(v) => v.to_le_bytes().to_vec(),
            Arg::Struct(bytes) => bytes.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Stem of the `.cu` file.
    pub module: &'static str,
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    pub args: Vec<Arg>,
}

/// The launches of one operation, in order, and the scratch they share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    pub launches: Vec<Launch>,
    pub scratch_bytes: usize,
}

impl Lowered {
    pub fn one(launch: Launch) -> Self {
        Lowered { launches: vec![launch], scratch_bytes: 0 }
    }
}

/// A shape that no kernel takes, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} of {shape}: {reason}")]
pub struct Unsupported {
    pub op: &'static str,
    pub shape: Shape,
    pub reason: &'static str,
}

impl Task<'_> {
    pub fn unsupported(&self, reason: &'static str) -> Unsupported {
        Unsupported { op: self.op.name(), shape: self.out.shape, reason }
    }
}
