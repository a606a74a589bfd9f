// From the head's logits to what a person and a PLC see.
//
//   heatmap_probability   p[y][x] = softmax(bilinear(logits)(y, x))[1] = 1 / (1 + exp(-d)),
//                         d = bilinear(logits[1] - logits[0])
//   heatmap_box_max       block_max[b] = max over a tile of  1/256 * sum of a 16 x 16 window of p
//   heatmap_score         score = max over b of block_max[b]
//   heatmap_colour        rgb[i] = palette[round(255 p[i])]
//
// Shapes    logits     fp32 [height][width][2], channel 1 is "anomalous"
//           p          fp32 [out_height][out_width], in [0, 1]
//           block_max  fp32 [blocks of heatmap_box_max]
//           palette    256 x (r, g, b, unused) bytes; rgb packed bytes
//
// The decisions that surprise:
// * Interpolation is linear and a softmax of two is the sigmoid of a difference, so the difference is
//   taken first and one channel is interpolated, not two.
// * Which grid convention bilinear follows is the host's: source = destination * scale + offset.
//   Corners aligned (the paper's network): scale (in-1)/(out-1), offset 0. Pixel centres aligned:
//   scale in/out, offset scale/2 - 1/2.
// * Where d is not a number, p is 1. fmaxf() ignores NaN, so a broken network would otherwise score as
//   a good part.
// * The maximum goes over one value a block and a second launch, not atomics: nothing has to be
//   initialised before a replayed graph, and the same input gives the same bits.
// * The window is not padded (RealNet: 256 x 256 gives 241 x 241 means); a map must be at least 16 x 16.
//
// Cost per output of a 256 x 256 map: probability 4 B written, 12 FLOP and one exp (logits, 64 x 64 x 8 B,
// stay in L2); box 4 B read, 32 adds; colour 4 B read, 3 B written. Together 1 MB: some microseconds,
// bound by launch latency.

#include "common.cuh"

constexpr int BLOCK = 256;
constexpr int BOX = 16;
constexpr int TILE = 32;                  // means a block, each way
constexpr int HALO = TILE + BOX - 1;      // pixels that they cover
static_assert(BLOCK % TILE == 0, "the second pass gives each thread one column");

// ------------------------------------------------------------------------------------------------
// kernels

// grid (ceil(out_width / 256), out_height), block 256
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_probability(const float2* __restrict__ logits, float* __restrict__ p, int width, int height,
                        int out_width, float scale_x, float offset_x, float scale_y, float offset_y) {
    const int x = blockIdx.x * BLOCK + threadIdx.x;
    const int y = blockIdx.y;
    if (x >= out_width) return;

    const float sx = fminf(fmaxf(x * scale_x + offset_x, 0.f), static_cast<float>(width - 1));
    const float sy = fminf(fmaxf(y * scale_y + offset_y, 0.f), static_cast<float>(height - 1));
    const int x0 = static_cast<int>(sx), x1 = min(x0 + 1, width - 1);
    const int y0 = static_cast<int>(sy), y1 = min(y0 + 1, height - 1);
    const float fx = sx - x0, fy = sy - y0;

    const auto difference = [&](int row, int column) {
        const float2 l = logits[row * width + column];
        return l.y - l.x;
    };
    const float a = difference(y0, x0), b = difference(y0, x1);
    const float c = difference(y1, x0), d = difference(y1, x1);
    const float top = a + fx * (b - a);
    const float bottom = c + fx * (d - c);
    const float z = top + fy * (bottom - top);
    p[y * out_width + x] = z == z ? 1.f / (1.f + expf(-z)) : 1.f;
}

// grid (ceil((width - 15) / 32), ceil((height - 15) / 32)), block 256; one block_max per block, row by row.
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_box_max(const float* __restrict__ p, float* __restrict__ block_maxima, int width, int height) {
    // One column more than needed: the rows then start in different banks.
    __shared__ float pixels[HALO][HALO + 1];
    __shared__ float row_sums[HALO][TILE];

    const int left = blockIdx.x * TILE, top = blockIdx.y * TILE;
    const int columns = min(HALO, width - left), rows = min(HALO, height - top);
    for (int i = threadIdx.x; i < HALO * HALO; i += BLOCK) {
        const int r = i / HALO, c = i % HALO;
        pixels[r][c] = r < rows && c < columns ? p[(top + r) * width + left + c] : 0.f;
    }
    __syncthreads();

    for (int i = threadIdx.x; i < HALO * TILE; i += BLOCK) {
        const int r = i / TILE, c = i % TILE;
        float sum = 0.f;
        for (int k = 0; k < BOX; ++k) sum += pixels[r][c + k];
        row_sums[r][c] = sum;
    }
    __syncthreads();

    float largest = NEG_INF;
    for (int i = threadIdx.x; i < TILE * TILE; i += BLOCK) {
        const int r = i / TILE, c = i % TILE;
        // Only whole windows inside the map count.
        if (r + BOX > rows || c + BOX > columns) continue;
        float sum = 0.f;
        for (int k = 0; k < BOX; ++k) sum += row_sums[r + k][c];
        largest = fmaxf(largest, sum);
    }
    largest = block_max<BLOCK>(largest);
    if (threadIdx.x == 0) {
        block_maxima[blockIdx.y * gridDim.x + blockIdx.x] = largest * (1.f / (BOX * BOX));
    }
}

// grid 1, block 256
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_score(const float* __restrict__ block_maxima, float* __restrict__ score, int count) {
    float largest = NEG_INF;
    for (int i = threadIdx.x; i < count; i += BLOCK) largest = fmaxf(largest, block_maxima[i]);
    largest = block_max<BLOCK>(largest);
    if (threadIdx.x == 0) *score = largest;
}

// grid ceil(count / 1024), block 256: four pixels a thread, 16 bytes read and 12 written. `p` and `rgb`
// are aligned to 16 bytes (they are allocations of their own).
extern "C" __global__ void __launch_bounds__(BLOCK)
    heatmap_colour(const float* __restrict__ p, const u32* __restrict__ palette, u8* __restrict__ rgb, int count) {
    const int first = 4 * (blockIdx.x * BLOCK + threadIdx.x);
    // The palette is little-endian words, red lowest.
    const auto colour = [&](float value) {
        return palette[__float2int_rn(255.f * fminf(fmaxf(value, 0.f), 1.f))] & 0xffffffu;
    };
    if (first + 4 <= count) {
        const float4 v = *reinterpret_cast<const float4*>(p + first);
        const u32 c0 = colour(v.x), c1 = colour(v.y), c2 = colour(v.z), c3 = colour(v.w);
        u32* words = reinterpret_cast<u32*>(rgb + 3 * static_cast<long long>(first));
        words[0] = c0 | c1 << 24;
        words[1] = c1 >> 8 | c2 << 16;
        words[2] = c2 >> 16 | c3 << 8;
        return;
    }
    for (int i = first; i < count; ++i) {
        const u32 c = colour(p[i]);
        u8* pixel = rgb + 3 * static_cast<long long>(i);
        pixel[0] = c & 0xff;
        pixel[1] = c >> 8 & 0xff;
        pixel[2] = c >> 16;
    }
}
