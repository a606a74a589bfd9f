//! WideResNet50-2: ResNet-50 with bottlenecks twice as wide (Zagoruyko & Komodakis 2016), as torchvision
//! and timm have it: the stride sits in the 3×3 convolution ("v1.5"), batch norm eps 1e-5.

use super::{ConvBn, NetError, Taps};
use crate::engine::{Act, Conv, Graph, Pool, Value, Window};

const EPS: f32 = 1e-5;
const BLOCKS: [usize; 4] = [3, 4, 6, 3];

fn layer<'a>(
    conv_name: &'a str,
    bn_name: &'a str,
    kernel: usize,
    out_channels: usize,
    conv: Conv,
    act: Act,
) -> ConvBn<'a> {
    ConvBn { conv_name, bn_name, kernel, out_channels, conv, eps: EPS, act }
}

pub(super) fn build(g: &mut Graph, image: Value, taps: &mut Taps<'_>) -> Result<(), NetError> {
    let x = layer("conv1", "bn1", 7, 64, Conv::new(2, 3), Act::Relu).append(g, image)?;
    let mut x = g.pool(Pool::Max, x, Window { size: 3, stride: 2, pad: 1 })?;
    for (index, &blocks) in BLOCKS.iter().enumerate() {
        let (inner, outer) = (128 << index, 256 << index);
        for block in 0..blocks {
            let stride = if index > 0 && block == 0 { 2 } else { 1 };
            let name = |part: &str| format!("layer{}.{block}.{part}", index + 1);
            let y = layer(&name("conv1"), &name("bn1"), 1, inner, Conv::new(1, 0), Act::Relu).append(g, x)?;
            let y = layer(&name("conv2"), &name("bn2"), 3, inner, Conv::new(stride, 1), Act::Relu)
                .append(g, y)?;
            let y = layer(&name("conv3"), &name("bn3"), 1, outer, Conv::new(1, 0), Act::None).append(g, y)?;
            let shortcut = if block == 0 {
                let (conv, bn) = (name("downsample.0"), name("downsample.1"));
                layer(&conv, &bn, 1, outer, Conv::new(stride, 0), Act::None).append(g, x)?
            } else {
                x
            };
            let sum = g.add(y, shortcut)?;
            x = g.act(Act::Relu, sum)?;
        }
        taps.offer(format!("layer{}", index + 1), x);
        if taps.done() {
            break;
        }
    }
    Ok(())
}
