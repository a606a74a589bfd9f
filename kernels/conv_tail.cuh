// What follows a convolution's sum: tail(v) = act(v + bias[channel] + residual[element]), stored as fp16
// or fp32. Null pointers leave a term out.
#pragma once

#include "activate.cuh"

// Four neighbouring results at element `at`, channel `channel`, both multiples of four: tail and store.
__device__ __forceinline__ void finish4(float4 v, size_t at, int channel, const float* bias,
                                        const __half* residual, void* out, int act, int out_f32) {
    if (bias) {
        const float4 b = *reinterpret_cast<const float4*>(bias + channel);
        v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
    }
    if (residual) {
        const ushort4 r = *reinterpret_cast<const ushort4*>(residual + at);
        v.x += __half2float(__ushort_as_half(r.x)), v.y += __half2float(__ushort_as_half(r.y));
        v.z += __half2float(__ushort_as_half(r.z)), v.w += __half2float(__ushort_as_half(r.w));
    }
    if (act) v = make_float4(activate(v.x, act), activate(v.y, act), activate(v.z, act), activate(v.w, act));
    if (out_f32) {
        *reinterpret_cast<float4*>(static_cast<float*>(out) + at) = v;
    } else {
        const __half2 lo = __floats2half2_rn(v.x, v.y), hi = __floats2half2_rn(v.z, v.w);
        *reinterpret_cast<uint2*>(static_cast<__half*>(out) + at) =
            make_uint2(*reinterpret_cast<const u32*>(&lo), *reinterpret_cast<const u32*>(&hi));
    }
}

__device__ __forceinline__ void finish1(float v, size_t at, int channel, const float* bias,
                                        const __half* residual, void* out, int act, int out_f32) {
    if (bias) v += bias[channel];
    if (residual) v += __half2float(residual[at]);
    v = activate(v, act);
    if (out_f32) {
        static_cast<float*>(out)[at] = v;
    } else {
        static_cast<__half*>(out)[at] = __float2half_rn(v);
    }
}
