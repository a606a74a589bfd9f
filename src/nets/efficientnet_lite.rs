//! EfficientNet-Lite0 (Tan & Le 2019; the "lite" variant of the TensorFlow authors): inverted
//! bottlenecks without squeeze-and-excitation, ReLU6, batch norm eps 1e-3.
//!
//! Convolutions pad as TensorFlow's SAME does: with stride 2 on an even size the odd pixel of padding
//! lies below and to the right, so the weights see another grid than under PyTorch's symmetric padding.

use super::{ConvBn, NetError, Taps};
use crate::engine::{Act, Conv, Graph, GraphResult, Value};

const EPS: f32 = 1e-3;

/// Blocks of one width; the stride is the first block's.
struct Stage {
    blocks: usize,
    kernel: usize,
    stride: usize,
    expand: usize,
    out_channels: usize,
}

const fn stage(blocks: usize, kernel: usize, stride: usize, expand: usize, out_channels: usize) -> Stage {
    Stage { blocks, kernel, stride, expand, out_channels }
}

const STAGES: [Stage; 7] = [
    stage(1, 3, 1, 1, 16),
    stage(2, 3, 2, 6, 24),
    stage(2, 5, 2, 6, 40),
    stage(3, 3, 2, 6, 80),
    stage(3, 5, 1, 6, 112),
    stage(4, 5, 2, 6, 192),
    stage(1, 3, 1, 6, 320),
];

/// Stage and place in it of each block, as timm counts them.
pub(super) fn places() -> impl Iterator<Item = (usize, usize)> {
    STAGES.iter().enumerate().flat_map(|(stage, s)| (0..s.blocks).map(move |place| (stage, place)))
}

/// Zeros added before and after one axis so that ⌈size/stride⌉ outputs fit.
fn same(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let total = ((size.div_ceil(stride).max(1) - 1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

fn conv_bn(
    g: &mut Graph,
    x: Value,
    names: (&str, &str),
    kernel: usize,
    (stride, groups): (usize, usize),
    out_channels: usize,
    act: Act,
) -> GraphResult {
    let s = g.shape(x);
    let (top, bottom) = same(s.h(), kernel, stride);
    let (left, right) = same(s.w(), kernel, stride);
    let conv = Conv { stride, pad: [top, left, bottom, right], groups };
    ConvBn { conv_name: names.0, bn_name: names.1, kernel, out_channels, conv, eps: EPS, act }.append(g, x)
}

pub(super) fn build(g: &mut Graph, image: Value, taps: &mut Taps<'_>) -> Result<(), NetError> {
    let mut x = conv_bn(g, image, ("_conv_stem", "_bn0"), 3, (2, 1), 32, Act::Relu6)?;
    let mut index = 0;
    for stage in &STAGES {
        for place in 0..stage.blocks {
            let stride = if place == 0 { stage.stride } else { 1 };
            let name = |part: &str| format!("_blocks.{index}.{part}");
            let input = x;
            if stage.expand > 1 {
                let wide = g.shape(x).c() * stage.expand;
                x = conv_bn(g, x, (&name("_expand_conv"), &name("_bn0")), 1, (1, 1), wide, Act::Relu6)?;
                taps.offer(format!("block{index}.expand"), x);
                if taps.done() {
                    return Ok(());
                }
            }
            let wide = g.shape(x).c();
            let names = (name("_depthwise_conv"), name("_bn1"));
            x = conv_bn(g, x, (&names.0, &names.1), stage.kernel, (stride, wide), wide, Act::Relu6)?;
            let names = (name("_project_conv"), name("_bn2"));
            x = conv_bn(g, x, (&names.0, &names.1), 1, (1, 1), stage.out_channels, Act::None)?;
            if g.shape(x) == g.shape(input) && stride == 1 {
                x = g.add(x, input)?;
            }
            taps.offer(format!("block{index}"), x);
            if taps.done() {
                return Ok(());
            }
            index += 1;
        }
    }
    Ok(())
}
