//! Residual selection (RRS) and the head that turns residuals into an anomaly map (RealNet, section 3.4;
//! details as in its code).
//!
//! Selection ranks the residual channels of each picture by their maximum and by their mean, after each
//! channel was brought to one scale by running statistics. The paper's head sees the best of both ranks
//! in rank order, so that a rank is a channel's only identity. That needs long training; the small head
//! may keep every channel in its place and see the best ranks beside them, or see the channels that
//! were not selected as zero.

use crate::engine::{
    Act, Binary, Conv, DType, Graph, GraphError, GraphResult, Norm, Op, Reduce, Resize, Shape, Unary, Value,
};

const EPS: f32 = 1e-5;

/// Whether batch norms take the batch's statistics and move their running ones, or use the latter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// `momentum` of the ranking's statistics: the paper's .9 leaves little but the last batch.
    Train {
        rank_momentum: f32,
    },
    Judge,
}

/// Which residual channels the head sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All, in fixed order.
    All,
    /// The paper's: the best by maximum, then the best by mean, in rank order.
    Ranked { by_max: usize, by_mean: usize },
    /// All in fixed order, then the best by maximum and by mean, normalised, in rank order.
    Beside { by_max: usize, by_mean: usize },
    /// All in fixed order; what is neither among the best by maximum nor by mean is zero.
    Gated { by_max: usize, by_mean: usize },
}

impl Selection {
    /// Channels out for `channels` in.
    pub const fn channels(self, channels: usize) -> usize {
        match self {
            Selection::All | Selection::Gated { .. } => channels,
            Selection::Ranked { by_max, by_mean } => by_max + by_mean,
            Selection::Beside { by_max, by_mean } => channels + by_max + by_mean,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadSpec {
    /// BN, 1×1 to 2w, 3×3 to 2w, 3×3 to w, 1×1 to 2; logits at the residuals' resolution.
    Small { width: usize },
    /// The paper's three decoders, logits at four times the residuals' resolution. `width`: of
    /// decoder1's end (128 for the paper; a quarter of the channels that it gets).
    Paper { width: usize },
}

/// Where the output bias starts: most of a picture is good.
pub const SMALL_OUTPUT_BIAS: [f32; 2] = [1.5, -1.5];

/// N×H×W×C residuals to N×H×W×`selection.channels(C)`. Statistics are `{name}.bn_idx.moments`.
pub fn select(g: &mut Graph, residual: Value, selection: Selection, mode: Mode, name: &str) -> GraphResult {
    let (by_max, by_mean) = match selection {
        Selection::All => return Ok(residual),
        Selection::Ranked { by_max, by_mean }
        | Selection::Beside { by_max, by_mean }
        | Selection::Gated { by_max, by_mean } => (by_max, by_mean),
    };
    let s = g.shape(residual);
    let running = g.param(&format!("{name}.bn_idx.moments"), Shape::new(1, 1, 2, s.c()))?;
    let moments = match mode {
        Mode::Judge => running,
        Mode::Train { rank_momentum } => {
            let batch = g.moments(Norm::Batch, residual)?;
            let n = s.rows() as f32;
            let unbiased =
                Op::MovingAverage { momentum: rank_momentum, variance_factor: n / (n - 1.0).max(1.0) };
            g.apply(unbiased, &[running, batch])?;
            batch
        }
    };
    let rank = |g: &mut Graph, reduce: Reduce, k: usize| -> GraphResult {
        let over_pixels = [false, true, true, false];
        let key = g.reduce(reduce, residual, over_pixels)?;
        // The normalisation is increasing, so it may follow the reduction.
        let key = g.normalize(Norm::Batch, EPS, key, moments, None)?;
        g.top_k(key, k)
    };
    let mut ranks = vec![];
    for (reduce, k) in [(Reduce::Max, by_max), (Reduce::Mean, by_mean)] {
        if k > 0 {
            ranks.push(rank(g, reduce, k)?);
        }
    }
    match selection {
        Selection::All | Selection::Ranked { .. } => gathered(g, residual, &ranks, &[]),
        Selection::Beside { .. } => {
            let scaled = g.normalize(Norm::Batch, EPS, residual, moments, None)?;
            gathered(g, scaled, &ranks, &[residual])
        }
        Selection::Gated { .. } => {
            let mut gate: Option<Value> = None;
            for indices in ranks {
                let k = g.shape(indices).c();
                debug_assert_eq!(g.node(indices).dtype, DType::Index);
                let ones = g.fill(Shape::new(s.n(), 1, 1, k), 1.0);
                let chosen = g.apply(Op::GatherBackward { channels: s.c() }, &[indices, ones])?;
                gate = Some(match gate {
                    Some(other) => g.binary(Binary::Max, other, chosen)?,
                    None => chosen,
                });
            }
            match gate {
                Some(gate) => g.mul(residual, gate),
                None => Ok(residual),
            }
        }
    }
}

fn gathered(g: &mut Graph, x: Value, ranks: &[Value], before: &[Value]) -> GraphResult {
    let mut parts = before.to_vec();
    for indices in ranks {
        parts.push(g.gather(x, *indices)?);
    }
    if parts.is_empty() {
        return Err(GraphError { node: "rrs".into(), message: "selects no channel at all".into() });
    }
    g.concat(3, &parts)
}

/// Appends the head; two logits per position, class 1 = anomalous.
pub fn head(g: &mut Graph, x: Value, spec: HeadSpec, mode: Mode, name: &str) -> GraphResult {
    let h = Head { mode, name };
    match spec {
        HeadSpec::Small { width } => {
            let y = h.batch_norm(g, x, "input_norm")?;
            let y = h.conv_bn_relu(g, y, 1, 2 * width, "conv1")?;
            let y = h.conv_bn_relu(g, y, 3, 2 * width, "conv2")?;
            let y = h.conv_bn_relu(g, y, 3, width, "conv3")?;
            h.conv(g, y, 1, 2, true, "output")
        }
        HeadSpec::Paper { width } => {
            let c = g.shape(x).c();
            let mut y = x;
            for i in 0..2 {
                let at = format!("decoder1.0._layers.{i}._block");
                let r = g.unary(Unary::Relu, y)?;
                let r = h.conv(g, r, 3, c, false, &format!("{at}.1"))?;
                let r = g.unary(Unary::Relu, r)?;
                let r = h.conv(g, r, 1, c, false, &format!("{at}.3"))?;
                y = g.add(y, r)?;
            }
            y = g.unary(Unary::Relu, y)?;
            y = h.conv(g, y, 3, width, true, "decoder1.1")?;
            y = h.batch_norm(g, y, "decoder1.2")?;
            y = g.unary(Unary::Relu, y)?;
            y = h.conv(g, y, 3, width / 4, true, "decoder2.0")?;
            y = g.unary(Unary::Relu, y)?;
            y = h.conv(g, y, 3, width / 16, true, "decoder2.2")?;
            y = g.unary(Unary::Relu, y)?;
            y = doubled(g, y)?;
            y = h.conv(g, y, 3, (width / 32).max(2), true, "decoder3.0")?;
            y = g.unary(Unary::Relu, y)?;
            y = h.conv(g, y, 3, 2, true, "decoder3.2")?;
            doubled(g, y)
        }
    }
}

fn doubled(g: &mut Graph, x: Value) -> GraphResult {
    let s = g.shape(x);
    g.resize(Resize::BilinearAligned, x, s.h() * 2, s.w() * 2)
}

struct Head<'a> {
    mode: Mode,
    name: &'a str,
}

impl Head<'_> {
    fn conv(&self, g: &mut Graph, x: Value, k: usize, to: usize, bias: bool, at: &str) -> GraphResult {
        let from = g.shape(x).c();
        let w = g.param(&format!("{}.{at}.weight", self.name), Shape::new(k, k, from, to))?;
        let b = match bias {
            true => Some(g.param(&format!("{}.{at}.bias", self.name), Shape::vector(to))?),
            false => None,
        };
        g.conv2d(x, w, b, Conv::new(1, k / 2))
    }

    fn batch_norm(&self, g: &mut Graph, x: Value, at: &str) -> GraphResult {
        let name = format!("{}.{at}", self.name);
        match self.mode {
            Mode::Train { .. } => g.batch_norm_train(x, EPS, 0.1, &name),
            Mode::Judge => g.batch_norm_eval(x, EPS, &name),
        }
    }

    fn conv_bn_relu(&self, g: &mut Graph, x: Value, k: usize, to: usize, at: &str) -> GraphResult {
        let y = self.conv(g, x, k, to, false, at)?;
        let y = self.batch_norm(g, y, &format!("{at}_norm"))?;
        g.act(Act::Relu, y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Mode; 2] = [Mode::Train { rank_momentum: 0.1 }, Mode::Judge];

    /// Trainable scalars: running statistics do not count.
    fn parameters(g: &Graph) -> usize {
        g.params().filter(|(name, _)| !name.ends_with(".moments")).map(|(_, v)| g.shape(v).len()).sum()
    }

    #[test]
    fn the_papers_head_has_the_published_number_of_parameters() {
        for mode in MODES {
            let mut g = Graph::new();
            let x = g.input("residual", Shape::new(2, 64, 64, 1536));
            let ranked = Selection::Ranked { by_max: 256, by_mean: 256 };
            let chosen = select(&mut g, x, ranked, mode, "rrs").unwrap();
            assert_eq!(g.shape(chosen), Shape::new(2, 64, 64, 512));
            let y = head(&mut g, chosen, HeadSpec::Paper { width: 128 }, mode, "rrs").unwrap();
            assert_eq!(g.shape(y), Shape::new(2, 256, 256, 2));
            assert_eq!(parameters(&g), 5_872_662);
        }
    }

    #[test]
    fn the_small_head_gives_logits_where_the_residuals_are() {
        for selection in [
            Selection::All,
            Selection::Ranked { by_max: 40, by_mean: 40 },
            Selection::Beside { by_max: 8, by_mean: 8 },
            Selection::Gated { by_max: 36, by_mean: 36 },
        ] {
            let mut g = Graph::new();
            let x = g.input("residual", Shape::new(3, 32, 32, 144));
            let mode = Mode::Train { rank_momentum: 0.1 };
            let chosen = select(&mut g, x, selection, mode, "rrs").unwrap();
            assert_eq!(g.shape(chosen).c(), selection.channels(144), "{selection:?}");
            let y = head(&mut g, chosen, HeadSpec::Small { width: 16 }, mode, "rrs").unwrap();
            assert_eq!(g.shape(y), Shape::new(3, 32, 32, 2));
        }
    }
}
