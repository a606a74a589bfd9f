//! Which family lowers an operation.

use super::launch::{Lowered, Task, Unsupported};
use super::{
    attention, conv, conv_grad, depthwise, elementwise, gemm, heatmap, layout, loss, norm, optim, philox,
    pool, reduce, residual, resize,
};
use crate::engine::op::{Conv, Op};
use crate::engine::shape::Shape;

/// The launches of one operation: a pure function.
pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    match task.op {
        Op::Input { .. } | Op::Param { .. } | Op::Fill { .. } => Ok(Lowered::default()),
        Op::Conv2d { conv, .. } if is_depthwise(conv, task.inputs[0].shape) => depthwise::lower(task),
        Op::ConvTranspose { conv, .. } if is_depthwise(conv, task.out.shape) => depthwise::lower(task),
        Op::ConvBackwardWeight { conv, .. } if is_depthwise(conv, task.inputs[0].shape) => {
            depthwise::lower(task)
        }
        Op::Conv2d { .. } | Op::ConvTranspose { .. } => conv::lower(task),
        Op::ConvBackwardWeight { .. } => conv_grad::lower(task),
        Op::MatMul { .. } => gemm::lower(task),
        Op::Unary(_) | Op::UnaryBackward(_) | Op::Binary(_) => elementwise::lower(task),
        Op::Broadcast { .. } => elementwise::lower(task),
        Op::Reduce { .. } | Op::SumSquares => reduce::lower(task),
        Op::Moments { .. }
        | Op::Normalize { .. }
        | Op::NormalizeBackward { .. }
        | Op::NormalizeParamGrad { .. } => norm::lower(task),
        Op::Pool { .. } | Op::PoolBackward { .. } => pool::lower(task),
        Op::Resize { .. } | Op::ResizeBackward { .. } => resize::lower(task),
        Op::Softmax | Op::SoftmaxBackward | Op::CrossEntropy | Op::CrossEntropyBackward => loss::lower(task),
        Op::Attention(_) | Op::AttentionBackward(_) => attention::lower(task),
        Op::Concat { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::TopK { .. }
        | Op::Gather
        | Op::GatherBackward { .. } => layout::lower(task),
        Op::ResidualRank(_) | Op::ResidualGather(_) => residual::lower(task),
        Op::LogitDifference | Op::AnomalyMap { .. } | Op::LargestMean { .. } => heatmap::lower(task),
        Op::Random { .. } => philox::lower(task),
        Op::Adam(_) | Op::MovingAverage { .. } => optim::lower(task),
    }
}

/// The launches of operations of one family (`join`), chosen so that they can run as one.
pub fn together(tasks: &[Task]) -> Result<Vec<Lowered>, Unsupported> {
    let joined = match tasks.first().map(|task| task.op) {
        Some(Op::Conv2d { .. } | Op::ConvTranspose { .. }) => conv::lower_together(tasks),
        Some(Op::Attention(_)) => attention::lower_together(tasks),
        _ => None,
    };
    joined.map_or_else(|| tasks.iter().map(lower).collect(), Ok)
}

/// One filter a channel, as many channels out as in.
fn is_depthwise(conv: &Conv, x: Shape) -> bool {
    conv.groups > 1 && conv.groups == x.c()
}
