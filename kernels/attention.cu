// Scaled dot-product attention and its gradient, without a matrix of tokens by tokens in memory.
//
//   P = softmax(q k^T / sqrt(d)),  y = P v
//   D = rowsum(P (dy v^T)),  dS = P (dy v^T - D) / sqrt(d),  dq = dS k,  dk = dS^T q,  dv = P^T dy
//
// Shapes    qkv N x tokens x 3C, y and dy N x tokens x C, fp16; d = C / heads. q, k, v of a head lie in
//           one piece of d channels each, by `per_head`. Statistics of the backward pass, fp32:
//           N x heads x tokens x (log2 of the sum of exponentials, D).
// Geometry  a warp takes 16 rows (queries; keys for dk and dv), a block up to four warps, and walks over
//           tiles of 32 columns, the next of which is copied meanwhile. Products on tensor cores, sums and
//           softmax in fp32. block.y is a slice of SLICE output channels.
//
// The decision that surprises: forward pass, statistics, dq and dk/dv are one function. Each multiplies
// rows by columns (and the rows' partner by the columns'), turns the product into weights in registers, and
// multiplies those by what lies in the column tile. Nothing is added up across blocks, so no atomics; the
// price is that the products are formed again in each pass and each slice (heads of more than 128
// channels, 64 for dk and dv). d is padded with zeros to a multiple of SLICE in shared memory.
//
// Cost per token and head: forward 4 tokens d FLOP and 2 d (1 + 2 tokens / 64) bytes of L2; statistics 4,
// dq 6, dk and dv 8 tokens d FLOP. Bound by arithmetic from some 100 tokens on.
// Rows lie (d + 8) halves apart in shared memory, an odd number of 16 bytes: eight of them, read by an
// ldmatrix or written by eight lanes, fall into different banks.

#include "joined.cuh"
#include "ptx.cuh"

constexpr int BLOCK = 128;
constexpr int ROWS = 16;     // of a warp
constexpr int COLUMNS = 32;  // of a tile
constexpr int TILES = COLUMNS / 8;

enum Mode { FORWARD, STATISTICS, QUERY, KEY_VALUE };

// `Problem` of src/engine/cuda/attention.rs.
struct alignas(8) Problem {
    int tokens, channels, heads, width;
    int depth;  // width, padded
    int per_head, causal;
    float scale;
};

constexpr float LOG2_E = 1.44269504f;

// Part 0 q, 1 k, 2 v of a head: its first channel.
__device__ __forceinline__ int part_of(const Problem& p, int head, int part) {
    return p.per_head ? (head * 3 + part) * p.width : part * p.channels + head * p.width;
}

struct Matrix {
    const __half* data;
    int stride;
};

// `rows` rows of `from` to shared memory, zeros beyond the tokens and the width.
__device__ __forceinline__ void fill(__half* to, const Matrix& from, int first, int rows, const Problem& p) {
    const int vectors = p.depth / 8, stride = p.depth + 8;
    const bool aligned = p.width % 8 == 0;
    // Eight neighbouring lanes, whose 16 bytes go in one turn, take eight rows: other banks, for an odd pitch.
    for (int i = threadIdx.x; i < rows * vectors; i += blockDim.x) {
        const int eight = i / 8 / vectors, r = eight * 8 + i % 8, c = (i / 8 - eight * vectors) * 8;
        const bool there = first + r < p.tokens;
        const __half* row = from.data + static_cast<size_t>(there ? first + r : 0) * from.stride;
        __half* at = to + r * stride + c;
        if (aligned) {
            const bool valid = there && c < p.width;
            cp_async_16(at, row + (valid ? c : 0), valid);
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                at[j] = there && c + j < p.width ? row[c + j] : __float2half_rn(0.f);
            }
        }
    }
}

// s += a b^T: this warp's 16 rows by the tile's columns.
__device__ __forceinline__ void multiply(float (&s)[TILES][4], u32 a, u32 b, int depth) {
    const int lane = threadIdx.x % 32, stride = (depth + 8) * 2;
    a += (lane % 16) * stride + (lane / 16) * 16;
    b += (lane / 16 * 8 + lane % 8) * stride + (lane / 8 % 2) * 16;
    for (int k = 0; k < depth; k += 16) {
        u32 fa[4];
        ldmatrix_x4(fa, a + k * 2);
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
            u32 fb[4];
            ldmatrix_x4(fb, b + j * 8 * stride + k * 2);
            mma_16816(s[j], fa, fb[0], fb[1]);
            mma_16816(s[j + 1], fa, fb[2], fb[3]);
        }
    }
}

__device__ __forceinline__ u32 pack(float low, float high) {
    const __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<const u32*>(&h);
}

// o += w b: weights 16 x 32 by SLICE channels of the tile, whose rows are the weights' columns.
template <int SLICE>
__device__ __forceinline__ void gather(float (&o)[SLICE / 8][4], const float (&w)[TILES][4], u32 b, int depth) {
    const int lane = threadIdx.x % 32, stride = (depth + 8) * 2;
    b += (lane % 16) * stride + (lane / 16) * 16;
#pragma unroll
    for (int j = 0; j < TILES; j += 2) {
        const u32 fa[4] = {pack(w[j][0], w[j][1]), pack(w[j][2], w[j][3]), pack(w[j + 1][0], w[j + 1][1]),
                           pack(w[j + 1][2], w[j + 1][3])};
#pragma unroll
        for (int n = 0; n < SLICE; n += 16) {
            u32 fb[4];
            ldmatrix_x4_trans(fb, b + j * 8 * stride + n * 2);
            mma_16816(o[n / 8], fa, fb[0], fb[1]);
            mma_16816(o[n / 8 + 1], fa, fb[2], fb[3]);
        }
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// o, each row times its factor, to SLICE channels from `first` of 16 rows, by way of shared memory, so
// that lanes write 16 bytes each. All threads must call it.
template <int SLICE>
__device__ __forceinline__ void put(const float (&o)[SLICE / 8][4], float low, float high, __half* stage,
                                    __half* to, int stride, int row, int first, const Problem& p) {
    const int lane = threadIdx.x % 32, pitch = p.depth + 8;
#pragma unroll
    for (int n = 0; n < SLICE / 8; ++n) {
        __half* at = stage + lane / 4 * pitch + n * 8 + lane % 4 * 2;
        *reinterpret_cast<u32*>(at) = pack(o[n][0] * low, o[n][1] * low);
        *reinterpret_cast<u32*>(at + 8 * pitch) = pack(o[n][2] * high, o[n][3] * high);
    }
    __syncthreads();
    for (int i = lane; i < ROWS * (SLICE / 8); i += 32) {
        // As in `fill`.
        const int r = i / SLICE * 8 + i % 8, c = i / 8 % (SLICE / 8) * 8;
        if (row + r >= p.tokens) continue;
        __half* at = to + static_cast<size_t>(row + r) * stride + first + c;
        const __half* from = stage + r * pitch + c;
        if (p.width % 8 == 0) {
            if (first + c < p.width) *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(from);
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                if (first + c + j < p.width) at[j] = from[j];
            }
        }
    }
}

template <int MODE, int SLICE>
__device__ __forceinline__ void attend(const __half* qkv, const __half* dy, float2* stats, __half* out,
                                       const Problem& p, const Block& block) {
    extern __shared__ uint4 slab[];
    const int block_rows = blockDim.x / 32 * ROWS, tiles = (p.tokens + block_rows - 1) / block_rows;
    const int image_head = block.x / tiles, first_row = (block.x - image_head * tiles) * block_rows;
    const int image = image_head / p.heads, head = image_head - image * p.heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int slice = block.y * SLICE, pitch = p.depth + 8;
    const size_t token = static_cast<size_t>(image) * p.tokens;

    qkv += token * 3 * p.channels;
    const Matrix q = {qkv + part_of(p, head, 0), 3 * p.channels};
    const Matrix k = {qkv + part_of(p, head, 1), 3 * p.channels};
    const Matrix v = {qkv + part_of(p, head, 2), 3 * p.channels};
    const Matrix g = {MODE == FORWARD ? nullptr : dy + token * p.channels + head * p.width, p.channels};
    stats += static_cast<size_t>(image_head) * p.tokens;

    // Rows and their partners, then two buffers of columns and theirs.
    __half* rows = reinterpret_cast<__half*>(slab);
    __half* partners = rows + block_rows * pitch;
    __half* columns = MODE == FORWARD ? partners : partners + block_rows * pitch;
    const int buffer = 2 * COLUMNS * pitch;
    fill(rows, MODE == KEY_VALUE ? k : q, first_row, block_rows, p);
    if constexpr (MODE != FORWARD) fill(partners, MODE == KEY_VALUE ? v : g, first_row, block_rows, p);
    const auto fetch = [&](int tile) {
        __half* to = columns + tile % 2 * buffer;
        fill(to, MODE == KEY_VALUE ? q : k, tile * COLUMNS, COLUMNS, p);
        fill(to + COLUMNS * pitch, MODE == KEY_VALUE ? g : v, tile * COLUMNS, COLUMNS, p);
    };
    const int last_row = min(first_row + block_rows, p.tokens) - 1;
    const int begin = MODE == KEY_VALUE && p.causal ? first_row / COLUMNS : 0;
    const int end = MODE != KEY_VALUE && p.causal ? last_row / COLUMNS + 1 : (p.tokens + COLUMNS - 1) / COLUMNS;
    fetch(begin);
    cp_async_commit();

    const int row = first_row + warp * ROWS + lane / 4;
    const float scale = p.scale * LOG2_E;
    const u32 a = shared_address(rows + warp * ROWS * pitch);
    const u32 a2 = shared_address(partners + warp * ROWS * pitch);
    // Of the lane's two rows: largest product, sum of exponentials, sum of those times dy v.
    float top[2] = {NEG_INF, NEG_INF}, sum[2] = {0.f, 0.f}, dot[2] = {0.f, 0.f};
    float2 known[2] = {make_float2(0.f, 0.f), make_float2(0.f, 0.f)};
    if constexpr (MODE == QUERY) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (row + i * 8 < p.tokens) known[i] = stats[row + i * 8];
        }
    }
    float o[SLICE / 8][4], o2[MODE == KEY_VALUE ? SLICE / 8 : 1][4];
#pragma unroll
    for (int n = 0; n < SLICE / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            o[n][e] = 0.f;
            if constexpr (MODE == KEY_VALUE) o2[n][e] = 0.f;
        }
    }

    for (int tile = begin; tile < end; ++tile) {
        if (tile + 1 < end) fetch(tile + 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        const u32 b = shared_address(columns + tile % 2 * buffer);
        const u32 b2 = b + COLUMNS * pitch * 2;
        float s[TILES][4], t[TILES][4];
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) s[j][e] = t[j][e] = 0.f;
        }
        multiply(s, a, b, p.depth);
        if constexpr (MODE != FORWARD) multiply(t, a2, b2, p.depth);
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = row + e / 2 * 8, c = tile * COLUMNS + j * 8 + lane % 4 * 2 + e % 2;
                const bool unseen = p.causal && (MODE == KEY_VALUE ? c < r : c > r);
                s[j][e] = c >= p.tokens || unseen ? NEG_INF : s[j][e] * scale;
            }
        }
        if constexpr (MODE == FORWARD || MODE == STATISTICS) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float most = top[i];
#pragma unroll
                for (int j = 0; j < TILES; ++j) most = fmaxf(most, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
                most = quad_max(most);
                // Column 0 is seen by every row: `most` is a number from the first tile on.
                const float shrink = exp2f(top[i] - most);
                top[i] = most;
                sum[i] *= shrink;
                dot[i] *= shrink;
#pragma unroll
                for (int j = 0; j < TILES; ++j) {
#pragma unroll
                    for (int e = 2 * i; e < 2 * i + 2; ++e) {
                        s[j][e] = exp2f(s[j][e] - most);
                        sum[i] += s[j][e];
                        if constexpr (MODE == STATISTICS) dot[i] += s[j][e] * t[j][e];
                    }
                }
                if constexpr (MODE == FORWARD) {
#pragma unroll
                    for (int n = 0; n < SLICE / 8; ++n) o[n][2 * i] *= shrink, o[n][2 * i + 1] *= shrink;
                }
            }
            if constexpr (MODE == FORWARD) gather<SLICE>(o, s, b2 + slice * 2, p.depth);
        } else {
#pragma unroll
            for (int j = 0; j < TILES; ++j) {
                float2 of[2];
                if constexpr (MODE == KEY_VALUE) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        of[i] = stats[min(tile * COLUMNS + j * 8 + lane % 4 * 2 + i, p.tokens - 1)];
                    }
                }
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float2 st = MODE == KEY_VALUE ? of[e % 2] : known[e / 2];
                    s[j][e] = exp2f(s[j][e] - st.x);
                    t[j][e] = s[j][e] * (t[j][e] - st.y);
                }
            }
            gather<SLICE>(o, t, b + slice * 2, p.depth);
            if constexpr (MODE == KEY_VALUE) gather<SLICE>(o2, s, b2 + slice * 2, p.depth);
        }
        __syncthreads();
    }

    const int warp_row = first_row + warp * ROWS;
    __half* stage = rows + warp * ROWS * pitch;
    if constexpr (MODE == STATISTICS) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float total = quad_sum(sum[i]), product = quad_sum(dot[i]);
            if (lane % 4 == 0 && row + i * 8 < p.tokens) {
                stats[row + i * 8] = make_float2(top[i] + log2f(total), product / total);
            }
        }
    } else if constexpr (MODE == FORWARD) {
        put<SLICE>(o, 1.f / quad_sum(sum[0]), 1.f / quad_sum(sum[1]), stage,
                   out + token * p.channels + head * p.width, p.channels, warp_row, slice, p);
    } else {
        out += token * 3 * p.channels;
        const int stride = 3 * p.channels;
        put<SLICE>(o, p.scale, p.scale, stage, out + part_of(p, head, MODE == QUERY ? 0 : 1), stride, warp_row,
                   slice, p);
        if constexpr (MODE == KEY_VALUE) {
            put<SLICE>(o2, 1.f, 1.f, partners + warp * ROWS * pitch, out + part_of(p, head, 2), stride, warp_row,
                       slice, p);
        }
    }
}

struct AttentionArgs {
    const __half *qkv, *dy;
    float2* stats;
    __half* out;
    Problem p;
};

#define ATTEND(NAME, MODE, SLICE)                             \
    JOINED_KERNEL(NAME, AttentionArgs, (BLOCK, 2),            \
                  attend<MODE, SLICE>(a.qkv, a.dy, a.stats, a.out, a.p, block))
ATTEND(attention_16, FORWARD, 16)
ATTEND(attention_32, FORWARD, 32)
ATTEND(attention_64, FORWARD, 64)
ATTEND(attention_128, FORWARD, 128)
ATTEND(attention_statistics, STATISTICS, 8)
ATTEND(attention_query_16, QUERY, 16)
ATTEND(attention_query_32, QUERY, 32)
ATTEND(attention_query_64, QUERY, 64)
ATTEND(attention_query_128, QUERY, 128)
ATTEND(attention_key_value_16, KEY_VALUE, 16)
ATTEND(attention_key_value_32, KEY_VALUE, 32)
ATTEND(attention_key_value_64, KEY_VALUE, 64)
