// A block's matrix product on tensor cores: BM × BN results over slices of BK, four warps of WM × WN each.
// What fills the slices and where results go is the kernel's business; gemm.cu and conv_grad.cu share this.
//
// An operand lies in shared memory as it does in global memory: along its own axis with k running fastest
// ([B][BK]), or, where BY_K, one row per k ([BK][B]). ldmatrix transposes on the way where the tensor core
// wants it otherwise.
#pragma once

#include "ptx.cuh"

constexpr int BK = 32;
// sm_75 copies through registers at once: a third stage would only take shared memory from a second block.
#if __CUDA_ARCH__ >= 800
constexpr int STAGES = 3;
#else
constexpr int STAGES = 2;
#endif
constexpr int THREADS = 128;

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile of CHUNKS chunks a row: the eight rows of one
// chunk, which ldmatrix reads at a time, fall on different banks.
template <int CHUNKS>
__device__ __forceinline__ u32 swizzled(int row, int chunk) {
    static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "64 bytes or whole lines of banks");
    return (row * CHUNKS + (chunk ^ (CHUNKS == 4 ? row >> 1 & 3 : row & 7))) * 16;
}

template <int BM_, int BN_, int WM_, int WN_, bool A_BY_K_, bool B_BY_K_>
struct Product {
    static constexpr int BM = BM_, BN = BN_, WM = WM_, WN = WN_;
    static constexpr bool A_BY_K = A_BY_K_, B_BY_K = B_BY_K_;
    static_assert(BM / WM * (BN / WN) * 32 == THREADS, "four warps");
    static constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;
    static constexpr int MI = WM / 16, NI = WN / 8;
    // Row of the fp32 tile that results pass through: 8 floats more, so that the four rows that half a warp
    // writes fall on different banks.
    static constexpr int ROW = BN + 8;
    static constexpr int SLICES = STAGES * (A_BYTES + B_BYTES);
    // Where that tile does not fit where the operands were, results go through it in two halves.
    static constexpr int PASSES = BM * ROW * 4 > SLICES && WM >= 32 ? 2 : 1;
    static constexpr int ROWS = BM / PASSES, RESULTS = ROWS * ROW * 4;
    static constexpr int POOL = SLICES > RESULTS ? SLICES : RESULTS;

    // Which of the block's rows is row `row` of a pass: the first, then the second half of each warp's.
    __device__ __forceinline__ static int row_of(int pass, int row) {
        constexpr int WARP_ROWS = WM / PASSES;
        return row / WARP_ROWS * WM + pass * WARP_ROWS + row % WARP_ROWS;
    }

    __device__ __forceinline__ static u32 a_stage(u32 pool, int stage) { return pool + stage * A_BYTES; }
    __device__ __forceinline__ static u32 b_stage(u32 pool, int stage) {
        return pool + STAGES * A_BYTES + stage * B_BYTES;
    }

    // Multiplies slices begin … end − 1. copy(slice, stage) fills a stage; between(slice) runs after each
    // barrier's copy; finish(results, pass) takes ROWS rows of ROW floats each, with all threads.
    template <class Copy, class Between, class Finish>
    __device__ __forceinline__ static void run(unsigned char* shared, int begin, int end, Copy copy,
                                               Between between, Finish finish) {
        const u32 pool = shared_address(shared);
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        const int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
        u32 a_at, b_at;
        if constexpr (A_BY_K) {
            a_at = swizzled<BM / 8>((lane & 7) + (lane >> 4) * 8, wm / 8 + (lane >> 3 & 1));
        } else {
            a_at = swizzled<4>(wm + (lane & 15), lane >> 4);
        }
        if constexpr (B_BY_K) {
            b_at = swizzled<BN / 8>(lane & 15, wn / 8 + (lane >> 4));
        } else {
            b_at = swizzled<4>(wn + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
        }
        float acc[MI][NI][4] = {};
#pragma unroll
        for (int stage = 0; stage < STAGES - 1; stage++) {
            if (begin + stage < end) copy(begin + stage, stage);
            cp_async_commit();
        }
        int reading = 0, writing = STAGES - 1;
        for (int slice = begin; slice < end; slice++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            if (slice + STAGES - 1 < end) copy(slice + STAGES - 1, writing);
            cp_async_commit();
            between(slice);
            writing = writing == STAGES - 1 ? 0 : writing + 1;
            const u32 a_from = a_stage(pool, reading) + a_at, b_from = b_stage(pool, reading) + b_at;
            reading = reading == STAGES - 1 ? 0 : reading + 1;
#pragma unroll
            for (int half = 0; half < BK / 16; half++) {
                // Tiles are aligned to a row, so that a chunk's bits are flipped by exclusive or.
                u32 a[MI][4], b[NI][2];
#pragma unroll
                for (int i = 0; i < MI; i++) {
                    if constexpr (A_BY_K) ldmatrix_x4_trans(a[i], (a_from ^ (i * 32)) + half * 16 * BM * 2);
                    else ldmatrix_x4(a[i], (a_from ^ (half * 32)) + i * 16 * BK * 2);
                }
#pragma unroll
                for (int j = 0; j < NI; j += 2) {
                    u32 four[4];
                    if constexpr (B_BY_K) ldmatrix_x4_trans(four, (b_from ^ (j * 16)) + half * 16 * BN * 2);
                    else ldmatrix_x4(four, (b_from ^ (half * 32)) + j * 8 * BK * 2);
                    b[j][0] = four[0], b[j][1] = four[1], b[j + 1][0] = four[2], b[j + 1][1] = four[3];
                }
#pragma unroll
                for (int i = 0; i < MI; i++) {
#pragma unroll
                    for (int j = 0; j < NI; j++) mma_16816(acc[i][j], a[i], b[j][0], b[j][1]);
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();
        float* results = reinterpret_cast<float*>(shared);
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            if (pass > 0) __syncthreads();
#pragma unroll
            for (int i = 0; i < MI / PASSES; i++) {
#pragma unroll
                for (int j = 0; j < NI; j++) {
                    const float(&d)[4] = acc[pass * (MI / PASSES) + i][j];
                    float* to = results + (wm / PASSES + i * 16 + (lane >> 2)) * ROW + wn + j * 8 + (lane & 3) * 2;
                    *reinterpret_cast<float2*>(to) = make_float2(d[0], d[1]);
                    *reinterpret_cast<float2*>(to + 8 * ROW) = make_float2(d[2], d[3]);
                }
            }
            __syncthreads();
            finish(results, pass);
        }
    }
};
