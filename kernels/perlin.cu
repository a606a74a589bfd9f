// Masks of training anomalies; held to src/realnet/masks.rs, whose numbers they are to the last bit.
//
//   outline  1 where one of a picture's shapes is, 0 elsewhere:
//              noise     √2·g(p, q) > ½ with g one octave of Perlin's gradient noise on rows × columns cells,
//                        (p, q) the pixel turned about the centre; 0 where that leaves the picture
//              strokes   pixels within a radius of one of the segments
//              ellipses  pixels inside one of them
//            and how many pixels each block has set
//   soften   mask = box mean of (2r + 1)² pixels of the outline, edges repeated; r = 0, 1, 2, 3
//
// Shapes    outline u8, mask fp32: N×S×S; lattice N×33·33 unit vectors, component 0 along rows;
//           figures N×21; plans N; areas N×blocks, u32
// Geometry  outline: a thread a pixel, block 256, grid (⌈S²/256⌉, N)
//           soften: a thread a column, block 128, grid (⌈S/128⌉, N)
//
// The decision that surprises: gradients come from the host. They are cosines of random angles, and two
// libraries' cosines differ in the last bit, which would move a pixel across the threshold; a picture has
// a thousand of them at most. Everything after them is products and sums, none of them fused. For the same
// reason soften runs down a column with a running sum, as the CPU does.
//
// Cost per pixel: outline 1 B written and some 60 operations (noise), 20 a segment whose window it is in;
// the lattice and figures, a few kB, are asked for by every warp and come from the cache. soften: 1 B read
// (a row of a block goes to shared memory), 4 B written, 2r + 6 operations. A batch is some 100 kB: what
// counts is the number of launches.
#include "exact.cuh"

constexpr int BLOCK = 256;
constexpr int COLUMNS = 128;
constexpr int MOST_RADIUS = 3;
constexpr int LATTICE = 33 * 33;
constexpr int FIGURES = 21;

constexpr u32 NOISE = 1;
constexpr u32 STROKES = 2;

// Mirrors `Plan` of src/engine/cuda/perlin.rs.
struct Plan {
    u32 kind;        // 0: the outline stays as it is
    u32 figures;
    u32 rows, columns;
    float sin, cos;
    float scale_p, scale_q;
};

// A segment: from, the vector to its end, that vector's square, the radius' square. An ellipse: centre,
// half axes, sine and cosine. Only pixels of the window can belong to it.
struct Figure {
    float v[6];
    int x0, x1, y0, y1;
};

__device__ __forceinline__ Exact fade(Exact t) { return t * t * t * (t * (t * 6.f - 15.f) + 10.f); }

__device__ __forceinline__ Exact dot(float2 g, Exact u, Exact w) { return Exact(g.x) * u + Exact(g.y) * w; }

__device__ __forceinline__ bool noise(const Plan& plan, const float2* lattice, u32 x, u32 y, u32 size) {
    const Exact side = float(size), centre = (side - 1.f) / 2.f;
    const Exact dy = Exact(float(y)) - centre, dx = Exact(float(x)) - centre;
    const Exact sin = plan.sin, cos = plan.cos;
    const Exact turned_p = cos * dy - sin * dx + centre, turned_q = sin * dy + cos * dx + centre;
    if (!(turned_p >= 0.f && turned_p < side && turned_q >= 0.f && turned_q < side)) return false;
    const Exact p = turned_p * plan.scale_p, q = turned_q * plan.scale_q;
    const u32 i = min(u32(p.v), plan.rows - 1), j = min(u32(q.v), plan.columns - 1);
    const Exact u = p - float(i), w = q - float(j);
    const float2* near = lattice + i * (plan.columns + 1) + j;
    const float2* far = near + plan.columns + 1;
    const Exact n00 = dot(near[0], u, w), n10 = dot(far[0], u - 1.f, w);
    const Exact n01 = dot(near[1], u, w - 1.f), n11 = dot(far[1], u - 1.f, w - 1.f);
    const Exact fu = fade(u);
    return Exact(1.41421356f) * mix(mix(n00, n10, fu), mix(n01, n11, fu), fade(w)) > 0.5f;
}

__device__ __forceinline__ bool on_segment(const Figure& f, Exact x, Exact y) {
    const Exact px = x - f.v[0], py = y - f.v[1], vx = f.v[2], vy = f.v[3];
    const Exact t = unit((px * vx + py * vy) / f.v[4]);
    const Exact ex = px - t * vx, ey = py - t * vy;
    return ex * ex + ey * ey <= f.v[5];
}

__device__ __forceinline__ bool in_ellipse(const Figure& f, Exact x, Exact y) {
    const Exact dx = x - f.v[0], dy = y - f.v[1], sin = f.v[4], cos = f.v[5];
    const Exact u = (cos * dx + sin * dy) / f.v[2], v = (cos * dy - sin * dx) / f.v[3];
    return u * u + v * v <= 1.f;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    outline(const Plan* __restrict__ plans, const float2* __restrict__ lattice,
            const Figure* __restrict__ figures, u8* __restrict__ out, u32* __restrict__ areas, u32 size) {
    const Plan plan = plans[blockIdx.y];
    if (plan.kind == 0) return;
    const u32 at = blockIdx.x * BLOCK + threadIdx.x, pixels = size * size;
    bool set = false;
    if (at < pixels) {
        const u32 y = at / size, x = at - y * size;
        if (plan.kind == NOISE) {
            set = noise(plan, lattice + blockIdx.y * LATTICE, x, y, size);
        } else {
            for (u32 i = 0; i < plan.figures && !set; ++i) {
                const Figure& f = figures[blockIdx.y * FIGURES + i];
                if (int(x) < f.x0 || int(x) >= f.x1 || int(y) < f.y0 || int(y) >= f.y1) continue;
                const Exact fx = float(x), fy = float(y);
                set = plan.kind == STROKES ? on_segment(f, fx, fy) : in_ellipse(f, fx, fy);
            }
        }
        out[size_t(blockIdx.y) * pixels + at] = set;
    }
    const u32 area = __syncthreads_count(set);
    if (threadIdx.x == 0) areas[blockIdx.y * gridDim.x + blockIdx.x] = area;
}

// A block's columns of a row, with those beside them; two rows, for the next is written while one is read.
struct Strip {
    u8 row[2][COLUMNS + 2 * MOST_RADIUS];
};

// The mean of 2R + 1 pixels of a row. Sums of zeros and ones are exact in any order. Every thread comes
// here; `turn` is 0 and 1 in turns.
template <int R>
__device__ __forceinline__ Exact across(const u8* row, Strip& strip, int turn, int last, Exact share) {
    const int left = blockIdx.x * COLUMNS - R, t = threadIdx.x;
    u8* line = strip.row[turn];
    // The first lanes bring the columns beside the block's, last the sectors that are its own.
    line[R + t] = row[min(left + R + t, last)];
    if (t < 2 * R) {
        const int i = t < R ? t : COLUMNS + t;
        line[i] = row[clamp(left + i, 0, last)];
    }
    __syncthreads();
    int sum = 0;
#pragma unroll
    for (int k = 0; k <= 2 * R; ++k) sum += line[t + k];
    return Exact(float(sum)) * share;
}

template <int R>
__device__ __forceinline__ void soften_column(const u8* outline, float* mask, Strip& strip, int size) {
    const int x = blockIdx.x * COLUMNS + threadIdx.x;
    const int last = size - 1;
    const Exact share = Exact(1.f) / float(2 * R + 1);
    // window[k] is the row mean at y - R + k.
    Exact window[2 * R + 2];
    Exact sum = 0.f;
#pragma unroll
    for (int k = 0; k <= 2 * R; ++k) {
        window[k] = across<R>(outline + size_t(clamp(k - R, 0, last)) * size, strip, k % 2, last, share);
        sum = sum + window[k];
    }
    for (int y = 0; y < size; ++y) {
        const Exact mean = sum * share;
        if (x <= last) mask[size_t(y) * size + x] = mean < 1e-4f ? 0.f : least(mean, 1.f).v;
        window[2 * R + 1] =
            across<R>(outline + size_t(min(y + R + 1, last)) * size, strip, (y + 1) % 2, last, share);
        sum = sum + (window[2 * R + 1] - window[0]);
#pragma unroll
        for (int k = 0; k <= 2 * R; ++k) window[k] = window[k + 1];
    }
}

extern "C" __global__ void __launch_bounds__(COLUMNS)
    soften(const u8* __restrict__ outlines, const u32* __restrict__ radii, float* __restrict__ masks, int size) {
    __shared__ Strip strip;
    const int x = blockIdx.x * COLUMNS + threadIdx.x;
    const size_t first = size_t(blockIdx.y) * size * size;
    const u8* outline = outlines + first;
    float* mask = masks + first;
    switch (radii[blockIdx.y]) {
        case 0:
            for (int y = 0; y < size && x < size; ++y) mask[size_t(y) * size + x] = float(outline[size_t(y) * size + x]);
            break;
        case 1: soften_column<1>(outline, mask, strip, size); break;
        case 2: soften_column<2>(outline, mask, strip, size); break;
        default: soften_column<3>(outline, mask, strip, size); break;
    }
}
