//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1,
//! 2, 3", SC 2011). A number is a pure function of (seed, step, image, purpose, index), so the same seed
//! gives the same pictures on every device and with any number of threads.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// One independent sequence of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    pub step: u32,
    pub image: u32,
    /// What the numbers are for; every use has a number of its own.
    pub purpose: u32,
}

impl Stream {
    pub fn new(seed: u64, step: u32, image: u32, purpose: u32) -> Self {
        Stream { seed, step, image, purpose }
    }

    /// Numbers 4·index … 4·index+3 of the stream.
    pub fn block(&self, index: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32([index, self.image, self.step, self.purpose], key)
    }

    /// The stream read from its start.
    pub fn rng(self) -> Rng {
        Rng { stream: self, block: [0; 4], next: 0 }
    }
}

/// [0, 1) with 24 bits.
pub fn uniform(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Two normal numbers from two words (Box and Muller). The first word's uniform is shifted to (0, 1].
pub fn normal_pair(a: u32, b: u32) -> [f32; 2] {
    let radius = (-2.0 * (uniform(a) + 1.0 / 16_777_216.0).ln()).sqrt();
    let angle = std::f32::consts::TAU * uniform(b);
    [radius * angle.cos(), radius * angle.sin()]
}

/// Reads a stream in order.
#[derive(Clone, Debug)]
pub struct Rng {
    stream: Stream,
    block: [u32; 4],
    next: u32,
}

impl Rng {
    pub fn next_u32(&mut self) -> u32 {
        if self.next.is_multiple_of(4) {
            self.block = self.stream.block(self.next / 4);
        }
        let word = self.block[(self.next % 4) as usize];
        self.next = self.next.wrapping_add(1);
        word
    }

    /// [0, 1)
    pub fn uniform(&mut self) -> f32 {
        uniform(self.next_u32())
    }

    /// [lo, hi)
    pub fn range(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * self.uniform()
    }

    /// 0 … n−1; n must be at least 1. Bias below n/2³².
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.next_u32()) * n as u64) >> 32) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.uniform() < probability
    }

    /// Mean 0, variance 1.
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.next_u32(), self.next_u32());
        normal_pair(a, b)[0]
    }

    /// A random order of 0 … n−1 (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known-answer vectors of the Random123 distribution, philox4x32-10.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut rng = Stream::new(7, 0, 0, 1).rng();
        let n = 20_000;
        let xs: Vec<f64> = (0..n).map(|_| f64::from(rng.normal())).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let var = xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
        // Standard errors: 1/√n = .0071 and √(2/n) = .01; four of each.
        assert!(mean.abs() < 0.029, "mean {mean}");
        assert!((var - 1.0).abs() < 0.04, "variance {var}");
    }

    #[test]
    fn streams_of_other_purpose_image_or_step_differ() {
        let base = Stream::new(1, 2, 3, 4);
        for other in [
            Stream::new(1, 2, 3, 5),
            Stream::new(1, 2, 4, 4),
            Stream::new(1, 3, 3, 4),
            Stream::new(2, 2, 3, 4),
        ] {
            assert_ne!(base.block(0), other.block(0));
        }
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut p = Stream::new(3, 0, 0, 0).rng().permutation(17);
        p.sort_unstable();
        assert_eq!(p, (0..17).collect::<Vec<_>>());
    }
}
