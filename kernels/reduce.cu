// Sums, means, maxima and minima over any of the four axes, and the sum of squares of many tensors.
//
// Axes that are next to each other and both reduced (or both kept) are one; what is left is either
//   inner:   K1 × R1 × K2 × R2, reduced over both R, the innermost axis among them, or
//   columns: R0 × K1 × R1 × K2, reduced over both R, the innermost axis kept.
// x is fp16 or fp32, sums and results are fp32. All maxima pass over what is no number, as fmaxf does;
// sums do not.
//
// Where outputs are few, their inputs are shared out over slices, each a row of partial results
// (slices × outputs in scratch), which `reduce_columns` then reduces as a matrix: nothing is added
// atomically, so a sum is the same in every run.
//
// reduce_lanes: `lanes` (a power of two up to 32) threads an output, K1·K2·lanes threads.
// reduce_block: a block an output and slice, grid (K1·K2, slices).
// reduce_columns: thread x (up to 32) takes V columns, threads y share out the rows; grid (columns, K1,
// slices).
//
// Global bytes: x once, results once. One operation an element.
#include "vector.cuh"

constexpr int SUM = 0, MAX = 1;

struct Inner {
    int k1, r1, k2, r2;
    int slices;
    float scale;
};

struct Columns {
    int r0, k1, r1, k2;
    int slices;
    float scale;
};

__device__ __forceinline__ float neutral(int kind) {
    return kind == SUM ? 0.f : kind == MAX ? NEG_INF : -NEG_INF;
}

__device__ __forceinline__ float combine(int kind, float a, float b) {
    return kind == SUM ? a + b : kind == MAX ? fmaxf(a, b) : fminf(a, b);
}

// Element `r` of those that belong to output (k1, k2).
__device__ __forceinline__ size_t inner_at(const Inner& g, unsigned k1, unsigned k2, size_t r) {
    if (g.r1 == 1) return (size_t(k1) * g.k2 + k2) * g.r2 + r;
    const size_t r1 = r / g.r2, r2 = r - r1 * g.r2;
    return ((size_t(k1) * g.r1 + r1) * g.k2 + k2) * g.r2 + r2;
}

// What thread `mine` of `step` adds up between `start` and `end`, in units of V elements, V a divisor of
// r2.
template <int V>
__device__ __forceinline__ float inner_part(const Real& x, const Inner& g, int kind, unsigned output,
                                            size_t start, size_t end, size_t mine, unsigned step) {
    const unsigned k1 = output / g.k2, k2 = output - k1 * g.k2;
    float sum[V];
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] = neutral(kind);
    // All threads take the same number of steps: they meet again at the shuffles.
    for (size_t first = start; first < end; first += step) {
        const size_t r = first + mine;
        if (r >= end) continue;
        float v[V];
        load_all(x, inner_at(g, k1, k2, r * V), v);
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] = combine(kind, sum[k], v[k]);
    }
#pragma unroll
    for (int k = 1; k < V; ++k) sum[0] = combine(kind, sum[0], sum[k]);
    return sum[0];
}

template <int V>
__device__ __forceinline__ void reduce_lanes(const Real& x, const Real& y, const Inner& g, int kind, int lanes) {
    const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const size_t output = thread / lanes, outputs = size_t(g.k1) * g.k2;
    const unsigned lane = threadIdx.x % lanes;
    const size_t len = size_t(g.r1) * g.r2 / V;
    // Threads beyond the last output add nothing up, in as many steps.
    float sum = inner_part<V>(x, g, kind, output, 0, len, output < outputs ? lane : len, lanes);
    for (int offset = lanes / 2; offset > 0; offset >>= 1) {
        sum = combine(kind, sum, __shfl_xor_sync(FULL_WARP, sum, offset));
    }
    if (output < outputs && lane == 0) store(y, output, sum * g.scale);
}

// All threads of a block of 256; the result in thread 0. All must call it, once. `warps` is shared.
__device__ __forceinline__ float block_combine(int kind, float x, float (&warps)[8]) {
    for (int offset = 16; offset > 0; offset >>= 1) {
        x = combine(kind, x, __shfl_xor_sync(FULL_WARP, x, offset));
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 8; ++i) x = combine(kind, x, warps[i]);
    }
    return x;
}

template <int V>
__device__ __forceinline__ void reduce_block(const Real& x, const Real& y, const Inner& g, int kind) {
    __shared__ float warps[8];
    const size_t len = size_t(g.r1) * g.r2 / V;
    const size_t per_slice = (len + g.slices - 1) / g.slices;
    const size_t start = per_slice * blockIdx.y;
    const size_t end = start + per_slice < len ? start + per_slice : len;
    const float part = inner_part<V>(x, g, kind, blockIdx.x, start, end, threadIdx.x, 256);
    const float sum = block_combine(kind, part, warps);
    if (threadIdx.x == 0) store(y, size_t(blockIdx.y) * gridDim.x + blockIdx.x, sum * g.scale);
}

template <int V>
__device__ __forceinline__ void reduce_columns(const Real& x, const Real& y, const Columns& g, int kind) {
    __shared__ float parts[8][V][32];
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned column = place * V;
    const bool inside = column < unsigned(g.k2);
    const size_t rows = size_t(g.r0) * g.r1;
    const size_t per_slice = (rows + g.slices - 1) / g.slices;
    const size_t start = per_slice * blockIdx.z;
    const size_t end = start + per_slice < rows ? start + per_slice : rows;
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    const unsigned lane = thread % 32, warp = thread / 32;
    for (unsigned k1 = blockIdx.y; k1 < unsigned(g.k1); k1 += gridDim.y) {
        float sum[V];
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] = neutral(kind);
        // All threads take the same number of steps: they meet again below.
        for (size_t first = start; first < end; first += blockDim.y) {
            const size_t r = first + threadIdx.y;
            if (!inside || r >= end) continue;
            size_t row = r;
            if (g.k1 != 1) {
                const size_t r0 = r / g.r1;
                row = (r0 * g.k1 + k1) * g.r1 + (r - r0 * g.r1);
            }
            float v[V];
            load_all(x, row * g.k2 + column, v);
#pragma unroll
            for (int k = 0; k < V; ++k) sum[k] = combine(kind, sum[k], v[k]);
        }
        // Lanes of one column first (a block is at most 32 wide, so they are `blockDim.x` apart), then
        // warps.
        for (unsigned offset = 16; offset >= blockDim.x; offset >>= 1) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                sum[k] = combine(kind, sum[k], __shfl_xor_sync(FULL_WARP, sum[k], offset));
            }
        }
        if (lane < blockDim.x) {
#pragma unroll
            for (int k = 0; k < V; ++k) parts[warp][k][lane] = sum[k];
        }
        __syncthreads();
        if (inside && threadIdx.y == 0) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                for (int i = 1; i < 8; ++i) sum[k] = combine(kind, sum[k], parts[i][k][lane]);
            }
        }
        __syncthreads();
        if (inside && threadIdx.y == 0) {
#pragma unroll
            for (int k = 0; k < V; ++k) sum[k] *= g.scale;
            store_all(y, (size_t(blockIdx.z) * g.k1 + k1) * g.k2 + column, sum);
        }
    }
}

#define REDUCTIONS(V)                                                                                     \
    extern "C" __global__ __launch_bounds__(256, 2) void reduce_lanes_##V(Real x, Real y, Inner g,         \
                                                                           int kind, int lanes) {          \
        reduce_lanes<V>(x, y, g, kind, lanes);                                                             \
    }                                                                                                      \
    extern "C" __global__ __launch_bounds__(256, 2) void reduce_block_##V(Real x, Real y, Inner g,         \
                                                                           int kind) {                     \
        reduce_block<V>(x, y, g, kind);                                                                    \
    }                                                                                                      \
    extern "C" __global__ __launch_bounds__(256, 2) void reduce_columns_##V(Real x, Real y, Columns g,     \
                                                                             int kind) {                   \
        reduce_columns<V>(x, y, g, kind);                                                                  \
    }

REDUCTIONS(8)
REDUCTIONS(4)
REDUCTIONS(1)

// Up to 8 tensors a launch. Each has blocks of its own: tensor i those from first[i] to first[i + 1],
// each of them for CHUNK elements.
constexpr int TENSORS = 8;
constexpr size_t CHUNK = 16384;

struct Lengths {
    size_t len[TENSORS];
    unsigned first[TENSORS];
};

// parts[block] = Σ x² over the block's elements.
extern "C" __global__ __launch_bounds__(256, 2) void sum_squares(Real x0, Real x1, Real x2, Real x3, Real x4,
                                                                 Real x5, Real x6, Real x7, Lengths lengths,
                                                                 float* parts) {
    __shared__ float warps[8];
    Real x = x0;
    size_t len = lengths.len[0];
    unsigned first = 0;
    const Real others[TENSORS] = {x0, x1, x2, x3, x4, x5, x6, x7};
#pragma unroll
    for (int i = 1; i < TENSORS; ++i) {
        if (blockIdx.x >= lengths.first[i]) {
            x = others[i];
            len = lengths.len[i];
            first = lengths.first[i];
        }
    }
    const size_t start = (blockIdx.x - first) * CHUNK;
    const size_t end = start + CHUNK < len ? start + CHUNK : len;
    float sum = 0.f;
    for (size_t i = start + threadIdx.x * 8; i < end; i += 256 * 8) {
        float v[8];
        load_some(x, i, len, v);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum += v[k] * v[k];
    }
    sum = block_combine(SUM, sum, warps);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
