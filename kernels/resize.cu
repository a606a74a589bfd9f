// Resizing pictures (nearest, bilinear, bilinear with aligned corners, area) and the adjoint.
//
//   y(n, i, j, c) = Σ x(n, h, w, c)·weight(h, i)·weight(w, j),   dx(n, h, w, c) the same sum over i, j
//
// x: N×H×W×C, y: N×OH×OW×C, fp16 or fp32. A block takes a tile of the result, whose source it has brought to
// shared memory (tile.cuh); a thread takes V channels of a pixel at a time. The gradient is a gather, so
// nothing depends on the order of blocks: a thread walks over the destination pixels that may have read its
// source pixel and asks each of them for its weight. Large ratios are two launches, along rows and then
// along columns, with an axis that stays in each.
//
// Global bytes: x and y once, and a few per cent of halo between tiles; large ratios the fp32 numbers
// between the two launches besides. Up to four multiplications an output forward (bilinear). `_direct` is
// for ratios of which not one pixel's source fits shared memory.
#include "rows.cuh"
#include "taps.cuh"
#include "tile.cuh"

struct Geometry {
    int n, c, resize;
    ResizedAxis h, w;
};

template <int V>
__device__ __forceinline__ void resize_direct(const Real& x, const Real& y, const Geometry& g) {
    const unsigned per_pixel = g.c / V, place = place_in_row();
    const unsigned j = place / per_pixel;
    if (j >= g.w.to) return;
    const unsigned channel = (place - j * per_pixel) * V;
    const Taps w = taps(g.resize, g.w, j);
    for (unsigned row = first_row(); row < g.n * g.h.to; row += row_step()) {
        const unsigned n = row / g.h.to;
        const Taps h = taps(g.resize, g.h, row - n * g.h.to);
        float sum[V] = {};
        for (unsigned r = h.first; r <= h.last; ++r) {
            const float by_row = weight(g.resize, h, r);
            // A tap that weighs nothing is not read: pixels that stay where they are cost one load.
            if (by_row == 0.f) continue;
            for (unsigned s = w.first; s <= w.last; ++s) {
                const float share = by_row * weight(g.resize, w, s);
                if (share == 0.f) continue;
                float v[V];
                load_all(x, ((size_t(n) * g.h.from + r) * g.w.from + s) * g.c + channel, v);
#pragma unroll
                for (int k = 0; k < V; ++k) sum[k] += v[k] * share;
            }
        }
        store_all(y, (size_t(row) * g.w.to + j) * g.c + channel, sum);
    }
}

extern __shared__ uint4 slab[];

template <int V, class T>
__device__ __forceinline__ void resize_tile(const T* x, const Real& y, const Geometry& g, const Tiling& t) {
    T* source = reinterpret_cast<T*>(slab);
    const Tile tile(t, g.c);
    const int rows = min(t.rows, int(g.h.to) - tile.row), columns = min(t.columns, int(g.w.to) - tile.column);
    const int top = taps(g.resize, g.h, tile.row).first, left = taps(g.resize, g.w, tile.column).first;
    const int source_rows = taps(g.resize, g.h, tile.row + rows - 1).last + 1 - top;
    const int source_columns = taps(g.resize, g.w, tile.column + columns - 1).last + 1 - left;
    stage<V>(source, x + size_t(tile.image) * g.h.from * g.w.from * g.c, top, left, source_rows, source_columns,
             g.h.from, g.w.from, g.c, tile.channel, tile.channels, t.channels);
    staged();
    const int vectors = tile.channels / V;
    for (int item = threadIdx.x; item < rows * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int i = pixel / columns, j = pixel - i * columns;
        const Taps h = taps(g.resize, g.h, tile.row + i), w = taps(g.resize, g.w, tile.column + j);
        float sum[V] = {};
        for (unsigned r = h.first; r <= h.last; ++r) {
            const float by_row = weight(g.resize, h, r);
            if (by_row == 0.f) continue;
            for (unsigned s = w.first; s <= w.last; ++s) {
                const float share = by_row * weight(g.resize, w, s);
                if (share == 0.f) continue;
                float v[V];
                load_all(source, ((r - top) * source_columns + s - left) * t.channels + k, v);
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] += v[e] * share;
            }
        }
        const size_t row = size_t(tile.image) * g.h.to + tile.row + i;
        store_all(y, (row * g.w.to + tile.column + j) * g.c + tile.channel + k, sum);
    }
}

struct Range {
    unsigned start, end;
};

// Destination pixels that may read source pixel `i`, a few too many where the ratio is no whole number.
__device__ __forceinline__ Range readers(int resize, const ResizedAxis& a, unsigned i) {
    if (resize == NEAREST || resize == AREA) {
        return {i * a.to / a.from, min(((i + 1) * a.to + a.from - 1) / a.from, a.to)};
    }
    // Both bilinear rules read pixels i − 1 to i + 1 only from places of which the source coordinate is
    // between them; the destination's steps per source pixel are 1 / ratio.
    if (a.ratio == 0.f) return {0, a.to};
    const float shift = resize == BILINEAR ? .5f : 0.f;
    const float low = (float(i) - 1.f + shift) / a.ratio - shift;
    const float high = (float(i) + 1.f + shift) / a.ratio - shift;
    const unsigned start = low < 1.f ? 0 : unsigned(low) - 1;
    // The last source pixel stands for all that is beyond.
    const unsigned end = i + 1 == a.from ? a.to : min(unsigned(high) + 2, a.to);
    return {min(start, a.to), end};
}

template <int V>
__device__ __forceinline__ void backward_direct(const Real& dy, const Real& dx, const Geometry& g) {
    const unsigned per_pixel = g.c / V, place = place_in_row();
    const unsigned x = place / per_pixel;
    if (x >= g.w.from) return;
    const unsigned channel = (place - x * per_pixel) * V;
    const Range js = readers(g.resize, g.w, x);
    for (unsigned row = first_row(); row < g.n * g.h.from; row += row_step()) {
        const unsigned n = row / g.h.from;
        const unsigned h = row - n * g.h.from;
        const Range is = readers(g.resize, g.h, h);
        float sum[V] = {};
        for (unsigned i = is.start; i < is.end; ++i) {
            const float by_row = weight(g.resize, taps(g.resize, g.h, i), h);
            if (by_row == 0.f) continue;
            for (unsigned j = js.start; j < js.end; ++j) {
                const float share = by_row * weight(g.resize, taps(g.resize, g.w, j), x);
                if (share == 0.f) continue;
                float v[V];
                load_all(dy, ((size_t(n) * g.h.to + i) * g.w.to + j) * g.c + channel, v);
#pragma unroll
                for (int k = 0; k < V; ++k) sum[k] += v[k] * share;
            }
        }
        store_all(dx, (size_t(row) * g.w.from + x) * g.c + channel, sum);
    }
}

// Those of `size` source pixels from `first` on, without the few too many at both ends.
__device__ __forceinline__ Range readers_of(int resize, const ResizedAxis& a, unsigned first, unsigned size) {
    const unsigned last = first + size - 1;
    Range r = {readers(resize, a, first).start, readers(resize, a, last).end};
    // A last tap that weighs nothing is none.
    while (r.start < r.end && taps(resize, a, r.start).last <= first &&
           weight(resize, taps(resize, a, r.start), first) == 0.f) {
        ++r.start;
    }
    while (r.start < r.end && taps(resize, a, r.end - 1).first > last) --r.end;
    return r;
}

template <int V, class T>
__device__ __forceinline__ void backward_tile(const T* dy, const Real& dx, const Geometry& g, const Tiling& t) {
    T* source = reinterpret_cast<T*>(slab);
    const Tile tile(t, g.c);
    const int rows = min(t.rows, int(g.h.from) - tile.row);
    const int columns = min(t.columns, int(g.w.from) - tile.column);
    const Range all_rows = readers_of(g.resize, g.h, tile.row, rows);
    const Range all_columns = readers_of(g.resize, g.w, tile.column, columns);
    const unsigned top = all_rows.start, left = all_columns.start, pitch = all_columns.end - left;
    stage<V>(source, dy + size_t(tile.image) * g.h.to * g.w.to * g.c, top, left, all_rows.end - top, pitch, g.h.to,
             g.w.to, g.c, tile.channel, tile.channels, t.channels);
    staged();
    const int vectors = tile.channels / V;
    for (int item = threadIdx.x; item < rows * columns * vectors; item += TILE_THREADS) {
        const int pixel = item / vectors, k = (item - pixel * vectors) * V;
        const int y = pixel / columns, h = tile.row + y, x = tile.column + pixel - y * columns;
        const Range is = readers(g.resize, g.h, h), js = readers(g.resize, g.w, x);
        float sum[V] = {};
        for (unsigned i = is.start; i < is.end; ++i) {
            const float by_row = weight(g.resize, taps(g.resize, g.h, i), h);
            if (by_row == 0.f) continue;
            for (unsigned j = js.start; j < js.end; ++j) {
                const float share = by_row * weight(g.resize, taps(g.resize, g.w, j), x);
                if (share == 0.f) continue;
                float v[V];
                load_all(source, ((i - top) * pitch + j - left) * t.channels + k, v);
#pragma unroll
                for (int e = 0; e < V; ++e) sum[e] += v[e] * share;
            }
        }
        const size_t row = size_t(tile.image) * g.h.from + h;
        store_all(dx, (row * g.w.from + x) * g.c + tile.channel + k, sum);
    }
}

#define RESIZE(V)                                                                                         \
    extern "C" __global__ __launch_bounds__(256, 2) void resize_##V(Real x, Real y, Geometry g, Tiling t) { \
        if (x.type == F16) {                                                                              \
            resize_tile<V>(static_cast<const __half*>(x.data), y, g, t);                                  \
        } else {                                                                                          \
            resize_tile<V>(static_cast<const float*>(x.data), y, g, t);                                   \
        }                                                                                                 \
    }                                                                                                     \
    extern "C" __global__ __launch_bounds__(256, 2) void resize_backward_##V(Real dy, Real dx, Geometry g, \
                                                                             Tiling t) {                  \
        if (dy.type == F16) {                                                                             \
            backward_tile<V>(static_cast<const __half*>(dy.data), dx, g, t);                              \
        } else {                                                                                          \
            backward_tile<V>(static_cast<const float*>(dy.data), dx, g, t);                               \
        }                                                                                                 \
    }

RESIZE(8)
RESIZE(4)
RESIZE(1)

extern "C" __global__ __launch_bounds__(256, 2) void resize_direct_1(Real x, Real y, Geometry g) {
    resize_direct<1>(x, y, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void resize_backward_direct_1(Real dy, Real dx, Geometry g) {
    backward_direct<1>(dy, dx, g);
}
