// Kernels with one bug each, marked on its line, and twins without. `x` holds 128 floats, `y` has room for
// 128; two blocks of 64 threads. planted.ptx is this file compiled by NVRTC 12.9 (scripts beside: make.sh).

using u32 = unsigned int;
#define KERNEL extern "C" __global__ void __launch_bounds__(64)
#define ARGS (volatile float* x, volatile float* y)
#define I (blockIdx.x * 64 + threadIdx.x)
#define T threadIdx.x
#define LANE (threadIdx.x & 31)

__device__ __forceinline__ u32 address(const volatile void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(const_cast<const void*>(p)));
}
__device__ __forceinline__ void copy_16(u32 to, const volatile float* from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory"); }
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_0() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void wait_1() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

KERNEL bug_read_outside ARGS { y[I] = x[I + 1]; }  // BUG read_outside
KERNEL bug_write_outside ARGS {
    float v = x[I];
    y[I + 1] = v;  // BUG write_outside
}
KERNEL bug_freed ARGS { y[I] = x[I]; }  // BUG freed
KERNEL bug_misaligned ARGS {
    float v = *(volatile float*)((volatile char*)x + 2);  // BUG misaligned
    y[I] = v;
}
KERNEL bug_uninitialised_global ARGS {
    float v = y[I];  // BUG uninitialised_global
    y[I] = v + x[I];
}
KERNEL bug_uninitialised_shared ARGS {
    __shared__ volatile float s[64];
    if (T < 60) s[T] = x[I];
    __syncthreads();
    y[I] = s[63 - T];  // BUG uninitialised_shared
}
KERNEL bug_race_warps ARGS {
    __shared__ volatile float s[64];
    s[T] = x[I];
    y[I] = s[63 - T];  // BUG race_warps
}
KERNEL bug_race_lanes ARGS {
    __shared__ volatile float s[64];
    s[T] = x[I];
    y[I] = s[T ^ 1];  // BUG race_lanes
}
KERNEL bug_race_lockstep ARGS {
    __shared__ volatile float s[64];
    s[T / 32] = x[I];  // BUG race_lockstep
    __syncthreads();
    y[I] = s[T / 32];
}
KERNEL bug_race_write_after_read ARGS {
    __shared__ volatile float s[64];
    s[T] = x[I];
    __syncthreads();
    float v = s[63 - T];
    s[T] = v + 1;  // BUG race_write_after_read
    __syncthreads();
    y[I] = s[T];
}
KERNEL bug_race_atomic ARGS {
    __shared__ int s[1];
    if (T == 0) s[0] = 0;
    __syncthreads();
    atomicAdd(&s[0], 1);
    y[I] = *(volatile int*)s;  // BUG race_atomic
}
KERNEL bug_race_blocks ARGS {
    if (T == 0) y[0] = x[0];  // BUG race_blocks
}
KERNEL bug_race_blocks_read ARGS {
    x[I] = x[(I + 64) % 128] + 1;  // BUG race_blocks_read
}
KERNEL bug_race_global_in_block ARGS {
    y[I] = x[I];
    x[I] = y[blockIdx.x * 64 + 63 - T];  // BUG race_global_in_block
}
KERNEL bug_race_global_lockstep ARGS { y[I / 2] = x[I]; }  // BUG race_global_lockstep
KERNEL bug_divergent_barrier ARGS {
    if (x[I] >= 0 && LANE < 16) {
        asm volatile("bar.sync 0;" ::: "memory");  // BUG divergent_barrier
        y[I] = 1;
    } else {
        y[I] = 2;
    }
}
KERNEL bug_absent_lanes ARGS {
    float v = x[I];
    if (LANE < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);  // BUG absent_lanes
    y[I] = v;
}
KERNEL bug_partial_ldmatrix ARGS {
    __shared__ __align__(16) volatile float s[64];
    s[T] = x[I];
    __syncthreads();
    u32 r = 0;
    if (LANE < 16) asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(address(&s[LANE % 8 * 4])));  // BUG partial_ldmatrix
    y[I] = r;
}
KERNEL bug_partial_mma ARGS {
    float d0 = x[I], d1 = 0, d2 = 0, d3 = 0;
    u32 a = T;
    if (LANE < 16) asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};" : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(a));  // BUG partial_mma
    y[I] = d0;
}
KERNEL bug_copy_not_awaited ARGS {
    __shared__ __align__(16) volatile float s[256];
    copy_16(address(&s[T * 4]), x + T % 32 * 4);
    commit();
    y[I] = s[T * 4];  // BUG copy_not_awaited
}
KERNEL bug_copy_group ARGS {
    __shared__ __align__(16) volatile float s[512];
    copy_16(address(&s[T * 4]), x + T % 32 * 4);
    commit();
    copy_16(address(&s[256 + T * 4]), x + T % 32 * 4);
    commit();
    wait_1();
    y[I] = s[256 + T * 4];  // BUG copy_group
}
KERNEL bug_copy_overwritten ARGS {
    __shared__ __align__(16) volatile float s[256];
    copy_16(address(&s[T * 4]), x + T % 32 * 4);
    commit();
    s[T * 4] = 1;  // BUG copy_overwritten
    wait_0();
    y[I] = s[T * 4];
}
KERNEL bug_copy_without_barrier ARGS {
    __shared__ __align__(16) volatile float s[256];
    copy_16(address(&s[T * 4]), x + T % 32 * 4);
    commit();
    wait_0();
    y[I] = s[(63 - T) * 4];  // BUG copy_without_barrier
}
KERNEL bug_red_zone ARGS {
    __shared__ volatile float s[64], t[64];
    s[T] = x[I];
    t[T] = x[I];
    __syncthreads();
    y[I] = s[T + 1] + t[T];  // BUG red_zone
}
KERNEL bug_dynamic_shared ARGS {
    extern __shared__ float dynamic[];
    volatile float* s = dynamic;
    s[T] = x[I];
    y[I] = s[T];
    s[T + 1024] = 1;  // BUG dynamic_shared
}
KERNEL bug_deadlock ARGS {
    if (T < 32) asm volatile("bar.sync 1, 64;" ::: "memory");
    else asm volatile("bar.sync 2, 64;" ::: "memory");
    y[I] = x[I];
}
KERNEL bug_syncwarp_of_others ARGS {
    __shared__ volatile float s[64];
    s[T] = x[I];
    if (LANE < 16) {
        __syncwarp(0x0000ffffu);
        y[I] = s[T + 16];  // BUG syncwarp_of_others
    }
}
KERNEL bug_trap ARGS {
    if (T == 3) asm volatile("trap;");  // BUG trap
    y[I] = x[I];
}

KERNEL good_shared ARGS {
    __shared__ volatile float s[64];
    for (int i = 0; i < 3; i++) {
        s[T] = x[I] + i;
        __syncthreads();
        y[I] = s[63 - T];
        __syncthreads();
    }
}
KERNEL good_syncwarp ARGS {
    __shared__ volatile float s[64];
    for (int o = 16; o; o /= 2) {
        s[T] = x[I];
        __syncwarp();
        float v = s[T ^ o];
        __syncwarp();
        s[T] = v;
        y[I] = v;
    }
}
KERNEL good_partial_syncwarp ARGS {
    __shared__ volatile float s[64];
    s[T] = x[I];
    if (LANE < 16) {
        __syncwarp(0x0000ffffu);
        y[I] = s[T ^ 1];
    } else {
        __syncwarp(0xffff0000u);
        y[I] = s[T ^ 2];
    }
}
KERNEL good_divergence ARGS {
    float v = x[I];
    for (u32 i = 0; i < T % 7; i++) {
        if (i & 1) v += 1;
        else if (T & 4) v *= 2;
    }
    v += __shfl_xor_sync(0xffffffffu, v, 5);
    y[I] = v;
}
KERNEL good_same_value ARGS {
    __shared__ volatile float s[2];
    s[T / 32] = 7;
    __syncthreads();
    y[I] = s[1 - T / 32] + x[I];
}
KERNEL good_atomics ARGS {
    __shared__ int s[4];
    if (T < 4) s[T] = 0;
    __syncthreads();
    atomicAdd(&s[T % 4], int(T));
    __syncthreads();
    y[I] = *(volatile int*)&s[T % 4];
    atomicMax((int*)x, 1 << 30);
}
KERNEL good_copy ARGS {
    __shared__ __align__(16) volatile float s[512];
    copy_16(address(&s[T * 4]), x + T % 32 * 4);
    commit();
    copy_16(address(&s[256 + T * 4]), x + T % 32 * 4);
    commit();
    wait_1();
    __syncthreads();
    float v = s[(63 - T) * 4];
    wait_0();
    __syncthreads();
    y[I] = v + s[256 + (63 - T) * 4];
}
KERNEL good_named_barriers ARGS {
    __shared__ volatile float s[64];
    s[T] = x[I];
    if (T < 32) {
        asm volatile("bar.sync 1, 32;" ::: "memory");
        y[I] = s[T ^ 1];
    } else {
        asm volatile("bar.sync 2, 32;" ::: "memory");
        y[I] = s[T ^ 3];
    }
    asm volatile("bar.sync 3, 64;" ::: "memory");
    s[63 - T] = 1;
}
KERNEL good_early_exit ARGS {
    y[I] = x[I];
    if (T >= 40) return;
    __syncthreads();
    y[I] = 2 * x[I];
}
KERNEL good_votes ARGS {
    u32 ballot = __ballot_sync(0xffffffffu, T & 1);
    int count = __syncthreads_count(T < 10);
    int any = __any_sync(0xffffffffu, T == 3), all = __all_sync(0xffffffffu, T < 64);
    y[I] = float(__popc(ballot)) + 100 * count + 10000 * any + 100000 * all + x[I] * 0;
}
KERNEL good_halves ARGS {
    __shared__ volatile unsigned short s[64];
    __shared__ volatile unsigned char b[64];
    s[T] = T;
    b[T] = T;
    s[T] = s[T] + 1;
    __syncthreads();
    y[I] = s[63 - T] + b[63 - T] + x[I] * 0;
}
