//! How values lie in device memory: activations and their gradients as fp16, everything small or summed
//! as fp32, indices as u32. Pure functions of the operation and its operands.

use crate::engine::op::Op;
use crate::engine::shape::DType;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    F16,
    F32,
    U32,
}

impl Storage {
    pub const fn bytes(self) -> usize {
        match self {
            Storage::F16 => 2,
            Storage::F32 | Storage::U32 => 4,
        }
    }
}

/// What an operation asks of one of its inputs; elsewhere a conversion is put between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    F16,
    F32,
    /// fp16 or fp32, whichever it is.
    Real,
    U32,
}

/// What input `i` of `op` has to be.
pub fn wanted(op: &Op, i: usize) -> Wanted {
    match op {
        Op::Conv2d { epilogue, .. } | Op::ConvTranspose { epilogue, .. } => {
            if epilogue.bias && i == 2 {
                Wanted::F32
            } else {
                Wanted::F16
            }
        }
        Op::ConvBackwardWeight { .. } | Op::MatMul { .. } => Wanted::F16,
        Op::Attention(_) | Op::AttentionBackward(_) => Wanted::F16,
        Op::Normalize { .. } if i > 0 => Wanted::F32,
        Op::NormalizeBackward { affine, .. } if i > 0 && i <= 1 + usize::from(*affine) => Wanted::F32,
        Op::NormalizeParamGrad { .. } if i == 1 => Wanted::F32,
        Op::Random { .. } => Wanted::U32,
        Op::Gather if i == 1 => Wanted::U32,
        Op::GatherBackward { .. } | Op::ResidualGather(_) if i == 0 => Wanted::U32,
        Op::Adam(_) | Op::MovingAverage { .. } | Op::LargestMean { .. } => Wanted::F32,
        Op::CrossEntropyBackward if i == 2 => Wanted::F32,
        _ => Wanted::Real,
    }
}

/// Inputs of at most this many elements are numbers rather than pictures: they stay fp32.
const FEW: usize = 16;

/// How the result of `op` is stored. `inputs` are the storages of its inputs, `only_reduced` says that
/// nothing but reductions read it: what is summed up next need not be rounded first.
pub fn result(op: &Op, dtype: DType, len: usize, inputs: &[Storage], only_reduced: bool) -> Storage {
    if dtype == DType::Index {
        return Storage::U32;
    }
    let as_inputs = || match inputs.contains(&Storage::F16) {
        true => Storage::F16,
        false => Storage::F32,
    };
    match op {
        Op::Input { .. } => {
            if len <= FEW {
                Storage::F32
            } else {
                Storage::F16
            }
        }
        Op::Param { .. } | Op::Fill { .. } | Op::Random { .. } => Storage::F32,
        Op::Conv2d { .. } | Op::ConvTranspose { .. } | Op::MatMul { .. } => {
            if only_reduced {
                Storage::F32
            } else {
                Storage::F16
            }
        }
        Op::ConvBackwardWeight { .. }
        | Op::Reduce { .. }
        | Op::SumSquares
        | Op::Moments { .. }
        | Op::NormalizeParamGrad { .. }
        | Op::ResidualRank(_)
        | Op::LogitDifference
        | Op::AnomalyMap { .. }
        | Op::LargestMean { .. }
        | Op::CrossEntropy
        | Op::Adam(_)
        | Op::MovingAverage { .. } => Storage::F32,
        Op::Unary(_) | Op::Binary(_) if only_reduced => Storage::F32,
        // The data decide, not the fp32 statistics beside them.
        Op::Normalize { .. } | Op::NormalizeBackward { .. } | Op::CrossEntropyBackward | Op::Gather => {
            inputs.first().copied().unwrap_or(Storage::F16)
        }
        Op::GatherBackward { .. } => inputs.get(1).copied().unwrap_or(Storage::F16),
        Op::PoolBackward { .. } => inputs.get(1).copied().unwrap_or(Storage::F16),
        Op::Attention(_) | Op::AttentionBackward(_) => Storage::F16,
        _ => as_inputs(),
    }
}
