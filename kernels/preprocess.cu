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
// Launch    grid (ceil(out_width / 64), out_height), block 192
//
// The decision that surprises: the weights come from the host, as the tables that the CPU path uses.
// They are computed in f64, which many GPUs have at 1/64 of the rate, and so both paths multiply by
// the very same numbers. With t taps an axis the two differ by the order of summation alone, less
// than (tx + ty + 4) 2^-24 255 grey levels, before the rounding to fp16.
//
// Rows are blended before columns: that loop reads whole rows, neighbouring threads neighbouring
// pixels, and what goes through shared memory is one blended row. 8-bit RGB never exists in memory;
// each pixel is decoded once for each output row whose window holds it (twice, when shrinking).
//
// Cost      read 2 B per source sample (the second time from L2), written 2 * channels B per output;
//           FLOPs per output 2 * 3 * (taps_x + scale_x * taps_y). 1080p NV12 to 256 x 256: 3.1 MB from
//           DRAM and 0.4 MB to it, 12 MFLOP: bound by memory everywhere. Bayer asks for three bytes a
//           sample, itself and its neighbours left and right, two of them from L1: the thread walks
//           down its column and keeps the rows above, so those are read once.

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

constexpr int TILE = 64;           // outputs a block
constexpr int BLOCK = 3 * TILE;    // one thread for each output and colour
// 960 of Turing's 1024 threads. Left to itself the assembler aims at 32 registers and spills.
constexpr int BLOCKS_PER_SM = 5;
constexpr int CHUNK = 512;         // blended pixels at a time: 1080p to 256 wide needs 496 for a tile

// ------------------------------------------------------------------------------------------------
// pixel formats: the 8-bit colour at column x, row y of the frame

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

// One column from a row on downwards, for formats whose pixels know nothing of each other.
template <class Format>
struct Independent {
    const Frame& f;
    const int x;
    int y;
    __device__ __forceinline__ Independent(const Frame& frame, int column, int row)
        : f(frame), x(column), y(row) {}
    __device__ __forceinline__ Rgb next() { return Format::at(f, x, y++); }
};

struct Gray8 {
    static constexpr int COLOURS = 1;
    using Column = Independent<Gray8>;
    static __device__ __forceinline__ Rgb at(const Frame& f, int x, int y) {
        const int v = f.plane0[y * f.pitch0 + x];
        return {v, v, v};
    }
};

template <int STRIDE, int R, int B>
struct Packed {
    static constexpr int COLOURS = 3;
    using Column = Independent<Packed>;
    static __device__ __forceinline__ Rgb at(const Frame& f, int x, int y) {
        const u8* p = f.plane0 + y * f.pitch0 + x * STRIDE;
        return {p[R], p[1], p[B]};
    }
};

struct Nv12 {
    static constexpr int COLOURS = 3;
    using Column = Independent<Nv12>;
    static __device__ __forceinline__ Rgb at(const Frame& f, int x, int y) {
        const u8* uv = f.plane1 + (y >> 1) * f.pitch1 + (x & ~1);
        return bt601(f.plane0[y * f.pitch0 + x], uv[0], uv[1]);
    }
};

struct I420 {
    static constexpr int COLOURS = 3;
    using Column = Independent<I420>;
    static __device__ __forceinline__ Rgb at(const Frame& f, int x, int y) {
        return bt601(f.plane0[y * f.pitch0 + x], f.plane1[(y >> 1) * f.pitch1 + (x >> 1)],
                     f.plane2[(y >> 1) * f.pitch2 + (x >> 1)]);
    }
};

struct Yuy2 {
    static constexpr int COLOURS = 3;
    using Column = Independent<Yuy2>;
    static __device__ __forceinline__ Rgb at(const Frame& f, int x, int y) {
        const u8* row = f.plane0 + y * f.pitch0;
        const u8* pair = row + (x >> 1) * 4;
        return bt601(row[x * 2], pair[1], pair[3]);
    }
};

struct Bayer {
    static constexpr int COLOURS = 3;

    // Three samples of one row around the column.
    struct Samples {
        int w, c, e;
    };

    struct Column {
        const Frame& f;
        const bool red_column;
        int x, y;
        int west, east;
        Samples above, here;

        // The neighbour of i at i + step, mirrored at 0 and n - 1; the only one is its own.
        static __device__ __forceinline__ int mirror(int i, int step, int n) {
            const int at = i + step;
            return at >= 0 && at < n ? at : max(0, min(i - step, n - 1));
        }
        __device__ __forceinline__ Samples read(int row) const {
            const u8* p = f.plane0 + row * f.pitch0;
            return {p[west], p[x], p[east]};
        }
        __device__ __forceinline__ Column(const Frame& frame, int column, int row)
            : f(frame), red_column((column & 1) == frame.red_x), x(column), y(row) {
            west = mirror(x, -1, f.width);
            east = mirror(x, 1, f.width);
            above = read(mirror(y, -1, f.height));
            here = read(y);
        }
        __device__ __forceinline__ Rgb next() {
            const Samples below = read(mirror(y, 1, f.height));
            const int own = here.c;
            const int row = (here.w + here.e + 1) >> 1;
            const int column = (above.c + below.c + 1) >> 1;
            const int cross = (here.w + here.e + above.c + below.c + 2) >> 2;
            const int corners = (above.w + above.e + below.w + below.e + 2) >> 2;
            const bool red_row = (y & 1) == f.red_y;
            // Neighbouring lanes differ in red_column, so all means are made and one is chosen.
            const int red = red_column ? (red_row ? own : column) : (red_row ? row : corners);
            const int green = red_column == red_row ? cross : own;
            const int blue = red_column ? (red_row ? corners : row) : (red_row ? column : own);
            above = here;
            here = below;
            ++y;
            return {red, green, blue};
        }
    };
};

// ------------------------------------------------------------------------------------------------
// one output row, 64 outputs wide

template <class Format>
__device__ __forceinline__ void preprocess(const Frame& frame, const Resize& resize, __half* out) {
    __shared__ float blended[Format::COLOURS][CHUNK];

    const int oy = blockIdx.y;
    const int tile = blockIdx.x * TILE;
    const int last = min(tile + TILE, resize.out_width) - 1;

    // Thread t serves output tile + t % 64, colour t / 64: lanes of a warp share the colour.
    const int ox = tile + threadIdx.x % TILE;
    const int colour = threadIdx.x / TILE;
    const bool active = ox <= last;
    const int first = active ? resize.x0[ox] : 0;
    const float* wx = resize.wx + static_cast<long long>(active ? ox : tile) * resize.taps_x;

    const int row0 = frame.y + resize.y0[oy];
    const float* wy = resize.wy + static_cast<long long>(oy) * resize.taps_y;

    // Windows start in ascending order, so the tile reads the columns [begin, end) of the region.
    const int begin = resize.x0[tile];
    const int end = resize.x0[last] + resize.taps_x;
    float sum = 0.f;
    for (int chunk = begin; chunk < end; chunk += CHUNK) {
        const int width = min(CHUNK, end - chunk);
        for (int i = threadIdx.x; i < width; i += BLOCK) {
            float r = 0.f, g = 0.f, b = 0.f;
            typename Format::Column column(frame, frame.x + chunk + i, row0);
            for (int t = 0; t < resize.taps_y; ++t) {
                const Rgb p = column.next();
                const float w = wy[t];
                r += w * p.r;
                if (Format::COLOURS == 3) {
                    g += w * p.g;
                    b += w * p.b;
                }
            }
            blended[0][i] = r;
            if (Format::COLOURS == 3) {
                blended[Format::COLOURS / 2][i] = g;
                blended[Format::COLOURS - 1][i] = b;
            }
        }
        __syncthreads();
        if (active) {
            const float* row = blended[Format::COLOURS == 3 ? colour : 0];
            const int from = max(0, chunk - first);
            const int to = min(resize.taps_x, chunk + width - first);
            for (int s = from; s < to; ++s) sum += wx[s] * row[first + s - chunk];
        }
        __syncthreads();
    }
    if (!active) return;

    const float a = colour == 0 ? resize.a0 : colour == 1 ? resize.a1 : resize.a2;
    const float b = colour == 0 ? resize.b0 : colour == 1 ? resize.b1 : resize.b2;
    __half* pixel = out + (static_cast<long long>(oy) * resize.out_width + ox) * resize.channels;
    pixel[colour] = __float2half_rn(sum * a + b);
    if (colour == 0) {
        for (int c = 3; c < resize.channels; ++c) pixel[c] = __float2half_rn(0.f);
    }
}

#define PREPROCESS(name, format)                                                             \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_PER_SM)                       \
        name(const Frame frame, const Resize resize, __half* __restrict__ out) {             \
        preprocess<format>(frame, resize, out);                                              \
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
