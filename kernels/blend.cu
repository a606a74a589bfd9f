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
// Cost per pixel: 19 B read, 6 B written by blend; some 20 operations.
#include "paint.cuh"

constexpr int BLOCK = 256;

struct Normal {
    float mean[3], deviation[3];
};

// P as it is painted: without colour, where good pictures have none.
__device__ __forceinline__ Pixel paint(const Plan& plan, const float* even, const float* odd, size_t at) {
    Pixel p = pixel(plan.steps % 2 ? odd : even, at);
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
    const Plan& plan = plans[blockIdx.y];
    if (plan.base == 0) return;
    const u32 place = blockIdx.x * BLOCK + threadIdx.x;
    const size_t at = size_t(blockIdx.y) * pixels + place;
    // At most 3·2²⁴ a pixel: a block's sum has 34 bits.
    unsigned long long changed = 0, weight = 0;
    const Exact mask = place < pixels ? masks[at] : 0.f;
    if (mask > 0.f) {
        const Exact alpha = Exact(plan.opacity) * mask;
        const Pixel from = pixel(pictures, at), to = paint(plan, even, odd, at);
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
    const Plan& plan = plans[blockIdx.y];
    const u32 place = blockIdx.x * BLOCK + threadIdx.x;
    if (place >= pixels) return;
    const size_t at = size_t(blockIdx.y) * pixels + place;
    Pixel p = pixel(pictures, at);
    const Exact mask = masks[at];
    if (mask > 0.f) {
        const Exact alpha = Exact(plan.opacity) * mask;
        const Pixel to = paint(plan, even, odd, at);
#pragma unroll
        for (int c = 0; c < 3; ++c) p.c[c] = p.c[c] + alpha * (to.c[c] - p.c[c]);
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        out[3 * at + c] = __float2half_rn(((p.c[c] - normal.mean[c]) / normal.deviation[c]).v);
    }
}
