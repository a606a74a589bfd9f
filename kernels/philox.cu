// Tensors of random numbers.
//
//   random   y[i][e] = number e of the stream (seed, step, first image + i, purpose): uniform in [0, 1)
//            or normal with mean 0 and variance 1
//
// Shapes    key   u32 x 4: seed low, seed high, step, first image
//           y     images x per_image, fp16 or fp32
// Geometry  block 256, a thread 4 numbers of one image: one block of Philox
//
// The decision that surprises: every image begins a stream of its own, so that a batch has the numbers
// that its images would have one by one. Where per_image is no multiple of 4 the last block of each image
// is used in part, and 16-byte stores would straddle images: those go one by one.
//
// Cost per number: 4 or 2 B written; 25 integer multiplications for 4 numbers, normal ones a logarithm, a
// root and two polynomials a pair. About as much arithmetic as memory.

#include "philox.cuh"
#include "vector.cuh"

constexpr int BLOCK = 256;

// grid ceil(images blocks_per_image / 256), blocks_per_image = ceil(per_image / 4)
extern "C" __global__ void __launch_bounds__(BLOCK)
    random(const u32* __restrict__ key, Real y, size_t images, size_t per_image, size_t blocks_per_image,
           u32 purpose, int normal) {
    size_t block;
    const size_t t = static_cast<size_t>(blockIdx.x) * BLOCK + threadIdx.x;
    const size_t image = divide(t, blocks_per_image, block);
    if (image >= images) return;
    const uint4 words = philox(static_cast<u32>(block), key[3] + static_cast<u32>(image), key[2], purpose,
                               key[0], key[1]);
    float v[4];
    if (normal) {
        const float2 p = normal_pair(words.x, words.y), q = normal_pair(words.z, words.w);
        v[0] = p.x, v[1] = p.y, v[2] = q.x, v[3] = q.y;
    } else {
        v[0] = uniform(words.x), v[1] = uniform(words.y), v[2] = uniform(words.z), v[3] = uniform(words.w);
    }
    const size_t row = image * per_image, i = block * 4;
    if (per_image % 4 == 0) {
        store_all(y, row + i, v);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (i + j < per_image) store(y, row + i + j, v[j]);
        }
    }
}
