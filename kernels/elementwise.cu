// Pointwise operations, stretching and conversions.
//
//   unary            y = f(x)
//   unary_backward   dx = dy f'(x); 0 at the corners of relu, relu6 and clamp
//   binary           y = a op b, axes of size 1 of a and b stretch; also y = a stretched
//   convert          y = x in the other storage
//   fill             y = value
//
// Shapes    every operand fp16 or fp32, row-major, aligned to 16 bytes; arithmetic in fp32
// Geometry  block 256, a thread takes V consecutive elements (16 bytes), the last one what is left
//
// The decisions that surprise:
// * Which function it is decides a switch over values already loaded, not a template: the kernels wait
//   for memory, and one image of each is a twelfth of the code.
// * V is 8 where everything large is fp16 and 4 where something large is fp32, so that one load is
//   16 bytes in either and neighbouring lanes' loads touch.
// * `binary` sees four axes at most, merged by the host where neither operand stretches anew: two
//   tensors of one shape are a single run, per-channel and scalar operands two axes. V elements never
//   straddle a run, so the index is divided once a thread; runs that V does not divide go by V = 1.
// * max and min let a number win against NaN, relu and clamp make one of NaN, relu6 keeps it: that is
//   what Rust's f32::max, min and clamp do, of which the specification is made.
//
// Cost per output: bytes of the operands that are as large as it (2 or 4 each) + its own, 1 to some 40
// FLOP. Bound by memory.

#include "vector.cuh"

constexpr int BLOCK = 256;

__device__ __forceinline__ size_t thread_number() {
    return static_cast<size_t>(blockIdx.x) * BLOCK + threadIdx.x;
}

template <int V, class F>
__device__ __forceinline__ void each(float (&v)[V], F f) {
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = f(v[j], j);
}

// ------------------------------------------------------------------------------------------------
// functions of one number

// In the order of `unary_code` in src/engine/cuda/elementwise.rs.
enum Unary { RELU, RELU6, SILU, SIGMOID, QUICK_GELU, TANH, EXP, LOG1P, SQUARE, SQRT, AFFINE, CLAMP };

// a, b: factor and offset, or the bounds.
struct Function {
    int kind;
    float a, b;
};

// Two instructions of the special function unit, relative error some 2^-21: 0 and 1 at the far ends.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

template <int V>
__device__ __forceinline__ void apply(const Function& f, float (&v)[V]) {
    switch (f.kind) {
        case RELU: return each(v, [](float x, int) { return fmaxf(x, 0.f); });
        case RELU6: return each(v, [](float x, int) { return x < 0.f ? 0.f : x > 6.f ? 6.f : x; });
        case SILU: return each(v, [](float x, int) { return x * sigmoid(x); });
        case SIGMOID: return each(v, [](float x, int) { return sigmoid(x); });
        case QUICK_GELU: return each(v, [](float x, int) { return x * sigmoid(1.702f * x); });
        case TANH: return each(v, [](float x, int) { return tanhf(x); });
        case EXP: return each(v, [](float x, int) { return expf(x); });
        case LOG1P: return each(v, [](float x, int) { return log1pf(x); });
        case SQUARE: return each(v, [](float x, int) { return x * x; });
        case SQRT: return each(v, [](float x, int) { return sqrtf(x); });
        case AFFINE: return each(v, [&](float x, int) { return f.a * x + f.b; });
        case CLAMP: return each(v, [&](float x, int) { return fminf(fmaxf(x, f.a), f.b); });
    }
}

// v: x, becomes dy f'(x).
template <int V>
__device__ __forceinline__ void apply_backward(const Function& f, float (&v)[V], const float (&dy)[V]) {
    // A product, as in the specification: dy that is not finite shows also where the slope is 0.
    const auto slope = [&](auto derivative) {
        each(v, [&](float x, int j) { return dy[j] * derivative(x); });
    };
    switch (f.kind) {
        case RELU: return slope([](float x) { return x > 0.f ? 1.f : 0.f; });
        case RELU6: return slope([](float x) { return x > 0.f && x < 6.f ? 1.f : 0.f; });
        case SILU:
            return slope([](float x) {
                const float s = sigmoid(x);
                return s * (1.f + x * (1.f - s));
            });
        case SIGMOID:
            return slope([](float x) {
                const float s = sigmoid(x);
                return s * (1.f - s);
            });
        case QUICK_GELU:
            return slope([](float x) {
                const float s = sigmoid(1.702f * x);
                return s * (1.f + 1.702f * x * (1.f - s));
            });
        case TANH:
            return slope([](float x) {
                const float t = tanhf(x);
                return 1.f - t * t;
            });
        case EXP: return slope([](float x) { return expf(x); });
        case LOG1P: return slope([](float x) { return 1.f / (1.f + x); });
        case SQUARE: return slope([](float x) { return 2.f * x; });
        case SQRT: return slope([](float x) { return 0.5f / sqrtf(x); });
        case AFFINE: return slope([&](float) { return f.a; });
        case CLAMP: return slope([&](float x) { return x > f.a && x < f.b ? 1.f : 0.f; });
    }
}

template <int V, class T>
__device__ __forceinline__ void unary(const T& x, const T& y, size_t len, const Function& f) {
    const size_t i = thread_number() * V;
    if (i >= len) return;
    float v[V];
    load_some(x, i, len, v);
    apply(f, v);
    store_some(y, i, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    unary_f16(__half* x, __half* y, size_t len, Function f) {
    unary<8>(x, y, len, f);
}

extern "C" __global__ void __launch_bounds__(BLOCK) unary_real(Real x, Real y, size_t len, Function f) {
    unary<4>(x, y, len, f);
}

template <int V, class T>
__device__ __forceinline__ void unary_backward(const T& x, const T& dy, const T& dx, size_t len,
                                               const Function& f) {
    const size_t i = thread_number() * V;
    if (i >= len) return;
    float v[V], d[V];
    load_some(x, i, len, v);
    load_some(dy, i, len, d);
    apply_backward(f, v, d);
    store_some(dx, i, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    unary_backward_f16(__half* x, __half* dy, __half* dx, size_t len, Function f) {
    unary_backward<8>(x, dy, dx, len, f);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    unary_backward_real(Real x, Real dy, Real dx, size_t len, Function f) {
    unary_backward<4>(x, dy, dx, len, f);
}

// ------------------------------------------------------------------------------------------------
// functions of two numbers, and stretching

// In the order of `binary_code`; FIRST is a alone.
enum Binary { ADD, SUB, MUL, DIV, MAX, MIN, FIRST };

// The output's axes, merged, the innermost last; mirrors `Stretch` of src/engine/cuda/elementwise.rs.
struct Stretch {
    size_t threads;      // in the grid that have something to do
    size_t run;          // elements of axis 3
    size_t per_run;      // threads of axis 3: ceil(run / V)
    size_t size1, size2; // of axes 1 and 2
    size_t a[4], b[4];   // strides in elements, 0 where stretched; 0 or 1 on axis 3
};

// Where thread `t` reads: `from` within its run, `row` the offset of a run of each operand.
template <class Index>
__device__ __forceinline__ void locate(const Stretch& s, Index t, size_t& from, size_t& a, size_t& b) {
    const Index per_run = static_cast<Index>(s.per_run);
    const Index row = t / per_run;
    from = t - row * per_run;
    const Index size2 = static_cast<Index>(s.size2), size1 = static_cast<Index>(s.size1);
    const Index plane = row / size2, i2 = row - plane * size2;
    const Index i0 = plane / size1, i1 = plane - i0 * size1;
    a = i0 * s.a[0] + i1 * s.a[1] + i2 * s.a[2];
    b = i0 * s.b[0] + i1 * s.b[1] + i2 * s.b[2];
}

// V values of an operand, or one for all of them.
template <int V>
__device__ __forceinline__ void load_operand(const Real& x, size_t row, size_t stride, size_t from,
                                             size_t run, float (&v)[V]) {
    if (stride == 0) {
        const float one = load(x, row);
        each(v, [&](float, int) { return one; });
    } else {
        load_some(x, row + from, row + run, v);
    }
}

template <int V>
__device__ __forceinline__ void binary(const Real& a, const Real& b, const Real& y, const Stretch& s,
                                       int kind) {
    const size_t t = thread_number();
    if (t >= s.threads) return;
    size_t from = t, row_a = 0, row_b = 0;
    if (s.per_run < s.threads) {
        // Dividing 64 bits costs some hundred instructions.
        if (s.threads >> 32 == 0) {
            locate(s, static_cast<u32>(t), from, row_a, row_b);
        } else {
            locate(s, t, from, row_a, row_b);
        }
    }
    from *= V;
    float v[V], w[V];
    load_operand(a, row_a, s.a[3], from, s.run, v);
    if (kind != FIRST) load_operand(b, row_b, s.b[3], from, s.run, w);
    switch (kind) {
        case ADD: each(v, [&](float x, int j) { return x + w[j]; }); break;
        case SUB: each(v, [&](float x, int j) { return x - w[j]; }); break;
        case MUL: each(v, [&](float x, int j) { return x * w[j]; }); break;
        case DIV: each(v, [&](float x, int j) { return x / w[j]; }); break;
        case MAX: each(v, [&](float x, int j) { return fmaxf(x, w[j]); }); break;
        case MIN: each(v, [&](float x, int j) { return fminf(x, w[j]); }); break;
    }
    // Several runs are whole multiples of V, so V·t is the place in the output.
    const size_t len = s.per_run < s.threads ? s.threads * V : s.run;
    store_some(y, t * V, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK) binary_8(Real a, Real b, Real y, Stretch s, int kind) {
    binary<8>(a, b, y, s, kind);
}

extern "C" __global__ void __launch_bounds__(BLOCK) binary_4(Real a, Real b, Real y, Stretch s, int kind) {
    binary<4>(a, b, y, s, kind);
}

extern "C" __global__ void __launch_bounds__(BLOCK) binary_1(Real a, Real b, Real y, Stretch s, int kind) {
    binary<1>(a, b, y, s, kind);
}

// ------------------------------------------------------------------------------------------------
// conversion and constants

extern "C" __global__ void __launch_bounds__(BLOCK)
    convert_f32_f16(const float* __restrict__ x, __half* __restrict__ y, size_t len) {
    const size_t i = thread_number() * 4;
    if (i >= len) return;
    float v[4];
    load_some(x, i, len, v);
    store_some(y, i, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    convert_f16_f32(const __half* __restrict__ x, float* __restrict__ y, size_t len) {
    const size_t i = thread_number() * 4;
    if (i >= len) return;
    float v[4];
    load_some(x, i, len, v);
    store_some(y, i, len, v);
}

extern "C" __global__ void __launch_bounds__(BLOCK) fill(Real y, float value, size_t len) {
    const size_t i = thread_number() * 4;
    if (i >= len) return;
    const float v[4] = {value, value, value, value};
    store_some(y, i, len, v);
}
