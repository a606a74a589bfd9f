//! Anomaly-aware feature selection (AFS; RealNet, section 3.2): keeps the channels of a pretrained
//! network whose change, where a training anomaly was painted, looks most like the anomaly's mask.

/// Guards the division where a channel hardly changes.
const EPS: f32 = 1e-4;

/// Sums up, batch by batch, how badly each channel's squared change matches the masks.
#[derive(Clone, Debug)]
pub struct Selection {
    loss: Vec<f64>,
    dead: Vec<bool>,
}

impl Selection {
    pub fn new(channels: usize) -> Self {
        Selection { loss: vec![0.0; channels], dead: vec![true; channels] }
    }

    /// One batch: features of the blends and of their normals, positions × channels, and the masks'
    /// value at each position. The change is min-max scaled per channel over the whole batch.
    pub fn add(&mut self, blended: &[f32], normal: &[f32], mask: &[f32]) {
        let channels = self.loss.len();
        if channels == 0 || mask.is_empty() {
            return;
        }
        let mut lo = vec![f32::MAX; channels];
        let mut hi = vec![f32::MIN; channels];
        let rows = || blended.chunks_exact(channels).zip(normal.chunks_exact(channels));
        for (a, b) in rows() {
            for c in 0..channels {
                let change = (a[c] - b[c]) * (a[c] - b[c]);
                lo[c] = lo[c].min(change);
                hi[c] = hi[c].max(change);
            }
        }
        let scale: Vec<f32> = lo.iter().zip(&hi).map(|(lo, hi)| 1.0 / (hi - lo + EPS)).collect();
        let mut sum = vec![0.0f32; channels];
        for ((a, b), m) in rows().zip(mask) {
            for c in 0..channels {
                let change = (a[c] - b[c]) * (a[c] - b[c]);
                let miss = (change - lo[c]) * scale[c] - m;
                sum[c] += miss * miss;
            }
        }
        for c in 0..channels {
            self.loss[c] += (sum[c] / mask.len() as f32) as f64;
            // A constant channel scales to 0 everywhere and would score better than one that lights up
            // outside the mask too, but it says nothing.
            if hi[c] > lo[c] && hi[c].is_finite() {
                self.dead[c] = false;
            }
        }
    }

    /// The `keep` best channels, ascending. Ties go to the lower index; dead channels and such whose
    /// features were not finite come last.
    pub fn best(&self, keep: usize) -> Vec<usize> {
        let badness = |c: &usize| match self.dead[*c] || !self.loss[*c].is_finite() {
            true => f64::INFINITY,
            false => self.loss[*c],
        };
        let mut order: Vec<usize> = (0..self.loss.len()).collect();
        order.sort_by(|a, b| badness(a).total_cmp(&badness(b)));
        order.truncate(keep);
        order.sort_unstable();
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four positions, the last two under the mask; channel 0 dead, 1 lights up everywhere at random,
    /// 2 lights up in the mask, 3 inverted, 4 not finite.
    #[test]
    fn channels_that_light_up_in_the_mask_are_kept_and_dead_ones_are_last() {
        let normal = [0.0; 20];
        #[rustfmt::skip]
        let blended = [
            0.0, 1.0, 0.0, 2.0, f32::NAN,
            0.0, 0.1, 0.1, 2.0, f32::NAN,
            0.0, 0.9, 3.0, 0.0, f32::NAN,
            0.0, 0.0, 2.9, 0.0, f32::NAN,
        ];
        let mut selection = Selection::new(5);
        selection.add(&blended, &normal, &[0.0, 0.0, 1.0, 1.0]);
        assert_eq!(selection.best(1), vec![2]);
        assert_eq!(selection.best(2), vec![1, 2]);
        assert_eq!(selection.best(3), vec![1, 2, 3]);
        assert_eq!(selection.best(5), vec![0, 1, 2, 3, 4]);
    }
}
