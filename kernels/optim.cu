// Steps that write parameters in place.
//
//   adam             g' = g scale;  m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2
//                    p = p - lr decay p;  p = p - lr (m / c1) / (sqrt(v / c2) + eps)
//   moving_average   r = r + momentum (n - r), n of the second half times a factor
//
// Shapes    everything fp32, len elements; rate is lr, c1, c2; scale one number; shadow, the fp16 copy of
//           p that convolutions read, may be null
// Geometry  block 256, a thread 4 elements (adam: 16 bytes of each array) or 1
//
// The decisions that surprise:
// * Where scale is 0 or not finite nothing is written: that is how a step is skipped whose gradients
//   left fp16's range. Nor is an element written whose new v would not be finite: one such gradient
//   would stay in the moments for good.
// * The fp16 copy is written here and not converted before use: p is in registers already.
//
// Cost per element of adam: 16 B read, 12 B written and 2 B of the copy; 15 FLOP, two divisions and a
// root. Bound by memory.

#include "vector.cuh"

constexpr int BLOCK = 256;

__device__ __forceinline__ size_t thread_number() {
    return static_cast<size_t>(blockIdx.x) * BLOCK + threadIdx.x;
}

__device__ __forceinline__ bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// Mirrors `adam` of src/engine/cuda/optim.rs.
struct Adam {
    float beta1, beta2, eps, weight_decay;
};

extern "C" __global__ void __launch_bounds__(BLOCK)
    adam(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ m,
         float* __restrict__ v, const float* __restrict__ rate, const float* __restrict__ scale,
         __half* __restrict__ shadow, size_t len, Adam a) {
    const size_t i = thread_number() * 4;
    const float s = *scale;
    if (i >= len || s == 0.f || !is_finite(s)) return;
    const float lr = rate[0], correction1 = rate[1], correction2 = rate[2];
    float p[4], g[4], first[4], second[4];
    load_some(param, i, len, p);
    load_some(grad, i, len, g);
    load_some(m, i, len, first);
    load_some(v, i, len, second);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float scaled = g[j] * s;
        const float new_first = a.beta1 * first[j] + (1.f - a.beta1) * scaled;
        const float new_second = a.beta2 * second[j] + (1.f - a.beta2) * scaled * scaled;
        if (is_finite(new_second)) {
            first[j] = new_first;
            second[j] = new_second;
            p[j] -= lr * a.weight_decay * p[j];
            p[j] -= lr * (new_first / correction1) / (sqrtf(new_second / correction2) + a.eps);
        }
    }
    store_some(param, i, len, p);
    store_some(m, i, len, first);
    store_some(v, i, len, second);
    if (shadow != nullptr) store_some(shadow, i, len, p);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    moving_average(float* __restrict__ running, const float* __restrict__ fresh, __half* __restrict__ shadow,
                   size_t len, float momentum, float variance_factor) {
    const size_t i = thread_number();
    if (i >= len) return;
    const float n = i < len / 2 ? fresh[i] : fresh[i] * variance_factor;
    const float r = running[i] + momentum * (n - running[i]);
    running[i] = r;
    if (shadow != nullptr) shadow[i] = __float2half_rn(r);
}
