// Every inline-PTX wrapper: one instruction each, with a fallback for sm_75, which has neither cp.async
// nor the m16n8k16 product.
//
// Shared memory is named either by pointer or, in inner loops, by its 32-bit address (`shared_address`):
// that spares a conversion per access.
#pragma once

#include "common.cuh"

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// `bytes` (16 or 0) from global to shared memory, not through registers, zeros for the rest of 16: with 0
// the source is not touched. Both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16_of(u32 to, const void* from, u32 bytes) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
#else
    uint4 v = make_uint4(0, 0, 0, 0);
    if (bytes) v = *reinterpret_cast<const uint4*>(from);
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#endif
}
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, bool valid) {
    cp_async_16_of(to, from, valid ? 16 : 0);
}
__device__ __forceinline__ void cp_async_16(void* to, const void* from, bool valid) {
    cp_async_16_of(shared_address(to), from, valid ? 16 : 0);
}

// Closes a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most N of this thread's groups are under way. A barrier must follow before another
// thread reads what was copied.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#endif
}

// Four 8×8 matrices of halves. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned);
// then r[i] of lane l holds elements (row l / 4, columns 2·(l % 4) and + 1) of matrix i.
//
//              columns  0 1 | 2 3 | 4 5 | 6 7
//      row 0  lane       0  |  1  |  2  |  3
//      row 1  lane       4  |  5  |  6  |  7
//      ...
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* p) { ldmatrix_x4(r, shared_address(p)); }

// The same, each matrix transposed: r[i] of lane l holds (rows 2·(l % 4) and + 1, column l / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* p) {
    ldmatrix_x4_trans(r, shared_address(p));
}

// Two matrices, addressed by lanes 0 to 15.
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], u32 p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(p) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], const void* p) { ldmatrix_x2(r, shared_address(p)); }

__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], u32 p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(p) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], const void* p) {
    ldmatrix_x2_trans(r, shared_address(p));
}

// d(16×8, fp32) += a(16×16, fp16, row-major)·b(16×8, fp16, column-major). With g = lane / 4, t = lane % 4:
//
//      a  k 2t,2t+1  k 2t+8,+9      b       n = g           d       n 2t, 2t+1
//   row g      a[0]       a[2]      k 2t,2t+1    b0         row g   d[0], d[1]
//   row g+8    a[1]       a[3]      k 2t+8,+9    b1         row g+8 d[2], d[3]
//
// a is ldmatrix_x4 of the four 8×8 quarters in that order; b0, b1 those of b with its rows along n, or,
// with its rows along k, those of ldmatrix_…_trans.
__device__ __forceinline__ void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
