// What training anomalies are painted with: P of a blend; held to src/realnet/{sources,augment}.rs, whose
// numbers these are to the last bit.
//
//   base    P₀ = a picture rolled and mirrored, or turned, scaled and shifted; a flat colour; the picture
//           itself through a tone curve; a plane of noise in random colours
//   levels  what a step needs to know of the whole picture: extremes, or the histogram's curve, per channel
//   rows, columns   box mean of 3×3 pixels as running sums, edges repeated
//   step    P = augmented P, one of the ten augmentations (tables, brightness, sharpness, ...)
//
// Shapes    P two buffers of N×S×S×3 fp32, between which the steps go to and fro; sources N×S×S×3 u8;
//           tables N×STEPS×3×256 fp32; stats N×3×258: least, largest, curve; soft N×S×S×3 fp32
// Geometry  base, step: a thread a pixel, block 256, grid (⌈S²/256⌉, N)
//           levels: a block of 512 a channel, grid (3, N)
//           rows, columns: a thread a row or column of a channel, block 64, grid (⌈3S/64⌉, N)
//
// The decisions that surprise: every picture of a batch has other augmentations, so each launch asks its
// picture's plan what to do, if anything. Curves of powers come from the host as tables, for two
// libraries' pow() differ in the last bit. The box mean is a running sum, sequential along a line: its
// rounding is the CPU's.
//
// Cost per pixel and step: 24 B (sharpness 36) and up to 60 operations (hue). levels reads the 12 B with
// three blocks a picture, each every third number of a sector, far from all that the memory gives; but pictures
// are 0.8 MB, lie in the L2 cache, and two of ten augmentations need it. So do rows: running sums that
// go along a row leave lanes a row apart.
#include "paint.cuh"

constexpr int BLOCK = 256;
constexpr int LEVEL_BLOCK = 512;
constexpr int LINE_BLOCK = 64;
constexpr int STATS = LEVELS + 2;

// Kinds of steps.
constexpr u32 TABLES = 1;
constexpr u32 BRIGHTNESS = 2;
constexpr u32 SHARPNESS = 3;
constexpr u32 COLOUR = 4;
constexpr u32 SOLARISE = 5;
constexpr u32 POSTERISE = 6;
constexpr u32 INVERT = 7;
constexpr u32 CONTRAST = 8;
constexpr u32 EQUALISE = 9;
constexpr u32 ROTATE = 10;

using Warps = Shuffled<float>[BLOCK / 32];

__device__ __forceinline__ u32 level(Exact v) { return u32((v * 255.f + 0.5f).v) & 255u; }

// Folds a coordinate into [0, n - 1] by mirroring at both ends.
__device__ __forceinline__ Exact mirrored(Exact x, u32 n) {
    const Exact last = Exact(float(n)) - 1.f;
    if (x >= 0.f && x <= last) return x;
    const Exact period = most(Exact(2.f) * last, 1.f);
    const Exact folded = modulo(x, period);
    return folded > last ? most(period - folded, 0.f) : folded;
}

struct Warp {
    Exact sin, cos, shift_x, shift_y;
};

template <class T>
__device__ __forceinline__ Pixel warped(const T* picture, const Warp& warp, u32 x, u32 y, u32 n) {
    const Exact centre = (Exact(float(n)) - 1.f) / 2.f;
    const Exact dx = Exact(float(x)) - centre, dy = Exact(float(y)) - centre;
    const Exact u = mirrored(warp.cos * dx + warp.sin * dy + centre + warp.shift_x, n);
    const Exact v = mirrored(warp.cos * dy - warp.sin * dx + centre + warp.shift_y, n);
    const u32 left = min(u32(u.v), n - 1), top = min(u32(v.v), n - 1);
    const u32 right = min(left + 1, n - 1), bottom = min(top + 1, n - 1);
    const Exact fx = u - float(left), fy = v - float(top);
    const Pixel a = pixel(picture, size_t(top) * n + left), b = pixel(picture, size_t(top) * n + right);
    const Pixel c = pixel(picture, size_t(bottom) * n + left), d = pixel(picture, size_t(bottom) * n + right);
    Pixel out;
#pragma unroll
    for (int i = 0; i < 3; ++i) out.c[i] = mix(mix(a.c[i], b.c[i], fx), mix(c.c[i], d.c[i], fx), fy);
    return out;
}

// i: ROLLED dx, dy, mirror x, mirror y; CLOUD plane, shift. v: WARPED sin, cos, shift x, shift y; FLAT
// colour; CLOUD level and contrast of each channel.
extern "C" __global__ void __launch_bounds__(BLOCK)
    base(const Plan* __restrict__ plans, const u8* __restrict__ sources, const float* __restrict__ tables,
         const float* __restrict__ clouds, float* __restrict__ out, u32 n) {
    __shared__ Plan plan;
    __shared__ Warps shuffled;
    bring(plan, plans[blockIdx.y]);
    const u32 pixels = n * n, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 begin = blockIdx.x * BLOCK + threadIdx.x - lane, count = of_warp(begin, pixels);
    if (plan.base == 0 || count == 0) return;
    // Lanes beyond the picture repeat its last pixel.
    const u32 at = min(begin + lane, pixels - 1);
    const size_t first = size_t(blockIdx.y) * pixels * 3;
    const u8* source = sources + first;
    const u32 y = at / n, x = at - y * n;
    Pixel p;
    if (plan.base == ROLLED) {
        // As in `Shuffled`: of each pixel where it comes from, then byte by byte.
        __shared__ u32 origins[BLOCK];
        const u32 from_y = ((plan.i[3] ? n - 1 - y : y) + plan.i[1]) % n;
        const u32 from_x = ((plan.i[2] ? n - 1 - x : x) + plan.i[0]) % n;
        origins[threadIdx.x] = from_y * n + from_x;
        __syncwarp();
#pragma unroll
        for (u32 i = lane; i < 96; i += 32) {
            const u32 from = origins[32 * warp + i / 3];
            shuffled[warp].numbers[i] = of_byte(source[3 * size_t(from) + i % 3]).v;
        }
        __syncwarp();
        p = pixel(shuffled[warp].numbers, lane);
    } else if (plan.base == WARPED) {
        p = warped(source, Warp{plan.v[0], plan.v[1], plan.v[2], plan.v[3]}, x, y, n);
    } else if (plan.base == TONED) {
        // A byte is a level.
        const float* table = tables + size_t(blockIdx.y) * STEPS * 3 * LEVELS;
#pragma unroll
        for (int c = 0; c < 3; ++c) p.c[c] = table[c * LEVELS + level(of_byte(source[3 * size_t(at) + c]))];
    } else if (plan.base == CLOUD) {
        const u32 shifted = plan.i[1] + at;
        const Exact v = clouds[size_t(plan.i[0]) * pixels + (shifted >= pixels ? shifted - pixels : shifted)];
#pragma unroll
        for (int c = 0; c < 3; ++c) p.c[c] = unit(Exact(plan.v[2 * c]) + Exact(plan.v[2 * c + 1]) * (v - 0.5f));
    } else {
#pragma unroll
        for (int c = 0; c < 3; ++c) p.c[c] = plan.v[c];
    }
    shuffled[warp].put(out + first, begin, count, p.c[0].v, p.c[1].v, p.c[2].v);
}

// Whether picture blockIdx.y is to be changed by its step `index`, and by which kind.
__device__ __forceinline__ u32 kind_of(const Plan& plan, u32 index) {
    return plan.base != 0 && index < plan.steps ? plan.step[index].kind : 0;
}

extern "C" __global__ void __launch_bounds__(LEVEL_BLOCK)
    levels(const Plan* __restrict__ plans, u32 index, const float* __restrict__ pictures,
           float* __restrict__ stats, u32 pixels) {
    const u32 kind = kind_of(plans[blockIdx.y], index);
    if (kind != CONTRAST && kind != EQUALISE) return;
    const float* channel = pictures + size_t(blockIdx.y) * pixels * 3 + blockIdx.x;
    float* out = stats + (size_t(blockIdx.y) * 3 + blockIdx.x) * STATS;
    if (kind == CONTRAST) {
        float low = 1.f, high = 0.f;
        for (u32 i = threadIdx.x; i < pixels; i += LEVEL_BLOCK) {
            const float v = channel[3 * size_t(i)];
            low = fminf(low, v), high = fmaxf(high, v);
        }
        const float largest = block_max<LEVEL_BLOCK>(high);
        __syncthreads();
        const float least = -block_max<LEVEL_BLOCK>(-low);
        if (threadIdx.x == 0) out[0] = least, out[1] = largest;
        return;
    }
    __shared__ u32 counts[LEVELS];
    if (threadIdx.x < LEVELS) counts[threadIdx.x] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < pixels; i += LEVEL_BLOCK) atomicAdd(counts + level(channel[3 * size_t(i)]), 1u);
    __syncthreads();
    if (threadIdx.x >= LEVELS) return;
    u32 below = 0;
    for (u32 i = 0; i <= threadIdx.x; ++i) below += counts[i];
    const Exact half = Exact(float(counts[threadIdx.x])) / 2.f;
    out[2 + threadIdx.x] = ((Exact(float(below)) - half) / float(pixels)).v;
}

// out[i] = mean of in[i - 1], in[i], in[i + 1], `stride` apart; may be in place.
__device__ __forceinline__ void run_along(const float* in, float* out, size_t stride, u32 n) {
    const Exact share = Exact(1.f) / 3.f;
    Exact before = in[0], here = in[0], after = in[stride * min(1u, n - 1)];
    Exact sum = Exact(0.f) + before + here + after;
    for (u32 i = 0; i < n; ++i) {
        const Exact next = in[stride * min(i + 2, n - 1)];
        out[stride * i] = (sum * share).v;
        sum = sum + (next - before);
        before = here, here = after, after = next;
    }
}

extern "C" __global__ void __launch_bounds__(LINE_BLOCK)
    rows(const Plan* __restrict__ plans, u32 index, const float* pictures, float* soft, u32 n) {
    const u32 line = blockIdx.x * LINE_BLOCK + threadIdx.x;
    if (kind_of(plans[blockIdx.y], index) != SHARPNESS || line >= 3 * n) return;
    const size_t first = size_t(blockIdx.y) * n * n * 3 + size_t(line / 3) * n * 3 + line % 3;
    run_along(pictures + first, soft + first, 3, n);
}

extern "C" __global__ void __launch_bounds__(LINE_BLOCK)
    columns(const Plan* __restrict__ plans, u32 index, float* soft, u32 n) {
    const u32 line = blockIdx.x * LINE_BLOCK + threadIdx.x;
    if (kind_of(plans[blockIdx.y], index) != SHARPNESS || line >= 3 * n) return;
    float* column = soft + size_t(blockIdx.y) * n * n * 3 + line;
    // In place: three values are in registers, and what is read next lies ahead of what is written; only
    // the last row is read again, before it is written.
    run_along(column, column, size_t(3) * n, n);
}

// Hue in turns; a grey pixel has none and stays grey.
__device__ __forceinline__ Pixel shift_hue(const Pixel& p, Exact hue, Exact more) {
    const Exact r = p.c[0], g = p.c[1], b = p.c[2];
    const Exact high = most(most(r, g), b), low = least(least(r, g), b);
    const Exact chroma = high - low;
    if (chroma < 1e-3f) return p;
    Exact sector;
    if (high == r) {
        sector = modulo((g - b) / chroma, 6.f);
    } else if (high == g) {
        sector = (b - r) / chroma + 2.f;
    } else {
        sector = (r - g) / chroma + 4.f;
    }
    sector = modulo(sector + hue * 6.f, 6.f);
    const Exact saturation = unit(chroma / high + more);
    Pixel out;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const Exact k = modulo(Exact(i == 0 ? 5.f : i == 1 ? 3.f : 1.f) + sector, 6.f);
        out.c[i] = high - high * saturation * unit(least(k, Exact(4.f) - k));
    }
    return out;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    step(const Plan* __restrict__ plans, u32 index, const float* __restrict__ pictures,
         const float* __restrict__ soft, const float* __restrict__ stats, const float* __restrict__ tables,
         float* __restrict__ out, u32 n) {
    __shared__ Plan plan;
    __shared__ Warps shuffled;
    bring(plan, plans[blockIdx.y]);
    const u32 kind = kind_of(plan, index);
    const u32 pixels = n * n, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 begin = blockIdx.x * BLOCK + threadIdx.x - lane, count = of_warp(begin, pixels);
    if (kind == 0 || count == 0) return;
    // Lanes beyond the picture repeat its last pixel.
    const u32 at = min(begin + lane, pixels - 1);
    const Step& s = plan.step[index];
    const size_t first = size_t(blockIdx.y) * pixels * 3;
    const float* stat = stats + size_t(blockIdx.y) * 3 * STATS;
    const float* table = tables + (size_t(blockIdx.y) * STEPS + s.table) * 3 * LEVELS;
    Pixel p;
    if (kind == ROTATE) {
        p = warped(pictures + first, Warp{s.v[0], s.v[1], s.v[2], s.v[3]}, at % n, at / n, n);
    } else {
        p = shuffled[warp].get(pictures + first, begin, count);
    }
    Pixel soft_p;
    if (kind == SHARPNESS) soft_p = shuffled[warp].get(soft + first, begin, count);
    if (kind == COLOUR) p = shift_hue(p, s.v[0], s.v[1]);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        Exact& v = p.c[c];
        switch (kind) {
            case TABLES: v = table[c * LEVELS + level(least(v, 1.f))]; break;
            case BRIGHTNESS: v = unit(v * s.v[0] + s.v[1]); break;
            case SHARPNESS: v = unit(v + Exact(s.v[0]) * (v - soft_p.c[c])); break;
            case SOLARISE: v = v >= s.v[0] ? Exact(1.f) - v : v; break;
            case POSTERISE: v = least(floorf((v * s.v[0]).v), Exact(s.v[0]) - 1.f) / s.v[0]; break;
            case INVERT: v = Exact(1.f) - v; break;
            case CONTRAST: {
                const Exact low = stat[c * STATS], high = stat[c * STATS + 1];
                v = high > low ? (v - low) / (high - low) : v;
                break;
            }
            case EQUALISE: v = stat[c * STATS + 2 + level(least(v, 1.f))]; break;
            default: break;
        }
    }
    shuffled[warp].put(out + first, begin, count, p.c[0].v, p.c[1].v, p.c[2].v);
}
