//! From a judgement's raw outputs to one number.

use super::error::RealnetError;
use super::spec::{ImageScore, NetSpec};
use crate::engine::{ParamStore, Program, Tensor};

/// Parameter: mean and variance, over held-out normals, of the head's score and of the bank's distance.
pub const SCORE_MOMENTS: &str = "score.moments";
/// Deviations from normals' mean beyond which one opinion counts no more: it must not drown the other.
const CLIP: [f32; 2] = [-3.0, 8.0];
/// Weights of head and bank: the head sees small defects that the bank doesn't, the bank defects unlike
/// any training anomaly. Of 1:1, 2:1, 3:1 and 5:1, 2:1 cost the textures least for what cells gained.
const WEIGHTS: [f32; 2] = [2.0 / 3.0, 1.0 / 3.0];

/// The head's score and the bank's distance (0 without one).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Raw {
    pub head: f32,
    pub distance: f32,
}

/// One of the pictures that a program judges at once.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub picture: usize,
    pub of: usize,
}

impl Place {
    pub const ONLY: Place = Place { picture: 0, of: 1 };

    /// Its part of an output.
    pub fn part(self, output: &[f32]) -> &[f32] {
        let len = output.len() / self.of.max(1);
        output.chunks_exact(len.max(1)).nth(self.picture).unwrap_or_default()
    }
}

/// Reads the raw scores of one picture of the judgement that `program` has just run.
pub fn raw(spec: &NetSpec, program: &Program, place: Place) -> Result<Raw, RealnetError> {
    let output = |name| program.output(name).map(|output| place.part(output));
    let head = match spec.score {
        ImageScore::TopLogits(k) => mean_of_largest(output("logit")?, k),
        ImageScore::PooledProbability(_) => output("pooled")?.first().copied().unwrap_or(f32::NAN),
    };
    let distance = match &spec.bank {
        Some(bank) => mean_of_largest(output("distance")?, bank.top),
        None => 0.0,
    };
    Ok(Raw { head, distance })
}

/// How the two opinions are put on one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fusion {
    /// Mean and deviation of each over held-out normals.
    head: [f32; 2],
    distance: [f32; 2],
}

impl Fusion {
    /// From the raw scores of held-out normals.
    pub fn of_normals(scores: &[Raw]) -> Self {
        let moments = |f: fn(&Raw) -> f32| {
            let n = scores.len().max(1) as f32;
            let mean = scores.iter().map(f).sum::<f32>() / n;
            let variance = scores.iter().map(|s| (f(s) - mean).powi(2)).sum::<f32>() / (n - 1.0).max(1.0);
            [mean, variance.sqrt().max(1e-6)]
        };
        Fusion { head: moments(|s| s.head), distance: moments(|s| s.distance) }
    }

    pub fn to_tensor(self) -> Tensor {
        let [h, d] = [self.head, self.distance];
        Tensor::new(crate::engine::Shape::new(1, 1, 2, 2), vec![h[0], d[0], h[1] * h[1], d[1] * d[1]])
    }

    pub fn from_params(params: &ParamStore) -> Option<Self> {
        match params.get(SCORE_MOMENTS)?.data[..] {
            [h, d, vh, vd] => Some(Fusion { head: [h, vh.sqrt()], distance: [d, vd.sqrt()] }),
            _ => None,
        }
    }

    /// The weighted mean of both, each in deviations from normals' mean.
    pub fn score(&self, raw: Raw) -> f32 {
        let z = |x: f32, [mean, deviation]: [f32; 2]| {
            let z = (x - mean) / deviation;
            // NaN stays NaN: a broken judgement must not look good.
            if z.is_nan() { z } else { z.clamp(CLIP[0], CLIP[1]) }
        };
        WEIGHTS[0] * z(raw.head, self.head) + WEIGHTS[1] * z(raw.distance, self.distance)
    }
}

/// Mean of the `k` largest; NaN if any value is NaN. Allocates nothing; k is at most 16.
pub fn mean_of_largest(values: &[f32], k: usize) -> f32 {
    const MOST: usize = 16;
    let k = k.clamp(1, MOST).min(values.len().max(1));
    let mut largest = [f32::NEG_INFINITY; MOST];
    for &v in values {
        if v.is_nan() {
            return f32::NAN;
        }
        if v > largest[k - 1] {
            let mut at = k - 1;
            while at > 0 && largest[at - 1] < v {
                largest[at] = largest[at - 1];
                at -= 1;
            }
            largest[at] = v;
        }
    }
    largest[..k].iter().sum::<f32>() / k as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_found_wherever_they_stand() {
        assert_eq!(mean_of_largest(&[1.0, 9.0, -3.0, 8.0, 7.0, 2.0], 3), 8.0);
        assert_eq!(mean_of_largest(&[5.0], 3), 5.0);
        assert_eq!(mean_of_largest(&[2.0, 2.0, 2.0], 2), 2.0);
        assert!(mean_of_largest(&[1.0, f32::NAN], 1).is_nan());
    }

    #[test]
    fn a_normal_scores_around_zero_and_one_opinion_cannot_drown_the_other() {
        let normals: Vec<Raw> = (0..11).map(|i| Raw { head: i as f32, distance: 100.0 + i as f32 }).collect();
        let fusion = Fusion::of_normals(&normals);
        assert!(fusion.score(normals[5]).abs() < 1e-5);
        let wild = Raw { head: 1e6, distance: 105.0 };
        assert!((fusion.score(wild) - CLIP[1] * WEIGHTS[0]).abs() < 1e-5);
        assert!(fusion.score(Raw { head: f32::NAN, distance: 105.0 }).is_nan());
        let mut params = ParamStore::new();
        params.insert(SCORE_MOMENTS, fusion.to_tensor());
        let back = Fusion::from_params(&params).unwrap();
        assert!((back.score(normals[2]) - fusion.score(normals[2])).abs() < 1e-5);
    }
}
