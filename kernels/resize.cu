// Resizing pictures (nearest, bilinear, bilinear with aligned corners, area) and the adjoint.
//
//   y(n, i, j, c) = Σ x(n, h, w, c)·weight(h, i)·weight(w, j),   dx(n, h, w, c) the same sum over i, j
//
// x: N×H×W×C, y: N×OH×OW×C, fp16 or fp32. A thread takes V channels of one pixel; see rows.cuh for the
// launch. The gradient is a gather, so nothing depends on the order of blocks: a thread walks over the
// destination pixels that may have read its source pixel and asks each of them for its weight. Large
// ratios are two launches, along rows and then along columns, with an axis that stays in each.
//
// Global bytes: x and y once; up to four multiplications an output forward (bilinear).
#include "rows.cuh"
#include "taps.cuh"

struct Geometry {
    int n, c, resize;
    ResizedAxis h, w;
};

template <int V>
__device__ __forceinline__ void resize(const Real& x, const Real& y, const Geometry& g) {
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
__device__ __forceinline__ void resize_backward(const Real& dy, const Real& dx, const Geometry& g) {
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

extern "C" __global__ __launch_bounds__(256, 2) void resize_8(Real x, Real y, Geometry g) {
    resize<8>(x, y, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void resize_4(Real x, Real y, Geometry g) {
    resize<4>(x, y, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void resize_1(Real x, Real y, Geometry g) {
    resize<1>(x, y, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void resize_backward_8(Real dy, Real dx, Geometry g) {
    resize_backward<8>(dy, dx, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void resize_backward_4(Real dy, Real dx, Geometry g) {
    resize_backward<4>(dy, dx, g);
}

extern "C" __global__ __launch_bounds__(256, 2) void resize_backward_1(Real dy, Real dx, Geometry g) {
    resize_backward<1>(dy, dx, g);
}
