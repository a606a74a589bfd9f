// Vocabulary of all kernels. NVRTC has no <math.h> and no <stdint.h>, so what is missed is here.
#pragma once

#include <cuda_fp16.h>

using u8 = unsigned char;
using u32 = unsigned int;

#define NEG_INF __int_as_float(0xff800000)
#define FULL_WARP 0xffffffffu

// How a value lies in memory; mirrors Storage of src/engine/cuda/storage.rs.
constexpr int F16 = 0;
constexpr int F32 = 1;

// A tensor of either kind. The branch is uniform over the launch.
struct Real {
    void* data;
    int type;
};

__device__ __forceinline__ float load(const Real& x, size_t i) {
    return x.type == F16 ? __half2float(static_cast<const __half*>(x.data)[i])
                         : static_cast<const float*>(x.data)[i];
}

__device__ __forceinline__ void store(const Real& x, size_t i, float v) {
    if (x.type == F16) {
        static_cast<__half*>(x.data)[i] = __float2half_rn(v);
    } else {
        static_cast<float*>(x.data)[i] = v;
    }
}

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
