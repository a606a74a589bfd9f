// Which source pixels a destination pixel of a resized axis reads, and how much each weighs; the twin of
// `taps` in src/engine/cpu/reference/spatial.rs, rounding included.
#pragma once

#include "common.cuh"

constexpr int NEAREST = 0, BILINEAR = 1, BILINEAR_ALIGNED = 2, AREA = 3;

struct ResizedAxis {
    unsigned from, to;
    float ratio;               // source pixels per step of the destination
};

// Pixels first … last. Bilinear: `first` weighs 1 − fraction and `last` fraction; all others share alike.
struct Taps {
    unsigned first, last;
    float fraction;
};

__device__ __forceinline__ Taps taps(int resize, const ResizedAxis& a, unsigned out) {
    if (resize == NEAREST) {
        const unsigned i = min(out * a.from / a.to, a.from - 1);
        return {i, i, 0.f};
    }
    if (resize == AREA) return {out * a.from / a.to, ((out + 1) * a.from + a.to - 1) / a.to - 1, 0.f};
    // No fused multiply-add: it would put whole pixels a hair beside themselves.
    const float at = resize == BILINEAR ? fmaxf(__fadd_rn(__fmul_rn(out + .5f, a.ratio), -.5f), 0.f)
                                        : __fmul_rn(float(out), a.ratio);
    const unsigned i = min(unsigned(at), a.from - 1);
    // Beyond the last pixel there is only that.
    if (i + 1 == a.from) return {i, i, 0.f};
    return {i, i + 1, fminf(fmaxf(at - float(i), 0.f), 1.f)};
}

// What source pixel `i` weighs in a destination pixel of these taps.
__device__ __forceinline__ float weight(int resize, const Taps& t, unsigned i) {
    if (i < t.first || i > t.last) return 0.f;
    if (resize == NEAREST || resize == AREA) return 1.f / float(t.last - t.first + 1);
    return (i == t.first ? 1.f - t.fraction : 0.f) + (i == t.last ? t.fraction : 0.f);
}
