//! Matrix fragments: the product m16n8k16 (or k8) of halves with sums in single precision.
//!
//! A register of a fragment, its 32 lanes one after the other, is an 8×8 matrix of halves by rows: lane
//! l holds row l / 4, columns 2·(l % 4) and + 1. `a` is four of them (rows 0 and 8 of k 0, then of k 8),
//! `b` two (k 0, k 8), each with its rows along n.

use super::alu::Words;

/// An 8×8 matrix of a fragment as single precision.
#[inline(always)]
fn widen(fragment: &Words, to: &mut [f32; 64]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "f16c,avx")]
    #[inline]
    fn fast(fragment: &Words, to: &mut [f32; 64]) {
        use std::arch::x86_64::*;
        for i in 0..8 {
            // SAFETY: 16 bytes of the 128 of `fragment` are read, 32 of the 256 of `to` written.
            unsafe {
                let halves = _mm_loadu_si128(fragment.as_ptr().add(4 * i).cast());
                _mm256_storeu_ps(to.as_mut_ptr().add(8 * i), _mm256_cvtph_ps(halves));
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has it; f16c implies avx.
        return unsafe { fast(fragment, to) };
    }
    for (i, lane) in fragment.iter().enumerate() {
        to[2 * i] = super::float::from_half(lane & 0xffff);
        to[2 * i + 1] = super::float::from_half(lane >> 16);
    }
}

/// `c + a·b`; `a` has 2 or 4 fragments, `b` 1 or 2. The sum over k ascends, in single precision, and is
/// added to `c` last.
#[inline(always)]
pub fn product(a: [&Words; 4], b: [&Words; 2], k: usize, c: [&Words; 4]) -> [Words; 4] {
    let mut out = [[0; 32]; 4];
    let mut columns = [[0f32; 64]; 2];
    let mut rows = [[0f32; 64]; 2];
    // By k, then n.
    let mut right = [[0f32; 8]; 16];
    for (half, column) in columns.iter_mut().enumerate().take(k / 8) {
        widen(b[half], column);
        for n in 0..8 {
            for i in 0..8 {
                right[half * 8 + i][n] = column[n * 8 + i];
            }
        }
    }
    for lower in 0..2 {
        widen(a[lower], &mut rows[0]);
        if k == 16 {
            widen(a[lower + 2], &mut rows[1]);
        }
        for r in 0..8 {
            let mut sum = [0f32; 8];
            for i in 0..8 {
                let x = rows[0][r * 8 + i];
                for n in 0..8 {
                    sum[n] += x * right[i][n];
                }
            }
            if k == 16 {
                for i in 0..8 {
                    let x = rows[1][r * 8 + i];
                    for n in 0..8 {
                        sum[n] += x * right[8 + i][n];
                    }
                }
            }
            for t in 0..4 {
                for e in 0..2 {
                    let lane = r * 4 + t;
                    let value = f32::from_bits(c[lower * 2 + e][lane]) + sum[t * 2 + e];
                    out[lower * 2 + e][lane] = value.to_bits();
                }
            }
        }
    }
    out
}
