// Geometry of kernels over pictures whose rows are shared out over blocks: thread x walks along a row
// (channels fastest, V of them a thread), thread y and the blocks' y over the rows of all images. The
// host side is `rows` of src/engine/cuda/rows.rs.
#pragma once

#include "vector.cuh"

// The first row of this thread; then in steps of row_step().
__device__ __forceinline__ unsigned first_row() { return blockIdx.y * blockDim.y + threadIdx.y; }

__device__ __forceinline__ unsigned row_step() { return gridDim.y * blockDim.y; }

// This thread's place in its row, in units of V channels.
__device__ __forceinline__ unsigned place_in_row() { return blockIdx.x * blockDim.x + threadIdx.x; }
