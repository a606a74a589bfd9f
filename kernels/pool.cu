// Pooling and its gradient.
//
//   y(n, i, j, c) = max or mean of x over the window's pixels inside the picture
//   dx(n, h, w, c) = Σ over the windows that cover (h, w) of dy·share
//
// x: N×H×W×C, y and dy: N×OH×OW×C, fp16 or fp32. A block takes a tile of the result, whose source it has
// brought to shared memory (tile.cuh); a thread takes V channels of a pixel at a time. The axes have
// windows of their own, because the mean (and the maximum) of a large window is taken in two launches,
// along rows and then along columns: the pixels inside a window are a rectangle, so the mean of means is
// the mean. Its gradient goes the same way.
//
// The maximum's gradient is a gather: a block finds again the first maximum of every window that touches
// its tile. So no sum depends on the order in which blocks run, and no places are kept in memory.
//
// Global bytes per output: those of x and y once, and x's halo between tiles (a few per cent; the maximum's
// gradient has the halo of two windows). Large windows: the fp32 numbers between the two launches besides.
// Per output size_h·size_w operations.
//
// `_direct` are for windows of which not one fits shared memory; the maximum's gradient is two launches
// then.
#include "joined.cuh"
#include "rows.cuh"
#include "tile.cuh"

constexpr int MAX = 0;

struct Axis {
    int from, to;              // pixels of x and of y
    int size, stride, pad;
};

struct alignas(8) Geometry {
    int n, c;
    Axis h, w;
};

struct Span {
    int start, end;
};

// The part of window `out` inside the picture.
__device__ __forceinline__ Span inside(const Axis& a, int out) {
    const int start = out * a.stride - a.pad;
    return {max(start, 0), min(start + a.size, a.from)};
}

// The windows that cover pixel `i`.
__device__ __forceinline__ Span covering(const Axis& a, int i) {
    const int last = (i + a.pad) / a.stride;
    const int before = i + a.pad - a.size;
    return {before < 0 ? 0 : before / a.stride + 1, min(last + 1, a.to)};
}

extern __shared__ uint4 slab[];

template <int V, class T>
__device__ __forceinline__ void pool_tile(const T* x, const Real& y, const Geometry& g, int kind,
                                          const Tiling& t, const Block& block) {
    T* source = reinterpret_cast<T*>(slab);
    const Tile tile(t, g.c, block.x);
    const int top = tile.row * g.h.stride - g.h.pad, left = tile.column * g.w.stride - g.w.pad;
    stage<V>(source, x + size_t(tile.image) * g.h.from * g.w.from * g.c, top, left, t.source_rows,
             t.source_columns, g.h.from, g.w.from, g.c, tile.channel, tile.channels, t.channels);
    staged();
    const int rows = min(t.rows, g.h.to - tile.row), columns = min(t.columns, g.w.to - tile.column);
    const int vectors = tile.channels / V;
    for (int item = threadIdx.x; item < rows * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int i = pixel / columns, j = pixel - i * columns;
        const Span h = inside(g.h, tile.row + i), w = inside(g.w, tile.column + j);
        float sum[V];
#pragma unroll
        for (int e = 0; e < V; ++e) sum[e] = kind == MAX ? NEG_INF : 0.f;
        for (int r = h.start; r < h.end; ++r) {
            const T* at = source + ((r - top) * t.source_columns + w.start - left) * t.channels + k;
            for (int s = w.start; s < w.end; ++s, at += t.channels) {
                float v[V];
                load_all(at, 0, v);
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] = kind == MAX ? fmaxf(sum[e], v[e]) : sum[e] + v[e];
            }
        }
        if (kind != MAX) {
            const float count = float((h.end - h.start) * (w.end - w.start));
#pragma unroll
            for (int e = 0; e < V; ++e) sum[e] = sum[e] / count;
        }
        const size_t row = size_t(tile.image) * g.h.to + tile.row + i;
        store_all(y, (row * g.w.to + tile.column + j) * g.c + tile.channel + k, sum);
    }
}

// The mean's gradient: each window gives every pixel inside the same share.
template <int V, class T>
__device__ __forceinline__ void mean_tile(const T* dy, const Real& dx, const Geometry& g, const Tiling& t) {
    T* source = reinterpret_cast<T*>(slab);
    const Tile tile(t, g.c);
    const int top = covering(g.h, tile.row).start, left = covering(g.w, tile.column).start;
    stage<V>(source, dy + size_t(tile.image) * g.h.to * g.w.to * g.c, top, left, t.source_rows,
             t.source_columns, g.h.to, g.w.to, g.c, tile.channel, tile.channels, t.channels);
    staged();
    const int rows = min(t.rows, g.h.from - tile.row), columns = min(t.columns, g.w.from - tile.column);
    const int vectors = tile.channels / V;
    for (int item = threadIdx.x; item < rows * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int y = pixel / columns, x = pixel - y * columns;
        const Span is = covering(g.h, tile.row + y), js = covering(g.w, tile.column + x);
        float sum[V] = {};
        for (int i = is.start; i < is.end; ++i) {
            const Span h = inside(g.h, i);
            const T* at = source + ((i - top) * t.source_columns + js.start - left) * t.channels + k;
            for (int j = js.start; j < js.end; ++j, at += t.channels) {
                const Span w = inside(g.w, j);
                const float share = 1.f / float((h.end - h.start) * (w.end - w.start));
                float v[V];
                load_all(at, 0, v);
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] += v[e] * share;
            }
        }
        const size_t row = size_t(tile.image) * g.h.from + tile.row + y;
        store_all(dx, (row * g.w.from + tile.column + x) * g.c + tile.channel + k, sum);
    }
}

// Windows that cover a pixel of a tile of `size` pixels, at most.
__device__ __forceinline__ int most_windows(const Axis& a, int size) {
    return min((size + a.size - 2) / a.stride + 1, a.to);
}

// The maximum's gradient. First the windows that cover the tile of dx: of each the place of its first
// maximum in row-major order. What is no number is never larger, but stays where it came first. Then every
// pixel takes dy from the windows whose maximum it is.
template <int V, class X, class D>
__device__ __forceinline__ void max_tile(const X* x, const D* dy, const Real& dx, const Geometry& g,
                                         const Tiling& t) {
    const Tile tile(t, g.c);
    const int rows = min(t.rows, g.h.from - tile.row), columns = min(t.columns, g.w.from - tile.column);
    const int first_i = covering(g.h, tile.row).start, first_j = covering(g.w, tile.column).start;
    const int window_rows = most_windows(g.h, t.rows), window_columns = most_windows(g.w, t.columns);
    const int top = first_i * g.h.stride - g.h.pad, left = first_j * g.w.stride - g.w.pad;
    const int windows = window_rows * window_columns, vectors = tile.channels / V;
    X* source = reinterpret_cast<X*>(slab);
    D* gradient = reinterpret_cast<D*>(source + (t.source_rows * t.source_columns * t.channels + 7) / 8 * 8);
    unsigned short* first = reinterpret_cast<unsigned short*>(gradient + windows * t.channels);
    stage<V>(source, x + size_t(tile.image) * g.h.from * g.w.from * g.c, top, left, t.source_rows,
             t.source_columns, g.h.from, g.w.from, g.c, tile.channel, tile.channels, t.channels);
    stage<V>(gradient, dy + size_t(tile.image) * g.h.to * g.w.to * g.c, first_i, first_j, window_rows,
             window_columns, g.h.to, g.w.to, g.c, tile.channel, tile.channels, t.channels);
    staged();
    for (int item = threadIdx.x; item < windows * vectors; item += TILE_THREADS) {
        const int window = item / vectors, k = (item - window * vectors) * V;
        const int i = window / window_columns, j = window - i * window_columns;
        if (first_i + i >= g.h.to || first_j + j >= g.w.to) continue;
        const Span h = inside(g.h, first_i + i), w = inside(g.w, first_j + j);
        int best[V];
        float largest[V];
#pragma unroll
        for (int e = 0; e < V; ++e) best[e] = -1;
        for (int r = h.start; r < h.end; ++r) {
            for (int s = w.start; s < w.end; ++s) {
                const int at = (r - top) * t.source_columns + s - left;
                float v[V];
                load_all(source + at * t.channels + k, 0, v);
#pragma unroll
                for (int e = 0; e < V; ++e) {
                    if (best[e] < 0 || v[e] > largest[e]) largest[e] = v[e], best[e] = at;
                }
            }
        }
#pragma unroll
        for (int e = 0; e < V; ++e) first[window * t.channels + k + e] = best[e];
    }
    __syncthreads();
    for (int item = threadIdx.x; item < rows * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int y = pixel / columns, xx = pixel - y * columns;
        const Span is = covering(g.h, tile.row + y), js = covering(g.w, tile.column + xx);
        const int here = (tile.row + y - top) * t.source_columns + tile.column + xx - left;
        float sum[V] = {};
        for (int i = is.start; i < is.end; ++i) {
            for (int j = js.start; j < js.end; ++j) {
                const int at = ((i - first_i) * window_columns + j - first_j) * t.channels + k;
                float v[V];
                load_all(gradient + at, 0, v);
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] += first[at + e] == here ? v[e] : 0.f;
            }
        }
        const size_t row = size_t(tile.image) * g.h.from + tile.row + y;
        store_all(dx, (row * g.w.from + tile.column + xx) * g.c + tile.channel + k, sum);
    }
}

struct PoolArgs {
    Real x, y;
    Geometry g;
    int kind;
    Tiling t;
};

template <int V>
__device__ __forceinline__ void pool(const PoolArgs& a, const Block& block) {
    if (a.x.type == F16) {
        pool_tile<V>(static_cast<const __half*>(a.x.data), a.y, a.g, a.kind, a.t, block);
    } else {
        pool_tile<V>(static_cast<const float*>(a.x.data), a.y, a.g, a.kind, a.t, block);
    }
}

#define POOL(V)                                                                                               \
    JOINED_KERNEL(pool_##V, PoolArgs, (256, 2), pool<V>(a, block))                                            \
    extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_mean_##V(Real dy, Real dx, Geometry g, \
                                                                                Tiling t) {                   \
        if (dy.type == F16) {                                                                                 \
            mean_tile<V>(static_cast<const __half*>(dy.data), dx, g, t);                                      \
        } else {                                                                                              \
            mean_tile<V>(static_cast<const float*>(dy.data), dx, g, t);                                       \
        }                                                                                                     \
    }                                                                                                         \
    extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_max_##V(Real x, Real dy, Real dx,      \
                                                                               Geometry g, Tiling t) {        \
        const __half* xh = static_cast<const __half*>(x.data);                                                \
        const __half* dyh = static_cast<const __half*>(dy.data);                                              \
        const float* xf = static_cast<const float*>(x.data);                                                  \
        const float* dyf = static_cast<const float*>(dy.data);                                                \
        if (x.type == F16 && dy.type == F16) max_tile<V>(xh, dyh, dx, g, t);                                  \
        if (x.type == F16 && dy.type != F16) max_tile<V>(xh, dyf, dx, g, t);                                  \
        if (x.type != F16 && dy.type == F16) max_tile<V>(xf, dyh, dx, g, t);                                  \
        if (x.type != F16 && dy.type != F16) max_tile<V>(xf, dyf, dx, g, t);                                  \
    }

POOL(8)
POOL(4)
POOL(1)

// A thread a result, for windows of which not one fits shared memory.
template <int V>
__device__ __forceinline__ void pool_direct(const Real& x, const Real& y, const Geometry& g, int kind) {
    const unsigned per_pixel = g.c / V, place = place_in_row();
    const unsigned j = place / per_pixel;
    if (j >= unsigned(g.w.to)) return;
    const unsigned channel = (place - j * per_pixel) * V;
    const Span w = inside(g.w, j);
    for (unsigned row = first_row(); row < unsigned(g.n) * g.h.to; row += row_step()) {
        const unsigned n = row / g.h.to;
        const Span h = inside(g.h, row - n * g.h.to);
        float sum[V];
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] = kind == MAX ? NEG_INF : 0.f;
        for (int r = h.start; r < h.end; ++r) {
            size_t at = ((size_t(n) * g.h.from + r) * g.w.from + w.start) * g.c + channel;
            for (int s = w.start; s < w.end; ++s, at += g.c) {
                float v[V];
                load_all(x, at, v);
#pragma unroll
                for (int k = 0; k < V; ++k) sum[k] = kind == MAX ? fmaxf(sum[k], v[k]) : sum[k] + v[k];
            }
        }
        if (kind != MAX) {
            const float count = float((h.end - h.start) * (w.end - w.start));
#pragma unroll
            for (int k = 0; k < V; ++k) sum[k] = sum[k] / count;
        }
        store_all(y, (size_t(row) * g.w.to + j) * g.c + channel, sum);
    }
}

template <int V>
__device__ __forceinline__ void mean_direct(const Real& dy, const Real& dx, const Geometry& g) {
    const unsigned per_pixel = g.c / V, place = place_in_row();
    const unsigned x = place / per_pixel;
    if (x >= unsigned(g.w.from)) return;
    const unsigned channel = (place - x * per_pixel) * V;
    const Span js = covering(g.w, x);
    for (unsigned row = first_row(); row < unsigned(g.n) * g.h.from; row += row_step()) {
        const unsigned n = row / g.h.from;
        const Span is = covering(g.h, row - n * g.h.from);
        float sum[V] = {};
        for (int i = is.start; i < is.end; ++i) {
            const Span h = inside(g.h, i);
            size_t at = ((size_t(n) * g.h.to + i) * g.w.to + js.start) * g.c + channel;
            for (int j = js.start; j < js.end; ++j, at += g.c) {
                const Span w = inside(g.w, j);
                const float share = 1.f / float((h.end - h.start) * (w.end - w.start));
                float v[V];
                load_all(dy, at, v);
#pragma unroll
                for (int k = 0; k < V; ++k) sum[k] += v[k] * share;
            }
        }
        store_all(dx, (size_t(row) * g.w.from + x) * g.c + channel, sum);
    }
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_direct_1(Real x, Real y, Geometry g, int kind) {
    pool_direct<1>(x, y, g, kind);
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_mean_direct_1(Real dy, Real dx, Geometry g) {
    mean_direct<1>(dy, dx, g);
}

// Per window and channel the pixel (row·W + column) of the first maximum in row-major order. What is no
// number is never larger, but stays where it came first.
extern "C" __global__ __launch_bounds__(256, 2) void pool_first_maximum(Real x, int* first, Geometry g) {
    const unsigned place = place_in_row();
    const unsigned j = place / g.c;
    if (j >= unsigned(g.w.to)) return;
    const unsigned channel = place - j * g.c;
    const Span w = inside(g.w, j);
    for (unsigned row = first_row(); row < unsigned(g.n) * g.h.to; row += row_step()) {
        const unsigned n = row / g.h.to;
        const Span h = inside(g.h, row - n * g.h.to);
        const size_t picture = size_t(n) * g.h.from * g.w.from;
        int best = h.start * g.w.from + w.start;
        float largest = load(x, (picture + best) * g.c + channel);
        for (int r = h.start; r < h.end; ++r) {
            for (int s = w.start; s < w.end; ++s) {
                const int at = r * g.w.from + s;
                const float v = load(x, (picture + at) * g.c + channel);
                if (v > largest) largest = v, best = at;
            }
        }
        first[(size_t(row) * g.w.to + j) * g.c + channel] = best;
    }
}

// dx from the places of the maxima.
extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_max_direct(const int* first, Real dy, Real dx,
                                                                    Geometry g) {
    const unsigned place = place_in_row();
    const unsigned x = place / g.c;
    if (x >= unsigned(g.w.from)) return;
    const unsigned channel = place - x * g.c;
    const Span js = covering(g.w, x);
    for (unsigned row = first_row(); row < unsigned(g.n) * g.h.from; row += row_step()) {
        const unsigned n = row / g.h.from;
        const int h = row - n * g.h.from;
        const Span is = covering(g.h, h);
        const int here = h * g.w.from + x;
        float sum = 0.f;
        for (int i = is.start; i < is.end; ++i) {
            size_t at = ((size_t(n) * g.h.to + i) * g.w.to + js.start) * g.c + channel;
            for (int j = js.start; j < js.end; ++j, at += g.c) {
                if (first[at] == here) sum += load(dy, at);
            }
        }
        store(dx, (size_t(row) * g.w.from + x) * g.c + channel, sum);
    }
}
