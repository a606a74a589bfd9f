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
// * Rows are read three times (top, z, result), but from shared memory: a block brings its rows there
//   with whole sectors and takes the result back the same way. Of rows beyond 2048 channels the rest is
//   read again. The maximum is exact: the one-pass form with a running maximum turns rows of -inf into
//   other numbers than the specification's NaN.
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

// Channels of a block's rows that lie in shared memory: 64 rows of 32, 8 of 256, or so much of one row.
constexpr int KEPT = 2048;

// The rows of a block, in fp32. What a row has beyond KEPT channels stays in global memory.
template <int LANES>
struct Rows {
    static constexpr int ROWS = BLOCK / LANES;
    size_t first, rows;
    int channels, kept;
    float* buffer;

    // All threads must call it, and all be done with what was there.
    __device__ __forceinline__ Rows(const Real& x, size_t first, size_t rows, int channels, float* buffer)
        : first(first), rows(rows), channels(channels), kept(min(channels, KEPT / ROWS)), buffer(buffer) {
        for (int i = threadIdx.x; i < size(); i += BLOCK) buffer[i] = load(x, first * channels + i);
        __syncthreads();
    }

    // With more than one row to a block all channels are kept, so the rows are one run of numbers.
    __device__ __forceinline__ int size() const {
        if (first >= rows) return 0;
        const size_t left = rows - first;
        return (left < ROWS ? static_cast<int>(left) : ROWS) * kept;
    }

    __device__ __forceinline__ float at(const Real& x, int row, int c) const {
        return c < kept ? buffer[row * kept + c] : load(x, (first + row) * channels + c);
    }

    __device__ __forceinline__ void put(const Real& y, int row, int c, float v) const {
        if (c < kept) {
            buffer[row * kept + c] = v;
        } else {
            store(y, (first + row) * channels + c, v);
        }
    }

    // All threads must call it.
    __device__ __forceinline__ void write(const Real& y) const {
        __syncthreads();
        for (int i = threadIdx.x; i < size(); i += BLOCK) store(y, first * channels + i, buffer[i]);
    }
};

// A row and which of its elements this thread sees; a row beyond the last has none.
template <int LANES>
struct Row {
    int row, lane, channels;
    float* warps;

    __device__ __forceinline__ Row(const Rows<LANES>& all, float* warps)
        : row(threadIdx.x / LANES), lane(threadIdx.x % LANES),
          channels(all.first + threadIdx.x / LANES < all.rows ? all.channels : 0), warps(warps) {}

    template <class F>
    __device__ __forceinline__ void each(F f) const {
        for (int c = lane; c < channels; c += LANES) f(c);
    }

    __device__ __forceinline__ float top(const Rows<LANES>& all, const Real& x) const {
        float top = NEG_INF;
        each([&](int c) { top = fmaxf(top, all.at(x, row, c)); });
        return over_lanes<LANES>(top, warps, Larger{});
    }

    __device__ __forceinline__ float z(const Rows<LANES>& all, const Real& x, float top) const {
        float sum = 0.f;
        each([&](int c) { sum += __expf(all.at(x, row, c) - top); });
        return over_lanes<LANES>(sum, warps, Sum{});
    }

    __device__ __forceinline__ int chosen(const Real& target, size_t row, int classes) const {
        return static_cast<int>(fminf(fmaxf(load(target, row), 0.f), static_cast<float>(classes - 1)));
    }
};

template <int LANES>
__device__ __forceinline__ size_t first_row() {
    return static_cast<size_t>(blockIdx.x) * (BLOCK / LANES);
}

template <int LANES>
__device__ __forceinline__ void softmax(const Real& x, const Real& y, size_t rows, int channels,
                                        float* warps, float* buffer) {
    const Rows<LANES> all(x, first_row<LANES>(), rows, channels, buffer);
    const Row<LANES> row(all, warps);
    const float top = row.top(all, x), z = row.z(all, x, top);
    row.each([&](int c) { all.put(y, row.row, c, __expf(all.at(x, row.row, c) - top) / z); });
    all.write(y);
}

template <int LANES>
__device__ __forceinline__ void softmax_backward(const Real& y, const Real& dy, const Real& dx, size_t rows,
                                                 int channels, float* warps, float* buffer, float* more) {
    const Rows<LANES> all(y, first_row<LANES>(), rows, channels, buffer);
    const Rows<LANES> d(dy, first_row<LANES>(), rows, channels, more);
    const Row<LANES> row(all, warps);
    float sum = 0.f;
    row.each([&](int c) { sum += all.at(y, row.row, c) * d.at(dy, row.row, c); });
    const float dot = over_lanes<LANES>(sum, warps, Sum{});
    row.each([&](int c) {
        all.put(dx, row.row, c, all.at(y, row.row, c) * (d.at(dy, row.row, c) - dot));
    });
    all.write(dx);
}

template <int LANES>
__device__ __forceinline__ void cross_entropy(const Real& x, const Real& target, float* partial, size_t rows,
                                              int channels, float* warps, float* buffer) {
    const size_t step = static_cast<size_t>(gridDim.x) * (BLOCK / LANES);
    float sum = 0.f;
    // All threads of a block go round equally often: they meet inside.
    for (size_t base = first_row<LANES>(); base < rows; base += step) {
        __syncthreads();
        const Rows<LANES> all(x, base, rows, channels, buffer);
        const Row<LANES> row(all, warps);
        const float top = row.top(all, x), z = row.z(all, x, top);
        if (row.lane == 0 && row.channels > 0) {
            sum += top + logf(z) - all.at(x, row.row, row.chosen(target, base + row.row, channels));
        }
    }
    const float total = over_lanes<BLOCK>(sum, warps, Sum{});
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <int LANES>
__device__ __forceinline__ void cross_entropy_backward(const Real& x, const Real& target, const float* dloss,
                                                       const Real& dx, size_t rows, int channels,
                                                       float* warps, float* buffer) {
    const Rows<LANES> all(x, first_row<LANES>(), rows, channels, buffer);
    const Row<LANES> row(all, warps);
    const float top = row.top(all, x), z = row.z(all, x, top);
    if (row.channels > 0) {
        const float factor = *dloss / static_cast<float>(rows);
        const int chosen = row.chosen(target, all.first + row.row, channels);
        row.each([&](int c) {
            const float p = __expf(all.at(x, row.row, c) - top) / z;
            all.put(dx, row.row, c, (c == chosen ? p - 1.f : p) * factor);
        });
    }
    all.write(dx);
}

// One kernel for each number of lanes.
#define FOR_LANES(LANES)                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        softmax_##LANES(Real x, Real y, size_t rows, int channels) {                                  \
        __shared__ float warps[BLOCK / 32], buffer[KEPT];                                             \
        softmax<LANES>(x, y, rows, channels, warps, buffer);                                          \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        softmax_backward_##LANES(Real y, Real dy, Real dx, size_t rows, int channels) {               \
        __shared__ float warps[BLOCK / 32], buffer[KEPT];                                             \
        __shared__ float more[KEPT];                                                                  \
        softmax_backward<LANES>(y, dy, dx, rows, channels, warps, buffer, more);                      \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        cross_entropy_##LANES(Real x, Real target, float* partial, size_t rows, int channels) {       \
        __shared__ float warps[BLOCK / 32], buffer[KEPT];                                             \
        cross_entropy<LANES>(x, target, partial, rows, channels, warps, buffer);                      \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                               \
        cross_entropy_backward_##LANES(Real x, Real target, const float* dloss, Real dx, size_t rows, \
                                       int channels) {                                                \
        __shared__ float warps[BLOCK / 32], buffer[KEPT];                                             \
        cross_entropy_backward<LANES>(x, target, dloss, dx, rows, channels, warps, buffer);           \
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
