// Training anomalies painted on pictures; held to src/realnet/blend.rs, whose numbers these are to the
// last bit (and then rounded to fp16, as the network's input is).
//
//   A = (1 − M)⊙I + (1 − δ)·M⊙I + δ·M⊙P = I + δ·M⊙(P − I)
//
//   change  how much of I the paint changes, and the mask's weight, per block: Σ ⌊2²⁴·|δ·M·(P − I)|⌋ and
//           Σ 3·⌊2²⁴·M⌋. Too little a change is drawn again.
//   blend   (A − mean) / deviation, the network's input
//
// Shapes    I: N×S×S×3 u8; P: two buffers of N×S×S×3 fp32, each picture's in the one its plan says;
//           M: N×S×S fp32; sums N×blocks×2, u64; out N×S×S×3 fp16
// Geometry  a thread a pixel, block 256, grid (⌈S²/256⌉, N)
//
// The decision that surprises: A is computed twice, by change and by blend. Only when change was enough
// is there an A to keep; it goes straight to where the network reads it, inside the network's own CUDA
// graph, and is never stored otherwise. The sums are whole numbers, so their order does not matter.
//
// Cost per pixel: 19 B read, 6 B written by blend; some 20 operations. Paint is read by the warps of whose
// 32 pixels the mask touches one.
#include "paint.cuh"

constexpr int BLOCK = 256;

struct Normal {
    float mean[3], deviation[3];
};

// P as it is painted: without colour, where good pictures have none. Of a warp's pixels; every lane comes here.
__device__ __forceinline__ Pixel paint(const Plan& plan, const float* even, const float* odd, size_t first,
                                       u32 count, Shuffled<float>& shuffled) {
    Pixel p = shuffled.get(plan.steps % 2 ? odd : even, first, count);
    if (plan.grey) {
        const Exact grey = Exact(.299f) * p.c[0] + Exact(.587f) * p.c[1] + Exact(.114f) * p.c[2];
        p = {{grey, grey, grey}};
    }
    return p;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    change(const Plan* __restrict__ plans, const u8* __restrict__ pictures, const float* __restrict__ even,
           const float* __restrict__ odd, const float* __restrict__ masks, unsigned long long* __restrict__ sums,
           u32 pixels) {
    __shared__ Plan plan;
    __shared__ Shuffled<float> paints[BLOCK / 32];
    __shared__ Shuffled<u8> bytes[BLOCK / 32];
    bring(plan, plans[blockIdx.y]);
    if (plan.base == 0) return;
    const u32 place = blockIdx.x * BLOCK + threadIdx.x, warp = threadIdx.x / 32;
    const u32 begin = place - threadIdx.x % 32, count = of_warp(begin, pixels);
    const size_t at = size_t(blockIdx.y) * pixels + place, first = size_t(blockIdx.y) * pixels + begin;
    // At most 3·2²⁴ a pixel: a block's sum has 34 bits.
    unsigned long long changed = 0, weight = 0;
    const Exact mask = place < pixels ? masks[at] : 0.f;
    if (__any_sync(FULL_WARP, mask > 0.f)) {
        const Exact alpha = Exact(plan.opacity) * mask;
        const Pixel from = bytes[warp].get(pictures, first, count);
        const Pixel to = paint(plan, even, odd, first, count, paints[warp]);
        // Where the mask is zero, so is what is added.
#pragma unroll
        for (int c = 0; c < 3; ++c) changed += u32(fabsf((alpha * (to.c[c] - from.c[c])).v) * 16777216.f);
        weight = 3 * u32(mask.v * 16777216.f);
    }
    __shared__ unsigned long long warps[2][BLOCK / 32];
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        changed += __shfl_down_sync(FULL_WARP, changed, offset);
        weight += __shfl_down_sync(FULL_WARP, weight, offset);
    }
    if (threadIdx.x % 32 == 0) warps[0][threadIdx.x / 32] = changed, warps[1][threadIdx.x / 32] = weight;
    __syncthreads();
    if (threadIdx.x < 2) {
        unsigned long long sum = 0;
        for (int w = 0; w < BLOCK / 32; ++w) sum += warps[threadIdx.x][w];
        sums[(size_t(blockIdx.y) * gridDim.x + blockIdx.x) * 2 + threadIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    blend(const Plan* __restrict__ plans, const u8* __restrict__ pictures, const float* __restrict__ even,
          const float* __restrict__ odd, const float* __restrict__ masks, __half* __restrict__ out, Normal normal,
          u32 pixels) {
    __shared__ Plan plan;
    __shared__ Shuffled<float> paints[BLOCK / 32];
    __shared__ Shuffled<u8> bytes[BLOCK / 32];
    __shared__ Shuffled<__half> halves[BLOCK / 32];
    bring(plan, plans[blockIdx.y]);
    const u32 place = blockIdx.x * BLOCK + threadIdx.x, warp = threadIdx.x / 32;
    const u32 begin = place - threadIdx.x % 32, count = of_warp(begin, pixels);
    const size_t at = size_t(blockIdx.y) * pixels + place, first = size_t(blockIdx.y) * pixels + begin;
    Pixel p = bytes[warp].get(pictures, first, count);
    const Exact mask = place < pixels ? masks[at] : 0.f;
    if (__any_sync(FULL_WARP, mask > 0.f)) {
        const Exact alpha = Exact(plan.opacity) * mask;
        const Pixel to = paint(plan, even, odd, first, count, paints[warp]);
        if (mask > 0.f) {
#pragma unroll
            for (int c = 0; c < 3; ++c) p.c[c] = p.c[c] + alpha * (to.c[c] - p.c[c]);
        }
    }
    __half o[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) o[c] = __float2half_rn(((p.c[c] - normal.mean[c]) / normal.deviation[c]).v);
    halves[warp].put(out, first, count, o[0], o[1], o[2]);
}
