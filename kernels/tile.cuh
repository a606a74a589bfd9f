// Operations over windows: a block makes a tile of the result, and first brings the part of the source
// that the tile's windows cover to shared memory. So the source is read from global memory once, but for
// what neighbouring tiles share. The host side is src/engine/cuda/tile.rs.
#pragma once

#include "ptx.cuh"
#include "vector.cuh"

constexpr int TILE_THREADS = 256;

// Mirrors `Tiling` of src/engine/cuda/tile.rs: sizes of a tile, and how many there are of an image.
struct alignas(8) Tiling {
    int rows, columns, channels;
    int row_tiles, column_tiles, groups;
    int source_rows, source_columns;  // at most
};

// The tile of a block: channel groups are the fastest, because they share sectors; then columns, rows,
// images.
struct Tile {
    int image, row, column, channel;  // the first of each
    int channels;                     // of this group

    __device__ __forceinline__ Tile(const Tiling& t, int all_channels, u32 block = blockIdx.x) {
        int rest = block, next = rest / t.groups;
        channel = (rest - next * t.groups) * t.channels;
        rest = next, next = rest / t.column_tiles;
        column = (rest - next * t.column_tiles) * t.columns;
        rest = next, image = rest / t.row_tiles;
        row = (rest - image * t.row_tiles) * t.rows;
        channels = min(t.channels, all_channels - channel);
    }
};

// V elements from global to shared memory, by cp.async where they are whole 16 bytes.
template <int V, class T>
__device__ __forceinline__ void copy_in(T* to, const T* from) {
    constexpr int BYTES = V * sizeof(T);
    if constexpr (BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < BYTES; i += 16) {
            cp_async_16(reinterpret_cast<char*>(to) + i, reinterpret_cast<const char*>(from) + i, true);
        }
    } else if constexpr (BYTES == 8) {
        *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
    } else {
        *to = *from;
    }
}

template <int V, class T>
__device__ __forceinline__ void zero(T* to) {
    if constexpr (V * sizeof(T) % 16 == 0) {
#pragma unroll
        for (int i = 0; i < V * int(sizeof(T)); i += 16) {
            *reinterpret_cast<uint4*>(reinterpret_cast<char*>(to) + i) = make_uint4(0, 0, 0, 0);
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) to[i] = T(0.f);
    }
}

// Rows row…, columns column… of a picture h×w×c to shared memory, `group` channels from `channel` on,
// zeros outside the picture. A pixel takes `pitch` elements there and a row `columns` pixels. A barrier
// must follow, after cp_async_wait.
template <int V, class T, int BLOCK_THREADS = TILE_THREADS>
__device__ __forceinline__ void stage(T* tile, const T* picture, int row, int column, int rows, int columns,
                                      int h, int w, int c, int channel, int group, int pitch) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, vectors = group / V;
    for (int r = warp; r < rows; r += BLOCK_THREADS / 32) {
        const int y = row + r;
        const bool inside = u32(y) < u32(h);
        const T* from = picture + size_t(inside ? y : 0) * w * c + channel;
        T* to = tile + r * columns * pitch;
        for (int i = lane; i < columns * vectors; i += 32) {
            const int j = i / vectors, k = (i - j * vectors) * V;
            const int x = column + j;
            if (inside && u32(x) < u32(w)) {
                copy_in<V>(to + j * pitch + k, from + size_t(x) * c + k);
            } else {
                zero<V>(to + j * pitch + k);
            }
        }
    }
}

__device__ __forceinline__ void staged() {
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
}
