// Vocabulary of all kernels. NVRTC has no <math.h> and no <stdint.h>, so what is missed is here.
#pragma once

#include <cuda_fp16.h>

using u8 = unsigned char;
using u32 = unsigned int;

#define NEG_INF __int_as_float(0xff800000)
#define FULL_WARP 0xffffffffu

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ int clamp(int x, int low, int high) { return min(max(x, low), high); }

// The largest of 32 lanes, in every lane. All lanes must call it.
__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// The largest of a block of THREADS (a multiple of 32, at most 1024), in thread 0. All threads must
// call it, once: the scratch is not reused.
template <int THREADS>
__device__ __forceinline__ float block_max(float x) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    __shared__ float warps[THREADS / 32];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) x = warp_max(threadIdx.x < THREADS / 32 ? warps[threadIdx.x] : NEG_INF);
    return x;
}
