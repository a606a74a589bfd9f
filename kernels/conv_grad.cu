// Gradient of a convolution by its weight, as an implicit matrix product on tensor cores; fp16 in, fp32 sums
// and fp32 out.
//
//     dW[r, s, i, o] = Σ_{n,h,w} x[n, h·stride + r − top, w·stride + s − left, i] · dy[n, h, w, o]
//
// Layouts: x, dy N×H×W×C; dW kh×kw×(cin/groups)×cout. As a product: rows m = (tap, i), columns n = o of one
// group, summed over k = the pixels of dy. Both operands have a pixel a row with channels running fastest,
// so both are stored by k and ldmatrix transposes them on the way; dW is its row-major result.
//
// A block of four warps computes BM × BN over one split of the pixels: grid (⌈m/BM⌉, ⌈n/BN⌉,
// groups·splits). A slice is 32 pixels; where each lies in x is worked out once a slice, by one warp, two
// slices ahead of its use, as dividing in every copying thread would cost more than the products.
// 16-byte copies need 8 | channels of a group, of x and dy each; others are copied element by element.
//
// The surprising decision: m and n are short and k is long (a million pixels for 576×64), so the grid comes
// from splitting k. The parts go to scratch and conv_grad_sum adds them in a fixed order: no atomics, the
// same bits always.
//
// Per result 2·k FLOP and, from L2, 2·k·(1/BM + 1/BN) bytes; the parts add 8·splits bytes a result.
#include "product.cuh"

// Mirrors Problem of src/engine/cuda/conv_grad.rs.
struct Problem {
    int images, h, w, c;         // x; c counts all groups
    int out_h, out_w, out_c;     // dy
    int in_group, out_group;     // channels of one group
    int kernel_h, kernel_w;
    int stride, pad_top, pad_left;
    int groups, splits;
};

// A pixel that lies in no image.
constexpr int OUTSIDE = -(1 << 30);
// Slices whose pixels are known: those being copied and one more, which is written while they are read.
constexpr int TABLES = 4;

template <int BM, int BN, int WM, int WN, bool VECTOR_X, bool VECTOR_DY>
__device__ __forceinline__ void conv_grad_tile(const __half* __restrict__ x, const __half* __restrict__ dy,
                                               float* __restrict__ out, const Problem& p) {
    using Tile = Product<BM, BN, WM, WN, true, true>;
    static_assert(STAGES < TABLES, "a table is not written while it is read");
    __shared__ __align__(128) unsigned char shared[Tile::POOL];
    __shared__ int4 pixels[TABLES][BK];  // index in x of tap (0, 0), its y and x

    const int tid = threadIdx.x;
    const u32 pool = shared_address(shared);
    const int group = blockIdx.z / p.splits, split = blockIdx.z - group * p.splits;
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    const int m_all = p.kernel_h * p.kernel_w * p.in_group;
    const int k_all = p.images * p.out_h * p.out_w;
    const int slices = (k_all + BK - 1) / BK;
    const int begin = static_cast<int>(static_cast<long long>(slices) * split / p.splits);
    const int end = static_cast<int>(static_cast<long long>(slices) * (split + 1) / p.splits);

    auto locate = [&](int slice, int row) {
        const int k = slice * BK + row;
        int4 v = make_int4(0, OUTSIDE, OUTSIDE, 0);
        if (k < k_all) {
            const int t = k / p.out_w, n = t / p.out_h;
            v.y = (t - n * p.out_h) * p.stride - p.pad_top;
            v.z = (k - t * p.out_w) * p.stride - p.pad_left;
            v.x = (n * p.h + v.y) * p.w + v.z;
        }
        pixels[slice & (TABLES - 1)][row] = v;
    };
    if (tid < STAGES * BK) locate(begin + tid / BK, tid & (BK - 1));
    __syncthreads();

    // This thread's column of the x operand: one chunk of eight channels, or one, of one tap.
    constexpr int X_ACROSS = BM / (VECTOR_X ? 8 : 1), X_ROWS = THREADS / X_ACROSS;
    constexpr int DY_ACROSS = BN / (VECTOR_DY ? 8 : 1), DY_ROWS = THREADS / DY_ACROSS;
    const int x_column = tid % X_ACROSS, x_row = tid / X_ACROSS;
    const int m = m0 + x_column * (VECTOR_X ? 8 : 1);
    const int tap = m / p.in_group, r = tap / p.kernel_w, s = tap - r * p.kernel_w;
    const bool x_inside = m < m_all;
    const __half* x_from = x + static_cast<long long>(r * p.w + s) * p.c + group * p.in_group + (m - tap * p.in_group);
    const int dy_column = tid % DY_ACROSS, dy_row = tid / DY_ACROSS;
    const int n = n0 + dy_column * (VECTOR_DY ? 8 : 1);
    const bool dy_inside = n < p.out_group;
    const __half* dy_from = dy + group * p.out_group + n;

    auto in_image = [&](const int4& pixel) {
        return x_inside && static_cast<u32>(pixel.y + r) < static_cast<u32>(p.h) &&
               static_cast<u32>(pixel.z + s) < static_cast<u32>(p.w);
    };
    auto copy = [&](int slice, int stage) {
        const int4* table = pixels[slice & (TABLES - 1)];
        if constexpr (VECTOR_X) {
            const u32 to = Tile::a_stage(pool, stage);
#pragma unroll
            for (int row = 0; row < BK; row += X_ROWS) {
                const int4 pixel = table[x_row + row];
                const bool ok = in_image(pixel);
                cp_async_16(to + swizzled<BM / 8>(x_row + row, x_column),
                            ok ? x_from + static_cast<long long>(pixel.x) * p.c : x, ok);
            }
        } else {
            unsigned char* to = shared + Tile::a_stage(0, stage) + x_column % 8 * 2;
#pragma unroll 8
            for (int row = 0; row < BK; row += X_ROWS) {
                const int4 pixel = table[x_row + row];
                __half v = __ushort_as_half(0);
                if (in_image(pixel)) v = x_from[static_cast<long long>(pixel.x) * p.c];
                *reinterpret_cast<__half*>(to + swizzled<BM / 8>(x_row + row, x_column / 8)) = v;
            }
        }
        const int rows = dy_inside ? k_all - slice * BK : 0;
        const __half* from = dy_from + (static_cast<long long>(slice) * BK + dy_row) * p.out_c;
        if constexpr (VECTOR_DY) {
            const u32 to = Tile::b_stage(pool, stage);
#pragma unroll
            for (int row = 0; row < BK; row += DY_ROWS) {
                const bool ok = dy_row + row < rows;
                cp_async_16(to + swizzled<BN / 8>(dy_row + row, dy_column),
                            ok ? from + static_cast<long long>(row) * p.out_c : dy, ok);
            }
        } else {
            unsigned char* to = shared + Tile::b_stage(0, stage) + dy_column % 8 * 2;
#pragma unroll 8
            for (int row = 0; row < BK; row += DY_ROWS) {
                __half v = __ushort_as_half(0);
                if (dy_row + row < rows) v = from[static_cast<long long>(row) * p.out_c];
                *reinterpret_cast<__half*>(to + swizzled<BN / 8>(dy_row + row, dy_column / 8)) = v;
            }
        }
    };
    out += (static_cast<size_t>(split) * m_all + m0) * p.out_c + group * p.out_group + n0;
    const int rows_left = min(BM, m_all - m0), columns = min(BN, p.out_group - n0);
    auto finish = [&](const float* results, int pass) {
        // Four neighbours at a time where 4 | channels of a group.
        const int width = p.out_group % 4 == 0 ? 4 : 1;
        for (int i = tid * width; i < Tile::ROWS * BN; i += THREADS * width) {
            const int row = Tile::row_of(pass, i / BN), column = i % BN;
            if (row >= rows_left || column >= columns) continue;
            const float* from = results + i / BN * Tile::ROW + column;
            float* to = out + static_cast<size_t>(row) * p.out_c + column;
            if (width == 4) {
                *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
            } else {
                *to = *from;
            }
        }
    };
    auto next = [&](int slice) {
        if (tid < BK) locate(slice + STAGES, tid);
    };
    Tile::run(shared, begin, end, copy, next, finish);
}

#define CONV_GRAD(NAME, BM, BN, WM, WN, VECTOR_X, VECTOR_DY)                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                    \
        NAME(const __half* x, const __half* dy, float* out, Problem p) {                                        \
        conv_grad_tile<BM, BN, WM, WN, VECTOR_X, VECTOR_DY>(x, dy, out, p);                                     \
    }

CONV_GRAD(conv_grad_128x64, 128, 64, 64, 32, true, true)
CONV_GRAD(conv_grad_64x64, 64, 64, 32, 32, true, true)
CONV_GRAD(conv_grad_64x32, 64, 32, 32, 16, true, true)
// Channels of x not a multiple of 8: a stem.
CONV_GRAD(conv_grad_gather_64x64, 64, 64, 32, 32, false, true)
// Channels of dy not a multiple of 8: a head.
CONV_GRAD(conv_grad_ragged_64x32, 64, 32, 32, 16, true, false)
CONV_GRAD(conv_grad_any_64x32, 64, 32, 32, 16, false, false)

// out[i] = Σ_k partial[k][i], in the order of k within each of RUNS runs, then over the runs.
// 32 results × RUNS runs a block, ⌈len/32⌉ blocks; 4·splits bytes in, 4 out per result.
constexpr int RUNS = 8;

extern "C" __global__ void __launch_bounds__(32 * RUNS)
conv_grad_sum(const float* __restrict__ partial, float* __restrict__ out, u32 len, u32 splits) {
    __shared__ float runs[RUNS][33];
    const u32 lane = threadIdx.x & 31, row = threadIdx.x >> 5;
    const size_t i = static_cast<size_t>(blockIdx.x) * 32 + lane;
    float v = 0.0f;
    if (i < len) {
#pragma unroll 4
        for (u32 k = row; k < splits; k += RUNS) v += partial[static_cast<size_t>(k) * len + i];
    }
    runs[row][lane] = v;
    __syncthreads();
    if (row == 0 && i < len) {
#pragma unroll
        for (int k = 1; k < RUNS; k++) v += runs[k][lane];
        out[i] = v;
    }
}
