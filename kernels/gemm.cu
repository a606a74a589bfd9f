// Batched matrix product on tensor cores, any sizes: fp16 in, fp32 sums, fp16 or fp32 out.
//
//     c[b, i, j] = alpha · Σ_p op(a)[b, i, p] · op(b)[b, p, j]
//
// Layouts: c batches×m×n; a batches×m×k, or batches×k×m where transposed; b batches×k×n, or batches×n×k.
// The letters in a kernel's name say which: n as it is, t transposed, a first.
//
// A block of four warps computes BM × BN of one batch: grid (⌈m/BM⌉, ⌈n/BN⌉, batches up to 65535, a block
// goes on to the next 65535). Three slices of k are in shared memory, see product.cuh.
//
// The surprising decision: no operand is ever transposed in memory. Each lies in shared memory as in global
// memory, and one of ldmatrix and ldmatrix.trans fits. 16-byte copies need both contiguous axes to be
// multiples of 8; the kernels named …_any copy element by element.
//
// Per result 2·k FLOP and, from L2, 2·k·(1/BM + 1/BN) bytes: 43 FLOP a byte at 128×64, 32 at 64×64.
#include "product.cuh"
#include "vector.cuh"

// Mirrors Problem of src/engine/cuda/gemm.rs.
struct Problem {
    int batches, m, n, k;
    float alpha;
};

// One operand: `own` positions along its own axis (m or n) from `first` on, `k` summed.
template <int B, bool BY_K, bool VECTOR>
struct Operand {
    const __half* from;
    size_t pitch;
    int own, k;

    __device__ __forceinline__ Operand(const __half* matrix, int first, int own_all, int k_all)
        : pitch(BY_K ? own_all : k_all), own(own_all - first), k(k_all) {
        from = matrix + first * (BY_K ? 1 : pitch);
    }

    __device__ __forceinline__ void copy(u32 to, unsigned char* shared_to, int slice) const {
        const int tid = threadIdx.x, k0 = slice * BK;
        // Chunks of eight (or elements) of a row, rows of a pass.
        constexpr int ACROSS = (BY_K ? B : BK) / (VECTOR ? 8 : 1), ROWS = BY_K ? BK : B;
        constexpr int PER_PASS = THREADS / ACROSS;
        static_assert(THREADS % ACROSS == 0 && ROWS % PER_PASS == 0, "whole passes");
        const int column = tid % ACROSS, row0 = tid / ACROSS;
        const int first = column * (VECTOR ? 8 : 1);
        const bool inside = BY_K ? first < own : k0 + first < k;
        const int rows = BY_K ? k - k0 : own;
        const __half* at = from + (BY_K ? static_cast<size_t>(k0) * pitch : k0) + row0 * pitch + first;
        if constexpr (VECTOR) {
#pragma unroll
            for (int i = 0; i < ROWS; i += PER_PASS) {
                const bool ok = inside && row0 + i < rows;
                cp_async_16(to + swizzled<ACROSS>(row0 + i, column), ok ? at + i * pitch : from, ok);
            }
        } else {
#pragma unroll 8
            for (int i = 0; i < ROWS; i += PER_PASS) {
                __half v = __ushort_as_half(0);
                if (inside && row0 + i < rows) v = at[i * pitch];
                *reinterpret_cast<__half*>(shared_to + swizzled<ACROSS / 8>(row0 + i, column / 8) + column % 8 * 2) = v;
            }
        }
    }
};

template <int BM, int BN, int WM, int WN, bool TA, bool TB, bool VECTOR>
__device__ __forceinline__ void gemm_tile(const __half* __restrict__ a, const __half* __restrict__ b, Real out,
                                          const Problem& p) {
    using Tile = Product<BM, BN, WM, WN, TA, !TB>;
    __shared__ __align__(128) unsigned char shared[Tile::POOL];
    const u32 pool = shared_address(shared);
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    const int rows = min(BM, p.m - m0), columns = min(BN, p.n - n0);
    for (int batch = blockIdx.z; batch < p.batches; batch += gridDim.z) {
        const Operand<BM, TA, VECTOR> left(a + static_cast<size_t>(batch) * p.m * p.k, m0, p.m, p.k);
        const Operand<BN, !TB, VECTOR> right(b + static_cast<size_t>(batch) * p.k * p.n, n0, p.n, p.k);
        const size_t first = (static_cast<size_t>(batch) * p.m + m0) * p.n + n0;
        auto copy = [&](int slice, int stage) {
            left.copy(Tile::a_stage(pool, stage), shared + Tile::a_stage(0, stage), slice);
            right.copy(Tile::b_stage(pool, stage), shared + Tile::b_stage(0, stage), slice);
        };
        auto finish = [&](const float* results, int pass) {
            // Four neighbours at a time where 4 | n.
            const int width = p.n % 4 == 0 ? 4 : 1;
            for (int i = threadIdx.x * width; i < Tile::ROWS * BN; i += THREADS * width) {
                const int row = Tile::row_of(pass, i / BN), column = i % BN;
                if (row >= rows || column >= columns) continue;
                const float* from = results + i / BN * Tile::ROW + column;
                const size_t at = first + static_cast<size_t>(row) * p.n + column;
                if (width == 4) {
                    const float4 v = *reinterpret_cast<const float4*>(from);
                    const float scaled[4] = {p.alpha * v.x, p.alpha * v.y, p.alpha * v.z, p.alpha * v.w};
                    store_all(out, at, scaled);
                } else {
                    store(out, at, p.alpha * *from);
                }
            }
        };
        Tile::run(shared, 0, (p.k + BK - 1) / BK, copy, [](int) {}, finish);
        __syncthreads();
    }
}

#define GEMM(NAME, BM, BN, WM, WN, TA, TB, VECTOR)                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                    \
        NAME(const __half* a, const __half* b, Real out, Problem p) {                                           \
        gemm_tile<BM, BN, WM, WN, TA, TB, VECTOR>(a, b, out, p);                                                \
    }

GEMM(gemm_nn_128x64, 128, 64, 64, 32, false, false, true)
GEMM(gemm_nt_128x64, 128, 64, 64, 32, false, true, true)
GEMM(gemm_tn_128x64, 128, 64, 64, 32, true, false, true)
GEMM(gemm_tt_128x64, 128, 64, 64, 32, true, true, true)
GEMM(gemm_nn_64x64, 64, 64, 32, 32, false, false, true)
GEMM(gemm_nt_64x64, 64, 64, 32, 32, false, true, true)
GEMM(gemm_tn_64x64, 64, 64, 32, 32, true, false, true)
GEMM(gemm_tt_64x64, 64, 64, 32, 32, true, true, true)
GEMM(gemm_nn_32x32, 32, 32, 16, 16, false, false, true)
GEMM(gemm_nt_32x32, 32, 32, 16, 16, false, true, true)
GEMM(gemm_tn_32x32, 32, 32, 16, 16, true, false, true)
GEMM(gemm_tt_32x32, 32, 32, 16, 16, true, true, true)
// A contiguous axis that is not a multiple of 8.
GEMM(gemm_nn_any, 64, 64, 32, 32, false, false, false)
GEMM(gemm_nt_any, 64, 64, 32, 32, false, true, false)
GEMM(gemm_tn_any, 64, 64, 32, 32, true, false, false)
GEMM(gemm_tt_any, 64, 64, 32, 32, true, true, false)
