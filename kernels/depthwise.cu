// Depthwise convolution (one filter a channel), its adjoint by the input and its gradient by the weight;
// fp16 in, fp32 sums.
//
//     forward:    y[n, h, w, c] = tail(Σ_{r,s} x[n, h·stride + r − top, w·stride + s − left, c] · W[r, s, c])
//     transpose:  y[n, h, w, c] = tail(Σ_{r,s} x[n, (h + top − r)/stride, (w + left − s)/stride, c] · W[r, s, c])
//                                 over the taps for which both quotients are whole
//     gradient:   dW[r, s, c]   = Σ_{n,h,w} x[n, h·stride + r − top, w·stride + s − left, c] · dy[n, h, w, c]
//     tail(v) = act(v + bias[c] + residual[n, h, w, c])
//
// Layouts: N×H×W×C, W kh×kw×1×C. Lanes run along the channels, V of them to a thread: eight where 8 | C,
// which is one 16-byte access; two for the gradient, whose kh·kw sums a channel stay in registers.
//
// Forward and transpose: a thread makes STRIP results of one row, so that a pixel loaded serves every tap
// that meets it; threads are numbered (image, row, strip, channel), channel fastest, blocks of 128. With
// stride 1 the transpose is the forward kernel with the taps mirrored and padding K − 1 − pad.
// Per result V·kh·kw FMA; rows are reread by neighbours through the caches, so device memory sees each
// pixel about once: 2 bytes in, 2 out per result at stride 1.
//
// Gradient: a block takes 2·lanes channels and every `splits`-th strip of all images, sums over its threads
// (shuffles, then shared memory), and writes its part to scratch; conv_grad_sum adds the parts in order, so
// the bits are always the same. Per product 2 FLOP; x and dy are read once.
//
// The surprising decision: in the strided transpose, strips begin where w + left is even, not where w is
// 0, so that which tap meets which result of the strip is known to the compiler.
#include "conv_tail.cuh"
#include "vector.cuh"

// Mirrors Problem of src/engine/cuda/depthwise.rs. `h`, `w` are those of the tensor read (gradient: of x),
// `out_h`, `out_w` of the one written (gradient: of dy).
struct Problem {
    int images, h, w, c;
    int out_h, out_w;
    int kernel_h, kernel_w;
    int stride, pad_top, pad_left;
    int act, mirrored, transposed;
    int lanes, splits;
};

constexpr int THREADS = 128;
constexpr int STRIP = 4;

template <int V>
__device__ __forceinline__ void finish(float (&v)[V], size_t at, int c, const float* bias,
                                       const __half* residual, const Real& out, int act) {
    float more[V];
    if (bias) {
        load_all(bias, c, more);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] += more[j];
    }
    if (residual) {
        load_all(residual, at, more);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] += more[j];
    }
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = activate(v[j], act);
    store_all(out, at, v);
}

// What one thread computes: channel c, strip `strip` of row y of image n.
struct Work {
    int c, strip, y;
    size_t n;
    bool any;
    __device__ __forceinline__ Work(const Problem& p, int per_thread, int strips) {
        size_t t = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x, rest;
        t = divide(t, p.c / per_thread, rest);
        c = static_cast<int>(rest) * per_thread;
        t = divide(t, strips, rest);
        strip = static_cast<int>(rest);
        n = divide(t, p.out_h, rest);
        y = static_cast<int>(rest);
        any = n < static_cast<size_t>(p.images);
    }
};

// The filter's row r at channels c…
template <int K, int V>
__device__ __forceinline__ void load_taps(float (&taps)[K][V], const __half* weight, int r, int c,
                                          const Problem& p) {
#pragma unroll
    for (int s = 0; s < K; s++) {
        const int tap = p.mirrored ? K * K - 1 - (r * K + s) : r * K + s;
        load_all(weight, static_cast<size_t>(tap) * p.c + c, taps[s]);
    }
}

template <int V>
__device__ __forceinline__ void load_or_zero(const __half* row, int column, const Problem& p, float (&v)[V]) {
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = 0.0f;
    if (static_cast<u32>(column) < static_cast<u32>(p.w)) load_all(row, static_cast<size_t>(column) * p.c, v);
}

template <int K, int S, int V>
__device__ __forceinline__ void forward(const __half* __restrict__ x, const __half* __restrict__ weight,
                                        const float* __restrict__ bias, const __half* __restrict__ residual,
                                        Real out, const Problem& p) {
    const Work work(p, V, (p.out_w + STRIP - 1) / STRIP);
    if (!work.any) return;
    const int x0 = work.strip * STRIP, top = work.y * S - p.pad_top, left = x0 * S - p.pad_left;
    float sums[STRIP][V] = {};
#pragma unroll 1
    for (int r = 0; r < K; r++) {
        const int y = top + r;
        if (static_cast<u32>(y) >= static_cast<u32>(p.h)) continue;
        const __half* row = x + (work.n * p.h + y) * p.w * p.c + work.c;
        float taps[K][V];
        load_taps(taps, weight, r, work.c, p);
#pragma unroll
        for (int j = 0; j < (STRIP - 1) * S + K; j++) {
            float v[V];
            load_or_zero(row, left + j, p, v);
#pragma unroll
            for (int t = 0; t < STRIP; t++) {
                const int s = j - t * S;
                if (s >= 0 && s < K) {
#pragma unroll
                    for (int i = 0; i < V; i++) sums[t][i] += v[i] * taps[s][i];
                }
            }
        }
    }
    const size_t line = (work.n * p.out_h + work.y) * p.out_w;
#pragma unroll
    for (int t = 0; t < STRIP; t++) {
        if (x0 + t < p.out_w) finish(sums[t], (line + x0 + t) * p.c + work.c, work.c, bias, residual, out, p.act);
    }
}

// The transpose with stride 2.
template <int K, int V>
__device__ __forceinline__ void transpose2(const __half* __restrict__ x, const __half* __restrict__ weight,
                                           const float* __restrict__ bias,
                                           const __half* __restrict__ residual, Real out, const Problem& p) {
    const int odd = p.pad_left & 1;
    const Work work(p, V, (p.out_w + odd + STRIP - 1) / STRIP);
    if (!work.any) return;
    // Result t of the strip lies at column x0 + t and reads column q + (t − s)/2 at the taps s of t's parity.
    const int x0 = work.strip * STRIP - odd, q = (x0 + p.pad_left) / 2, a = work.y + p.pad_top;
    float sums[STRIP][V] = {};
#pragma unroll 1
    for (int r = a & 1; r < K; r += 2) {
        const int y = (a - r) >> 1;
        if (static_cast<u32>(y) >= static_cast<u32>(p.h)) continue;
        const __half* row = x + (work.n * p.h + y) * p.w * p.c + work.c;
        float taps[K][V];
        load_taps(taps, weight, r, work.c, p);
#pragma unroll
        for (int d = -(K - 1) / 2; d <= (STRIP - 1) / 2; d++) {
            float v[V];
            load_or_zero(row, q + d, p, v);
#pragma unroll
            for (int t = 0; t < STRIP; t++) {
                const int s = t - 2 * d;
                if (s >= 0 && s < K) {
#pragma unroll
                    for (int i = 0; i < V; i++) sums[t][i] += v[i] * taps[s][i];
                }
            }
        }
    }
    const size_t line = (work.n * p.out_h + work.y) * p.out_w;
#pragma unroll
    for (int t = 0; t < STRIP; t++) {
        if (static_cast<u32>(x0 + t) < static_cast<u32>(p.out_w)) {
            finish(sums[t], (line + x0 + t) * p.c + work.c, work.c, bias, residual, out, p.act);
        }
    }
}

// Any kernel size and stride, both directions; one result a thread and channel.
template <int V>
__device__ __forceinline__ void any_size(const __half* __restrict__ x, const __half* __restrict__ weight,
                                         const float* __restrict__ bias, const __half* __restrict__ residual,
                                         Real out, const Problem& p) {
    const Work work(p, V, p.out_w);
    if (!work.any) return;
    float sum[V] = {};
    for (int r = 0; r < p.kernel_h; r++) {
        int y = work.y * p.stride + r - p.pad_top;
        if (p.transposed) {
            const int a = work.y + p.pad_top - r;
            y = a < 0 || a % p.stride ? -1 : a / p.stride;
        }
        if (static_cast<u32>(y) >= static_cast<u32>(p.h)) continue;
        const __half* row = x + (work.n * p.h + y) * p.w * p.c + work.c;
        for (int s = 0; s < p.kernel_w; s++) {
            int column = work.strip * p.stride + s - p.pad_left;
            if (p.transposed) {
                const int a = work.strip + p.pad_left - s;
                column = a < 0 || a % p.stride ? -1 : a / p.stride;
            }
            float v[V], tap[V];
            load_or_zero(row, column, p, v);
            load_all(weight, static_cast<size_t>(r * p.kernel_w + s) * p.c + work.c, tap);
#pragma unroll
            for (int i = 0; i < V; i++) sum[i] += v[i] * tap[i];
        }
    }
    const size_t at = ((work.n * p.out_h + work.y) * p.out_w + work.strip) * p.c + work.c;
    finish(sum, at, work.c, bias, residual, out, p.act);
}

// The V (1 or 2) channels of a pixel, zeros outside the row.
template <int V>
__device__ __forceinline__ void load_few(const __half* row, int column, int columns, int c, float (&v)[V]) {
    const bool inside = static_cast<u32>(column) < static_cast<u32>(columns);
    const __half* at = row + static_cast<size_t>(column) * c;
    if constexpr (V == 2) {
        const u32 raw = inside ? *reinterpret_cast<const u32*>(at) : 0;
        v[0] = __half2float(__ushort_as_half(raw & 0xffff));
        v[1] = __half2float(__ushort_as_half(raw >> 16));
    } else {
        v[0] = inside ? __half2float(*at) : 0.0f;
    }
}

// K×K taps at once, at stride S. With K = 1 the one tap that blockIdx.z names, at any stride.
// grid: (channel groups, splits, taps or 1).
template <int K, int S, int V>
__device__ __forceinline__ void gradient(const __half* __restrict__ x, const __half* __restrict__ dy,
                                         float* __restrict__ partial, const Problem& p) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float parts[WARPS][K * K * V][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // `lanes` (a power of two) of a warp lie along channels, the others take strips of their own.
    const int own = lane & (p.lanes - 1), places = 32 / p.lanes;
    const int c = (blockIdx.x * p.lanes + own) * V;
    const int tap_r = K == 1 ? blockIdx.z / p.kernel_w : 0, tap_s = K == 1 ? blockIdx.z % p.kernel_w : 0;
    const int strips = (p.out_w + STRIP - 1) / STRIP;
    const size_t all = static_cast<size_t>(p.images) * p.out_h * strips;
    float sums[K * K][V] = {};
    if (c < p.c) {
        const size_t step = static_cast<size_t>(gridDim.y) * WARPS * places;
        for (size_t t = (static_cast<size_t>(blockIdx.y) * WARPS + warp) * places + lane / p.lanes; t < all;
             t += step) {
            size_t rest, y_rest;
            const size_t line = divide(t, strips, rest);
            const size_t n = divide(line, p.out_h, y_rest);
            const int x0 = static_cast<int>(rest) * STRIP;
            const int stride = K == 1 ? p.stride : S;
            const int top = static_cast<int>(y_rest) * stride - p.pad_top + tap_r;
            const int left = x0 * stride - p.pad_left + tap_s;
            float d[STRIP][V];
            const __half* dy_row = dy + line * p.out_w * p.c + c;
#pragma unroll
            for (int i = 0; i < STRIP; i++) load_few(dy_row, x0 + i, p.out_w, p.c, d[i]);
#pragma unroll
            for (int r = 0; r < K; r++) {
                if (static_cast<u32>(top + r) >= static_cast<u32>(p.h)) continue;
                const __half* row = x + (n * p.h + (top + r)) * p.w * p.c + c;
                if constexpr (K == 1) {
#pragma unroll
                    for (int i = 0; i < STRIP; i++) {
                        float v[V];
                        load_few(row, left + i * stride, p.w, p.c, v);
#pragma unroll
                        for (int e = 0; e < V; e++) sums[0][e] += v[e] * d[i][e];
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < (STRIP - 1) * S + K; j++) {
                        float v[V];
                        load_few(row, left + j, p.w, p.c, v);
#pragma unroll
                        for (int i = 0; i < STRIP; i++) {
                            const int s = j - i * S;
                            if (s >= 0 && s < K) {
#pragma unroll
                                for (int e = 0; e < V; e++) sums[r * K + s][e] += v[e] * d[i][e];
                            }
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (int tap = 0; tap < K * K; tap++) {
#pragma unroll
        for (int e = 0; e < V; e++) {
            float v = sums[tap][e];
            for (int offset = 16; offset >= p.lanes; offset >>= 1) v += __shfl_xor_sync(FULL_WARP, v, offset);
            parts[warp][tap * V + e][lane] = v;
        }
    }
    __syncthreads();
    // partial[split][tap][channel]
    const int taps = K == 1 ? p.kernel_h * p.kernel_w : K * K;
    for (int i = threadIdx.x; i < K * K * p.lanes * V; i += THREADS) {
        const int tap = i / (p.lanes * V), within = i - tap * (p.lanes * V);
        const int channel = blockIdx.x * p.lanes * V + within;
        if (channel >= p.c) continue;
        float v = 0.0f;
#pragma unroll
        for (int k = 0; k < WARPS; k++) v += parts[k][tap * V + within % V][within / V];
        partial[(static_cast<size_t>(blockIdx.y) * taps + blockIdx.z + tap) * p.c + channel] = v;
    }
}

#define DEPTHWISE(NAME, BLOCKS, ...)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                \
        NAME(const __half* x, const __half* weight, const float* bias, const __half* residual, Real out,        \
             Problem p) {                                                                                        \
        __VA_ARGS__(x, weight, bias, residual, out, p);                                                          \
    }

DEPTHWISE(depthwise_3x3_stride1, 4, forward<3, 1, 8>)
DEPTHWISE(depthwise_3x3_stride2, 3, forward<3, 2, 8>)
DEPTHWISE(depthwise_5x5_stride1, 3, forward<5, 1, 8>)
DEPTHWISE(depthwise_5x5_stride2, 2, forward<5, 2, 8>)
DEPTHWISE(depthwise_transpose_3x3_stride2, 4, transpose2<3, 8>)
DEPTHWISE(depthwise_transpose_5x5_stride2, 4, transpose2<5, 8>)
DEPTHWISE(depthwise_any, 8, any_size<8>)
// Channels not a multiple of 8, one a thread.
DEPTHWISE(depthwise_3x3_stride1_scalar, 5, forward<3, 1, 1>)
DEPTHWISE(depthwise_3x3_stride2_scalar, 5, forward<3, 2, 1>)
DEPTHWISE(depthwise_5x5_stride1_scalar, 5, forward<5, 1, 1>)
DEPTHWISE(depthwise_5x5_stride2_scalar, 5, forward<5, 2, 1>)
DEPTHWISE(depthwise_transpose_3x3_stride2_scalar, 8, transpose2<3, 1>)
DEPTHWISE(depthwise_transpose_5x5_stride2_scalar, 8, transpose2<5, 1>)
DEPTHWISE(depthwise_any_scalar, 8, any_size<1>)

#define GRADIENT(NAME, BLOCKS, K, S, V)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                \
        NAME(const __half* x, const __half* dy, float* partial, Problem p) {                                     \
        gradient<K, S, V>(x, dy, partial, p);                                                                    \
    }

GRADIENT(depthwise_grad_3x3_stride1, 6, 3, 1, 2)
GRADIENT(depthwise_grad_3x3_stride2, 6, 3, 2, 2)
GRADIENT(depthwise_grad_5x5_stride1, 3, 5, 1, 2)
GRADIENT(depthwise_grad_5x5_stride2, 3, 5, 2, 2)
GRADIENT(depthwise_grad_any, 8, 1, 1, 2)
// An odd number of channels.
GRADIENT(depthwise_grad_3x3_stride1_scalar, 6, 3, 1, 1)
GRADIENT(depthwise_grad_3x3_stride2_scalar, 6, 3, 2, 1)
GRADIENT(depthwise_grad_5x5_stride1_scalar, 6, 5, 1, 1)
GRADIENT(depthwise_grad_5x5_stride2_scalar, 6, 5, 2, 1)
GRADIENT(depthwise_grad_any_scalar, 8, 1, 1, 1)
