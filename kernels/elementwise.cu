// Pointwise operations, stretching and conversions.
//
//   convert    y = x in the other storage
//   fill       y = value
//
// Shapes    x, y   len elements, fp16 or fp32, 16-byte aligned
// Geometry  block 256, a thread takes 4 consecutive elements, the last one what is left
//
// The decision that surprises: where one side is fp32, a thread takes 4 elements, not 8: its load is
// then 16 bytes and neighbouring lanes' loads touch. With 8 each load would leave every second
// 16 bytes to the next instruction.
//
// Cost per output: convert 6 B, fill 2 or 4 B. Bound by memory.

#include "vector.cuh"

constexpr int BLOCK = 256;

__device__ __forceinline__ size_t thread_number() {
    return static_cast<size_t>(blockIdx.x) * BLOCK + threadIdx.x;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    convert_f32_f16(const float* __restrict__ x, __half* __restrict__ y, size_t len) {
    const size_t i = thread_number() * 4;
    if (i >= len) return;
    float v[4];
    load_some(x, i, len, v);
    store_some(y, i, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    convert_f16_f32(const __half* __restrict__ x, float* __restrict__ y, size_t len) {
    const size_t i = thread_number() * 4;
    if (i >= len) return;
    float v[4];
    load_some(x, i, len, v);
    store_some(y, i, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK) fill(Real y, float value, size_t len) {
    const size_t i = thread_number() * 4;
    if (i >= len) return;
    const float v[4] = {value, value, value, value};
    store_some(y, i, len, v);
}
