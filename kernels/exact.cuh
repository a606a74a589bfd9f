// fp32 arithmetic as the CPU does it: every operation rounds, no product is fused with the sum it goes
// into. Kernels whose results decide something (which side of a threshold a pixel falls on, whether a
// picture is drawn again) compute in this, so that both executors decide alike, to the last bit.
#pragma once

#include "common.cuh"

struct Exact {
    float v;
    __device__ __forceinline__ Exact() {}
    __device__ __forceinline__ Exact(float v) : v(v) {}
    __device__ __forceinline__ explicit operator float() const { return v; }
};

__device__ __forceinline__ Exact operator+(Exact a, Exact b) { return __fadd_rn(a.v, b.v); }
__device__ __forceinline__ Exact operator-(Exact a, Exact b) { return __fsub_rn(a.v, b.v); }
__device__ __forceinline__ Exact operator*(Exact a, Exact b) { return __fmul_rn(a.v, b.v); }
__device__ __forceinline__ Exact operator/(Exact a, Exact b) { return __fdiv_rn(a.v, b.v); }
__device__ __forceinline__ bool operator<(Exact a, Exact b) { return a.v < b.v; }
__device__ __forceinline__ bool operator>(Exact a, Exact b) { return a.v > b.v; }
__device__ __forceinline__ bool operator<=(Exact a, Exact b) { return a.v <= b.v; }
__device__ __forceinline__ bool operator>=(Exact a, Exact b) { return a.v >= b.v; }
__device__ __forceinline__ bool operator==(Exact a, Exact b) { return a.v == b.v; }

__device__ __forceinline__ Exact least(Exact a, Exact b) { return fminf(a.v, b.v); }
__device__ __forceinline__ Exact most(Exact a, Exact b) { return fmaxf(a.v, b.v); }
__device__ __forceinline__ Exact unit(Exact x) { return fminf(fmaxf(x.v, 0.f), 1.f); }
__device__ __forceinline__ Exact mix(Exact a, Exact b, Exact t) { return a + (b - a) * t; }

// x mod d in [0, d], d > 0, |x / d| < 2^22: Rust's rem_euclid. What is left of a division is always a
// number of fp32, so that the fused product below is exact; the quotient may be one too many or too few.
__device__ __forceinline__ Exact modulo(Exact x, Exact d) {
    float k = truncf(__fdiv_rn(x.v, d.v));
    float r = __fmaf_rn(-k, d.v, x.v);
    if (x.v >= 0.f && r < 0.f) r = __fmaf_rn(1.f - k, d.v, x.v);
    if (x.v < 0.f && r > 0.f) r = __fmaf_rn(-1.f - k, d.v, x.v);
    return r < 0.f ? Exact(r) + d : Exact(r);
}
