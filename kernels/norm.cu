// Batch, group and layer norm.
//
//   moments      mean = sum x / n, variance = sum (x - mean)^2 / n          over each set of n values
//   normalize    y = act((x - mean) rstd gamma + beta), rstd = 1 / sqrt(variance + eps)
//   backward     dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma, xhat = (x - mean) rstd
//                or dx = rstd g where the moments are constants
//   param grad   row 0: sum dy xhat, row 1: sum dy, per channel
//
// Shapes    every norm is one view of x, outer x rows x channels with the channels in groups; a set is a
//           group of channels in all rows of one outer. Batch: 1 x NHW, each channel a group. Group: N x HW.
//           Layer: NHW x 1, one group. Moments: outer x 2 x groups, fp32. x, y, dy, dx fp16 or fp32;
//           gamma, beta fp32.
// Geometry  block 256. Blocks are (outer, chunk of rows) along x and tiles of whole groups along y; a
//           thread stays with V neighbouring channels and walks down the rows, so what belongs to a channel
//           is read once and kept in registers. Layer norm: a warp a row.
//
// The decision that surprises: x is read once for the moments. A thread sums distances from the first value
// that it meets (any value of the set takes away the large common part that ruins E[x^2] - E[x]^2), and
// the threads' means and squared deviations are merged pairwise (Chan, Golub, LeVeque 1983, eq. 2.1) in
// a fixed order. Where one block cannot cover a set, partial results of the chunks go through scratch.
//
// Cost per element: moments 2 bytes, 4 FLOP; normalize 4 bytes, some 3 FLOP; backward sums 4 bytes and apply
// 6; group_norm_fused 4 bytes where the slab fits shared memory, else 2 more from L2. Bound by memory.

#include "activate.cuh"
#include "joined.cuh"
#include "vector.cuh"

constexpr int BLOCK = 256;
// Groups of a tile at most; `MAX_GROUPS` of src/engine/cuda/norm.rs.
constexpr int MAX_GROUPS = 64;

// `View` of src/engine/cuda/norm.rs.
struct alignas(8) View {
    int outer, rows, channels, groups;
    int tile;                // groups of a block
    int chunks, chunk_rows;  // blocks of an outer, and rows of each
    int moment_groups;       // groups of the moments: sums per channel have finer groups than these
    int per_row;             // layer norm seen as one outer: moments belong to a row
    float eps;
    int act;
    int cached;              // group_norm_fused: the slab lies in shared memory
};

// ------------------------------------------------------------------------------------------------
// statistics of a part of a set, and their merging

// WELFORD: n values with mean a and squared deviation b. Else: two plain sums.
struct Part {
    float n, a, b;
};

template <bool WELFORD>
__device__ __forceinline__ Part merge(const Part& x, const Part& y) {
    if constexpr (WELFORD) {
        const float n = x.n + y.n;
        const float share = n > 0.f ? __fdividef(y.n, n) : 0.f;
        const float d = y.a - x.a;
        return {n, x.a + d * share, x.b + y.b + d * d * x.n * share};
    } else {
        return {0.f, x.a + y.a, x.b + y.b};
    }
}

template <bool WELFORD>
__device__ __forceinline__ Part merge_warp(Part p) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const Part other = {__shfl_down_sync(FULL_WARP, p.n, offset), __shfl_down_sync(FULL_WARP, p.a, offset),
                            __shfl_down_sync(FULL_WARP, p.b, offset)};
        p = merge<WELFORD>(p, other);
    }
    return p;
}

// n distances from `shift` with sum s and sum of squares q.
__device__ __forceinline__ Part shifted(float n, float shift, float s, float q) {
    if (n == 0.f) return {0.f, 0.f, 0.f};
    const float d = s / n;
    return {n, shift + d, fmaxf(q - s * d, 0.f)};
}

// This thread's place in its block's part of x.
struct Place {
    int outer, chunk;
    int first_channel, tile_channels, tile_groups;
    int vectors;  // a row of the tile
    int slots;    // rows that the block takes at once
    int slot, vector;
    int row, end;
    size_t base;  // of the outer

    template <int V>
    __device__ __forceinline__ static Place of(const View& v, const Block& block) {
        Place p;
        p.outer = block.x / v.chunks;
        p.chunk = block.x - p.outer * v.chunks;
        const int width = v.channels / v.groups;
        p.tile_groups = min(v.tile, v.groups - static_cast<int>(block.y) * v.tile);
        p.first_channel = block.y * v.tile * width;
        p.tile_channels = p.tile_groups * width;
        p.vectors = p.tile_channels / V;
        p.slots = max(BLOCK / p.vectors, 1);
        const int t = threadIdx.x;
        p.slot = p.vectors > BLOCK ? 0 : t / p.vectors;
        p.vector = t - p.slot * p.vectors * (p.vectors <= BLOCK);
        p.row = p.chunk * v.chunk_rows + p.slot;
        p.end = min(v.rows, (p.chunk + 1) * v.chunk_rows);
        if (p.slot >= p.slots) p.row = p.end;
        p.base = static_cast<size_t>(p.outer) * v.rows * v.channels;
        return p;
    }
    // A thread stays with its vector.
    __device__ __forceinline__ bool stays() const { return vectors <= BLOCK; }
    template <int V>
    __device__ __forceinline__ int channel(int vec) const { return first_channel + vec * V; }
    template <int V>
    __device__ __forceinline__ size_t at(const View& v, int r, int vec) const {
        return base + static_cast<size_t>(r) * v.channels + channel<V>(vec);
    }
};

// Shared memory of a reduction.
template <int A>
struct Bench {
    float n[BLOCK], a[A * BLOCK], b[A * BLOCK];
    Part groups[MAX_GROUPS];
};

// Merges the A parts of every thread, of channels (A == V) or of vectors (A == 1), into those of the
// tile's groups. All threads must call it.
template <bool WELFORD, int V, int A>
__device__ __forceinline__ void merge_block(const Place& p, Part (&parts)[A], Bench<A>& bench) {
    float *const n = bench.n, *const a = bench.a, *const b = bench.b;
    const int t = threadIdx.x;
    n[t] = parts[0].n;
#pragma unroll
    for (int j = 0; j < A; ++j) a[j * BLOCK + t] = parts[j].a, b[j * BLOCK + t] = parts[j].b;
    int half = 1;
    while (half < p.slots) half *= 2;
    for (half /= 2; half > 0; half /= 2) {
        __syncthreads();
        const bool takes = p.slot < half && p.slot + half < p.slots;
        const int other = t + half * p.vectors;
        if (takes) {
            const float own = n[t], theirs = n[other];
#pragma unroll
            for (int j = 0; j < A; ++j) {
                const int i = j * BLOCK + t, o = j * BLOCK + other;
                const Part m = merge<WELFORD>({own, a[i], b[i]}, {theirs, a[o], b[o]});
                a[i] = m.a, b[i] = m.b;
            }
            n[t] = own + theirs;
        }
    }
    __syncthreads();
    const int items = A == 1 ? min(p.vectors, BLOCK) / p.tile_groups : p.tile_channels / p.tile_groups;
    for (int group = t / 32; group < p.tile_groups; group += BLOCK / 32) {
        Part sum = {0.f, 0.f, 0.f};
        for (int i = t % 32; i < items; i += 32) {
            const int item = group * items + i;
            const int thread = A == 1 ? item : item / V, j = A == 1 ? 0 : item % V;
            sum = merge<WELFORD>(sum, {n[thread], a[j * BLOCK + thread], b[j * BLOCK + thread]});
        }
        sum = merge_warp<WELFORD>(sum);
        if (t % 32 == 0) bench.groups[group] = sum;
    }
    __syncthreads();
}

// ------------------------------------------------------------------------------------------------
// moments

// FUSED and v.cached: what was read is kept in `cache`, where only the thread that put it there reads it.
template <int V, int A, bool FUSED>
__device__ __forceinline__ void block_moments(const Real& x, const View& v, const Place& p, __half* cache,
                                              Bench<A>& bench) {
    float shift[A], s[A], q[A], count = 0.f;
#pragma unroll
    for (int j = 0; j < A; ++j) shift[j] = s[j] = q[j] = 0.f;
    int kept = threadIdx.x;
    for (int row = p.row; row < p.end; row += p.slots) {
        for (int vec = p.vector; vec < p.vectors; vec += p.stays() ? p.vectors : BLOCK) {
            float f[V];
            load_all(x, p.at<V>(v, row, vec), f);
            if (FUSED && v.cached) {
                store_all(cache, static_cast<size_t>(kept) * V, f);
                kept += BLOCK;
            }
            if (count == 0.f) {
#pragma unroll
                for (int j = 0; j < A; ++j) shift[j] = f[j];
            }
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int k = A == 1 ? 0 : j;
                const float d = f[j] - shift[k];
                s[k] += d;
                q[k] += d * d;
            }
            count += A == 1 ? V : 1;
        }
    }
    Part parts[A];
#pragma unroll
    for (int j = 0; j < A; ++j) parts[j] = shifted(count, shift[j], s[j], q[j]);
    merge_block<true, V, A>(p, parts, bench);
}

// Means and variances, or, of several chunks, means and squared deviations to `partial`:
// outer x chunks x groups.
template <int V, int A>
__device__ __forceinline__ void moments(const Real& x, float* out, float2* partial, const View& v,
                                        const Block& block) {
    __shared__ Bench<A> bench;
    const Part* groups = bench.groups;
    const Place p = Place::of<V>(v, block);
    block_moments<V, A, false>(x, v, p, nullptr, bench);
    const int group = threadIdx.x;
    if (group >= p.tile_groups) return;
    const int g = block.y * v.tile + group;
    if (v.chunks > 1) {
        partial[static_cast<size_t>(block.x) * v.groups + g] = make_float2(groups[group].a, groups[group].b);
    } else {
        float* m = out + static_cast<size_t>(p.outer) * 2 * v.groups + g;
        m[0] = groups[group].a;
        m[v.groups] = groups[group].b / groups[group].n;
    }
}

struct MomentsArgs {
    Real x;
    float* out;
    float2* partial;
    View v;
};

#define MOMENTS(NAME, V, A) \
    JOINED_KERNEL(NAME, MomentsArgs, (BLOCK), moments<V, A>(a.x, a.out, a.partial, a.v, block))
MOMENTS(moments_v8, 8, 1)
MOMENTS(moments_v8_channels, 8, 8)
MOMENTS(moments_v1, 1, 1)

// The chunks' parts of each set, 32 sets a block, 16 threads a set.
constexpr int MERGERS = 16;

template <bool WELFORD>
__device__ __forceinline__ Part merge_chunks(const float2* partial, const View& v, size_t set,
                                             Part (&parts)[MERGERS][32]) {
    Part sum = {0.f, 0.f, 0.f};
    const int width = v.channels / v.groups;
    if (set < static_cast<size_t>(v.outer) * v.groups) {
        const size_t outer = set / v.groups, g = set - outer * v.groups;
        for (int k = threadIdx.y; k < v.chunks; k += MERGERS) {
            const float2 part = partial[(outer * v.chunks + k) * v.groups + g];
            const float rows = min(v.chunk_rows, v.rows - k * v.chunk_rows);
            sum = merge<WELFORD>(sum, {rows * width, part.x, part.y});
        }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    for (int half = MERGERS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            sum = merge<WELFORD>(sum, parts[threadIdx.y + half][threadIdx.x]);
            parts[threadIdx.y][threadIdx.x] = sum;
        }
    }
    return sum;
}

__device__ __forceinline__ void merge_moments(const float2* partial, float* out, const View& v, const Block& block) {
    const size_t set = static_cast<size_t>(block.x) * 32 + threadIdx.x;
    __shared__ Part parts[MERGERS][32];
    const Part sum = merge_chunks<true>(partial, v, set, parts);
    if (threadIdx.y > 0 || set >= static_cast<size_t>(v.outer) * v.groups) return;
    const size_t outer = set / v.groups, g = set - outer * v.groups;
    out[outer * 2 * v.groups + g] = sum.a;
    out[(outer * 2 + 1) * v.groups + g] = sum.b / sum.n;
}

struct MergeArgs {
    const float2* partial;
    float* out;
    View v;
};

JOINED_KERNEL(moments_merge, MergeArgs, (32 * MERGERS), merge_moments(a.partial, a.out, a.v, block))

// ------------------------------------------------------------------------------------------------
// normalize

// What belongs to V neighbouring channels.
template <int V>
struct Affine {
    float mean[V], rstd[V], gamma[V], beta[V];

    __device__ __forceinline__ void weights(const float* g, const float* b, int channel) {
#pragma unroll
        for (int j = 0; j < V; ++j) gamma[j] = 1.f, beta[j] = 0.f;
        if (g) load_all(g, channel, gamma);
        if (b) load_all(b, channel, beta);
    }
    __device__ __forceinline__ void moments_of(const float* m, const View& v, int outer, int channel) {
        const int width = v.channels / v.moment_groups;
        m += static_cast<size_t>(outer) * 2 * v.moment_groups;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const int g = (channel + j) / width;
            mean[j] = m[g];
            rstd[j] = 1.f / sqrtf(m[v.moment_groups + g] + v.eps);
        }
    }
    __device__ __forceinline__ void moments_of_row(const float* m, const View& v, int row) {
        const float2 both = reinterpret_cast<const float2*>(m)[row];
        const float r = 1.f / sqrtf(both.y + v.eps);
#pragma unroll
        for (int j = 0; j < V; ++j) mean[j] = both.x, rstd[j] = r;
    }
    __device__ __forceinline__ void apply(float (&f)[V], int act) const {
#pragma unroll
        for (int j = 0; j < V; ++j) f[j] = activate((f[j] - mean[j]) * rstd[j] * gamma[j] + beta[j], act);
    }
};

template <int V>
__device__ __forceinline__ void normalize(const Real& x, const float* m, const float* gamma, const float* beta,
                                          const Real& y, const View& v, const Block& block) {
    const Place p = Place::of<V>(v, block);
    if (p.row >= p.end) return;
    Affine<V> affine;
    affine.weights(gamma, beta, p.channel<V>(p.vector));
    if (!v.per_row) affine.moments_of(m, v, p.outer, p.channel<V>(p.vector));
    // Two loads under way at once.
    for (int row = p.row; row < p.end; row += 2 * p.slots) {
        float f[V], g[V];
        const int second = row + p.slots;
        load_all(x, p.at<V>(v, row, p.vector), f);
        if (second < p.end) load_all(x, p.at<V>(v, second, p.vector), g);
        if (v.per_row) affine.moments_of_row(m, v, row);
        affine.apply(f, v.act);
        store_all(y, p.at<V>(v, row, p.vector), f);
        if (second < p.end) {
            if (v.per_row) affine.moments_of_row(m, v, second);
            affine.apply(g, v.act);
            store_all(y, p.at<V>(v, second, p.vector), g);
        }
    }
}

struct NormalizeArgs {
    Real x;
    const float *m, *gamma, *beta;
    Real y;
    View v;
};

#define NORMALIZE(NAME, V) \
    JOINED_KERNEL(NAME, NormalizeArgs, (BLOCK), normalize<V>(a.x, a.m, a.gamma, a.beta, a.y, a.v, block))
NORMALIZE(normalize_v8, 8)
NORMALIZE(normalize_v1, 1)

// Moments, and y by them, of whole groups: one chunk an outer. x comes from shared memory the second time
// where `cached` (fp16 x only), else from L2.
template <int V, int A>
__device__ __forceinline__ void group_norm_fused(const Real& x, float* m, const float* gamma, const float* beta,
                                                 const Real& y, const View& v, const Block& block) {
    extern __shared__ uint4 slab[];
    __shared__ Bench<A> bench;
    const Part* groups = bench.groups;
    __half* cache = reinterpret_cast<__half*>(slab);
    const Place p = Place::of<V>(v, block);
    block_moments<V, A, true>(x, v, p, cache, bench);
    if (threadIdx.x < p.tile_groups) {
        const Part& g = groups[threadIdx.x];
        float* to = m + static_cast<size_t>(p.outer) * 2 * v.groups + block.y * v.tile + threadIdx.x;
        to[0] = g.a;
        to[v.groups] = g.b / g.n;
    }
    Affine<V> affine;
    const int width = v.channels / v.groups;
    const auto prepare = [&](int vec) {
        affine.weights(gamma, beta, p.channel<V>(vec));
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const Part& g = groups[(vec * V + j) / width];
            affine.mean[j] = g.a;
            affine.rstd[j] = 1.f / sqrtf(g.b / g.n + v.eps);
        }
    };
    int kept = threadIdx.x;
    bool ready = false;
    for (int row = p.row; row < p.end; row += p.slots) {
        for (int vec = p.vector; vec < p.vectors; vec += p.stays() ? p.vectors : BLOCK) {
            if (!ready) prepare(vec);
            ready = p.stays();
            float f[V];
            if (v.cached) {
                load_all(cache, static_cast<size_t>(kept) * V, f);
                kept += BLOCK;
            } else {
                load_all(x, p.at<V>(v, row, vec), f);
            }
            affine.apply(f, v.act);
            store_all(y, p.at<V>(v, row, vec), f);
        }
    }
}

struct FusedArgs {
    Real x;
    float* m;
    const float *gamma, *beta;
    Real y;
    View v;
};

#define FUSED(NAME, V, A)                         \
    JOINED_KERNEL(NAME, FusedArgs, (BLOCK, 2),    \
                  group_norm_fused<V, A>(a.x, a.m, a.gamma, a.beta, a.y, a.v, block))
FUSED(group_norm_fused_v8, 8, 1)
FUSED(group_norm_fused_v8_channels, 8, 8)
FUSED(group_norm_fused_v1, 1, 1)

// ------------------------------------------------------------------------------------------------
// layer norm, a warp a row

// What is written in a loop is passed by value: where its address is read from the arguments again after each
// store, the compiler does not see that stores are neighbours, and makes no vectors of them.

// Moments and, where y is there, the normalised row. CACHE: vectors of a lane kept in registers, 0 to read twice.
template <int V, int CACHE>
__device__ __forceinline__ void layer_norm(const Real& x, float* m, const float* gamma, const float* beta,
                                           Real y, const View& v, const Block& block) {
    const int row = block.x * (BLOCK / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= v.outer) return;
    const int vectors = v.channels / V;
    const size_t base = static_cast<size_t>(row) * v.channels;
    float kept[CACHE > 0 ? CACHE : 1][V];
    Part part = {0.f, 0.f, 0.f};
    float shift = 0.f, s = 0.f, q = 0.f;
    const auto take = [&](const float (&f)[V]) {
        if (part.n == 0.f) shift = f[0];
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const float d = f[j] - shift;
            s += d;
            q += d * d;
        }
        part.n += V;
    };
    if constexpr (CACHE > 0) {
#pragma unroll
        for (int k = 0; k < CACHE; ++k) {
            const int vec = lane + 32 * k;
            if (vec < vectors) {
                load_all(x, base + static_cast<size_t>(vec) * V, kept[k]);
                take(kept[k]);
            }
        }
    } else {
        for (int vec = lane; vec < vectors; vec += 32) {
            load_all(x, base + static_cast<size_t>(vec) * V, kept[0]);
            take(kept[0]);
        }
    }
    part = merge_warp<true>(shifted(part.n, shift, s, q));
    const float mean = __shfl_sync(FULL_WARP, part.a, 0);
    const float variance = __shfl_sync(FULL_WARP, part.b / part.n, 0);
    if (lane == 0) reinterpret_cast<float2*>(m)[row] = make_float2(mean, variance);
    if (!y.data) return;
    Affine<V> affine;
    const float r = 1.f / sqrtf(variance + v.eps);
#pragma unroll
    for (int j = 0; j < V; ++j) affine.mean[j] = mean, affine.rstd[j] = r;
    const auto give = [&](float (&f)[V], int vec) {
        affine.weights(gamma, beta, vec * V);
        affine.apply(f, v.act);
        store_all(y, base + static_cast<size_t>(vec) * V, f);
    };
    if constexpr (CACHE > 0) {
#pragma unroll
        for (int k = 0; k < CACHE; ++k) {
            const int vec = lane + 32 * k;
            if (vec < vectors) give(kept[k], vec);
        }
    } else {
        for (int vec = lane; vec < vectors; vec += 32) {
            load_all(x, base + static_cast<size_t>(vec) * V, kept[0]);
            give(kept[0], vec);
        }
    }
}

#define LAYER(NAME, V, CACHE) \
    JOINED_KERNEL(NAME, FusedArgs, (BLOCK), layer_norm<V, CACHE>(a.x, a.m, a.gamma, a.beta, a.y, a.v, block))
LAYER(layer_norm_v8_1024, 8, 4)
LAYER(layer_norm_v8, 8, 0)
LAYER(layer_norm_v1, 1, 0)

// The second reading of x and dy comes from L1.
template <int V>
__device__ __forceinline__ void layer_norm_backward(const Real& x, const float* m, const float* gamma,
                                                    const Real& dy, Real dx, const View& v,
                                                    const Block& block) {
    const int row = block.x * (BLOCK / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= v.outer) return;
    const int vectors = v.channels / V;
    const size_t base = static_cast<size_t>(row) * v.channels;
    const float2 both = reinterpret_cast<const float2*>(m)[row];
    const float mean = both.x, rstd = 1.f / sqrtf(both.y + v.eps);
    Affine<V> affine;
    float f[V], g[V], a = 0.f, b = 0.f;
    const auto fetch = [&](int vec) {
        const size_t at = base + static_cast<size_t>(vec) * V;
        load_all(x, at, f);
        load_all(dy, at, g);
        affine.weights(gamma, nullptr, vec * V);
#pragma unroll
        for (int j = 0; j < V; ++j) f[j] = (f[j] - mean) * rstd, g[j] *= affine.gamma[j];
    };
    for (int vec = lane; vec < vectors; vec += 32) {
        fetch(vec);
#pragma unroll
        for (int j = 0; j < V; ++j) a += g[j], b += g[j] * f[j];
    }
    const Part sum = merge_warp<false>({0.f, a, b});
    a = __shfl_sync(FULL_WARP, sum.a, 0) / v.channels;
    b = __shfl_sync(FULL_WARP, sum.b, 0) / v.channels;
    // A short row is still in registers.
    for (int vec = lane; vec < vectors; vec += 32) {
        if (vectors > 32) fetch(vec);
#pragma unroll
        for (int j = 0; j < V; ++j) g[j] = (g[j] - a - f[j] * b) * rstd;
        store_all(dx, base + static_cast<size_t>(vec) * V, g);
    }
}

struct LayerBackwardArgs {
    Real x;
    const float *m, *gamma;
    Real dy, dx;
    View v;
};

#define LAYER_BACKWARD(NAME, V)                           \
    JOINED_KERNEL(NAME, LayerBackwardArgs, (BLOCK),       \
                  layer_norm_backward<V>(a.x, a.m, a.gamma, a.dy, a.dx, a.v, block))
LAYER_BACKWARD(layer_norm_backward_v8, 8)
LAYER_BACKWARD(layer_norm_backward_v1, 1)

// ------------------------------------------------------------------------------------------------
// gradients

// Sums of g = dy gamma (or dy) and of g xhat over the tile's groups and the chunk's rows, to
// `partial`: outer x chunks x groups.
template <int V, int A>
__device__ __forceinline__ void gradient_sums(const Real& x, const float* m, const float* gamma, const Real& dy,
                                              float2* partial, const View& v,
                                        const Block& block) {
    __shared__ Bench<A> bench;
    const Part* groups = bench.groups;
    const Place p = Place::of<V>(v, block);
    Part parts[A];
#pragma unroll
    for (int j = 0; j < A; ++j) parts[j] = {0.f, 0.f, 0.f};
    Affine<V> affine;
    bool ready = false;
    for (int row = p.row; row < p.end; row += p.slots) {
        for (int vec = p.vector; vec < p.vectors; vec += p.stays() ? p.vectors : BLOCK) {
            if (!ready) {
                affine.weights(gamma, nullptr, p.channel<V>(vec));
                if (!v.per_row) affine.moments_of(m, v, p.outer, p.channel<V>(vec));
            }
            ready = p.stays();
            if (v.per_row) affine.moments_of_row(m, v, row);
            float f[V], g[V];
            load_all(x, p.at<V>(v, row, vec), f);
            load_all(dy, p.at<V>(v, row, vec), g);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                g[j] *= affine.gamma[j];
                parts[A == 1 ? 0 : j].a += g[j];
                parts[A == 1 ? 0 : j].b += g[j] * ((f[j] - affine.mean[j]) * affine.rstd[j]);
            }
        }
    }
    merge_block<false, V, A>(p, parts, bench);
    if (threadIdx.x < p.tile_groups) {
        const Part& g = groups[threadIdx.x];
        partial[static_cast<size_t>(block.x) * v.groups + block.y * v.tile + threadIdx.x] =
            make_float2(g.a, g.b);
    }
}

struct SumsArgs {
    Real x;
    const float *m, *gamma;
    Real dy;
    float2* partial;
    View v;
};

#define SUMS(NAME, V, A)                          \
    JOINED_KERNEL(NAME, SumsArgs, (BLOCK, 2),     \
                  gradient_sums<V, A>(a.x, a.m, a.gamma, a.dy, a.partial, a.v, block))
SUMS(gradient_sums_v8, 8, 1)
SUMS(gradient_sums_v8_channels, 8, 8)
SUMS(gradient_sums_v1, 1, 1)

// The chunks' sums added: outer x groups pairs.
__device__ __forceinline__ void merge_gradient_sums(const float2* partial, float* out, const View& v,
                                                    const Block& block) {
    const size_t set = static_cast<size_t>(block.x) * 32 + threadIdx.x;
    __shared__ Part parts[MERGERS][32];
    const Part sum = merge_chunks<false>(partial, v, set, parts);
    if (threadIdx.y == 0 && set < static_cast<size_t>(v.outer) * v.groups) {
        reinterpret_cast<float2*>(out)[set] = make_float2(sum.a, sum.b);
    }
}

// One outer: row 0 the sums with xhat, row 1 the plain ones.
__device__ __forceinline__ void merge_param_grad(const float2* partial, float* out, const View& v,
                                                 const Block& block) {
    const size_t set = static_cast<size_t>(block.x) * 32 + threadIdx.x;
    __shared__ Part parts[MERGERS][32];
    const Part sum = merge_chunks<false>(partial, v, set, parts);
    if (threadIdx.y > 0 || set >= v.groups) return;
    out[set] = sum.b;
    out[v.groups + set] = sum.a;
}

JOINED_KERNEL(gradient_sums_merge, MergeArgs, (32 * MERGERS), merge_gradient_sums(a.partial, a.out, a.v, block))
JOINED_KERNEL(param_grad_merge, MergeArgs, (32 * MERGERS), merge_param_grad(a.partial, a.out, a.v, block))

// sums: outer x moment_groups pairs, absent where the moments are constants. `inverse`: 1 over the values
// of a set.
template <int V>
__device__ __forceinline__ void normalize_backward(const Real& x, const float* m, const float* gamma,
                                                   const Real& dy, const float2* sums, float inverse,
                                                   const Real& dx, const View& v, const Block& block) {
    const Place p = Place::of<V>(v, block);
    if (p.row >= p.end) return;
    const int channel = p.channel<V>(p.vector);
    Affine<V> affine;
    affine.weights(gamma, nullptr, channel);
    if (!v.per_row) affine.moments_of(m, v, p.outer, channel);
    float slope[V], offset[V];
#pragma unroll
    for (int j = 0; j < V; ++j) slope[j] = offset[j] = 0.f;
    if (sums) {
        const int width = v.channels / v.moment_groups;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const float2 s = sums[static_cast<size_t>(p.outer) * v.moment_groups + (channel + j) / width];
            offset[j] = s.x * inverse;
            slope[j] = s.y * inverse;
        }
    }
    for (int row = p.row; row < p.end; row += p.slots) {
        float f[V], g[V];
        load_all(dy, p.at<V>(v, row, p.vector), g);
        if (v.per_row) affine.moments_of_row(m, v, row);
        if (sums) {
            load_all(x, p.at<V>(v, row, p.vector), f);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const float hat = (f[j] - affine.mean[j]) * affine.rstd[j];
                g[j] = (g[j] * affine.gamma[j] - offset[j] - hat * slope[j]) * affine.rstd[j];
            }
        } else {
#pragma unroll
            for (int j = 0; j < V; ++j) g[j] *= affine.gamma[j] * affine.rstd[j];
        }
        store_all(dx, p.at<V>(v, row, p.vector), g);
    }
}

struct NormalizeBackwardArgs {
    Real x;
    const float *m, *gamma;
    Real dy;
    const float2* sums;
    float inverse;
    Real dx;
    View v;
};

#define NORMALIZE_BACKWARD(NAME, V)                           \
    JOINED_KERNEL(NAME, NormalizeBackwardArgs, (BLOCK),       \
                  normalize_backward<V>(a.x, a.m, a.gamma, a.dy, a.sums, a.inverse, a.dx, a.v, block))
NORMALIZE_BACKWARD(normalize_backward_v8, 8)
NORMALIZE_BACKWARD(normalize_backward_v1, 1)
