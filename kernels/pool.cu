// Pooling and its gradient.
//
//   y(n, i, j, c) = max or mean of x over the window's pixels inside the picture
//   dx(n, h, w, c) = Σ over the windows that cover (h, w) of dy·share
//
// x: N×H×W×C, y and dy: N×OH×OW×C, fp16 or fp32. A thread takes V channels of one pixel; see rows.cuh
// for the launch. The axes have windows of their own, because the mean (and the maximum) of a large
// window is taken in two launches, along rows and then along columns: the pixels inside a window are a
// rectangle, so the mean of means is the mean. Its gradient goes the same way.
//
// The maximum's gradient is two launches: the place of each window's first maximum, then a gather. Only
// then no sum depends on the order in which blocks run.
//
// Global bytes per output: those of x the window shares with no other, and of y; per output size_h·size_w
// operations.
#include "rows.cuh"

constexpr int MAX = 0;

struct Axis {
    int from, to;              // pixels of x and of y
    int size, stride, pad;
};

struct Geometry {
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

template <int V>
__device__ __forceinline__ void pool(const Real& x, const Real& y, const Geometry& g, int kind) {
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

// The mean's gradient: each window gives every pixel inside the same share.
template <int V>
__device__ __forceinline__ void pool_backward_mean(const Real& dy, const Real& dx, const Geometry& g) {
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

extern "C" __global__ __launch_bounds__(256, 2) void pool_8(Real x, Real y, Geometry g, int kind) {
    pool<8>(x, y, g, kind);
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_4(Real x, Real y, Geometry g, int kind) {
    pool<4>(x, y, g, kind);
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_1(Real x, Real y, Geometry g, int kind) {
    pool<1>(x, y, g, kind);
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_mean_8(Real dy, Real dx, Geometry g) {
    pool_backward_mean<8>(dy, dx, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_mean_4(Real dy, Real dx, Geometry g) {
    pool_backward_mean<4>(dy, dx, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_mean_1(Real dy, Real dx, Geometry g) {
    pool_backward_mean<1>(dy, dx, g);
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
extern "C" __global__ __launch_bounds__(256, 2) void pool_backward_max(const int* first, Real dy, Real dx,
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
