//! Fragments of ldmatrix and mma against a plain matrix product.

use gpusim::machine::{Config, Memory, Options, launch, parse};
use half::f16;

/// One warp: `a` 16×k by rows and `b` 8×k by rows (of n) into shared memory, fragments by ldmatrix, `d`
/// 16×8 out as PTX ISA's figures lay it out.
fn product(k: usize, a: &[f16], b: &[f16]) -> Vec<f32> {
    let row = k * 2;
    let (loads, mma) = if k == 16 {
        (
            "and.b32 %r2, %r1, 15; mul.lo.u32 %r2, %r2, 32; shr.u32 %r3, %r1, 4; shl.b32 %r3, %r3, 4;\n\
             add.u32 %r2, %r2, %r3; mov.u32 %r4, sa; add.u32 %r4, %r4, %r2;\n\
             ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r4];\n\
             and.b32 %r2, %r1, 7; mul.lo.u32 %r2, %r2, 32; shr.u32 %r3, %r1, 3; and.b32 %r3, %r3, 1;\n\
             shl.b32 %r3, %r3, 4; add.u32 %r2, %r2, %r3; mov.u32 %r4, sb; add.u32 %r4, %r4, %r2;\n\
             ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r14, %r15}, [%r4];\n",
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {%f1,%f2,%f3,%f4};\n",
        )
    } else {
        (
            "and.b32 %r2, %r1, 15; mul.lo.u32 %r2, %r2, 16; mov.u32 %r4, sa; add.u32 %r4, %r4, %r2;\n\
             ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r10, %r11}, [%r4];\n\
             and.b32 %r2, %r1, 7; mul.lo.u32 %r2, %r2, 16; mov.u32 %r4, sb; add.u32 %r4, %r4, %r2;\n\
             ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r14}, [%r4];\n",
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r10,%r11}, {%r14}, {%f1,%f2,%f3,%f4};\n",
        )
    };
    let text = format!(
        ".version 8.8\n.target sm_80\n.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2)\n{{\n\
         .shared .align 16 .b8 sa[{a_bytes}]; .shared .align 16 .b8 sb[{b_bytes}];\n\
         .reg .b32 %r<20>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .pred %p<3>;\n\
         ld.param.u64 %rd1, [p0]; ld.param.u64 %rd2, [p1]; ld.param.u64 %rd3, [p2]; mov.u32 %r1, %laneid;\n\
         mov.u32 %r5, 0; mul.wide.u32 %rd4, %r1, 4; add.s64 %rd5, %rd1, %rd4; add.s64 %rd6, %rd2, %rd4;\n\
         shl.b32 %r6, %r1, 2; mov.u32 %r7, sa; add.u32 %r7, %r7, %r6; mov.u32 %r8, sb; add.u32 %r8, %r8, %r6;\n\
         L1: ld.global.u32 %r9, [%rd5]; st.shared.u32 [%r7], %r9;\n\
         setp.lt.u32 %p1, %r5, {b_bytes}; @%p1 ld.global.u32 %r9, [%rd6]; @%p1 st.shared.u32 [%r8], %r9;\n\
         add.u32 %r5, %r5, 128; add.s64 %rd5, %rd5, 128; add.s64 %rd6, %rd6, 128; add.u32 %r7, %r7, 128; add.u32 %r8, %r8, 128;\n\
         setp.lt.u32 %p1, %r5, {a_bytes}; @%p1 bra L1;\n\
         bar.warp.sync 0xffffffff;\n{loads}\
         mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F800000; mov.f32 %f3, 0f3F800000; mov.f32 %f4, 0f3F800000;\n{mma}\
         shr.u32 %r2, %r1, 2; and.b32 %r3, %r1, 3; mul.lo.u32 %r2, %r2, 32; mad.lo.u32 %r2, %r3, 8, %r2;\n\
         cvt.u64.u32 %rd4, %r2; add.s64 %rd3, %rd3, %rd4;\n\
         st.global.v2.f32 [%rd3], {{%f1, %f2}}; st.global.v2.f32 [%rd3+256], {{%f3, %f4}}; ret;\n}}\n",
        a_bytes = 16 * row,
        b_bytes = 8 * row,
    );
    let module = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = Memory::new();
    let bytes = |v: &[f16]| v.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<u8>>();
    let pointers = [16 * row, 8 * row, 512].map(|n| memory.alloc(n).expect("memory"));
    memory.write(pointers[0], &bytes(a)).expect("inside");
    memory.write(pointers[1], &bytes(b)).expect("inside");
    let config = Config { grid: [1, 1, 1], block: [32, 1, 1], shared: 0 };
    let params = pointers.map(|p| p.to_le_bytes().to_vec());
    let counters = launch(&module.kernels[0], &mut memory, &config, &params, &Options::default())
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(counters.mma, u64::from(k == 16));
    assert_eq!(counters.global_load_bytes, 24 * row as u64);
    assert_eq!(counters.global_store_bytes, 512);
    let mut out = vec![0; 512];
    memory.read(pointers[2], &mut out).expect("inside");
    out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn fragments_multiply_as_matrices_do() {
    let mut seed = 7u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Small integers: sums are exact in single precision.
        f16::from_f32((seed >> 28) as f32 - 8.0)
    };
    for k in [8, 16] {
        let a: Vec<f16> = (0..16 * k).map(|_| next()).collect();
        let b: Vec<f16> = (0..8 * k).map(|_| next()).collect();
        let d = product(k, &a, &b);
        for m in 0..16 {
            for n in 0..8 {
                let dot: f32 = (0..k).map(|i| a[m * k + i].to_f32() * b[n * k + i].to_f32()).sum();
                assert_eq!(d[m * 8 + n], 1.0 + dot, "k {k}, row {m}, column {n}");
            }
        }
    }
}
