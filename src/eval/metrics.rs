//! Figures over image scores, by their standard definitions.

/// Area under the ROC curve: the probability that a random defective picture scores above a random
/// good one, ties counting one half (the Mann–Whitney statistic with midranks). Exact; never flipped
/// below 0.5. `None` where either class is empty or a score is not a number.
pub fn auroc(good: &[f32], defective: &[f32]) -> Option<f64> {
    Some(Roc::new(good, defective)?.area())
}

/// The ROC curve through every distinct score, from (0, 0) to (1, 1).
#[derive(Clone, Debug)]
pub struct Roc {
    /// (false positives, true positives) at each distinct threshold, descending; counts.
    points: Vec<(usize, usize)>,
}

impl Roc {
    pub fn new(good: &[f32], defective: &[f32]) -> Option<Roc> {
        if good.is_empty() || defective.is_empty() {
            return None;
        }
        let mut scores: Vec<(f32, bool)> =
            good.iter().map(|&s| (s, false)).chain(defective.iter().map(|&s| (s, true))).collect();
        if scores.iter().any(|(s, _)| s.is_nan()) {
            return None;
        }
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut points = vec![(0, 0)];
        let (mut fp, mut tp) = (0, 0);
        // -0.0 == 0.0 here, though total_cmp tells them apart.
        for group in scores.chunk_by(|a, b| a.0 == b.0) {
            let positives = group.iter().filter(|(_, defective)| *defective).count();
            tp += positives;
            fp += group.len() - positives;
            points.push((fp, tp));
        }
        Some(Roc { points })
    }

    /// Trapezoids over distinct thresholds equal midranks. Computed in integers, divided once.
    pub fn area(&self) -> f64 {
        let (negatives, positives) = self.totals();
        let twice: u128 =
            self.points.windows(2).map(|w| (w[1].0 - w[0].0) as u128 * (w[0].1 + w[1].1) as u128).sum();
        twice as f64 / (2.0 * negatives as f64 * positives as f64)
    }

    /// (false-positive rate, true-positive rate), each in [0, 1].
    pub fn rates(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let (negatives, positives) = self.totals();
        self.points.iter().map(move |&(f, t)| (f as f64 / negatives as f64, t as f64 / positives as f64))
    }

    fn totals(&self) -> (usize, usize) {
        self.points.last().copied().unwrap_or((0, 0))
    }
}

/// Share of `scores` at or above `threshold`; a score that is not a number counts as above, as its
/// verdict is bad. `None` of none.
pub fn rate_at_or_above(scores: &[f32], threshold: f32) -> Option<f64> {
    let above = scores.iter().filter(|&&s| s >= threshold || s.is_nan()).count();
    (!scores.is_empty()).then(|| above as f64 / scores.len() as f64)
}

/// The `q`-quantile (0…1), linear between order statistics as NumPy's default. `None` of none.
pub fn percentile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auroc_matches_pairs_counted_by_hand() {
        // pairs (defective > good): 3 > {1,2}; 2 = 2 is half, 2 > 1; so (2 + 1.5) / 4
        assert_eq!(auroc(&[1.0, 2.0], &[3.0, 2.0]), Some(0.875));
        assert_eq!(auroc(&[0.0, 1.0], &[2.0, 3.0]), Some(1.0));
        assert_eq!(auroc(&[5.0; 3], &[5.0; 7]), Some(0.5));
        assert_eq!(auroc(&[-0.0], &[0.0]), Some(0.5));
        assert_eq!(auroc(&[f32::NEG_INFINITY], &[f32::INFINITY]), Some(1.0));
    }

    #[test]
    fn auroc_below_one_half_stays_there() {
        assert_eq!(auroc(&[2.0, 3.0], &[0.0, 1.0]), Some(0.0));
    }

    #[test]
    fn auroc_of_one_class_or_of_no_number_is_none() {
        assert_eq!(auroc(&[], &[1.0]), None);
        assert_eq!(auroc(&[1.0], &[]), None);
        assert_eq!(auroc(&[1.0, f32::NAN], &[2.0]), None);
    }

    #[test]
    fn auroc_equals_the_count_over_all_pairs_on_random_scores_with_ties() {
        let mut state = 12345u32;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 27) as f32
        };
        let good: Vec<f32> = (0..57).map(|_| next()).collect();
        let bad: Vec<f32> = (0..83).map(|_| next() + 4.0).collect();
        let twice: u32 = bad
            .iter()
            .flat_map(|b| good.iter().map(move |g| if b > g { 2 } else { u32::from(b == g) }))
            .sum();
        assert_eq!(auroc(&good, &bad), Some(f64::from(twice) / (2.0 * 57.0 * 83.0)));
    }

    #[test]
    fn the_curve_runs_from_corner_to_corner() {
        let roc = Roc::new(&[0.0, 1.0], &[1.0, 2.0]).unwrap();
        let points: Vec<_> = roc.rates().collect();
        assert_eq!(points, [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]);
    }

    #[test]
    fn quantiles_are_linear_between_order_statistics() {
        assert_eq!(percentile(&[4.0, 1.0, 3.0, 2.0], 0.5), Some(2.5));
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.99), Some(4.96));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_score_that_is_no_number_counts_as_bad() {
        assert_eq!(rate_at_or_above(&[0.0, 1.0, f32::NAN, 2.0], 1.0), Some(0.75));
        assert_eq!(rate_at_or_above(&[], 1.0), None);
    }
}
