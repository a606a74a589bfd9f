#include "ptx.cuh"
// out[i] = Σ_k partial[k][i], in the order of k within each of ROWS runs, then over the runs: the same bits
// always. A block of 32 results × ROWS runs; ⌈len/32⌉ blocks.
constexpr int ROWS = 8;
extern "C" __global__ void __launch_bounds__(32 * ROWS)
conv_grad_sum(const float* __restrict__ partial, float* __restrict__ out, u32 len, u32 splits) {
    __shared__ float runs[ROWS][33];
    const u32 lane = threadIdx.x & 31, row = threadIdx.x >> 5;
    const size_t i = static_cast<size_t>(blockIdx.x) * 32 + lane;
    float v = 0.0f;
    if (i < len) {
#pragma unroll 4
        for (u32 k = row; k < splits; k += ROWS) v += partial[static_cast<size_t>(k) * len + i];
    }
    runs[row][lane] = v;
    __syncthreads();
    if (row == 0 && i < len) {
#pragma unroll
        for (int k = 1; k < ROWS; k++) v += runs[k][lane];
        out[i] = v;
    }
}
