// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the same bits as
// src/engine/philox.rs, on any device and with any number of threads.
#pragma once

#include "common.cuh"

// Numbers 4 index ... 4 index + 3 of the stream (seed, step, image, purpose).
__device__ __forceinline__ uint4 philox(u32 index, u32 image, u32 step, u32 purpose, u32 seed_low,
                                        u32 seed_high) {
    uint4 c = make_uint4(index, image, step, purpose);
    u32 k0 = seed_low, k1 = seed_high;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = __umulhi(0xd2511f53u, c.x), low0 = 0xd2511f53u * c.x;
        const u32 high1 = __umulhi(0xcd9e8d57u, c.z), low1 = 0xcd9e8d57u * c.z;
        c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c;
}

// [0, 1) with 24 bits.
__device__ __forceinline__ float uniform(u32 bits) {
    return static_cast<float>(bits >> 8) * (1.f / 16777216.f);
}

// Two normal numbers from two words (Box and Muller). sinf() and cosf() would take the angle as well, but
// bring along the reduction of huge ones, which needs local memory; here it is below 2 pi. It is rounded
// to fp32 first, as on the CPU: near the zeros that rounding is most of the result's error, and both
// sides must make the same one.
__device__ __forceinline__ float2 normal_pair(u32 a, u32 b) {
    const float radius = sqrtf(-2.f * logf(uniform(a) + 1.f / 16777216.f));
    const float angle = __fmul_rn(6.2831855f, uniform(b));
    // angle = q pi/2 + r, 0 <= q <= 4, |r| <= pi/4; pi/2 in three parts (Cody and Waite).
    const int q = static_cast<int>(angle * 0.63661975f + 0.5f);
    const float quarter = static_cast<float>(q);
    float r = __fmaf_rn(-quarter, 1.5707963705e+0f, angle);
    r = __fmaf_rn(-quarter, -4.3711388287e-8f, r);
    r = __fmaf_rn(-quarter, -1.7151245100e-15f, r);
    const float z = r * r;
    // Minimax polynomials of Cephes (Moshier), relative error below 2^-24.
    const float s = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float c =
        1.f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const float sine = q & 1 ? c : s, cosine = q & 1 ? s : c;
    return make_float2(radius * ((q + 1) & 2 ? -cosine : cosine), radius * (q & 2 ? -sine : sine));
}
