// Consecutive values of a tensor in one access: V elements as floats, from an index that is a multiple
// of V in an array that is aligned to V elements. The `_some` twins take the end of the array into
// account: what lies beyond reads as 0 and is not written.
#pragma once

#include "common.cuh"

// t / d, with the rest; in 32 bits where they do: dividing 64 bits costs some hundred instructions.
__device__ __forceinline__ size_t divide(size_t t, size_t d, size_t& rest) {
    if (((t | d) >> 32) == 0) {
        const u32 quotient = static_cast<u32>(t) / static_cast<u32>(d);
        rest = static_cast<u32>(t) - quotient * static_cast<u32>(d);
        return quotient;
    }
    const size_t quotient = t / d;
    rest = t - quotient * d;
    return quotient;
}

template <int V>
__device__ __forceinline__ void load_all(const __half* x, size_t i, float (&v)[V]) {
    static_assert(V == 1 || V == 4 || V == 8, "one access");
    if constexpr (V == 1) {
        v[0] = __half2float(x[i]);
    } else if constexpr (V == 4) {
        const uint2 raw = *reinterpret_cast<const uint2*>(x + i);
        const __half* h = reinterpret_cast<const __half*>(&raw);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = __half2float(h[j]);
    } else {
        const uint4 raw = *reinterpret_cast<const uint4*>(x + i);
        const __half* h = reinterpret_cast<const __half*>(&raw);
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = __half2float(h[j]);
    }
}

template <int V>
__device__ __forceinline__ void load_all(const float* x, size_t i, float (&v)[V]) {
    static_assert(V == 1 || V % 4 == 0, "whole float4");
    if constexpr (V == 1) {
        v[0] = x[i];
    } else {
#pragma unroll
        for (int j = 0; j < V; j += 4) {
            const float4 f = *reinterpret_cast<const float4*>(x + i + j);
            v[j] = f.x, v[j + 1] = f.y, v[j + 2] = f.z, v[j + 3] = f.w;
        }
    }
}

template <int V>
__device__ __forceinline__ void store_all(__half* y, size_t i, const float (&v)[V]) {
    static_assert(V == 1 || V == 4 || V == 8, "one access");
    if constexpr (V == 1) {
        y[i] = __float2half_rn(v[0]);
    } else if constexpr (V == 4) {
        uint2 raw;
        __half2* h = reinterpret_cast<__half2*>(&raw);
#pragma unroll
        for (int j = 0; j < 2; ++j) h[j] = __floats2half2_rn(v[2 * j], v[2 * j + 1]);
        *reinterpret_cast<uint2*>(y + i) = raw;
    } else {
        uint4 raw;
        __half2* h = reinterpret_cast<__half2*>(&raw);
#pragma unroll
        for (int j = 0; j < 4; ++j) h[j] = __floats2half2_rn(v[2 * j], v[2 * j + 1]);
        *reinterpret_cast<uint4*>(y + i) = raw;
    }
}

template <int V>
__device__ __forceinline__ void store_all(float* y, size_t i, const float (&v)[V]) {
    static_assert(V == 1 || V % 4 == 0, "whole float4");
    if constexpr (V == 1) {
        y[i] = v[0];
    } else {
#pragma unroll
        for (int j = 0; j < V; j += 4) {
            *reinterpret_cast<float4*>(y + i + j) = make_float4(v[j], v[j + 1], v[j + 2], v[j + 3]);
        }
    }
}

template <int V>
__device__ __forceinline__ void load_all(const Real& x, size_t i, float (&v)[V]) {
    if (x.type == F16) {
        load_all(static_cast<const __half*>(x.data), i, v);
    } else {
        load_all(static_cast<const float*>(x.data), i, v);
    }
}

template <int V>
__device__ __forceinline__ void store_all(const Real& y, size_t i, const float (&v)[V]) {
    if (y.type == F16) {
        store_all(static_cast<__half*>(y.data), i, v);
    } else {
        store_all(static_cast<float*>(y.data), i, v);
    }
}

template <class X, int V>
__device__ __forceinline__ void load_some(const X& x, size_t i, size_t len, float (&v)[V]) {
    if (i + V <= len) {
        load_all(x, i, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
        float one[1] = {0.f};
        if (i + j < len) load_all(x, i + j, one);
        v[j] = one[0];
    }
}

template <class Y, int V>
__device__ __forceinline__ void store_some(const Y& y, size_t i, size_t len, const float (&v)[V]) {
    if (i + V <= len) {
        store_all(y, i, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
        const float one[1] = {v[j]};
        if (i + j < len) store_all(y, i + j, one);
    }
}
