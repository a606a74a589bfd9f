// Convolution, and its adjoint by the input (which is the transposed convolution), as implicit matrix
// products on tensor cores; fp16 in, fp32 sums, fp16 or fp32 out.
//
//     conv:       y[n, h, w, o] = tail(Σ_{r,s,i} W[r, s, i, o] · x[n, h·stride + r − top, w·stride + s − left, i])
//     transpose:  y[n, h, w, i] = tail(Σ_{r,s,o} W[r, s, i, o] · x[n, (h + top − r)/stride, (w + left − s)/stride, o])
//                 over the taps for which both quotients are whole
//     tail(v) = act(v + bias[channel] + residual[n, h, w, channel])
//
// Layouts: x, y, residual N×H×W×C; W kh×kw×(cin/groups)×cout, the same for both: the transpose multiplies
// by each tap's W transposed, which ldmatrix does on the way, so that no second copy of it is kept.
//
// A block of four warps computes BM pixels × BN channels of one group, one phase, one split: grid
// (⌈m/BM⌉, ⌈n/BN⌉, phases·groups·splits). The summed axis is k = (tap, channel), channel fastest, in
// slices of 32; three slices are in shared memory, one read by ldmatrix while cp.async fills the next two.
// A slice may span taps: eight channels at a time lie in one where 8 | channels of a group, and 16-byte
// copies are used then. Other widths (a stem's 3, a head's 2) are copied element by element, neighbouring
// lanes neighbouring places: of a 7×7 stem a request meets two or three runs of 42 bytes, which start where
// they may, so that about two thirds of each sector are of use; the rest comes from L1 for the next pixel.
//
// The surprising decision: a transpose with a stride is split by (h mod stride, w mod stride) into
// stride² phases. All pixels of a phase meet the same taps, so each phase is a dense product, stride² times
// smaller than the one that would multiply the zeros between, and all of them are one launch.
//
// Few results and a long sum (8×8 pixels, 1024 channels) would leave multiprocessors idle: the sum is then
// split, fp32 parts go to scratch, and conv_sum_splits adds them in order: no atomics, the same bits always.
//
// Per result 2·k FLOP and, from L2, 2·k·(1/BM + 1/BN) bytes: 43 FLOP a byte at 128×64, 32 at 64×64.
#include "conv_tail.cuh"
#include "joined.cuh"
#include "ptx.cuh"

// Mirrors Problem of src/engine/cuda/conv.rs.
struct alignas(8) Problem {
    int images, h, w, c;         // what is read; c counts all groups
    int out_h, out_w, out_c;     // what is written
    int in_group, out_group;     // channels of one group: summed over, written
    int kernel_h, kernel_w;
    int stride, pad_top, pad_left;
    int groups, splits;
    int act, out_f32;
};

constexpr int BK = 32;
// sm_75 copies through registers at once: a third stage would only take the shared memory that a second
// block needs there.
#if __CUDA_ARCH__ >= 800
constexpr int STAGES = 3;
#else
constexpr int STAGES = 2;
#endif
constexpr int THREADS = 128;
// A row no tap of which lies in the image.
constexpr int OUTSIDE = -(1 << 30);

constexpr int max_of(int a, int b) { return a > b ? a : b; }

// Where 16-byte chunk `chunk` of row `row` lies in a shared tile of CHUNKS (a power of two, at most 8)
// chunks a row, in bytes: eight consecutive rows of one chunk, what ldmatrix reads at a time, fall on
// different banks.
template <int CHUNKS>
__device__ __forceinline__ u32 swizzled(int row, int chunk) {
    return (row * CHUNKS + (chunk ^ (row * CHUNKS / 8 & (CHUNKS - 1)))) * 16;
}

// One place on the summed axis: tap (r, s) of the phase's taps, channel c of the group.
struct Place {
    int r, s, c;
    __device__ __forceinline__ Place(int k, int in_group, int taps_w) {
        const int tap = k / in_group;
        c = k - tap * in_group;
        r = tap / taps_w;
        s = tap - r * taps_w;
    }
};

// One BM×BN tile of results, WM×WN of it per warp.
template <int BM, int BN, int WM, int WN, bool TRANSPOSED, bool VECTOR_A, bool VECTOR_B>
__device__ __forceinline__ void conv_tile(const __half* __restrict__ x, const __half* __restrict__ weight,
                                          const float* __restrict__ bias,
                                          const __half* __restrict__ residual, void* __restrict__ out,
                                          const Problem& p, const Block& block) {
    static_assert(BM / WM * (BN / WN) * 32 == THREADS, "four warps");
    static_assert(!TRANSPOSED || VECTOR_A == VECTOR_B, "both operands run along the same channels");
    constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2;
    // Row of the fp32 tile that results pass through: 8 floats more than BN, so that the four rows that
    // half a warp writes fall on different banks.
    constexpr int ROW = BN == 8 ? 8 : BN + 8;
    constexpr int B_CHUNKS = TRANSPOSED ? BK / 8 : BN / 8;
    constexpr int A_LOADS = (BM * 4 + THREADS - 1) / THREADS;
    constexpr int B_LOADS = (BN * 4 + THREADS - 1) / THREADS;

    constexpr int POOL = STAGES * (A_BYTES + B_BYTES);
    // Where the fp32 tile does not fit where the operands were, results go through it in two halves.
    constexpr int PASSES = BM * ROW * 4 > POOL && WM >= 32 ? 2 : 1;
    constexpr int PASS_BYTES = BM / PASSES * ROW * 4;

    __shared__ __align__(128) unsigned char pool[max_of(POOL, PASS_BYTES)];
    __shared__ int4 rows[BM];  // pixel index of tap (0, 0), its y and x, pixel written or -1

    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    int z = block.z;
    const int split = z % p.splits;
    z /= p.splits;
    const int group = z % p.groups;
    const int phase = z / p.groups;

    // Output (y, x) = (yy·spread + py, xx·spread + px) reads pixel (yy·step + y0 + sign·r, …) at tap (r, s),
    // which is tap (r0 + r·spread, s0 + s·spread) of the kernel.
    constexpr int sign = TRANSPOSED ? -1 : 1;
    const int spread = TRANSPOSED ? p.stride : 1, step = TRANSPOSED ? 1 : p.stride;
    const int py = TRANSPOSED ? phase / p.stride : 0, px = TRANSPOSED ? phase - py * p.stride : 0;
    const int r0 = TRANSPOSED ? (py + p.pad_top) % p.stride : 0;
    const int s0 = TRANSPOSED ? (px + p.pad_left) % p.stride : 0;
    const int y0 = TRANSPOSED ? (py + p.pad_top) / p.stride : -p.pad_top;
    const int x0 = TRANSPOSED ? (px + p.pad_left) / p.stride : -p.pad_left;
    const int taps_h = TRANSPOSED ? max(p.kernel_h - r0 + spread - 1, 0) / spread : p.kernel_h;
    const int taps_w = TRANSPOSED ? max(p.kernel_w - s0 + spread - 1, 0) / spread : p.kernel_w;
    const int rows_h = TRANSPOSED ? (p.out_h - py + spread - 1) / spread : p.out_h;
    const int rows_w = TRANSPOSED ? (p.out_w - px + spread - 1) / spread : p.out_w;

    const int m_all = p.images * rows_h * rows_w;
    const int k_all = taps_h * taps_w * p.in_group;
    const int m0 = block.x * BM, n0 = block.y * BN;
    if (m0 >= m_all) return;

    for (int row = tid; row < BM; row += THREADS) {
        const int m = m0 + row;
        int4 v = make_int4(0, OUTSIDE, OUTSIDE, -1);
        if (m < m_all) {
            const int xx = m % rows_w, t = m / rows_w;
            const int yy = t % rows_h, n = t / rows_h;
            v.y = yy * step + y0;
            v.z = xx * step + x0;
            v.x = (n * p.h + v.y) * p.w + v.z;
            v.w = (n * p.out_h + yy * spread + py) * p.out_w + xx * spread + px;
        }
        rows[row] = v;
    }
    __syncthreads();

    const int slices = (k_all + BK - 1) / BK;
    const int begin = static_cast<int>(static_cast<long long>(slices) * split / p.splits);
    const int end = static_cast<int>(static_cast<long long>(slices) * (split + 1) / p.splits);
    const int k_first = begin * BK;
    const int first_channel = group * p.in_group;

    const u32 pool_a = shared_address(pool), pool_b = pool_a + STAGES * A_BYTES;

    // What this thread copies of the vector operands: chunk tid % 4 (eight channels of one tap, as
    // 8 | in_group) of rows tid / 4 + 32·i. Addresses change by 64 bytes a slice but where the tap changes.
    const int chunk = tid & 3, row0 = tid >> 2;
    Place at(k_first + (VECTOR_A ? chunk * 8 : lane), p.in_group, max(taps_w, 1));
    const __half* a_from[A_LOADS];
    const __half* b_from[TRANSPOSED ? B_LOADS : 1];
    u32 a_bytes[A_LOADS];  // 16, or 0 where a zero is read
    bool b_valid = false;
    u32 a_to[A_LOADS], b_to[B_LOADS];
    (void)a_to, (void)b_to, (void)a_from, (void)b_from, (void)a_bytes, (void)b_valid;

    auto aim = [&]() {
        const bool inside = at.r < taps_h;
        const int tap = sign * (at.r * p.w + at.s);
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) {
            if (BM % 32 == 0 || row0 < BM) {
                const int4 row = rows[row0 + 32 * i];
                const int y = row.y + sign * at.r, xx = row.z + sign * at.s;
                const bool ok = inside && static_cast<u32>(y) < static_cast<u32>(p.h) &&
                                static_cast<u32>(xx) < static_cast<u32>(p.w);
                a_from[i] = ok ? x + static_cast<long long>(row.x + tap) * p.c + first_channel + at.c : x;
                a_bytes[i] = ok ? 16 : 0;
            }
        }
        if constexpr (TRANSPOSED) {
            const int t = (r0 + at.r * spread) * p.kernel_w + s0 + at.s * spread;
            b_valid = inside;
            b_from[0] = weight + (static_cast<long long>(t) * p.out_group + n0 + row0) * p.c + first_channel + at.c;
        }
    };
    // Forward weights: rows run along the summed axis.
    const int b_column = VECTOR_B ? tid % B_CHUNKS * 8 : tid % BN;
    const int b_row = VECTOR_B ? tid / B_CHUNKS : tid / BN;
    const __half* b_next = weight;
    int b_left = 0;  // rows from this thread's first on
    if constexpr (!TRANSPOSED) {
        b_next += static_cast<long long>(k_first + b_row) * p.out_c + group * p.out_group + n0 + b_column;
        b_left = n0 + b_column < p.out_group ? k_all - k_first - b_row : 0;
    }
    if constexpr (VECTOR_A) {
        aim();
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) a_to[i] = pool_a + swizzled<4>(row0 + 32 * i, chunk);
    }
    if constexpr (VECTOR_B) {
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            b_to[i] = pool_b + (TRANSPOSED ? swizzled<4>(row0 + 32 * i, chunk)
                                           : swizzled<B_CHUNKS>(b_row + THREADS / B_CHUNKS * i, tid % B_CHUNKS));
        }
    }

    // Copies the next slice to `stage`.
    auto copy = [&](int stage) {
        if constexpr (VECTOR_A) {
#pragma unroll
            for (int i = 0; i < A_LOADS; i++) {
                if (BM % 32 == 0 || row0 < BM) cp_async_16_of(a_to[i] + stage * A_BYTES, a_from[i], a_bytes[i]);
            }
        } else {
            // Lane l fills place l of the slice, each warp every fourth row.
            const bool inside = at.r < taps_h;
            const int y = inside ? sign * at.r : OUTSIDE, xx = sign * at.s;
            const __half* from = x + static_cast<long long>(sign * (at.r * p.w + at.s)) * p.c + first_channel + at.c;
            __half* to = reinterpret_cast<__half*>(pool + stage * A_BYTES) + (lane & 7);
#pragma unroll 8
            for (int row = warp; row < BM; row += THREADS / 32) {
                const int4 of = rows[row];
                __half v = __ushort_as_half(0);
                if (static_cast<u32>(of.y + y) < static_cast<u32>(p.h) &&
                    static_cast<u32>(of.z + xx) < static_cast<u32>(p.w)) {
                    v = from[static_cast<long long>(of.x) * p.c];
                }
                to[swizzled<4>(row, lane >> 3) / 2] = v;
            }
        }
        if constexpr (TRANSPOSED && VECTOR_B) {
#pragma unroll
            for (int i = 0; i < B_LOADS; i++) {
                if (BN % 32 == 0 || row0 < BN) {
                    const bool ok = b_valid && n0 + row0 + 32 * i < p.out_group;
                    cp_async_16(b_to[i] + stage * B_BYTES,
                                ok ? b_from[0] + static_cast<long long>(32 * i) * p.c : weight, ok);
                }
            }
        } else if constexpr (TRANSPOSED) {
            const int t = (r0 + at.r * spread) * p.kernel_w + s0 + at.s * spread;
            const __half* from = weight + (static_cast<long long>(t) * p.out_group + n0) * p.c + first_channel + at.c;
            __half* to = reinterpret_cast<__half*>(pool + STAGES * A_BYTES + stage * B_BYTES) + (lane & 7);
            const int limit = at.r < taps_h ? p.out_group - n0 : 0;
#pragma unroll 8
            for (int row = warp; row < BN; row += THREADS / 32) {
                __half v = __ushort_as_half(0);
                if (row < limit) v = from[static_cast<long long>(row) * p.c];
                to[swizzled<4>(row, lane >> 3) / 2] = v;
            }
        } else if constexpr (VECTOR_B) {
            constexpr int PER_PASS = THREADS / B_CHUNKS;
#pragma unroll
            for (int i = 0; i < B_LOADS; i++) {
                if (PER_PASS <= BK || b_row < BK) {
                    const bool ok = PER_PASS * i < b_left;
                    cp_async_16(b_to[i] + stage * B_BYTES,
                                ok ? b_next + static_cast<long long>(PER_PASS * i) * p.out_c : weight, ok);
                }
            }
        } else {
            constexpr int PER_PASS = THREADS / BN;
            __half* to = reinterpret_cast<__half*>(pool + STAGES * A_BYTES + stage * B_BYTES) + (b_column & 7);
#pragma unroll 8
            for (int row = 0; row < BK; row += PER_PASS) {
                __half v = __ushort_as_half(0);
                if (row < b_left) v = b_next[static_cast<long long>(row) * p.out_c];
                to[swizzled<B_CHUNKS>(row + b_row, b_column >> 3) / 2] = v;
            }
        }

        if constexpr (!TRANSPOSED) {
            b_next += static_cast<long long>(BK) * p.out_c;
            b_left -= BK;
        }
        if constexpr (VECTOR_A) {
            at.c += BK;
            if (at.c < p.in_group) {
#pragma unroll
                for (int i = 0; i < A_LOADS; i++) a_from[i] += BK;
                if constexpr (TRANSPOSED) b_from[0] += BK;
            } else {
                do {
                    at.c -= p.in_group;
                    if (++at.s == taps_w) at.s = 0, ++at.r;
                } while (at.c >= p.in_group);
                aim();
            }
        } else {
            const int channels = at.c + BK, taps = channels / p.in_group;
            at.c = channels - taps * p.in_group;
            at.s += taps;
            const int wraps = at.s / taps_w;
            at.r += wraps;
            at.s -= wraps * taps_w;
        }
    };

    // Byte offsets in a stage that this lane gives to ldmatrix.
    const int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    const u32 a_at = pool_a + swizzled<4>(wm + (lane & 15), lane >> 4);
    u32 b_at = pool_b;
    if constexpr (TRANSPOSED) {
        b_at += swizzled<4>(wn + (lane & 7) + (WN == 8 ? 0 : lane >> 4 << 3), lane >> 3 & 1);
    } else {
        b_at += swizzled<B_CHUNKS>(lane & 15, wn / 8 + (WN == 8 ? 0 : lane >> 4));
    }

    constexpr int MI = WM / 16, NI = WN / 8;
    float acc[MI][NI][4] = {};

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (begin + stage < end) copy(stage);
        cp_async_commit();
    }
    int reading = 0, writing = STAGES - 1;
    for (int slice = begin; slice < end; slice++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (slice + STAGES - 1 < end) copy(writing);
        cp_async_commit();
        writing = writing == STAGES - 1 ? 0 : writing + 1;
        const u32 a_stage = a_at + reading * A_BYTES, b_stage = b_at + reading * B_BYTES;
        reading = reading == STAGES - 1 ? 0 : reading + 1;
#pragma unroll
        for (int half = 0; half < BK / 16; half++) {
            u32 a[MI][4], b[NI][2];
            // Stages are aligned to 64 bytes, so that the chunk's bits are flipped by exclusive or.
#pragma unroll
            for (int i = 0; i < MI; i++) ldmatrix_x4(a[i], (a_stage ^ (half * 32)) + i * 16 * BK * 2);
            if constexpr (NI == 1) {
                if constexpr (TRANSPOSED) ldmatrix_x2(b[0], b_stage ^ (half * 32));
                else ldmatrix_x2_trans(b[0], b_stage + half * 16 * BN * 2);
            } else {
#pragma unroll
                for (int j = 0; j < NI; j += 2) {
                    u32 four[4];
                    if constexpr (TRANSPOSED) ldmatrix_x4(four, (b_stage ^ (half * 32)) + j * 8 * BK * 2);
                    else ldmatrix_x4_trans(four, (b_stage ^ (j * 16)) + half * 16 * BN * 2);
                    b[j][0] = four[0], b[j][1] = four[1], b[j + 1][0] = four[2], b[j + 1][1] = four[3];
                }
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

    int act = p.act, out_f32 = p.out_f32;
    if (p.splits > 1) {
        const size_t all = static_cast<size_t>(p.images) * p.out_h * p.out_w * p.out_c;
        out = static_cast<float*>(out) + all * split;
        bias = nullptr;
        residual = nullptr;
        act = 0;
        out_f32 = 1;
    }
    const int columns = min(BN, p.out_group - n0);
    const int channel0 = group * p.out_group + n0;
    // Through shared memory, so that a row of results is stored as one run. A pass takes the first, then
    // the second half of each warp's rows.
    float* tile = reinterpret_cast<float*>(pool);
    constexpr int PASS_ROWS = BM / PASSES, WARP_ROWS = WM / PASSES;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < MI / PASSES; i++) {
#pragma unroll
            for (int j = 0; j < NI; j++) {
                const int k = pass * (MI / PASSES) + i;
                float* to = tile + (wm / PASSES + i * 16 + (lane >> 2)) * ROW + wn + j * 8 + (lane & 3) * 2;
                *reinterpret_cast<float2*>(to) = make_float2(acc[k][j][0], acc[k][j][1]);
                *reinterpret_cast<float2*>(to + 8 * ROW) = make_float2(acc[k][j][2], acc[k][j][3]);
            }
        }
        __syncthreads();
        if (p.out_group % 4 == 0) {
#pragma unroll 2
            for (int i = tid; i < PASS_ROWS * BN / 4; i += THREADS) {
                const int row = i / (BN / 4), column = i % (BN / 4) * 4;
                const int pixel = rows[row / WARP_ROWS * WM + pass * WARP_ROWS + row % WARP_ROWS].w;
                if (pixel < 0 || column >= columns) continue;
                const float4 v = *reinterpret_cast<const float4*>(tile + row * ROW + column);
                const int channel = channel0 + column;
                finish4(v, static_cast<size_t>(pixel) * p.out_c + channel, channel, bias, residual, out, act, out_f32);
            }
        } else {
            for (int i = tid; i < PASS_ROWS * columns; i += THREADS) {
                const int row = i / columns, column = i - row * columns;
                const int pixel = rows[row / WARP_ROWS * WM + pass * WARP_ROWS + row % WARP_ROWS].w;
                if (pixel < 0) continue;
                const int channel = channel0 + column;
                finish1(tile[row * ROW + column], static_cast<size_t>(pixel) * p.out_c + channel, channel, bias,
                        residual, out, act, out_f32);
            }
        }
    }
}

struct ConvArgs {
    const __half *x, *weight;
    const float* bias;
    const __half* residual;
    void* out;
    Problem p;
};

#define CONV(NAME, BM, BN, WM, WN, TRANSPOSED, VECTOR_A, VECTOR_B)                                              \
    JOINED_KERNEL(NAME, ConvArgs, (THREADS, 3),                                                                 \
                  conv_tile<BM, BN, WM, WN, TRANSPOSED, VECTOR_A, VECTOR_B>(a.x, a.weight, a.bias, a.residual,  \
                                                                            a.out, a.p, block))

CONV(conv_128x64, 128, 64, 64, 32, false, true, true)
CONV(conv_64x64, 64, 64, 32, 32, false, true, true)
CONV(conv_64x32, 64, 32, 32, 16, false, true, true)
CONV(conv_32x32, 32, 32, 16, 16, false, true, true)
CONV(conv_16x64, 16, 64, 16, 16, false, true, true)
// Channels read not a multiple of 8: a stem.
CONV(conv_gather_128x64, 128, 64, 64, 32, false, false, true)
CONV(conv_gather_64x32, 64, 32, 32, 16, false, false, true)
// Channels written not a multiple of 8: a head.
CONV(conv_ragged_64x32, 64, 32, 32, 16, false, true, false)
CONV(conv_ragged_128x8, 128, 8, 32, 8, false, true, false)
CONV(conv_any_64x32, 64, 32, 32, 16, false, false, false)
CONV(conv_any_128x8, 128, 8, 32, 8, false, false, false)

CONV(conv_transpose_128x64, 128, 64, 64, 32, true, true, true)
CONV(conv_transpose_64x64, 64, 64, 32, 32, true, true, true)
CONV(conv_transpose_64x32, 64, 32, 32, 16, true, true, true)
CONV(conv_transpose_32x32, 32, 32, 16, 16, true, true, true)
CONV(conv_transpose_16x64, 16, 64, 16, 16, true, true, true)
CONV(conv_transpose_128x8, 128, 8, 32, 8, true, true, true)
CONV(conv_transpose_any_64x32, 64, 32, 32, 16, true, false, false)

// Sums the partial results of `splits` slices in order, then the tail. One thread per WIDTH results.
template <int WIDTH>
__device__ __forceinline__ void sum_splits(const float* __restrict__ partial, const float* __restrict__ bias,
                                           const __half* __restrict__ residual, void* __restrict__ out,
                                           const Problem& p, const Block& block) {
    const size_t all = static_cast<size_t>(p.images) * p.out_h * p.out_w * p.out_c;
    const size_t i = (static_cast<size_t>(block.x) * THREADS + threadIdx.x) * WIDTH;
    if (i >= all) return;
    const int channel = static_cast<int>(i % p.out_c);
    if constexpr (WIDTH == 4) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
        for (int s = 0; s < p.splits; s++) {
            const float4 a = *reinterpret_cast<const float4*>(partial + s * all + i);
            v.x += a.x, v.y += a.y, v.z += a.z, v.w += a.w;
        }
        finish4(v, i, channel, bias, residual, out, p.act, p.out_f32);
    } else {
        float v = 0.0f;
        for (int s = 0; s < p.splits; s++) v += partial[s * all + i];
        finish1(v, i, channel, bias, residual, out, p.act, p.out_f32);
    }
}

struct SumArgs {
    const float *partial, *bias;
    const __half* residual;
    void* out;
    Problem p;
};

JOINED_KERNEL(conv_sum_splits_4, SumArgs, (THREADS), sum_splits<4>(a.partial, a.bias, a.residual, a.out, a.p, block))
JOINED_KERNEL(conv_sum_splits_1, SumArgs, (THREADS), sum_splits<1>(a.partial, a.bias, a.residual, a.out, a.p, block))
