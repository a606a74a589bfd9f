//! The memory of normal patches: a greedy coreset (PatchCore, section 3.2) as a 1×1 convolution.

use half::f16;

use super::draw::{Draw, Purpose, stream};
use super::network::{BANK_BIAS, BANK_WEIGHT};
use crate::engine::{ParamStore, Shape, Tensor};

/// Patches that the coreset is chosen from; greedy selection reads all of them once per vector.
const CANDIDATES: usize = 60_000;

/// Gathers candidates evenly over pictures.
#[derive(Debug)]
pub struct Candidates {
    channels: usize,
    per_picture: usize,
    data: Vec<f32>,
    draw: Draw,
}

impl Candidates {
    pub fn new(seed: u64, channels: usize, pictures: usize) -> Self {
        let per_picture = CANDIDATES.div_ceil(pictures.max(1));
        Candidates { channels, per_picture, data: vec![], draw: stream(seed, 0, 0, Purpose::Bank) }
    }

    /// Patches of one picture, positions × channels.
    pub fn add(&mut self, patches: &[f32]) {
        let positions = patches.len() / self.channels.max(1);
        if positions == 0 {
            return;
        }
        let take = self.per_picture.min(positions);
        for i in 0..take {
            // One from each of `take` equal stretches: spread over the picture, never twice.
            let (from, to) = (i * positions / take, (i + 1) * positions / take);
            let at = from + self.draw.below(to - from);
            self.data.extend_from_slice(&patches[at * self.channels..][..self.channels]);
        }
    }

    /// Chooses `vectors` and stores them as parameters. Fewer candidates than vectors are repeated. Numbers
    /// are rounded to fp16 first: |b|² and the products must mean the same b on a GPU too, or the
    /// difference of the two is all that is left of a small distance.
    pub fn into_params(mut self, vectors: usize, threads: usize, store: &mut ParamStore) {
        let channels = self.channels;
        let count = self.data.len() / channels.max(1);
        let first = self.draw.below(count);
        let chosen = coreset(&self.data, channels, vectors, first, threads);
        let mut weight = vec![0.0; channels * vectors];
        let mut bias = vec![0.0; vectors];
        for (v, bias) in bias.iter_mut().enumerate() {
            let Some(at) = chosen.get(v % chosen.len().max(1)) else { continue };
            let patch = &self.data[at * channels..][..channels];
            for (c, x) in patch.iter().enumerate() {
                let x = f16::from_f32(*x).to_f32();
                weight[c * vectors + v] = -2.0 * x;
                *bias += x * x;
            }
        }
        store.insert(BANK_WEIGHT, Tensor::new(Shape::new(1, 1, channels, vectors), weight));
        store.insert(BANK_BIAS, Tensor::vector(bias));
    }
}

/// Greedy k-centre: each next vector is the one farthest from all before. The candidates are split over
/// threads; the result does not depend on how many.
fn coreset(data: &[f32], channels: usize, vectors: usize, first: usize, threads: usize) -> Vec<usize> {
    let count = data.len() / channels.max(1);
    if count == 0 {
        return vec![];
    }
    let share = count.div_ceil(threads.max(1));
    let mut nearest = vec![f32::MAX; count];
    let mut chosen = vec![first];
    while chosen.len() < vectors.min(count) {
        let last = chosen.len() - 1;
        let centre = &data[chosen[last] * channels..][..channels];
        let parts = data.chunks(share * channels).zip(nearest.chunks_mut(share));
        let farthest = std::thread::scope(|scope| {
            let workers: Vec<_> =
                parts.map(|(data, nearest)| scope.spawn(move || approach(data, nearest, centre))).collect();
            let mut best = (f32::MIN, 0);
            for (part, worker) in workers.into_iter().enumerate() {
                // A worker only does arithmetic; if it panicked, so do we.
                let (distance, at) = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                if distance > best.0 {
                    best = (distance, part * share + at);
                }
            }
            best
        });
        if farthest.0 <= 0.0 {
            break;
        }
        chosen.push(farthest.1);
    }
    chosen
}

/// Lowers the squared distance of every patch to its nearest centre; the largest that remains and where.
fn approach(data: &[f32], nearest: &mut [f32], centre: &[f32]) -> (f32, usize) {
    let mut best = (f32::MIN, 0);
    for (at, (patch, nearest)) in data.chunks_exact(centre.len()).zip(nearest.iter_mut()).enumerate() {
        let distance = squared_distance(patch, centre);
        *nearest = nearest.min(distance);
        if *nearest > best.0 {
            best = (*nearest, at);
        }
    }
    best
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, so that the compiler may use vectors.
    let mut sums = [0.0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            let d = a[i] - b[i];
            sums[i] += d * d;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coreset_takes_the_farthest_first_and_no_doubles() {
        // Points on a line: 0, 1, 10, 10, 4.
        let data = [0.0, 1.0, 10.0, 10.0, 4.0];
        assert_eq!(coreset(&data, 1, 3, 0, 1), vec![0, 2, 4]);
        assert_eq!(coreset(&data, 1, 5, 0, 1), vec![0, 2, 4, 1], "a double adds nothing");
    }

    #[test]
    fn the_coreset_does_not_depend_on_the_number_of_threads() {
        let mut draw = stream(1, 0, 0, Purpose::Bank);
        let data: Vec<f32> = (0..11 * 301).map(|_| draw.normal()).collect();
        let one = coreset(&data, 11, 40, 7, 1);
        assert_eq!(one, coreset(&data, 11, 40, 7, 2));
        assert_eq!(one, coreset(&data, 11, 40, 7, 3));
    }

    #[test]
    fn the_convolution_yields_squared_distances_less_the_patchs_own_norm() {
        let mut candidates = Candidates::new(1, 2, 1);
        candidates.add(&[1.0, 2.0]);
        let mut store = ParamStore::new();
        candidates.into_params(1, 1, &mut store);
        let (w, b) = (&store.get(BANK_WEIGHT).unwrap().data, &store.get(BANK_BIAS).unwrap().data);
        let x = [4.0, 6.0];
        let squared = x[0] * x[0] + x[1] * x[1] + w[0] * x[0] + w[1] * x[1] + b[0];
        assert_eq!(squared, 25.0);
    }
}
