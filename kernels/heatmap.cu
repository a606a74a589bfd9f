// From the head's logits to what a person and a PLC see.
//
//   heatmap_difference    d(n, y, x) = l₁ − l₀
//   heatmap_map           p(n, i, j) = Σ σ(l₁ − l₀)(y, x)·weight(y, i)·weight(x, j): the softmax of two logits,
//                         then resized (taps.cuh)
//   heatmap_largest_mean  parts(n, tile) = the largest mean of a size×size window that begins in the tile
//   heatmap_score         score(n) = the largest of parts(n, ·)
//   heatmap_colour        rgb(i) = ramp(round(255·p(i)))
//
// Shapes: logits N×H×W×2, fp16 or fp32, channel 1 is "anomalous"; d and p fp32; parts and score fp32; ramp 256
// and rgb packed r, g, b.
//
// Geometry: difference and map share rows out as rows.cuh says, a pixel a thread. largest_mean: a block of 256
// takes 32×32 windows, grid (tiles, 1, n); a warp brings a row's pixels to shared memory and sums them up for 32
// windows, then columns of these sums are summed. score: a block a picture; with one tile it is not needed.
// colour: four pixels a thread.
//
// The decisions that surprise:
// * What is not a number stays none and wins: fmaxf() would ignore it, and a broken network score as a good
//   part. In colours it is the ramp's end, as what is certainly anomalous.
// * The maximum goes over one value a tile and a second launch, not atomics: nothing has to be initialised
//   before a replayed graph, and the same input gives the same bits.
//
// Cost per output: map 4 B written, four logit pairs read from L1, four exp, 30 FLOP. largest_mean
// (47/32)² = 2.2 pixels of 4 B read at size 16, 32 additions: a map of 256×256 is 256 KB and lies in L2, larger
// tiles would leave most of the GPU without any. colour 4 B read, 3 B written. All together some
// microseconds, bound by launch latency.

#include "rows.cuh"
#include "taps.cuh"

constexpr int BLOCK = 256;
constexpr int WARPS = BLOCK / 32;
constexpr int TILE = 32;                  // windows a block, each way

__device__ __forceinline__ float difference(const Real& logits, size_t pixel) {
    if (logits.type == F16) {
        const float2 l = __half22float2(static_cast<const __half2*>(logits.data)[pixel]);
        return l.y - l.x;
    }
    const float2 l = static_cast<const float2*>(logits.data)[pixel];
    return l.y - l.x;
}

// The larger of both; not a number if either is none.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// The largest of the block's values, in thread 0. All threads must call it, once.
__device__ __forceinline__ float largest_of_block(float x) {
    __shared__ float warps[WARPS];
    for (int offset = 16; offset > 0; offset >>= 1) x = larger(x, __shfl_xor_sync(FULL_WARP, x, offset));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < WARPS; ++i) x = larger(x, warps[i]);
    }
    return x;
}

extern "C" __global__ void __launch_bounds__(BLOCK) heatmap_difference(Real logits, float* d, u32 count) {
    const u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) d[i] = difference(logits, i);
}

struct Map {
    int n, resize;
    ResizedAxis h, w;
};

extern "C" __global__ void __launch_bounds__(BLOCK) heatmap_map(Real logits, float* p, Map g) {
    const unsigned j = place_in_row();
    if (j >= g.w.to) return;
    const Taps w = taps(g.resize, g.w, j);
    for (unsigned row = first_row(); row < g.n * g.h.to; row += row_step()) {
        const unsigned n = row / g.h.to;
        const Taps h = taps(g.resize, g.h, row - n * g.h.to);
        float sum = 0.f;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            const float share = (corner & 2 ? h.fraction : 1.f - h.fraction) *
                                (corner & 1 ? w.fraction : 1.f - w.fraction);
            // A tap that weighs nothing is not read.
            if (share == 0.f) continue;
            const size_t y = size_t(n) * g.h.from + (corner & 2 ? h.last : h.first);
            const float d = difference(logits, y * g.w.from + (corner & 1 ? w.last : w.first));
            sum += share * (1.f / (1.f + expf(-d)));
        }
        p[size_t(row) * g.w.to + j] = sum;
    }
}

struct Windows {
    int height, width, size, across;      // of the map; tiles in a row
    float scale;                          // 1 / size²
};

// Dynamic shared memory: (31 + size)·(WARPS + TILE) floats.
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_largest_mean(const float* __restrict__ p, float* __restrict__ parts, Windows g) {
    extern __shared__ float memory[];
    const int halo = TILE - 1 + g.size;
    float* pixels = memory + threadIdx.x / 32 * halo;  // [WARPS][halo]
    float* sums = memory + WARPS * halo;               // [halo][TILE]
    const int lane = threadIdx.x % 32;

    const int tile = blockIdx.x, down = tile / g.across;
    const int left = (tile - down * g.across) * TILE, top = down * TILE;
    const int columns = min(halo, g.width - left), rows = min(halo, g.height - top);
    const float* picture = p + size_t(blockIdx.z) * g.height * g.width;
    for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
        const float* row = picture + size_t(top + r) * g.width + left;
        for (int c = lane; c < halo; c += 32) pixels[c] = c < columns ? row[c] : 0.f;
        __syncwarp();
        float sum = 0.f;
        for (int k = 0; k < g.size; ++k) sum += pixels[lane + k];
        sums[r * TILE + lane] = sum;
        __syncwarp();
    }
    __syncthreads();

    float largest = NEG_INF;
    // Only whole windows inside the map count.
    if (lane + g.size <= columns) {
        for (int r = threadIdx.x / 32; r < TILE && r + g.size <= rows; r += WARPS) {
            float sum = 0.f;
            for (int k = 0; k < g.size; ++k) sum += sums[(r + k) * TILE + lane];
            largest = larger(largest, sum);
        }
    }
    largest = largest_of_block(largest);
    if (threadIdx.x == 0) parts[size_t(blockIdx.z) * gridDim.x + tile] = largest * g.scale;
}

// grid n
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_score(const float* __restrict__ parts, float* __restrict__ score, int tiles) {
    parts += size_t(blockIdx.x) * tiles;
    float largest = NEG_INF;
    for (int i = threadIdx.x; i < tiles; i += BLOCK) largest = larger(largest, parts[i]);
    largest = largest_of_block(largest);
    if (threadIdx.x == 0) score[blockIdx.x] = largest;
}

// grid ceil(count / 1024). `p` and `rgb` are aligned to 16 bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_colour(const float* __restrict__ p, const u8* __restrict__ ramp, u8* __restrict__ rgb, u32 count) {
    __shared__ u32 colours[256];
    {
        const u32 i = threadIdx.x;
        colours[i] = ramp[3 * i] | ramp[3 * i + 1] << 8 | ramp[3 * i + 2] << 16;
    }
    __syncthreads();
    // Red lowest.
    const auto colour = [&](float value) {
        const float level = value == value ? fminf(fmaxf(value, 0.f), 1.f) : 1.f;
        return colours[static_cast<u32>(roundf(level * 255.f))];
    };
    const size_t first = 4 * (size_t(blockIdx.x) * BLOCK + threadIdx.x);
    if (first + 4 <= count) {
        const float4 v = *reinterpret_cast<const float4*>(p + first);
        const u32 c0 = colour(v.x), c1 = colour(v.y), c2 = colour(v.z), c3 = colour(v.w);
        u32* words = reinterpret_cast<u32*>(rgb + 3 * first);
        words[0] = c0 | c1 << 24;
        words[1] = c1 >> 8 | c2 << 16;
        words[2] = c2 >> 16 | c3 << 8;
        return;
    }
    for (size_t i = first; i < count; ++i) {
        const u32 c = colour(p[i]);
        u8* pixel = rgb + 3 * i;
        pixel[0] = c & 0xff;
        pixel[1] = c >> 8 & 0xff;
        pixel[2] = c >> 16;
    }
}
