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
// Forward and transpose: a block of 256 makes a tile of y of which it brings the source and the filter to
// shared memory (tile.cuh); a thread makes STRIP results of one column, so that a pixel loaded serves every
// tap that meets it. With stride 1 the transpose is the forward kernel with the taps mirrored and padding
// K − 1 − pad. Per result and channel kh·kw FMA; global memory sees each pixel about once: 2 bytes in, 2 out
// per result at stride 1, and a few per cent of halo between tiles. Other sizes (`any`) read a pixel once
// per tap, through the caches: no network here has them.
//
// Gradient: a block takes 2·lanes channels and every `splits`-th tile of all images, sums over its threads
// (shuffles, then shared memory), and writes its part to scratch; conv_grad_sum adds the parts in order, so
// the bits are always the same. Per product 2 FLOP; x (and its halo) and dy are read once, and the parts,
// kh·kw·C numbers for each split, are written and read.
//
// The surprising decision: in the strided transpose, strips begin where h + top is even, not where h is
// 0, so that which tap meets which result of the strip is known to the compiler.
#include "conv_tail.cuh"
#include "tile.cuh"

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

template <int V>
__device__ __forceinline__ void load_or_zero(const __half* row, int column, const Problem& p, float (&v)[V]) {
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = 0.0f;
    if (static_cast<u32>(column) < static_cast<u32>(p.w)) load_all(row, static_cast<size_t>(column) * p.c, v);
}

extern __shared__ uint4 slab[];

// The K×K filter at the tile's channels, `pitch` elements a tap.
template <int K, int V>
__device__ __forceinline__ void stage_filter(__half* filter, const __half* weight, const Problem& p,
                                             const Tile& tile, int pitch) {
    const int vectors = tile.channels / V;
    for (int i = threadIdx.x; i < K * K * vectors; i += TILE_THREADS) {
        const int tap = i / vectors, k = (i - tap * vectors) * V;
        const int from = p.mirrored ? K * K - 1 - tap : tap;
        copy_in<V>(filter + tap * pitch + k, weight + static_cast<size_t>(from) * p.c + tile.channel + k);
    }
}

// The strip that begins at row y0 of the image; its first and last results may lie outside the tile or it.
template <int V>
__device__ __forceinline__ void finish_strip(float (&sums)[STRIP][V], const Problem& p, const Tile& tile,
                                             int y0, int x, int k, const float* bias,
                                             const __half* residual, const Real& out) {
    const int c = tile.channel + k;
    float add[V] = {};
    if (bias) load_all(bias, c, add);
#pragma unroll
    for (int t = 0; t < STRIP; t++) {
        const int y = y0 + t;
        if (static_cast<u32>(y) >= static_cast<u32>(p.out_h)) continue;
        const size_t at = ((static_cast<size_t>(tile.image) * p.out_h + y) * p.out_w + x) * p.c + c;
#pragma unroll
        for (int i = 0; i < V; i++) sums[t][i] += add[i];
        finish(sums[t], at, c, nullptr, residual, out, p.act);
    }
}

template <int K, int S, int V>
__device__ __forceinline__ void forward(const __half* __restrict__ x, const __half* __restrict__ weight,
                                        const float* __restrict__ bias, const __half* __restrict__ residual,
                                        const Real& out, const Problem& p, const Tiling& tiling) {
    __half* filter = reinterpret_cast<__half*>(slab);
    __half* source = filter + K * K * tiling.channels;
    const Tile tile(tiling, p.c);
    const int pitch = tiling.channels, line = tiling.source_columns * pitch;
    stage_filter<K, V>(filter, weight, p, tile, pitch);
    stage<V>(source, x + static_cast<size_t>(tile.image) * p.h * p.w * p.c, tile.row * S - p.pad_top,
             tile.column * S - p.pad_left, tiling.source_rows, tiling.source_columns, p.h, p.w, p.c, tile.channel,
             tile.channels, pitch);
    staged();
    const int columns = min(tiling.columns, p.out_w - tile.column), vectors = tile.channels / V;
    const int strips = (min(tiling.rows, p.out_h - tile.row) + STRIP - 1) / STRIP;
    for (int item = threadIdx.x; item < strips * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int strip = pixel / columns, column = pixel - strip * columns;
        const __half* at = source + strip * STRIP * S * line + column * S * pitch + k;
        float sums[STRIP][V] = {};
#pragma unroll 1
        for (int s = 0; s < K; s++, at += pitch) {
            float taps[K][V];
#pragma unroll
            for (int r = 0; r < K; r++) load_all(filter, (r * K + s) * pitch + k, taps[r]);
#pragma unroll
            for (int j = 0; j < (STRIP - 1) * S + K; j++) {
                float v[V];
                load_all(at, j * line, v);
#pragma unroll
                for (int t = 0; t < STRIP; t++) {
                    const int r = j - t * S;
                    if (r >= 0 && r < K) {
#pragma unroll
                        for (int i = 0; i < V; i++) sums[t][i] += v[i] * taps[r][i];
                    }
                }
            }
        }
        finish_strip(sums, p, tile, tile.row + strip * STRIP, tile.column + column, k, bias, residual, out);
    }
}

// The transpose with stride 2. Tiles begin `odd` rows before the image.
template <int K, int V>
__device__ __forceinline__ void transpose2(const __half* __restrict__ x, const __half* __restrict__ weight,
                                           const float* __restrict__ bias,
                                           const __half* __restrict__ residual, const Real& out,
                                           const Problem& p, const Tiling& tiling) {
    __half* filter = reinterpret_cast<__half*>(slab);
    __half* source = filter + K * K * tiling.channels;
    const Tile tile(tiling, p.c);
    const int pitch = tiling.channels, line = tiling.source_columns * pitch;
    const int row = tile.row - (p.pad_top & 1);
    // Result t of a strip at row y0 reads row (y0 + top)/2 + (t − r)/2 at the taps r of t's parity.
    const int top = (row + p.pad_top) / 2 - (K - 1) / 2, left = (tile.column + p.pad_left - K + 1) >> 1;
    stage_filter<K, V>(filter, weight, p, tile, pitch);
    stage<V>(source, x + static_cast<size_t>(tile.image) * p.h * p.w * p.c, top, left, tiling.source_rows,
             tiling.source_columns, p.h, p.w, p.c, tile.channel, tile.channels, pitch);
    staged();
    const int columns = min(tiling.columns, p.out_w - tile.column), vectors = tile.channels / V;
    const int strips = tiling.rows / STRIP;
    for (int item = threadIdx.x; item < strips * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int strip = pixel / columns, column = pixel - strip * columns;
        const int a = tile.column + column + p.pad_left;
        float sums[STRIP][V] = {};
#pragma unroll 1
        for (int s = a & 1; s < K; s += 2) {
            const __half* at = source + strip * (STRIP / 2) * line + (((a - s) >> 1) - left) * pitch + k;
            float taps[K][V];
#pragma unroll
            for (int r = 0; r < K; r++) load_all(filter, (r * K + s) * pitch + k, taps[r]);
#pragma unroll
            for (int d = -(K - 1) / 2; d <= (STRIP - 1) / 2; d++) {
                float v[V];
                load_all(at, (d + (K - 1) / 2) * line, v);
#pragma unroll
                for (int t = 0; t < STRIP; t++) {
                    const int r = t - 2 * d;
                    if (r >= 0 && r < K) {
#pragma unroll
                        for (int i = 0; i < V; i++) sums[t][i] += v[i] * taps[r][i];
                    }
                }
            }
        }
        finish_strip(sums, p, tile, row + strip * STRIP, tile.column + column, k, bias, residual, out);
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

// The sums of a block, over the lanes and warps that share channels, to partial[part][tap][channel].
template <int K, int V>
__device__ __forceinline__ void put_gradient(const float (&sums)[K * K][V], float* __restrict__ partial,
                                             const Problem& p, int first_channel, int taps, int tap_from) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float parts[WARPS][K * K * V][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
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
    for (int i = threadIdx.x; i < K * K * p.lanes * V; i += THREADS) {
        const int tap = i / (p.lanes * V), within = i - tap * (p.lanes * V);
        const int channel = first_channel + within;
        if (channel >= p.c) continue;
        float v = 0.0f;
#pragma unroll
        for (int k = 0; k < WARPS; k++) v += parts[k][tap * V + within % V][within / V];
        partial[(static_cast<size_t>(blockIdx.y) * taps + tap_from + tap) * p.c + channel] = v;
    }
}

// K×K taps at once, at stride S, of the tiles blockIdx.y, + splits, … grid: (channel groups, splits).
// A tile of dy and what it meets of x lie in shared memory.
template <int K, int S, int V>
__device__ __forceinline__ void gradient(const __half* __restrict__ x, const __half* __restrict__ dy,
                                         float* __restrict__ partial, const Problem& p, const Tiling& t) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    // `lanes` (a power of two) of a warp lie along channels, the others take strips of their own.
    const int own = (lane & (p.lanes - 1)) * V, places = 32 / p.lanes, place = warp * places + lane / p.lanes;
    const int channel = blockIdx.x * t.channels, channels = min(t.channels, p.c - channel);
    __half* source = reinterpret_cast<__half*>(slab);
    __half* result = source + (t.source_rows * t.source_columns * t.channels + 7) / 8 * 8;
    const int line = t.source_columns * t.channels, result_line = t.columns * t.channels;
    const int tiles = p.images * t.row_tiles * t.column_tiles;
    float sums[K * K][V] = {};
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        const int rest = tile / t.column_tiles, column = (tile - rest * t.column_tiles) * t.columns;
        const int image = rest / t.row_tiles, row = (rest - image * t.row_tiles) * t.rows;
        const __half* picture = x + static_cast<size_t>(image) * p.h * p.w * p.c;
        const __half* gradients = dy + static_cast<size_t>(image) * p.out_h * p.out_w * p.c;
        const int top = row * S - p.pad_top, left = column * S - p.pad_left;
        // Beyond the pictures both are zeros.
        const int rows = min(t.rows, p.out_h - row), columns = min(t.columns, p.out_w - column);
        if (p.c % 8 == 0) {
            stage<8, __half, THREADS>(source, picture, top, left, t.source_rows, t.source_columns, p.h, p.w, p.c,
                                      channel, channels, t.channels);
            stage<8, __half, THREADS>(result, gradients, row, column, t.rows, t.columns, p.out_h, p.out_w, p.c,
                                      channel, channels, t.channels);
        } else {
            stage<1, __half, THREADS>(source, picture, top, left, t.source_rows, t.source_columns, p.h, p.w, p.c,
                                      channel, channels, t.channels);
            stage<1, __half, THREADS>(result, gradients, row, column, t.rows, t.columns, p.out_h, p.out_w, p.c,
                                      channel, channels, t.channels);
        }
        staged();
        const int strips = (columns + STRIP - 1) / STRIP;
        for (int item = own < channels ? place : rows * strips; item < rows * strips;
             item += THREADS / 32 * places) {
            const int i = item / strips, j0 = (item - i * strips) * STRIP;
            float d[STRIP][V];
#pragma unroll
            for (int j = 0; j < STRIP; j++) {
                load_few(result + i * result_line + own, j0 + j, t.columns, t.channels, d[j]);
            }
#pragma unroll
            for (int r = 0; r < K; r++) {
                const __half* from = source + (i * S + r) * line + own;
#pragma unroll
                for (int j = 0; j < (STRIP - 1) * S + K; j++) {
                    float v[V];
                    load_few(from, j0 * S + j, t.source_columns, t.channels, v);
#pragma unroll
                    for (int k = 0; k < STRIP; k++) {
                        const int q = j - k * S;
                        if (q >= 0 && q < K) {
#pragma unroll
                            for (int e = 0; e < V; e++) sums[r * K + q][e] += v[e] * d[k][e];
                        }
                    }
                }
            }
        }
        __syncthreads();
    }
    put_gradient<K, V>(sums, partial, p, channel, K * K, 0);
}

// The one tap that blockIdx.z names, at any stride. grid: (channel groups, splits, taps).
template <int V>
__device__ __forceinline__ void gradient_any(const __half* __restrict__ x, const __half* __restrict__ dy,
                                             float* __restrict__ partial, const Problem& p) {
    constexpr int WARPS = THREADS / 32;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int own = lane & (p.lanes - 1), places = 32 / p.lanes;
    const int c = (blockIdx.x * p.lanes + own) * V;
    const int tap_r = blockIdx.z / p.kernel_w, tap_s = blockIdx.z % p.kernel_w;
    const int strips = (p.out_w + STRIP - 1) / STRIP;
    const size_t all = static_cast<size_t>(p.images) * p.out_h * strips;
    float sums[1][V] = {};
    if (c < p.c) {
        const size_t step = static_cast<size_t>(gridDim.y) * WARPS * places;
        for (size_t t = (static_cast<size_t>(blockIdx.y) * WARPS + warp) * places + lane / p.lanes; t < all;
             t += step) {
            size_t rest, y_rest;
            const size_t line = divide(t, strips, rest);
            const size_t n = divide(line, p.out_h, y_rest);
            const int x0 = static_cast<int>(rest) * STRIP;
            const int y = static_cast<int>(y_rest) * p.stride - p.pad_top + tap_r;
            const int left = x0 * p.stride - p.pad_left + tap_s;
            if (static_cast<u32>(y) >= static_cast<u32>(p.h)) continue;
            const __half* dy_row = dy + line * p.out_w * p.c + c;
            const __half* row = x + (n * p.h + y) * p.w * p.c + c;
#pragma unroll
            for (int i = 0; i < STRIP; i++) {
                float v[V], d[V];
                load_few(dy_row, x0 + i, p.out_w, p.c, d);
                load_few(row, left + i * p.stride, p.w, p.c, v);
#pragma unroll
                for (int e = 0; e < V; e++) sums[0][e] += v[e] * d[e];
            }
        }
    }
    put_gradient<1, V>(sums, partial, p, blockIdx.x * p.lanes * V, p.kernel_h * p.kernel_w, blockIdx.z);
}

#define DEPTHWISE(NAME, BLOCKS, ...)                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS)                                    \
        NAME(const __half* x, const __half* weight, const float* bias, const __half* residual, Real out, \
             Problem p, Tiling tiling) {                                                                  \
        __VA_ARGS__(x, weight, bias, residual, out, p, tiling);                                           \
    }

DEPTHWISE(depthwise_3x3_stride1, 2, forward<3, 1, 8>)
DEPTHWISE(depthwise_3x3_stride2, 2, forward<3, 2, 8>)
DEPTHWISE(depthwise_5x5_stride1, 2, forward<5, 1, 8>)
DEPTHWISE(depthwise_5x5_stride2, 2, forward<5, 2, 8>)
DEPTHWISE(depthwise_transpose_3x3_stride2, 2, transpose2<3, 8>)
DEPTHWISE(depthwise_transpose_5x5_stride2, 2, transpose2<5, 8>)
// Channels not a multiple of 8, one a thread.
DEPTHWISE(depthwise_3x3_stride1_scalar, 4, forward<3, 1, 1>)
DEPTHWISE(depthwise_3x3_stride2_scalar, 4, forward<3, 2, 1>)
DEPTHWISE(depthwise_5x5_stride1_scalar, 4, forward<5, 1, 1>)
DEPTHWISE(depthwise_5x5_stride2_scalar, 4, forward<5, 2, 1>)
DEPTHWISE(depthwise_transpose_3x3_stride2_scalar, 4, transpose2<3, 1>)
DEPTHWISE(depthwise_transpose_5x5_stride2_scalar, 4, transpose2<5, 1>)

#define ANY(NAME, V)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 8)                                              \
        NAME(const __half* x, const __half* weight, const float* bias, const __half* residual, Real out, \
             Problem p) {                                                                                 \
        any_size<V>(x, weight, bias, residual, out, p);                                                   \
    }
ANY(depthwise_any, 8)
ANY(depthwise_any_scalar, 1)

#define GRADIENT(NAME, BLOCKS, K, S, V)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                \
        NAME(const __half* x, const __half* dy, float* partial, Problem p, Tiling tiling) {                      \
        gradient<K, S, V>(x, dy, partial, p, tiling);                                                            \
    }

GRADIENT(depthwise_grad_3x3_stride1, 6, 3, 1, 2)
GRADIENT(depthwise_grad_3x3_stride2, 6, 3, 2, 2)
GRADIENT(depthwise_grad_5x5_stride1, 3, 5, 1, 2)
GRADIENT(depthwise_grad_5x5_stride2, 3, 5, 2, 2)
// An odd number of channels.
GRADIENT(depthwise_grad_3x3_stride1_scalar, 6, 3, 1, 1)
GRADIENT(depthwise_grad_3x3_stride2_scalar, 6, 3, 2, 1)
GRADIENT(depthwise_grad_5x5_stride1_scalar, 6, 5, 1, 1)
GRADIENT(depthwise_grad_5x5_stride2_scalar, 6, 5, 2, 1)

#define GRADIENT_ANY(NAME, V)                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 8)                   \
        NAME(const __half* x, const __half* dy, float* partial, Problem p) {   \
        gradient_any<V>(x, dy, partial, p);                                    \
    }
GRADIENT_ANY(depthwise_grad_any, 2)
GRADIENT_ANY(depthwise_grad_any_scalar, 1)
