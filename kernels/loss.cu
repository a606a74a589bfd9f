// Softmax and cross-entropy over the last axis.
//
//   softmax                  y = exp(x - top) / z,  top = max x,  z = sum of exp(x - top), per row
//   softmax_backward         dx = y (dy - sum of dy y)
//   cross_entropy            partial[block] = sum over rows of top + ln z - x[class]
//   cross_entropy_mean       loss = sum of partial / rows
//   cross_entropy_backward   dx = (softmax(x) - onehot(class)) dloss / rows
//
// Shapes    x, y, dy, dx   rows x C, fp16 or fp32;  target one number a row, fp16 or fp32: its class,
//           below 0 or NaN class 0, beyond the last the last;  partial, loss, dloss fp32
// Geometry  block 256. _4 and _32: so many lanes a row, 64 or 8 rows a block; _256: a block a row
//
// The decisions that surprise:
// * A row is read up to three times (top, z, result). It lies in L1 after the first, and the maximum is
//   exact: the one-pass form with a running maximum turns rows of -inf into other numbers than the
//   specification's NaN.
// * The mean goes over one partial sum a block and a second launch, not atomics: the same input gives
//   the same bits.
//
// Cost per output of softmax: one element read, one written, two exp. Bound by memory.

#include "common.cuh"

constexpr int BLOCK = 256;

struct Larger {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// Of the LANES threads of a row, in each of them; all threads of the block must call it. `warps` is the
// block's, BLOCK / 32 numbers of shared memory.
template <int LANES, class F>
__device__ __forceinline__ float over_lanes(float x, float* warps, F f) {
#pragma unroll
    for (int offset = min(LANES, 32) / 2; offset > 0; offset /= 2) {
        x = f(x, __shfl_xor_sync(FULL_WARP, x, offset));
    }
    if constexpr (LANES > 32) {
        static_assert(LANES == BLOCK, "a block a row");
        __syncthreads();
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
        __syncthreads();
        x = warps[0];
#pragma unroll
        for (int w = 1; w < BLOCK / 32; ++w) x = f(x, warps[w]);
    }
    return x;
}

// A row and which of its elements this thread sees; a row beyond the last has none.
template <int LANES>
struct Row {
    size_t row, at;
    int lane, channels;
    float* warps;

    __device__ __forceinline__ Row(size_t row, size_t rows, int channels, float* warps)
        : row(row), at(row * channels), lane(threadIdx.x % LANES), channels(row < rows ? channels : 0),
          warps(warps) {}

    template <class F>
    __device__ __forceinline__ void each(F f) const {
        for (int c = lane; c < channels; c += LANES) f(c);
    }

    __device__ __forceinline__ float top(const Real& x) const {
        float top = NEG_INF;
        each([&](int c) { top = fmaxf(top, load(x, at + c)); });
        return over_lanes<LANES>(top, warps, Larger{});
    }

    __device__ __forceinline__ float z(const Real& x, float top) const {
        float sum = 0.f;
        each([&](int c) { sum += __expf(load(x, at + c) - top); });
        return over_lanes<LANES>(sum, warps, Sum{});
    }

    __device__ __forceinline__ int chosen(const Real& target, int classes) const {
        return static_cast<int>(fminf(fmaxf(load(target, row), 0.f), static_cast<float>(classes - 1)));
    }
};

template <int LANES>
__device__ __forceinline__ size_t first_row() {
    return static_cast<size_t>(blockIdx.x) * (BLOCK / LANES) + threadIdx.x / LANES;
}

template <int LANES>
__device__ __forceinline__ void softmax(const Real& x, const Real& y, size_t rows, int channels,
                                        float* warps) {
    const Row<LANES> row(first_row<LANES>(), rows, channels, warps);
    const float top = row.top(x), z = row.z(x, top);
    row.each([&](int c) { store(y, row.at + c, __expf(load(x, row.at + c) - top) / z); });
}

template <int LANES>
__device__ __forceinline__ void softmax_backward(const Real& y, const Real& dy, const Real& dx, size_t rows,
                                                 int channels, float* warps) {
    const Row<LANES> row(first_row<LANES>(), rows, channels, warps);
    float sum = 0.f;
    row.each([&](int c) { sum += load(y, row.at + c) * load(dy, row.at + c); });
    const float dot = over_lanes<LANES>(sum, warps, Sum{});
    row.each([&](int c) { store(dx, row.at + c, load(y, row.at + c) * (load(dy, row.at + c) - dot)); });
}

template <int LANES>
__device__ __forceinline__ void cross_entropy(const Real& x, const Real& target, float* partial, size_t rows,
                                              int channels, float* warps) {
    const size_t step = static_cast<size_t>(gridDim.x) * (BLOCK / LANES);
    float sum = 0.f;
    // All threads of a block go round equally often: they meet inside.
    for (size_t base = 0; base < rows; base += step) {
        const Row<LANES> row(base + first_row<LANES>(), rows, channels, warps);
        const float top = row.top(x), z = row.z(x, top);
        if (row.lane == 0 && row.channels > 0) {
            sum += top + logf(z) - load(x, row.at + row.chosen(target, channels));
        }
    }
    const float all = over_lanes<BLOCK>(sum, warps, Sum{});
    if (threadIdx.x == 0) partial[blockIdx.x] = all;
}

template <int LANES>
__device__ __forceinline__ void cross_entropy_backward(const Real& x, const Real& target, const float* dloss,
                                                       const Real& dx, size_t rows, int channels,
                                                       float* warps) {
    const Row<LANES> row(first_row<LANES>(), rows, channels, warps);
    const float top = row.top(x), z = row.z(x, top);
    if (row.channels == 0) return;
    const float factor = *dloss / static_cast<float>(rows);
    const int chosen = row.chosen(target, channels);
    row.each([&](int c) {
        const float p = __expf(load(x, row.at + c) - top) / z;
        store(dx, row.at + c, (c == chosen ? p - 1.f : p) * factor);
    });
}

// One kernel for each number of lanes.
#define FOR_LANES(LANES)                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        softmax_##LANES(Real x, Real y, size_t rows, int channels) {                                  \
        __shared__ float warps[BLOCK / 32];                                                           \
        softmax<LANES>(x, y, rows, channels, warps);                                                  \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        softmax_backward_##LANES(Real y, Real dy, Real dx, size_t rows, int channels) {               \
        __shared__ float warps[BLOCK / 32];                                                           \
        softmax_backward<LANES>(y, dy, dx, rows, channels, warps);                                    \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        cross_entropy_##LANES(Real x, Real target, float* partial, size_t rows, int channels) {       \
        __shared__ float warps[BLOCK / 32];                                                           \
        cross_entropy<LANES>(x, target, partial, rows, channels, warps);                              \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        cross_entropy_backward_##LANES(Real x, Real target, const float* dloss, Real dx, size_t rows, \
                                       int channels) {                                                \
        __shared__ float warps[BLOCK / 32];                                                           \
        cross_entropy_backward<LANES>(x, target, dloss, dx, rows, channels, warps);                   \
    }

FOR_LANES(4)
FOR_LANES(32)
FOR_LANES(256)

// grid 1, block 256
extern "C" __global__ void __launch_bounds__(BLOCK)
    cross_entropy_mean(const float* __restrict__ partial, float* __restrict__ loss, int blocks, size_t rows) {
    __shared__ float warps[BLOCK / 32];
    float sum = 0.f;
    for (int i = threadIdx.x; i < blocks; i += BLOCK) sum += partial[i];
    const float all = over_lanes<BLOCK>(sum, warps, Sum{});
    if (threadIdx.x == 0) *loss = all / static_cast<float>(rows);
}
