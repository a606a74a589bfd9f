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

__device__ __forceinline__ void put(float* picture, size_t at, const Pixel& p) {
#pragma unroll
    for (int c = 0; c < 3; ++c) picture[3 * at + c] = p.c[c].v;
}
