//! Thresholds from held-out good pictures alone, and what their number can support.
//!
//! Let n scores of good pictures and the score of the next good picture be exchangeable. Then the next
//! one is equally likely to take any of the n+1 places in their order, so it exceeds the k-th largest
//! of the n with probability at most k/(n+1), whatever the distribution (conformal prediction; Vovk et
//! al. 2005). With the target rate α:
//!
//! * k = ⌊α(n+1)⌋ ≥ 1: `bad` is just above the k-th largest score. Its false-alarm rate is at most
//!   k/(n+1) ≤ α, on average over held-out sets.
//! * k = 0, that is n < 1/α − 1: no threshold from n scores alone can promise α; the best that can be
//!   promised is 1/(n+1), by the largest score. `bad` is put above it by extrapolating the tail, and
//!   what is recorded as supported stays 1/(n+1).
//!
//! On average is not always. The true rate above the k-th largest of n is distributed as Beta(k, n+1−k);
//! its 95 % quantile is recorded too. For k = 1 it is 1 − 0.05^(1/n), about 3/n.
//!
//! Extrapolation: excesses over a high score are taken as exponential, the tail between the bounded and
//! the heavy (generalised Pareto with shape 0; Pickands 1975). With m excesses of mean β over u, the
//! (m+1)-th largest score, the rate above t is (m/n)·exp(−(t−u)/β); solving for α gives
//! t = u + β·ln(m/(nα)). A Gaussian tail falls faster, so t errs to the side of fewer false alarms. It is
//! held between the largest score and the largest score plus the distance from the median to it: one
//! odd picture must not move the threshold out of sight of every defect.
//!
//! The unsure band begins just above the score that k_u = max(1, ⌊α_u(n+1)⌋) good pictures exceed: of
//! few pictures that is the largest one, and everything beyond what was ever seen is looked at.

use serde::{Deserialize, Serialize};

use super::Thresholds;

/// Fewer held-out scores than this say nothing about a tail.
pub const MIN_SCORES: usize = 5;

/// What is asked of the thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CalibrationRule {
    /// Share of good parts that may be called bad.
    pub target_false_alarm_rate: f32,
    /// Share of good parts that may be called unsure or bad; at least the other.
    pub unsure_rate: f32,
}

impl Default for CalibrationRule {
    fn default() -> Self {
        CalibrationRule { target_false_alarm_rate: 0.01, unsure_rate: 0.05 }
    }
}

/// Thresholds and the evidence for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub thresholds: Thresholds,
    /// Held-out good pictures.
    pub n: usize,
    pub target_false_alarm_rate: f32,
    /// 1/(n+1): the smallest rate that n scores can support.
    pub supported_false_alarm_rate: f32,
    /// What `bad` promises on average over held-out sets: max(k, 1)/(n+1).
    pub false_alarm_rate_bound: f32,
    /// The true rate is below this with 95 % confidence.
    pub false_alarm_rate_upper_95: f32,
    /// `bad` lies above every held-out score, by the fitted tail: n was too small for the target.
    pub extrapolated: bool,
    pub scores: ScoreSummary,
}

/// Order statistics of the held-out scores; quantiles interpolate linearly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreSummary {
    pub min: f32,
    pub q25: f32,
    pub median: f32,
    pub q75: f32,
    pub q95: f32,
    pub max: f32,
    pub mean: f32,
    /// Unbiased.
    pub std: f32,
}

/// Why no threshold can be derived.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    #[error(
        "{n} held-out good pictures are too few for a threshold, at least {MIN_SCORES} are needed: give \
         more good pictures"
    )]
    TooFew { n: usize },
    #[error("the score of held-out picture {index} is {score}, not a finite number: the model is broken")]
    NotFinite { index: usize, score: f32 },
    #[error(
        "all {n} held-out good pictures have the same score {score}: are they copies of one picture, or \
         of one colour?"
    )]
    AllEqual { n: usize, score: f32 },
    #[error("false-alarm rates must lie between 0 and 1, and the unsure rate not below the bad one")]
    Rule,
}

/// Thresholds from the scores of held-out good pictures (larger is worse), in any order.
pub fn calibrate(scores: &[f32], rule: &CalibrationRule) -> Result<Calibration, CalibrationError> {
    let CalibrationRule { target_false_alarm_rate: alpha, unsure_rate } = *rule;
    let rates_fit = alpha > 0.0 && alpha < 1.0 && unsure_rate >= alpha && unsure_rate < 1.0;
    if !rates_fit {
        return Err(CalibrationError::Rule);
    }
    let n = scores.len();
    if n < MIN_SCORES {
        return Err(CalibrationError::TooFew { n });
    }
    if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
        return Err(CalibrationError::NotFinite { index, score: scores[index] });
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let (min, max) = (sorted[0], sorted[n - 1]);
    if min == max {
        return Err(CalibrationError::AllEqual { n, score: min });
    }

    let supported_by = |rate: f32| (f64::from(rate) * (n + 1) as f64 + 1e-6) as usize;
    let k = supported_by(alpha);
    let just_above_largest = |k: usize| sorted[n - k.clamp(1, n)].next_up();
    let unsure = just_above_largest(supported_by(unsure_rate).max(1));
    let bad = if k >= 1 { just_above_largest(k) } else { extrapolate(&sorted, alpha) };
    let k = k.max(1);
    Ok(Calibration {
        thresholds: Thresholds { unsure, bad },
        n,
        target_false_alarm_rate: alpha,
        supported_false_alarm_rate: 1.0 / (n + 1) as f32,
        false_alarm_rate_bound: k as f32 / (n + 1) as f32,
        false_alarm_rate_upper_95: upper_95(n, k) as f32,
        extrapolated: bad > max.next_up(),
        scores: summary(&sorted),
    })
}

/// Where the exponential tail through the largest scores has rate `alpha`.
fn extrapolate(sorted: &[f32], alpha: f32) -> f32 {
    let n = sorted.len();
    let max = f64::from(sorted[n - 1]);
    // A quarter of the scores is tail: enough excesses for a mean, few enough to be one.
    let m = (n / 4).clamp(3, n - 1);
    let u = f64::from(sorted[n - 1 - m]);
    let beta = sorted[n - m..].iter().map(|&score| f64::from(score) - u).sum::<f64>() / m as f64;
    let t = u + beta * (m as f64 / (n as f64 * f64::from(alpha))).ln();
    let reach = max - f64::from(quantile(sorted, 0.5));
    (t.clamp(max, max + reach) as f32).max(sorted[n - 1].next_up())
}

/// 95 % quantile of Beta(k, n+1−k): the rate p at which at most k−1 of n exceed with probability 5 %.
fn upper_95(n: usize, k: usize) -> f64 {
    let at_most = |p: f64| {
        // Σ_{i<k} C(n,i) p^i (1−p)^(n−i), in logarithms: (1−p)^n underflows for large n.
        let mut log_term = n as f64 * (-p).ln_1p();
        let mut total = log_term.exp();
        for i in 1..k {
            log_term += (((n + 1 - i) as f64 / i as f64) * p / (1.0 - p)).ln();
            total += log_term.exp();
        }
        total
    };
    let (mut lo, mut hi) = (0.0, 1.0);
    for _ in 0..60 {
        let p = 0.5 * (lo + hi);
        if at_most(p) > 0.05 { lo = p } else { hi = p }
    }
    hi
}

fn quantile(sorted: &[f32], q: f64) -> f32 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    (f64::from(below) + (f64::from(above) - f64::from(below)) * at.fract()) as f32
}

fn summary(sorted: &[f32]) -> ScoreSummary {
    let n = sorted.len() as f64;
    let mean = sorted.iter().map(|&s| f64::from(s)).sum::<f64>() / n;
    let squares = sorted.iter().map(|&s| (f64::from(s) - mean).powi(2)).sum::<f64>();
    ScoreSummary {
        min: sorted[0],
        q25: quantile(sorted, 0.25),
        median: quantile(sorted, 0.5),
        q75: quantile(sorted, 0.75),
        q95: quantile(sorted, 0.95),
        max: sorted[sorted.len() - 1],
        mean: mean as f32,
        std: (squares / (n - 1.0)).sqrt() as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Verdict;

    /// Uniform in (0, 1), splitmix64.
    struct Random(u64);

    impl Random {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64 + 1e-17
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }
    }

    fn rule(alpha: f32, unsure: f32) -> CalibrationRule {
        CalibrationRule { target_false_alarm_rate: alpha, unsure_rate: unsure }
    }

    #[test]
    fn enough_scores_give_the_order_statistic() {
        let scores: Vec<f32> = (1..=199).rev().map(|i| i as f32).collect();
        let c = calibrate(&scores, &rule(0.01, 0.05)).unwrap();
        // ⌊.01·200⌋ = 2: the second largest, 198; ⌊.05·200⌋ = 10: 190.
        assert_eq!(c.thresholds, Thresholds { unsure: 190f32.next_up(), bad: 198f32.next_up() });
        assert_eq!((c.false_alarm_rate_bound, c.supported_false_alarm_rate), (0.01, 0.005));
        assert!(!c.extrapolated);
        let verdicts = [190.0, 191.0, 198.0, 199.0].map(|score| c.thresholds.verdict(score));
        assert_eq!(verdicts, [Verdict::Good, Verdict::Unsure, Verdict::Unsure, Verdict::Bad]);
        assert_eq!((c.scores.min, c.scores.median, c.scores.max, c.scores.mean), (1.0, 100.0, 199.0, 100.0));
    }

    #[test]
    fn too_few_scores_promise_only_what_they_support() {
        let scores: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let c = calibrate(&scores, &CalibrationRule::default()).unwrap();
        assert!(c.extrapolated && c.thresholds.bad > 19.0, "{c:?}");
        assert_eq!(c.thresholds.unsure, 19f32.next_up());
        assert_eq!(c.supported_false_alarm_rate, 1.0 / 21.0);
        assert_eq!(c.false_alarm_rate_bound, 1.0 / 21.0);
        assert!((c.false_alarm_rate_upper_95 - (1.0 - 0.05f32.powf(1.0 / 20.0))).abs() < 1e-6);
    }

    #[test]
    fn the_confidence_bound_agrees_with_exact_binomial_sums() {
        // The binomial sum in exact integers, bisected in double precision.
        for (n, k, expected) in [(20, 1, 0.139_108_34), (99, 2, 0.047_021_24), (100, 5, 0.089_196_25)] {
            let found = upper_95(n, k);
            assert!((found - expected).abs() < 1e-7, "n {n} k {k}: {found} instead of {expected}");
        }
        assert!(upper_95(1_000_000, 3) > 0.0);
    }

    #[test]
    fn degenerate_scores_are_errors() {
        let of = |scores: &[f32]| calibrate(scores, &CalibrationRule::default()).unwrap_err();
        assert_eq!(of(&[]), CalibrationError::TooFew { n: 0 });
        assert_eq!(of(&[1.0, 2.0, 3.0, 4.0]), CalibrationError::TooFew { n: 4 });
        assert_eq!(of(&[2.5; 30]), CalibrationError::AllEqual { n: 30, score: 2.5 });
        for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = of(&[1.0, 2.0, 3.0, score, 5.0]);
            assert!(matches!(error, CalibrationError::NotFinite { index: 3, .. }), "{error}");
        }
        let scores = [1.0, 2.0, 3.0, 4.0, 5.0];
        for (alpha, unsure) in [(0.0, 0.1), (0.1, 0.05), (f32::NAN, 0.1), (0.1, 1.0), (-1.0, 0.5)] {
            assert_eq!(calibrate(&scores, &rule(alpha, unsure)), Err(CalibrationError::Rule));
        }
    }

    #[test]
    fn thresholds_are_ordered_finite_and_move_with_the_scores() {
        let mut random = Random(11);
        for trial in 0..500 {
            let n = MIN_SCORES + (random.uniform() * 300.0) as usize;
            let scores: Vec<f32> = (0..n).map(|_| random.normal() as f32).collect();
            let strict = calibrate(&scores, &rule(0.01, 0.05)).unwrap();
            let lax = calibrate(&scores, &rule(0.04, 0.10)).unwrap();
            let t = strict.thresholds;
            assert!(t.unsure <= t.bad && t.bad.is_finite(), "trial {trial}: {strict:?}");
            assert!(lax.thresholds.bad <= t.bad && lax.thresholds.unsure <= t.unsure, "trial {trial}");
            let shifted: Vec<f32> = scores.iter().map(|s| s * 4.0 + 1000.0).collect();
            let moved = calibrate(&shifted, &rule(0.01, 0.05)).unwrap().thresholds;
            // Scores near 1000 are rounded to 2^-14, threefold here.
            assert!((moved.bad - (t.bad * 4.0 + 1000.0)).abs() < 1e-3, "trial {trial}: {moved:?} {t:?}");
        }
    }

    /// Mean, over held-out sets, of the exact rate of fresh good scores at or above `bad`.
    fn mean_rate(n: usize, alpha: f32, draw: fn(&mut Random) -> f64, above: fn(f64) -> f64) -> f64 {
        let sets = 2000;
        let mut random = Random(5);
        let rate = |random: &mut Random| {
            let scores: Vec<f32> = (0..n).map(|_| draw(random) as f32).collect();
            above(calibrate(&scores, &rule(alpha, 0.2)).unwrap().thresholds.bad.into())
        };
        (0..sets).map(|_| rate(&mut random)).sum::<f64>() / f64::from(sets)
    }

    #[test]
    fn fresh_good_parts_alarm_no_more_often_than_promised() {
        let exponential = |r: &mut Random| -r.uniform().ln();
        for (n, alpha) in [(49, 0.05), (99, 0.01), (30, 0.1), (200, 0.02), (19, 0.01), (8, 0.01)] {
            let k = ((alpha * (n + 1) as f32 + 1e-6) as usize).max(1) as f64;
            let bound = k / (n + 1) as f64;
            // The rate of one set is Beta(k, n+1−k) or less; 4 standard errors of the mean of 2000.
            let slack = 4.0 * (bound * (1.0 - bound) / (n as f64 + 2.0) / 2000.0).sqrt();
            for (name, rate) in [
                ("uniform", mean_rate(n, alpha, Random::uniform, |t| (1.0 - t).max(0.0))),
                ("exponential", mean_rate(n, alpha, exponential, |t| (-t).exp())),
            ] {
                assert!(rate <= bound + slack, "{name}, n {n}, α {alpha}: {rate} above {bound} + {slack}");
            }
        }
    }

    #[test]
    fn the_extrapolated_tail_of_exponential_scores_has_about_the_target_rate() {
        // n = 40 cannot support 1 %: the largest score alone alarms at 1/41 = 2.4 %.
        let rate = mean_rate(40, 0.01, |r| -r.uniform().ln(), |t| (-t).exp());
        assert!((0.005..0.02).contains(&rate), "{rate}");
    }
}
