//! What the FMA units of this machine can do: the yardstick for every `peak_fraction`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};
use super::threads::Pool;

/// Independent sums: more than latency (4) × units (2).
const SUMS: usize = 12;
const STEPS: usize = 20_000;

/// Multiply-adds on registers by all threads of the pool at once, in GFLOP/s (a multiply-add counts as
/// two): the best of many rounds of some 70 µs on one thread, times the number of threads. Timing whole
/// rounds of all threads would measure how busy the machine is, not what it can do.
pub fn peak_gflops(pool: &Pool) -> f64 {
    let isa = pool.isa();
    let best = AtomicU64::new(u64::MAX);
    pool.run(pool.threads() * 200, &|task| {
        let start = Instant::now();
        std::hint::black_box(chains(isa, 1.0 - 1e-7 * task as f32));
        best.fetch_min(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    });
    let flops = (2 * SUMS * STEPS * isa.lanes() * pool.threads()) as f64;
    flops / best.into_inner().max(1) as f64
}

fn chains(isa: Isa, x: f32) -> f32 {
    // SAFETY: pools are made for supported sets only.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => chains_avx512(x),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => chains_avx2(x),
            _ => body::<Portable>(x),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn chains_avx512(x: f32) -> f32 {
    // SAFETY: passed on.
    unsafe { body::<Avx512>(x) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn chains_avx2(x: f32) -> f32 {
    // SAFETY: passed on.
    unsafe { body::<Avx2>(x) }
}

#[inline(always)]
unsafe fn body<S: Simd>(x: f32) -> f32 {
    // SAFETY: arithmetic, and a store to a local of sufficient size.
    unsafe {
        let factor = S::splat(x);
        let mut sums = [S::splat(0.5); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = S::fma(*sum, factor, factor);
            }
        }
        let mut total = sums[0];
        for &sum in &sums[1..] {
            total = S::add(total, sum);
        }
        let mut out = [0.0f32; 16];
        S::store(out.as_mut_ptr(), total);
        out[0]
    }
}
