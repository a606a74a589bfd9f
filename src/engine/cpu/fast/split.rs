//! Data-parallel loops over buffers, compiled for the pool's instruction set.

use super::buffer::Shared;
use super::simd::Isa;
use super::threads::Pool;

/// Runs `f` as code of this instruction set. Loops in `f` are vectorised by the compiler with the widest
/// registers it enables; floating-point results are the same as without, but for fused multiply-adds.
#[inline(always)]
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    match isa {
        // SAFETY: a pool hands out only instruction sets that the machine supports.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(f) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(f) },
        _ => f(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
fn avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Calls `f(index of the chunk's first element, chunk)` for chunks of `len` elements of `y` (the last
/// may be shorter), spread over the pool. The cut does not depend on the number of threads.
pub fn chunks(pool: &Pool, y: &mut [f32], len: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let (total, len) = (y.len(), len.max(1));
    let shared = Shared::new(y);
    pool.run(total.div_ceil(len), &|task| {
        let start = task * len;
        let count = len.min(total - start);
        // SAFETY: task t alone touches elements t·len … t·len + count of the exclusively borrowed `y`.
        let chunk = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(start), count) };
        f(start, chunk);
    });
}

/// A task on chunk i of two buffers.
type PairTask<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// As `chunks` for two buffers cut alike: chunk i of both goes to the same call.
pub fn chunks2(pool: &Pool, (a, a_len): (&mut [f32], usize), (b, b_len): (&mut [f32], usize), f: &PairTask) {
    let (a_total, b_total) = (a.len(), b.len());
    let tasks = a_total.div_ceil(a_len.max(1)).min(b_total.div_ceil(b_len.max(1)));
    let (a, b) = (Shared::new(a), Shared::new(b));
    pool.run(tasks, &|task| {
        let part = |shared: Shared<f32>, len: usize, total: usize| {
            let start = task * len;
            // SAFETY: as in `chunks`, for each of the two exclusively borrowed buffers.
            unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(start), len.min(total - start)) }
        };
        f(task, part(a, a_len, a_total), part(b, b_len, b_total));
    });
}
