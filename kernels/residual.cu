// The residual selection, without its stack of planes. e = (f − r)² (or ln(1 + e)) is a feature map's
// squared distance to its reconstruction, u(e) its resizing to the common grid h × w.
//
//   rank:   y(n, 0, 0, c) = max u(e(n, ·, ·, c)),   y(n, 0, 1, c) = its mean
//   gather: y(n, i, j, m) = u(e)(n, i, j, indices(m)), indices counting through the channels of all scales
//
// f, r: N×H×W×C, fp16 or fp32. Interpolated planes are never stored: the maximum of an interpolation has
// to be taken at the points of the grid (between pixels it is lower than at them), so a block stages the
// e of a few source pixels in shared memory and walks over the points that lie among them.
//
// residual_rank: a block of 256 takes 16 channels (32 bytes of fp16, a sector) of a tile of the grid;
//   grid (channels, tiles, n). Partial maxima and sums by tile, then residual_rank_finish.
// residual_gather: a block takes 32 planes, a lane each, of 16×16 points; grid (tiles, planes, n). A
//   tile of a scale that is not larger than the grid needs at most 17×17 of its pixels. A plane is a
//   channel, so of each 32-byte sector read two bytes are wanted.
// residual_gather_direct: a thread an output, for scales that are larger.
//
// Global bytes: f and r once, but for the row that neighbouring tiles share; y once. About 10 operations
// a point and channel.
#include "joined.cuh"
#include "taps.cuh"
#include "vector.cuh"

// Source pixels that a block stages at most: 40 KiB.
constexpr int CHANNELS = 16, MOST = 640;
constexpr int TILE = 16, WINDOW = TILE + 1, PLANES = 32, SCALES = 4;

__device__ __forceinline__ float distance(float f, float r, int log) {
    const float e = (f - r) * (f - r);
    return log ? log1pf(e) : e;
}

// Source pixels that taps a … b read.
struct Window {
    unsigned start, len;
};

__device__ __forceinline__ Window window(const Taps& a, const Taps& b) {
    const unsigned last = b.fraction > 0.f ? b.last : b.first;
    return {a.first, last - a.first + 1};
}

struct alignas(8) Rank {
    int n, c, resize, log;
    ResizedAxis h, w;
    int tile_h, tile_w;
    float scale;               // on the sums
};

template <int V>
__device__ __forceinline__ void residual_rank(const Real& f, const Real& r, float* parts, const Rank& g,
                                              const Block& block) {
    __shared__ float e[MOST * CHANNELS];  // [row][column][channel]
    __shared__ float warps[2][8][CHANNELS];
    const unsigned across = (g.w.to + g.tile_w - 1) / g.tile_w;
    const unsigned down = block.y / across;
    const unsigned i0 = down * g.tile_h, j0 = (block.y - down * across) * g.tile_w;
    const unsigned i1 = min(i0 + g.tile_h, g.h.to), j1 = min(j0 + g.tile_w, g.w.to);
    const Window rows = window(taps(g.resize, g.h, i0), taps(g.resize, g.h, i1 - 1));
    const Window cols = window(taps(g.resize, g.w, j0), taps(g.resize, g.w, j1 - 1));
    const unsigned c0 = block.x * CHANNELS, n = block.z;

    constexpr unsigned PARTS = CHANNELS / V;
    for (unsigned item = threadIdx.x; item < rows.len * cols.len * PARTS; item += 256) {
        const unsigned pixel = item / PARTS, channel = item % PARTS * V;
        const unsigned row = pixel / cols.len, col = pixel - row * cols.len;
        float a[V] = {}, b[V] = {};
        if (c0 + channel < unsigned(g.c)) {
            const size_t at =
                ((size_t(n) * g.h.from + rows.start + row) * g.w.from + cols.start + col) * g.c + c0 + channel;
            load_all(f, at, a);
            load_all(r, at, b);
        }
#pragma unroll
        for (int k = 0; k < V; ++k) e[pixel * CHANNELS + channel + k] = distance(a[k], b[k], g.log);
    }
    __syncthreads();

    const unsigned channel = threadIdx.x % CHANNELS, column = threadIdx.x / CHANNELS;
    float largest = NEG_INF, sum = 0.f;
    for (unsigned i = i0; i < i1; ++i) {
        const Taps h = taps(g.resize, g.h, i);
        const float* top = e + (h.first - rows.start) * cols.len * CHANNELS + channel;
        const float* bottom = h.fraction > 0.f ? top + cols.len * CHANNELS : top;
        // All threads take the same number of steps: they meet again at the shuffle.
        for (unsigned first = j0; first < j1; first += 256 / CHANNELS) {
            if (first + column >= j1) continue;
            const Taps w = taps(g.resize, g.w, first + column);
            const unsigned left = (w.first - cols.start) * CHANNELS;
            const unsigned right = w.fraction > 0.f ? left + CHANNELS : left;
            const float above = top[left] * (1.f - w.fraction) + top[right] * w.fraction;
            const float below = bottom[left] * (1.f - w.fraction) + bottom[right] * w.fraction;
            const float v = above * (1.f - h.fraction) + below * h.fraction;
            largest = fmaxf(largest, v);
            sum += v;
        }
    }
    largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 16));
    sum += __shfl_xor_sync(FULL_WARP, sum, 16);
    if (threadIdx.x % 32 < CHANNELS) {
        warps[0][threadIdx.x / 32][channel] = largest;
        warps[1][threadIdx.x / 32][channel] = sum;
    }
    __syncthreads();
    if (threadIdx.x < CHANNELS && c0 + channel < unsigned(g.c)) {
        for (int i = 1; i < 8; ++i) {
            largest = fmaxf(largest, warps[0][i][channel]);
            sum += warps[1][i][channel];
        }
        const size_t at = (size_t(block.y) * g.n + n) * 2 * g.c + c0 + channel;
        parts[at] = largest;
        parts[at + g.c] = sum * g.scale;
    }
}

struct RankArgs {
    Real f, r;
    float* parts;
    Rank g;
};

JOINED_KERNEL(residual_rank_8, RankArgs, (256, 2), residual_rank<8>(a.f, a.r, a.parts, a.g, block))
JOINED_KERNEL(residual_rank_1, RankArgs, (256, 2), residual_rank<1>(a.f, a.r, a.parts, a.g, block))

// y: N×1×2×C from tiles × N × 2 × C.
__device__ __forceinline__ void finish(const float* parts, float* y, int n, int c, int tiles, float scale,
                                       const Block& block) {
    const unsigned i = block.x * 256 + threadIdx.x;
    if (i >= unsigned(n) * c) return;
    const unsigned image = i / c;
    const size_t at = size_t(image) * 2 * c + (i - image * c);
    float largest = NEG_INF, sum = 0.f;
    for (int tile = 0; tile < tiles; ++tile) {
        const float* part = parts + size_t(tile) * n * 2 * c + at;
        largest = fmaxf(largest, part[0]);
        sum += part[c];
    }
    y[at] = largest;
    y[at + c] = sum * scale;
}

struct FinishArgs {
    const float* parts;
    float* y;
    int n, c, tiles;
    float scale;
};

JOINED_KERNEL(residual_rank_finish, FinishArgs, (256, 2), finish(a.parts, a.y, a.n, a.c, a.tiles, a.scale, block))

struct Gather {
    int n, k, indices_per_image, resize, log;
    unsigned oh, ow;
};

// Geometry of one scale: its first channel among all, and how many it has (0 where there is none).
struct Map {
    ResizedAxis h, w;
    unsigned start, channels;
};

// One scale's maps. All scales lie in shared memory, where each lane looks up its own.
struct Scale {
    Real f, r;
    Map map;
};

// Where a channel of all scales is.
struct Plane {
    Real f, r;
    ResizedAxis h, w;
    unsigned channels, channel;
    bool known;                // to this launch
};

__device__ __forceinline__ Plane plane_of(const Scale (&scales)[SCALES], unsigned index) {
    int i = 0;
    while (i + 1 < SCALES && index >= scales[i + 1].map.start) ++i;
    const Scale& s = scales[i];
    const unsigned channel = index - s.map.start;
    const bool known = index >= s.map.start && channel < s.map.channels;
    return {s.f, s.r, s.map.h, s.map.w, s.map.channels, channel, known};
}

// The pointer came through shared memory, so only this load says that it is a global one.
__device__ __forceinline__ float load_read_only(const Real& x, size_t i) {
    return x.type == F16
               ? __half2float(__ushort_as_half(__ldg(static_cast<const unsigned short*>(x.data) + i)))
               : __ldg(static_cast<const float*>(x.data) + i);
}

__device__ __forceinline__ float distance_at(const Plane& p, int log, unsigned n, unsigned y, unsigned x) {
    const size_t at = ((size_t(n) * p.h.from + y) * p.w.from + x) * p.channels + p.channel;
    return distance(load_read_only(p.f, at), load_read_only(p.r, at), log);
}

// Puts the scales where lanes can look them up by number. All threads must call it.
__device__ __forceinline__ void share(Scale (&scales)[SCALES], const Scale& a, const Scale& b, const Scale& c,
                                      const Scale& d) {
    if (threadIdx.x == 0) scales[0] = a, scales[1] = b, scales[2] = c, scales[3] = d;
    __syncthreads();
}

extern "C" __global__ __launch_bounds__(256, 2) void residual_gather(
    const u32* indices, Real f0, Real r0, Real f1, Real r1, Real f2, Real r2, Real f3, Real r3,
    Map m0, Map m1, Map m2, Map m3, Real y, Gather g) {
    __shared__ float e[WINDOW * WINDOW][PLANES];
    __shared__ Scale scales[SCALES];
    share(scales, {f0, r0, m0}, {f1, r1, m1}, {f2, r2, m2}, {f3, r3, m3});
    const unsigned across = (g.ow + TILE - 1) / TILE;
    const unsigned down = blockIdx.x / across;
    const unsigned i0 = down * TILE, j0 = (blockIdx.x - down * across) * TILE;
    const unsigned i1 = min(i0 + TILE, g.oh), j1 = min(j0 + TILE, g.ow);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = blockIdx.z;
    const unsigned m = blockIdx.y * PLANES + lane;
    const bool inside = m < unsigned(g.k);
    const unsigned index = inside ? indices[(g.indices_per_image ? size_t(n) * g.k : 0) + m] : 0;
    const Plane p = plane_of(scales, index);
    const bool mine = inside && p.known;
    const Window rows = window(taps(g.resize, p.h, i0), taps(g.resize, p.h, i1 - 1));
    const Window cols = window(taps(g.resize, p.w, j0), taps(g.resize, p.w, j1 - 1));
    for (unsigned at = warp; at < WINDOW * WINDOW; at += 8) {
        const unsigned row = at / WINDOW, col = at % WINDOW;
        if (mine && row < rows.len && col < cols.len) {
            e[at][lane] = distance_at(p, g.log, n, rows.start + row, cols.start + col);
        }
    }
    __syncthreads();
    for (unsigned at = warp; at < TILE * TILE; at += 8) {
        const unsigned i = i0 + at / TILE, j = j0 + at % TILE;
        if (!mine || i >= i1 || j >= j1) continue;
        const Taps h = taps(g.resize, p.h, i), w = taps(g.resize, p.w, j);
        const unsigned corner = (h.first - rows.start) * WINDOW + w.first - cols.start;
        const unsigned right = w.fraction > 0.f ? 1 : 0, below = h.fraction > 0.f ? WINDOW : 0;
        const float top = e[corner][lane] * (1.f - w.fraction) + e[corner + right][lane] * w.fraction;
        const float bottom =
            e[corner + below][lane] * (1.f - w.fraction) + e[corner + below + right][lane] * w.fraction;
        store(y, ((size_t(n) * g.oh + i) * g.ow + j) * g.k + m, top * (1.f - h.fraction) + bottom * h.fraction);
    }
}

extern "C" __global__ __launch_bounds__(256, 2) void residual_gather_direct(
    const u32* indices, Real f0, Real r0, Real f1, Real r1, Real f2, Real r2, Real f3, Real r3,
    Map m0, Map m1, Map m2, Map m3, Real y, Gather g) {
    __shared__ Scale scales[SCALES];
    share(scales, {f0, r0, m0}, {f1, r1, m1}, {f2, r2, m2}, {f3, r3, m3});
    const size_t out = size_t(blockIdx.x) * 256 + threadIdx.x;
    const size_t point = out / g.k;
    const unsigned m = out - point * g.k;
    if (point >= size_t(g.n) * g.oh * g.ow) return;
    const unsigned n = point / (size_t(g.oh) * g.ow);
    const unsigned within = point - size_t(n) * g.oh * g.ow;
    const unsigned i = within / g.ow, j = within - i * g.ow;
    const Plane p = plane_of(scales, indices[(g.indices_per_image ? size_t(n) * g.k : 0) + m]);
    if (!p.known) return;
    const Taps h = taps(g.resize, p.h, i), w = taps(g.resize, p.w, j);
    float sum = 0.f;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
        const float share = (corner & 2 ? h.fraction : 1.f - h.fraction) *
                            (corner & 1 ? w.fraction : 1.f - w.fraction);
        if (share == 0.f) continue;
        sum += share * distance_at(p, g.log, n, corner & 2 ? h.last : h.first, corner & 1 ? w.last : w.first);
    }
    store(y, out, sum);
}
