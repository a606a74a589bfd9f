// What anomalies are painted with, as far as augment.cu and blend.cu must agree on it.
#pragma once

#include "exact.cuh"

constexpr int STEPS = 3;
constexpr int LEVELS = 256;

// Mirrors `Base` of src/engine/cuda/augment.rs: what P starts as. Zero: P stays as it is.
constexpr u32 ROLLED = 1;
constexpr u32 WARPED = 2;
constexpr u32 FLAT = 3;
constexpr u32 TONED = 4;
constexpr u32 CLOUD = 5;

struct Step {
    u32 kind;
    u32 table;       // of this plan's tables, for kinds that have some
    float v[4];
};

// Mirrors `Plan` of src/engine/cuda/augment.rs.
struct Plan {
    u32 base;
    u32 steps;       // P ends in buffer steps % 2
    u32 grey;
    float opacity;
    u32 i[4];        // what `base` needs, see base() in augment.cu
    float v[6];
    Step step[STEPS];
};

__device__ __forceinline__ Exact of_byte(u8 b) { return Exact(float(b)) * Exact(1.f / 255.f); }

struct Pixel {
    Exact c[3];
};

__device__ __forceinline__ Pixel pixel(const u8* picture, size_t at) {
    return {{of_byte(picture[3 * at]), of_byte(picture[3 * at + 1]), of_byte(picture[3 * at + 2])}};
}

__device__ __forceinline__ Pixel pixel(const float* picture, size_t at) {
    return {{picture[3 * at], picture[3 * at + 1], picture[3 * at + 2]}};
}


// A plan, once for a block. Every thread comes here.
__device__ __forceinline__ void bring(Plan& to, const Plan& from) {
    static_assert(sizeof(Plan) % 4 == 0, "whole words");
    const u32* words = reinterpret_cast<const u32*>(&from);
    for (u32 i = threadIdx.x; i < sizeof(Plan) / 4; i += blockDim.x) reinterpret_cast<u32*>(&to)[i] = words[i];
    __syncthreads();
}

// Three numbers for each lane of a warp, on their way between a picture and registers. A request of the
// warp takes 32 neighbouring numbers, and so fills its sectors; three a lane would be every third.
template <class T>
struct Shuffled {
    T numbers[96];

    // Pixels first, first + 1, … of a picture, as many as the warp has. Every lane comes here.
    __device__ __forceinline__ Pixel get(const T* picture, size_t first, u32 count) {
        const u32 lane = threadIdx.x % 32;
        __syncwarp();
        for (u32 i = lane; i < 3 * count; i += 32) numbers[i] = picture[3 * first + i];
        __syncwarp();
        return lane < count ? pixel(numbers, lane) : Pixel{{0.f, 0.f, 0.f}};
    }
    __device__ __forceinline__ void put(T* picture, size_t first, u32 count, T a, T b, T c) {
        const u32 lane = threadIdx.x % 32;
        __syncwarp();
        numbers[3 * lane] = a, numbers[3 * lane + 1] = b, numbers[3 * lane + 2] = c;
        __syncwarp();
        for (u32 i = lane; i < 3 * count; i += 32) picture[3 * first + i] = numbers[i];
    }
};

// How many of the pixels belong to this warp, whose first is `first`.
__device__ __forceinline__ u32 of_warp(u32 first, u32 pixels) { return first < pixels ? min(pixels - first, 32u) : 0; }
