// Moving elements: concatenation, slices, padding, copies, transposition, selection.
//
//   copy_runs        y[o][y_from + j] = x[o][j + shift], 0 where that is outside x's run: concat (one
//                    launch an input), slice, pad and reshape
//   transpose        y[i][j][c][r] = x with the same coordinates elsewhere, r and c the innermost axes
//   top_k            indices of the k largest keys of a row, ties by lower index; NaN is the smallest
//   gather           y[p][j] = x[p][min(index[j], C-1)]
//   gather_backward  dx[p][c] = sum of dy[p][j] where min(index[j], C-1) = c, in the order of j
//
// Shapes    values fp16 or fp32, mixed; indices u32. x of gather N x P x C, indices N x k or 1 x k
// Geometry  block 256. copy_runs: a thread takes V elements (16 bytes) of one run; transpose: a block a
//           tile of 32 x 32 through shared memory; top_k: a thread a key; gather: 32 channels x 8
//           pixels a block, a thread 8 pixels
//
// The decisions that surprise:
// * top_k counts for each key how many come before it. That is C^2 comparisons where a sort takes
//   C log^2 C, but it is one pass without exchange between threads, any C, and the keys are few: 4096
//   are 16 M comparisons, spread over C/256 blocks a row.
// * gather_backward links equal indices to lists first (`links`), so that a channel's sum is taken by
//   one thread in one order: no atomics, the same bits each time.
// * A transposition that leaves the innermost axis in place is not here: it is `binary_*` of
//   elementwise.cu reading one operand with other strides.
//
// Cost per output: one element read, one written (pad: less). Bound by memory.

#include "joined.cuh"
#include "vector.cuh"

constexpr int BLOCK = 256;

// ------------------------------------------------------------------------------------------------
// copies

// Mirrors `Runs` of src/engine/cuda/layout.rs. Elements.
struct Runs {
    size_t threads;
    size_t per_run;   // threads of a run: run / V, and one for each element beyond
    size_t run;       // of the output, written here
    size_t x_stride;  // of x, all of it
    size_t y_stride, y_from;
    long long shift;
};

// V divides the strides (or there is one run), shift and y_from.
template <int V>
__device__ __forceinline__ void copy_runs(const Real& x, const Real& y, const Runs& s, const Block& block) {
    const size_t t = static_cast<size_t>(block.x) * BLOCK + threadIdx.x;
    if (t >= s.threads) return;
    size_t j = t, o = 0;
    if (s.per_run < s.threads) o = divide(t, s.per_run, j);
    const size_t row = o * s.y_stride + s.y_from;
    const long long end = static_cast<long long>(s.x_stride);
    const size_t whole = s.run / V;
    if (j >= whole) {
        // What V does not divide: an element a thread. As a tail of the vectors it would tear their stores
        // to pieces, because the compiler merges the two.
        j = whole * V + (j - whole);
        const long long from = static_cast<long long>(j) + s.shift;
        store(y, row + j, from >= 0 && from < end ? load(x, o * s.x_stride + from) : 0.f);
        return;
    }
    j *= V;
    const long long from = static_cast<long long>(j) + s.shift;
    if (from >= 0 && from + V <= end) {
        if (V == 8 && x.type == F16 && y.type == F16) {
            const __half* here = static_cast<const __half*>(x.data) + o * s.x_stride + from;
            *reinterpret_cast<uint4*>(static_cast<__half*>(y.data) + row + j) =
                *reinterpret_cast<const uint4*>(here);
            return;
        }
        float v[V];
        load_all(x, o * s.x_stride + from, v);
        store_all(y, row + j, v);
        return;
    }
    // At the edge of x: rare, so element by element.
#pragma unroll 1
    for (int e = 0; e < V; ++e) {
        const bool inside = from + e >= 0 && from + e < end;
        store(y, row + j + e, inside ? load(x, o * s.x_stride + from + e) : 0.f);
    }
}

struct CopyArgs {
    Real x, y;
    Runs s;
};

JOINED_KERNEL(copy_runs_8, CopyArgs, (BLOCK), copy_runs<8>(a.x, a.y, a.s, block))
JOINED_KERNEL(copy_runs_4, CopyArgs, (BLOCK), copy_runs<4>(a.x, a.y, a.s, block))
JOINED_KERNEL(copy_runs_1, CopyArgs, (BLOCK), copy_runs<1>(a.x, a.y, a.s, block))

// ------------------------------------------------------------------------------------------------
// transposition

constexpr int TILE = 32;

// Mirrors `Tiles` of src/engine/cuda/layout.rs. Elements; x's innermost axis is c, y's is r.
struct Tiles {
    size_t rows, columns;       // of axes r and c
    size_t row_tiles, column_tiles;
    size_t inner;               // size of the inner one of the two other axes
    size_t x_row, y_column;     // stride of r in x, of c in y
    size_t x_outer, y_outer;
    size_t x_inner, y_inner;
};

// grid: tiles, r the fastest; block 256
extern "C" __global__ void __launch_bounds__(BLOCK) transpose(Real x, Real y, Tiles s) {
    __shared__ float tile[TILE][TILE + 1];
    size_t row_tile, column_tile, i;
    size_t rest = divide(blockIdx.x, s.row_tiles, row_tile);
    rest = divide(rest, s.column_tiles, column_tile);
    const size_t o = divide(rest, s.inner, i);
    const size_t row0 = row_tile * TILE, column0 = column_tile * TILE;
    const int lane = threadIdx.x % TILE, warp = threadIdx.x / TILE;

    const size_t from = o * s.x_outer + i * s.x_inner + column0 + lane;
    for (int r = warp; r < TILE; r += BLOCK / TILE) {
        if (row0 + r < s.rows && column0 + lane < s.columns) {
            tile[r][lane] = load(x, from + (row0 + r) * s.x_row);
        }
    }
    __syncthreads();
    const size_t to = o * s.y_outer + i * s.y_inner + row0 + lane;
    for (int c = warp; c < TILE; c += BLOCK / TILE) {
        if (column0 + c < s.columns && row0 + lane < s.rows) {
            store(y, to + (column0 + c) * s.y_column, tile[lane][c]);
        }
    }
}

// ------------------------------------------------------------------------------------------------
// selection

// Bits that order as the number does, -0 before 0; NaN as -inf.
__device__ __forceinline__ u32 ordered(float key) {
    u32 bits = __float_as_uint(key);
    if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0xff800000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// grid (ceil(C / 256), rows)
__device__ __forceinline__ void choose(const Real& keys, u32* __restrict__ chosen, int channels, int k,
                                       const Block& block) {
    __shared__ u32 others[BLOCK];
    const size_t row = static_cast<size_t>(block.y) * channels;
    const int mine = block.x * BLOCK + threadIdx.x;
    const u32 key = mine < channels ? ordered(load(keys, row + mine)) : 0;
    int rank = 0;
    for (int start = 0; start < channels; start += BLOCK) {
        const int j = start + threadIdx.x;
        __syncthreads();
        if (j < channels) others[threadIdx.x] = ordered(load(keys, row + j));
        __syncthreads();
        const int count = min(BLOCK, channels - start);
        for (int other = 0; other < count; ++other) {
            // Of equal keys the one with the lower index comes first. No key is the largest u32.
            const u32 needed = start + other < mine ? key : key + 1;
            rank += others[other] >= needed;
        }
    }
    if (mine < channels && rank < k) chosen[static_cast<size_t>(block.y) * k + rank] = mine;
}

struct TopKArgs {
    Real keys;
    u32* chosen;
    int channels, k;
};

JOINED_KERNEL(top_k, TopKArgs, (BLOCK), choose(a.keys, a.chosen, a.channels, a.k, block))

constexpr int LANES = 32;
constexpr int STEP = BLOCK / LANES;
constexpr int PIXELS = 8 * STEP;  // of a block

// grid (ceil(P / 64), ceil(k / 32), N); index_stride 0: one row of indices for all
__device__ __forceinline__ void gather_some(const Real& x, const u32* __restrict__ indices, const Real& y, int pixels,
                                            int channels, int k, int index_stride, const Block& block) {
    const int j = block.y * LANES + threadIdx.x % LANES;
    if (j >= k) return;
    const size_t n = block.z;
    const u32 channel = min(indices[n * index_stride + j], static_cast<u32>(channels - 1));
    const int first = block.x * PIXELS + threadIdx.x / LANES;
    const int end = min(static_cast<int>(block.x + 1) * PIXELS, pixels);
    for (int p = first; p < end; p += STEP) {
        const size_t at = n * pixels + p;
        store(y, at * k + j, load(x, at * channels + channel));
    }
}

struct GatherArgs {
    Real x;
    const u32* indices;
    Real y;
    int pixels, channels, k, index_stride;
};

JOINED_KERNEL(gather, GatherArgs, (BLOCK),
              gather_some(a.x, a.indices, a.y, a.pixels, a.channels, a.k, a.index_stride, block))

// The positions of a row of indices as one list a channel: head[c] the first j that chooses c, next[j]
// the next one that chooses the same; -1 where there is none. Thread i < channels finds head[i], thread
// channels + j next[j].
// grid (ceil((channels + k) / 256), rows)
extern "C" __global__ void __launch_bounds__(BLOCK)
    links(const u32* __restrict__ indices, int* __restrict__ head, int* __restrict__ next, int channels,
          int k) {
    __shared__ u32 some[BLOCK];
    const u32* row = indices + static_cast<size_t>(blockIdx.y) * k;
    const u32 last = channels - 1;
    const int thread = blockIdx.x * BLOCK + threadIdx.x;
    const int self = thread - channels;  // j, or below 0 for a head
    const u32 wanted = self < 0 ? thread : self < k ? min(row[self], last) : ~0u;
    int found = -1;
    for (int start = 0; start < k; start += BLOCK) {
        const int j = start + threadIdx.x;
        __syncthreads();
        if (j < k) some[threadIdx.x] = min(row[j], last);
        __syncthreads();
        const int count = min(BLOCK, k - start);
        for (int other = 0; other < count; ++other) {
            if (found < 0 && start + other > self && some[other] == wanted) found = start + other;
        }
    }
    if (self < 0) {
        head[static_cast<size_t>(blockIdx.y) * channels + thread] = found;
    } else if (self < k) {
        next[static_cast<size_t>(blockIdx.y) * k + self] = found;
    }
}

// grid (ceil(P / 64), ceil(channels / 32), N); shared_row 1: one row of indices for all
extern "C" __global__ void __launch_bounds__(BLOCK)
    gather_backward(const int* __restrict__ head, const int* __restrict__ next, Real dy, Real dx, int pixels,
                    int channels, int k, int shared_row) {
    const int c = blockIdx.y * LANES + threadIdx.x % LANES;
    if (c >= channels) return;
    const size_t n = blockIdx.z, row = shared_row ? 0 : n;
    const int from = head[row * channels + c];
    const int* following = next + row * k;
    const int first = blockIdx.x * PIXELS + threadIdx.x / LANES;
    const int end = min(static_cast<int>(blockIdx.x + 1) * PIXELS, pixels);
    for (int p = first; p < end; p += STEP) {
        const size_t at = n * pixels + p;
        float sum = 0.f;
        for (int j = from; j >= 0; j = following[j]) sum += load(dy, at * k + j);
        store(dx, at * channels + c, sum);
    }
}
