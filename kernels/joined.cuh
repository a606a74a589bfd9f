// Several problems of one kernel in one launch: a network with branches of the same structure launches
// each kernel once for all of them, and the small branches run in the shade of the large ones.
//
// A kernel that can be joined takes one parameter, Joined<its arguments>. Launched for one problem it has
// that problem's grid. For several the grid is flat, each problem's blocks one after the other, and a block
// finds out to which problem it belongs and which block of it it is. The problems may run at once: none
// reads what another writes.
//
// The arguments stay where the launch put them, in constant memory, and are read from there at the block's
// own offset: as a local copy they would have to lie in local memory to be indexed.
#pragma once

#include "common.cuh"

// Mirrors MOST of src/engine/cuda/join.rs.
constexpr int MOST_JOINED = 8;

// Mirrors what `packed` of src/engine/cuda/join.rs writes. Arguments of structs are aligned to 8 bytes.
template <class Args>
struct Joined {
    u32 count;
    u32 first[MOST_JOINED];    // the first block; 2^32 - 1 from `count` on
    u32 columns[MOST_JOINED];  // of the problem's own grid: along x
    u32 rows[MOST_JOINED];     // and y
    Args each[MOST_JOINED];
};

// A block of one problem: what blockIdx is to a kernel launched by itself.
struct Block {
    u32 problem, x, y, z;
};

template <class Args>
__device__ __forceinline__ Block this_block(const Joined<Args>& all) {
    if (all.count == 1) return {0, blockIdx.x, blockIdx.y, blockIdx.z};
    u32 problem = 0;
#pragma unroll
    for (int i = 1; i < MOST_JOINED; ++i) problem += blockIdx.x >= all.first[i];
    const u32 block = blockIdx.x - all.first[problem];
    const u32 columns = all.columns[problem], rows = all.rows[problem];
    const u32 line = block / columns, z = line / rows;
    return {problem, block - line * columns, line - z * rows, z};
}

// Kernel NAME for problems of ARGS: the statement after the launch bounds is what a block does, with its
// problem's arguments `a` and itself `block`.
#define JOINED_KERNEL(NAME, ARGS, BOUNDS, ...)                                                              \
    extern "C" __global__ void __launch_bounds__ BOUNDS NAME(const __grid_constant__ Joined<ARGS> all) {    \
        const Block block = this_block(all);                                                                \
        const ARGS& a = all.each[block.problem];                                                            \
        __VA_ARGS__;                                                                                        \
    }
