//! RealNet's reconstruction U-Net: from the features of a possibly anomalous picture to those of the
//! normal picture under it (RealNet, section 3.3; wiring as in its code, a descendant of ADM's U-Net
//! with one convolution per residual block and no time input).
//!
//! One builder makes all sizes. In the paper's form every resampling is a residual block of its own and
//! every block on the way down is a skip; in the plain form resampling has no weights and only residual
//! blocks are skips, which costs half as much at the same width. Parameter names are those of the
//! published checkpoints.

use crate::engine::{
    Act, Attention, Conv, Graph, GraphError, GraphResult, Pool, QkvLayout, Resize, Shape, Value, Window,
};

const EPS: f32 = 1e-5;
const HEAD_CHANNELS: usize = 64;

/// How the U-Net changes resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Average pooling and nearest doubling, no weights.
    Plain,
    /// Down: a residual block around average pooling. Up: a residual block with a 4×4 transposed
    /// convolution in each branch.
    Blocks,
}

/// Widths and depth of one U-Net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnetSpec {
    /// Channels in and out.
    pub channels: usize,
    /// m: the three levels are m, 2m and 4m wide.
    pub width: usize,
    /// Residual blocks per level on the way down.
    pub blocks: usize,
    pub groups: usize,
    /// Attention at half and quarter resolution; needs 2m to be a multiple of 64.
    pub attention: bool,
    pub resampling: Resampling,
}

impl UnetSpec {
    /// The paper's wiring; `width` a multiple of 32.
    pub const fn paper(channels: usize, width: usize) -> Self {
        UnetSpec { channels, width, blocks: 2, groups: 32, attention: true, resampling: Resampling::Blocks }
    }

    /// For the CPU: no attention, no weights in the resampling; `width` a multiple of 8.
    pub const fn plain(channels: usize, width: usize) -> Self {
        UnetSpec { channels, width, blocks: 1, groups: 8, attention: false, resampling: Resampling::Plain }
    }
}

/// Whether teaching starts this parameter at zero: the reconstruction and every attention block start
/// as if they were not there.
pub fn starts_at_zero(name: &str) -> bool {
    name.ends_with(".proj_out.weight")
        || name.ends_with(".proj_out.bias")
        || name.ends_with(".out.2.weight")
        || name.ends_with(".out.2.bias")
}

/// Appends the U-Net called `name` to `g`. `x` is N×H×W×C with H and W multiples of 4; so is the result.
pub fn recon_unet(g: &mut Graph, x: Value, spec: &UnetSpec, name: &str) -> GraphResult {
    let s = g.shape(x);
    if s.c() != spec.channels || !s.h().is_multiple_of(4) || !s.w().is_multiple_of(4) {
        let message = format!("needs {} channels on a grid of multiples of 4, got {s}", spec.channels);
        return Err(GraphError { node: name.into(), message });
    }
    let u = Unet { spec, name };
    let paper = spec.resampling == Resampling::Blocks;
    let attends = |level: usize| spec.attention && level > 0;

    let mut skips: [Vec<Value>; 3] = Default::default();
    let mut h = u.conv(g, x, 3, spec.width, "input_blocks.0")?;
    if paper {
        skips[0].push(h);
    }
    let mut block = 0;
    for (level, skips) in skips.iter_mut().enumerate() {
        let width = spec.width << level;
        if level > 0 {
            if paper {
                block += 1;
                h = u.down(g, h, &format!("input_blocks.{block}"))?;
                skips.push(h);
            } else {
                h = halve(g, h)?;
            }
        }
        for _ in 0..spec.blocks {
            block += 1;
            h = u.residual(g, h, width, &format!("input_blocks.{block}.0"))?;
            if attends(level) {
                h = u.attend(g, h, &format!("input_blocks.{block}.1"))?;
            }
            if paper || level < 2 {
                skips.push(h);
            }
        }
    }

    let width = spec.width << 2;
    h = u.residual(g, h, width, "middle_block.0")?;
    if spec.attention {
        h = u.attend(g, h, "middle_block.1")?;
        h = u.residual(g, h, width, "middle_block.2")?;
    }

    let mut block = 0;
    for level in (0..3).rev() {
        let width = spec.width << level;
        let mut last = None;
        while let Some(skip) = skips[level].pop() {
            let joined = g.concat(3, &[h, skip])?;
            h = u.residual(g, joined, width, &format!("output_blocks.{block}.0"))?;
            if attends(level) {
                h = u.attend(g, h, &format!("output_blocks.{block}.1"))?;
            }
            last = Some(block);
            block += 1;
        }
        if level > 0 {
            h = match last {
                Some(at) if paper => {
                    u.up(g, h, &format!("output_blocks.{at}.{}", 1 + spec.attention as u8))?
                }
                _ => double(g, h)?,
            };
        }
    }
    h = u.norm_silu(g, h, "out.0")?;
    u.conv(g, h, 3, spec.channels, "out.2")
}

struct Unet<'a> {
    spec: &'a UnetSpec,
    name: &'a str,
}

impl Unet<'_> {
    /// Same size, with bias.
    fn conv(&self, g: &mut Graph, x: Value, k: usize, to: usize, at: &str) -> GraphResult {
        let from = g.shape(x).c();
        let w = g.param(&format!("{}.{at}.weight", self.name), Shape::new(k, k, from, to))?;
        let b = g.param(&format!("{}.{at}.bias", self.name), Shape::vector(to))?;
        g.conv2d(x, w, Some(b), Conv::new(1, k / 2))
    }

    fn norm_silu(&self, g: &mut Graph, x: Value, at: &str) -> GraphResult {
        let y = g.group_norm(x, self.spec.groups, EPS, &format!("{}.{at}", self.name))?;
        g.act(Act::Silu, y)
    }

    /// skip(x) + conv3(SiLU(GN(x)))
    fn residual(&self, g: &mut Graph, x: Value, to: usize, at: &str) -> GraphResult {
        let h = self.norm_silu(g, x, &format!("{at}.in_layers.0"))?;
        let h = self.conv(g, h, 3, to, &format!("{at}.in_layers.2"))?;
        let skip = match g.shape(x).c() == to {
            true => x,
            false => self.conv(g, x, 1, to, &format!("{at}.skip_connection"))?,
        };
        g.add(h, skip)
    }

    fn down(&self, g: &mut Graph, x: Value, at: &str) -> GraphResult {
        let width = g.shape(x).c();
        let h = self.norm_silu(g, x, &format!("{at}.in_layers.0"))?;
        let h = halve(g, h)?;
        let h = self.conv(g, h, 3, width, &format!("{at}.in_layers.2"))?;
        let skip = halve(g, x)?;
        g.add(h, skip)
    }

    fn up(&self, g: &mut Graph, x: Value, at: &str) -> GraphResult {
        let width = g.shape(x).c();
        let h = self.norm_silu(g, x, &format!("{at}.in_layers.0"))?;
        let h = self.transposed(g, h, &format!("{at}.h_upd.conv"))?;
        let h = self.conv(g, h, 3, width, &format!("{at}.in_layers.2"))?;
        let skip = self.transposed(g, x, &format!("{at}.x_upd.conv"))?;
        g.add(h, skip)
    }

    /// 4×4, stride 2, padding 1: doubles the resolution.
    fn transposed(&self, g: &mut Graph, x: Value, at: &str) -> GraphResult {
        let c = g.shape(x).c();
        let w = g.param(&format!("{}.{at}.weight", self.name), Shape::new(4, 4, c, c))?;
        let b = g.param(&format!("{}.{at}.bias", self.name), Shape::vector(c))?;
        g.conv_transpose2d(x, w, Some(b), Conv::new(2, 1))
    }

    fn attend(&self, g: &mut Graph, x: Value, at: &str) -> GraphResult {
        let c = g.shape(x).c();
        let h = g.group_norm(x, self.spec.groups, EPS, &format!("{}.{at}.norm", self.name))?;
        let qkv = self.conv(g, h, 1, 3 * c, &format!("{at}.qkv"))?;
        let attention = Attention { heads: c / HEAD_CHANNELS, layout: QkvLayout::PerHead, causal: false };
        let h = g.attention(qkv, attention)?;
        let h = self.conv(g, h, 1, c, &format!("{at}.proj_out"))?;
        g.add(x, h)
    }
}

fn halve(g: &mut Graph, x: Value) -> GraphResult {
    g.pool(Pool::Avg, x, Window { size: 2, stride: 2, pad: 0 })
}

fn double(g: &mut Graph, x: Value) -> GraphResult {
    let s = g.shape(x);
    g.resize(Resize::Nearest, x, s.h() * 2, s.w() * 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::Program;
    use crate::engine::philox::Stream;
    use crate::engine::{Options, ParamStore, Tensor, Threads};

    /// Number of scalars in all parameters, and of parameter tensors.
    fn built(spec: UnetSpec, side: usize) -> (usize, usize) {
        let mut g = Graph::new();
        let shape = Shape::new(2, side, side, spec.channels);
        let x = g.input("x", shape);
        let y = recon_unet(&mut g, x, &spec, "recon.block1_recon").unwrap();
        assert_eq!(g.shape(y), shape);
        (g.params().map(|(_, v)| g.shape(v).len()).sum(), g.params().count())
    }

    /// The counts of the published network (its code, counted with PyTorch).
    #[test]
    fn the_papers_four_networks_have_the_published_number_of_parameters() {
        for (channels, width, side, parameters) in [
            (256, 128, 64, 51_846_144),
            (512, 256, 32, 207_271_936),
            (512, 256, 16, 207_271_936),
            (256, 128, 8, 51_846_144),
        ] {
            assert_eq!(built(UnetSpec::paper(channels, width), side), (parameters, 186));
        }
    }

    #[test]
    fn a_quarter_of_the_width_has_33_6_million_parameters_in_all() {
        let total: usize = [(256, 32, 64), (512, 64, 32), (512, 64, 16), (256, 32, 8)]
            .map(|(channels, width, side)| built(UnetSpec::paper(channels, width), side).0)
            .iter()
            .sum();
        assert_eq!((total as f64 / 1e5).round() / 10.0, 33.6, "{total}");
    }

    #[test]
    fn the_plain_form_stays_small() {
        assert!(built(UnetSpec::plain(48, 16), 32).0 < 250_000);
        assert!(built(UnetSpec::plain(96, 24), 16).0 < 500_000);
    }

    #[test]
    fn a_grid_that_does_not_halve_twice_is_refused_by_name() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::new(1, 30, 32, 48));
        let error = recon_unet(&mut g, x, &UnetSpec::plain(48, 16), "recon.block2").unwrap_err();
        assert!(error.to_string().starts_with("recon.block2: "), "{error}");
    }

    /// The output convolution starts at zero, so an untaught reconstruction is exactly zero; with one
    /// bias set, that channel is exactly the bias, whatever went through attention and both resamplings.
    #[test]
    fn the_papers_form_runs_and_reconstructs_nothing_before_it_is_taught() {
        let spec = UnetSpec::paper(64, 32);
        let mut g = Graph::new();
        let x = g.input("x", Shape::new(2, 8, 8, 64));
        let y = recon_unet(&mut g, x, &spec, "recon.block1_recon").unwrap();
        let mut rng = Stream::new(5, 0, 0, 0).rng();
        let mut params = ParamStore::new();
        for (name, v) in g.params() {
            let mut tensor = Tensor::zeros(g.shape(v));
            if !starts_at_zero(name) {
                tensor.data.iter_mut().for_each(|w| *w = rng.range(-0.1, 0.1));
            }
            params.insert(name, tensor);
        }
        let mut bias = Tensor::zeros(Shape::vector(64));
        bias.data[3] = 0.5;
        params.insert("recon.block1_recon.out.2.bias", bias);
        let mut p = Program::compile(&g, &[("y", y)], &params, &Threads::new(2), Options::default()).unwrap();
        p.input_mut("x").unwrap().iter_mut().for_each(|v| *v = rng.normal());
        p.run();
        for row in p.output("y").unwrap().chunks_exact(64) {
            assert!(row.iter().enumerate().all(|(c, v)| *v == if c == 3 { 0.5 } else { 0.0 }), "{row:?}");
        }
    }
}
