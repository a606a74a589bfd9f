// What follows a sum or a normalisation.
#pragma once

#include "common.cuh"

// Activations of `Act` of src/engine/op.rs, in its order.
__device__ __forceinline__ float activate(float v, int act) {
    switch (act) {
        case 1: return fmaxf(v, 0.f);
        case 2: return v < 0.f ? 0.f : v > 6.f ? 6.f : v;  // NaN stays, as in the specification
        case 3: return __fdividef(v, 1.f + __expf(-v));
        default: return v;
    }
}
