// A camera's frame to the network's input, in one pass:
//
//   any pixel format -> region of interest -> 8-bit RGB -> antialiased resize -> normalise -> fp16
//
//   out[y][x][c] = a_c * sum_t wy[y][t] * ( sum_s wx[x][s] * rgb_c(x0[x] + s, y0[y] + t) ) + b_c
//
// The plain twin is src/imaging/preprocess.rs, which is the definition: triangle filter with PIL's
// windows (resize.rs), BT.601 limited range in 16-bit fixed point with replicated chroma (yuv.rs), Bayer
// mosaics by bilinear means in integers, mirrored at the frame's border (bayer.rs).
//
// Shapes    planes     u8, rows of `pitch` bytes; chroma of NV12 and I420 at half width and height
//           y0, wy     [out_height], [out_height][taps_y]: first row of each window, and its weights
//           x0, wx     the same for columns
//           out        fp16 [out_height][out_width][channels]; channels 3, or more: the rest is zero,
//                      so that a convolution behind can load whole 16-byte vectors
// Launch    grid (ceil(out_width / 64), ceil(out_height / 16)), block 256
//
// The decision that surprises: the weights come from the host, as the tables that the CPU path uses.
// They are computed in f64, which many GPUs have at 1/64 of the rate, and so both paths multiply by
// the very same numbers. With t taps an axis the two differ by the order of summation alone, less
// than (tx + ty + 4) 2^-24 255 grey levels, before the rounding to fp16.
//
// A block makes 64 x 16 outputs. It walks down the rows of the frame that their windows hold, brings a
// few at a time to shared memory as they are, in whole words, and adds each pixel to the (two, when
// shrinking) output rows that want it, in registers; then it blends columns. So the frame is read once,
// but for the window that neighbouring blocks share: 1/16 of the rows, 1/64 of the columns. 8-bit RGB
// never exists in memory.
//
// Cost      read 1.08 B per source byte, written 2 * channels B per output; FLOPs per output 2 * 3 *
//           (taps_x + scale_x * taps_y). 1080p NV12 to 256 x 256: 3.1 MB from DRAM and 0.4 MB to it,
//           12 MFLOP: bound by memory everywhere. Bayer's pixels also want their neighbours: a row above a
//           block and one below it, and of each row the two columns that end a chunk of 128, which are
//           kept in shared memory for the next chunk.

#include "common.cuh"

// What the host fills; src/engine/cuda mirrors both.
struct Frame {
    const u8* plane0;
    const u8* plane1;
    const u8* plane2;
    long long pitch0;  // bytes
    long long pitch1;
    long long pitch2;
    int x;  // the region, pixels of the frame
    int y;
    int width;  // the frame, and red's place in each 2 x 2: Bayer alone asks
    int height;
    int red_x;
    int red_y;
};

struct Resize {
    const int* y0;
    const float* wy;
    const int* x0;
    const float* wx;
    int taps_y;
    int taps_x;
    int out_width;
    int channels;
    float a0, a1, a2;  // out = p * a + b
    float b0, b1, b2;
};

constexpr int TILE = 64;           // outputs of a row of a block
constexpr int ROWS = 16;           // output rows of a block
constexpr int BLOCK = 256;
constexpr int CHUNK = 128;         // blended pixels of a row at a time
constexpr int HALVES = BLOCK / CHUNK;
constexpr int OWN = ROWS / HALVES;  // output rows that a thread sums
constexpr int MOST_TAPS = 32;      // weights of longer windows stay in global memory
constexpr int KEPT = 512;          // rows of a block whose last columns are kept for the next chunk

// ------------------------------------------------------------------------------------------------
// pixel formats: of each plane, the bytes of so many columns (where another one begins, if even), how
// many rows share one of its rows; how many rows of the frame lie in shared memory at a time; and the 8-bit
// colour of a pixel, of which that many neighbours (HALO) lie there as well

struct Rgb {
    int r, g, b;
};

// Both products of 16 x 16 bits keep the high half, rounding down: see yuv.rs.
__device__ __forceinline__ Rgb bt601(int y, int u, int v) {
    const int luma = (((y - 16) << 7) * 19077) >> 16;
    const int cu = (u - 128) * 256;
    const int cv = (v - 128) * 256;
    const int red = (cv * 13075) >> 16;
    const int green = -((cu * 3209) >> 16) - ((cv * 6660) >> 16);
    const int blue = (cu * 16525) >> 16;
    return {clamp((luma + red + 16) >> 5, 0, 255), clamp((luma + green + 16) >> 5, 0, 255),
            clamp((luma + blue + 16) >> 5, 0, 255)};
}

// Formats whose pixels know nothing of each other.
template <class Format>
struct Independent {
    static constexpr int HALO = 0, BATCH = 8;
    template <class Lines0, class Lines1, class Lines2>
    static __device__ __forceinline__ Rgb pixel(const Frame&, const Lines0& p0, const Lines1& p1, const Lines2& p2,
                                                int x, int y) {
        return Format::at(p0.at(y), p1.at(y), p2.at(y), x - p0.x);
    }
};

struct Gray8 : Independent<Gray8> {
    static constexpr int COLOURS = 1, PLANES = 1;
    static constexpr int halved(int) { return 0; }
    static constexpr int bytes(int, int columns) { return columns; }
    static __device__ __forceinline__ Rgb at(const u8* p, const u8*, const u8*, int x) {
        const int v = p[x];
        return {v, v, v};
    }
};

template <int STRIDE, int R, int B>
struct Packed : Independent<Packed<STRIDE, R, B>> {
    static constexpr int COLOURS = 3, PLANES = 1;
    static constexpr int halved(int) { return 0; }
    static constexpr int bytes(int, int columns) { return columns * STRIDE; }
    static __device__ __forceinline__ Rgb at(const u8* row, const u8*, const u8*, int x) {
        const u8* p = row + x * STRIDE;
        return {p[R], p[1], p[B]};
    }
};

struct Nv12 : Independent<Nv12> {
    static constexpr int COLOURS = 3, PLANES = 2;
    static constexpr int halved(int plane) { return plane; }
    static constexpr int bytes(int plane, int columns) { return plane ? (columns + 1) / 2 * 2 : columns; }
    static __device__ __forceinline__ Rgb at(const u8* luma, const u8* uv, const u8*, int x) {
        return bt601(luma[x], uv[x & ~1], uv[x | 1]);
    }
};

struct I420 : Independent<I420> {
    static constexpr int COLOURS = 3, PLANES = 3;
    static constexpr int halved(int plane) { return plane ? 1 : 0; }
    static constexpr int bytes(int plane, int columns) { return plane ? (columns + 1) / 2 : columns; }
    static __device__ __forceinline__ Rgb at(const u8* luma, const u8* u, const u8* v, int x) {
        return bt601(luma[x], u[x >> 1], v[x >> 1]);
    }
};

struct Yuy2 : Independent<Yuy2> {
    static constexpr int COLOURS = 3, PLANES = 1;
    static constexpr int halved(int) { return 0; }
    static constexpr int bytes(int, int columns) { return (columns + 1) / 2 * 4; }
    static __device__ __forceinline__ Rgb at(const u8* row, const u8*, const u8*, int x) {
        const u8* pair = row + (x >> 1) * 4;
        return bt601(row[x * 2], pair[1], pair[3]);
    }
};

struct Bayer {
    static constexpr int COLOURS = 3, PLANES = 1, HALO = 1, BATCH = 80;
    static constexpr int halved(int) { return 0; }
    static constexpr int bytes(int, int columns) { return columns; }

    // The neighbour of i at i + step, mirrored at 0 and n - 1; the only one is its own.
    static __device__ __forceinline__ int mirror(int i, int step, int n) {
        const int at = i + step;
        return at >= 0 && at < n ? at : max(0, min(i - step, n - 1));
    }
    // Samples left of the column, on it and right of it, of three rows; x and y of the frame.
    static __device__ __forceinline__ Rgb of(const Frame& f, int x, int y, const int (&above)[3],
                                             const int (&here)[3], const int (&below)[3]) {
        const int own = here[1];
        const int row = (here[0] + here[2] + 1) >> 1;
        const int column = (above[1] + below[1] + 1) >> 1;
        const int cross = (here[0] + here[2] + above[1] + below[1] + 2) >> 2;
        const int corners = (above[0] + above[2] + below[0] + below[2] + 2) >> 2;
        const bool red_column = (x & 1) == f.red_x, red_row = (y & 1) == f.red_y;
        // Neighbouring lanes differ in red_column, so all means are made and one is chosen.
        const int red = red_column ? (red_row ? own : column) : (red_row ? row : corners);
        const int green = red_column == red_row ? cross : own;
        const int blue = red_column ? (red_row ? corners : row) : (red_row ? column : own);
        return {red, green, blue};
    }
    template <class Lines>
    static __device__ __forceinline__ void read(const Lines& lines, int y, const int (&x)[3], int (&to)[3]) {
        const u8* p = lines.at(y);
#pragma unroll
        for (int i = 0; i < 3; ++i) to[i] = p[x[i] - lines.x];
    }
    template <class Lines, class Other0, class Other1>
    static __device__ __forceinline__ Rgb pixel(const Frame& f, const Lines& lines, const Other0&, const Other1&,
                                                int x, int y) {
        const int columns[3] = {mirror(x, -1, f.width), x, mirror(x, 1, f.width)};
        int above[3], here[3], below[3];
        read(lines, mirror(y, -1, f.height), columns, above);
        read(lines, y, columns, here);
        read(lines, mirror(y, 1, f.height), columns, below);
        return of(f, x, y, above, here, below);
    }
};

// ------------------------------------------------------------------------------------------------
// rows of a plane in shared memory

// Rows of one plane, each from the word that its first byte lies in.
template <class Format, int PLANE>
struct Lines {
    static constexpr bool THERE = PLANE < Format::PLANES;
    static constexpr int WORDS = THERE ? (Format::bytes(PLANE, CHUNK + 1 + 2 * Format::HALO) + 3) / 4 + 1 : 1;
    static constexpr int MOST = !THERE ? 1 : Format::halved(PLANE) ? Format::BATCH / 2 : Format::BATCH + 2 * Format::HALO;
    const u8* plane;
    long long pitch;
    int x;  // first column
    u32 (*words)[WORDS];
    int first;  // row in words[0]

    __device__ __forceinline__ const u8* row(int y) const {
        return plane + y * pitch + Format::bytes(PLANE, x);
    }

    // Rows from … last of the frame, both of one batch; `columns` from x on. Of up to `count` rows from
    // `top` on, the first two columns come from `kept`, not from the frame.
    __device__ __forceinline__ void bring(int from, int last, int columns, const uchar2* kept, int top, int count) {
        if constexpr (THERE) {
            constexpr int HALVED = Format::halved(PLANE);
            first = from >> HALVED;
            const int rows = (last >> HALVED) - first + 1, bytes = Format::bytes(PLANE, columns);
            for (int r = threadIdx.x / 32; r < rows; r += BLOCK / 32) {
                const u8* begin = row(first + r);
                const int before = static_cast<int>(reinterpret_cast<size_t>(begin) & 3);
                const int known = Format::HALO > 0 && first + r - top < count ? 2 : 0;
                const int needed = (before + bytes + 3) / 4;
                for (int i = threadIdx.x % 32; i < needed; i += 32) {
                    const int at = 4 * i - before;
                    u32 word = 0;
                    if (at >= known && at + 4 <= bytes) {
                        word = *reinterpret_cast<const u32*>(begin + at);
                    } else {
                        for (int b = 0; b < 4; ++b) {
                            const int byte = at + b;
                            if (byte >= known && byte < bytes) word |= u32(begin[byte]) << (8 * b);
                            if (byte >= 0 && byte < known) {
                                const uchar2 both = kept[first + r - top];
                                word |= u32(byte == 0 ? both.x : both.y) << (8 * b);
                            }
                        }
                    }
                    words[r][i] = word;
                }
            }
        }
    }

    // Row y of the frame, from column x on.
    __device__ __forceinline__ const u8* at(int y) const {
        if constexpr (!THERE) return nullptr;
        const int r = y >> Format::halved(PLANE);
        const int before = static_cast<int>(reinterpret_cast<size_t>(row(r)) & 3);
        return reinterpret_cast<const u8*>(words[r - first]) + before;
    }
};

// ------------------------------------------------------------------------------------------------
// 16 output rows, 64 outputs wide

template <class Format>
__device__ __forceinline__ void preprocess(const Frame& frame, const Resize& resize, int out_height,
                                           __half* out) {
    constexpr int COLOURS = Format::COLOURS;
    using Plane0 = Lines<Format, 0>;
    using Plane1 = Lines<Format, 1>;
    using Plane2 = Lines<Format, 2>;
    __shared__ float blended[ROWS][COLOURS][CHUNK];
    __shared__ float kept_x[TILE * MOST_TAPS], kept_y[ROWS * MOST_TAPS];
    __shared__ int first_x[TILE], first_y[ROWS];
    __shared__ u32 words0[Plane0::MOST][Plane0::WORDS];
    __shared__ u32 words1[Plane1::MOST][Plane1::WORDS];
    __shared__ u32 words2[Plane2::MOST][Plane2::WORDS];
    constexpr int HALO = Format::HALO;
    // Written for one chunk while the other's are read.
    __shared__ uchar2 kept[2][HALO > 0 ? KEPT : 1];

    const int tile = blockIdx.x * TILE, row = blockIdx.y * ROWS;
    const int columns = min(TILE, resize.out_width - tile), rows = min(ROWS, out_height - row);
    const float* wx = resize.wx + static_cast<long long>(tile) * resize.taps_x;
    const float* wy = resize.wy + static_cast<long long>(row) * resize.taps_y;
    for (int i = threadIdx.x; i < columns; i += BLOCK) first_x[i] = resize.x0[tile + i];
    for (int i = threadIdx.x; i < rows; i += BLOCK) first_y[i] = resize.y0[row + i];
    if (resize.taps_x <= MOST_TAPS) {
        for (int i = threadIdx.x; i < columns * resize.taps_x; i += BLOCK) kept_x[i] = wx[i];
        wx = kept_x;
    }
    if (resize.taps_y <= MOST_TAPS) {
        for (int i = threadIdx.x; i < rows * resize.taps_y; i += BLOCK) kept_y[i] = wy[i];
        wy = kept_y;
    }
    __syncthreads();

    // Windows start in ascending order, so the tile reads these columns and rows of the frame.
    const int begin = frame.x + first_x[0], end = frame.x + first_x[columns - 1] + resize.taps_x;
    const int top = frame.y + first_y[0], bottom = frame.y + first_y[rows - 1] + resize.taps_y;
    // Thread t blends column t % 128 of a chunk for half of the output rows.
    const int column = threadIdx.x % CHUNK, half = threadIdx.x / CHUNK * OWN;
    constexpr int ITEMS = ROWS * TILE * 3 / BLOCK;
    float sums[ITEMS] = {};
    const int above = max(top - HALO, 0);
    for (int chunk = begin, turn = 0; chunk < end; turn ^= 1) {
        // What chunks bring to shared memory ends at multiples of their size, where sectors do.
        const int next = min(((chunk + HALO) / CHUNK + 1) * CHUNK - HALO, end);
        const int base = HALO > 0 ? max(chunk - HALO, 0) : chunk & ~1;
        const int past = HALO > 0 ? min(next + HALO, frame.width) : next;
        const int known = HALO > 0 && chunk > begin ? KEPT : 0;
        Plane0 plane0 = {frame.plane0, frame.pitch0, base, words0, 0};
        Plane1 plane1 = {frame.plane1, frame.pitch1, base, words1, 0};
        Plane2 plane2 = {frame.plane2, frame.pitch2, base, words2, 0};
        float own[OWN][COLOURS] = {};
        for (int y = top; y < bottom;) {
            // Rows that share chroma stay together.
            const int stop = min(HALO > 0 ? y + Format::BATCH : (y / Format::BATCH + 1) * Format::BATCH, bottom);
            const int from = max(y - HALO, 0), to = HALO > 0 ? min(stop, frame.height - 1) : stop - 1;
            plane0.bring(from, to, past - base, kept[turn], above, known);
            plane1.bring(from, to, past - base, kept[turn], above, 0);
            plane2.bring(from, to, past - base, kept[turn], above, 0);
            __syncthreads();
            if constexpr (HALO > 0) {
                const int row_kept = from + static_cast<int>(threadIdx.x) - above;
                if (next < end && from + static_cast<int>(threadIdx.x) <= to && row_kept < KEPT) {
                    const u8* last = plane0.at(from + threadIdx.x) + (past - base - 2);
                    kept[turn ^ 1][row_kept] = make_uchar2(last[0], last[1]);
                }
            }
            if (chunk + column < next) {
                for (int at = y; at < stop; ++at) {
                    const Rgb p = Format::pixel(frame, plane0, plane1, plane2, chunk + column, at);
#pragma unroll
                    for (int r = 0; r < OWN; ++r) {
                        if (half + r >= rows) continue;
                        const int t = at - frame.y - first_y[half + r];
                        if (t < 0 || t >= resize.taps_y) continue;
                        const float w = wy[(half + r) * resize.taps_y + t];
                        own[r][0] += w * p.r;
                        if constexpr (COLOURS == 3) {
                            own[r][1] += w * p.g;
                            own[r][2] += w * p.b;
                        }
                    }
                }
            }
            __syncthreads();
            y = stop;
        }
        if (chunk + column < next) {
#pragma unroll
            for (int r = 0; r < OWN; ++r) {
#pragma unroll
                for (int c = 0; c < COLOURS; ++c) blended[half + r][c][column] = own[r][c];
            }
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int item = k * BLOCK + threadIdx.x, r = item / (3 * TILE), x = item % (3 * TILE) / 3;
            if (x >= columns || r >= rows) continue;
            const float* pixels = blended[r][COLOURS == 3 ? item % 3 : 0];
            const int first = frame.x + first_x[x];
            const int from = max(0, chunk - first), to = min(resize.taps_x, next - first);
            for (int s = from; s < to; ++s) sums[k] += wx[x * resize.taps_x + s] * pixels[first + s - chunk];
        }
        __syncthreads();
        chunk = next;
    }

#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
        const int item = k * BLOCK + threadIdx.x, r = item / (3 * TILE), x = item % (3 * TILE) / 3;
        if (x >= columns || r >= rows) continue;
        const int colour = item % 3;
        const float a = colour == 0 ? resize.a0 : colour == 1 ? resize.a1 : resize.a2;
        const float b = colour == 0 ? resize.b0 : colour == 1 ? resize.b1 : resize.b2;
        __half* pixel = out + (static_cast<long long>(row + r) * resize.out_width + tile + x) * resize.channels;
        pixel[colour] = __float2half_rn(sums[k] * a + b);
        if (colour == 0) {
            for (int c = 3; c < resize.channels; ++c) pixel[c] = __float2half_rn(0.f);
        }
    }
}

#define PREPROCESS(name, format)                                                                          \
    extern "C" __global__ void __launch_bounds__(BLOCK, 2)                                                \
        name(const Frame frame, const Resize resize, int out_height, __half* __restrict__ out) {          \
        preprocess<format>(frame, resize, out_height, out);                                               \
    }

using PackedRgb = Packed<3, 0, 2>;
using PackedBgr = Packed<3, 2, 0>;
using PackedBgrx = Packed<4, 2, 0>;

PREPROCESS(preprocess_gray8, Gray8)
PREPROCESS(preprocess_rgb, PackedRgb)
PREPROCESS(preprocess_bgr, PackedBgr)
PREPROCESS(preprocess_bgrx, PackedBgrx)
PREPROCESS(preprocess_nv12, Nv12)
PREPROCESS(preprocess_i420, I420)
PREPROCESS(preprocess_yuy2, Yuy2)
PREPROCESS(preprocess_bayer, Bayer)
