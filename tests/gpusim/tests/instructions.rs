//! Instructions give what Rust gives for the same operation, on random bits and on the odd values.

use gpusim::machine::{Config, Memory, Options, launch, parse};
use half::f16;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Three words of each of so many threads.
const THREADS: usize = 256;

fn operands() -> Vec<[u64; 3]> {
    let odd = [
        0,
        1,
        2,
        31,
        32,
        33,
        63,
        64,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        u64::MAX,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x0000_0001,
        0x3c00,
        0xbc00,
        0x7c00,
        0x3ff0_0000_0000_0000,
        0x8000_0000_0000_0000,
        0x4b00_0001,
        0x3f00_0000,
        0x4020_0000,
    ];
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut one = |i: usize, k: usize| match (i + k) % 3 {
        0 if i < 200 => odd[random.next() as usize % odd.len()],
        1 => random.next() & 0xff,
        // Singles of moderate size.
        2 if i.is_multiple_of(2) => u64::from(((random.next() % 2_000_001) as f32 / 1e3 - 1e3).to_bits()),
        _ => random.next(),
    };
    (0..THREADS).map(|i| [one(i, 0), one(i, 1), one(i, 2)]).collect()
}

/// Runs `body`, which computes %rd9 from %r1 to %r3 (low words), %rd1 to %rd3, %h1 to %h3 (low halves).
fn run(body: &str, operands: &[[u64; 3]]) -> Vec<u64> {
    let ptx = format!(
        ".version 8.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)\n{{\n\
         .reg .b16 %h<20>; .reg .b32 %r<20>; .reg .b64 %rd<30>; .reg .pred %p<9>; .reg .f32 %f<20>;\n\
         ld.param.u64 %rd20, [k_param_0]; ld.param.u64 %rd21, [k_param_1];\n\
         mov.u32 %r10, %tid.x; mul.wide.u32 %rd22, %r10, 24; add.s64 %rd20, %rd20, %rd22;\n\
         mul.wide.u32 %rd22, %r10, 8; add.s64 %rd21, %rd21, %rd22;\n\
         ld.global.u64 %rd1, [%rd20]; ld.global.u64 %rd2, [%rd20+8]; ld.global.u64 %rd3, [%rd20+24+-8];\n\
         cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; cvt.u32.u64 %r3, %rd3;\n\
         cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2; cvt.u16.u32 %h3, %r3;\n\
         mov.u64 %rd9, 0; mov.u32 %r9, 0;\n{body}\n st.global.u64 [%rd21], %rd9; ret;\n}}\n"
    );
    let module = parse(&ptx).unwrap_or_else(|e| panic!("{body}: {e}"));
    let mut memory = Memory::new();
    let x = memory.alloc(operands.len() * 24).expect("memory");
    let y = memory.alloc(operands.len() * 8).expect("memory");
    let bytes: Vec<u8> = operands.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    memory.write(x, &bytes).expect("inside");
    let config = Config { grid: [1, 1, 1], block: [operands.len() as u32, 1, 1], shared: 0 };
    let params = [x.to_le_bytes().to_vec(), y.to_le_bytes().to_vec()];
    launch(&module.kernels[0], &mut memory, &config, &params, &Options::default())
        .unwrap_or_else(|e| panic!("{body}: {e}"));
    let mut out = vec![0; operands.len() * 8];
    memory.read(y, &mut out).expect("inside");
    out.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
}

/// `op` on words: `op %r9, %r1, %r2 (, %r3)`.
fn word(op: &str, count: usize, expected: impl Fn(u32, u32, u32) -> u32) {
    let sources = ["%r1", "%r2", "%r3"][..count].join(", ");
    let values = operands();
    let got = run(&format!("{op} %r9, {sources}; cvt.u64.u32 %rd9, %r9;"), &values);
    for (v, got) in values.iter().zip(got) {
        let [a, b, c] = v.map(|v| v as u32);
        assert_eq!(got as u32, expected(a, b, c), "{op} {a:#x} {b:#x} {c:#x}");
    }
}

fn single(op: &str, count: usize, expected: impl Fn(f32, f32, f32) -> f32) {
    let sources = ["%r1", "%r2", "%r3"][..count].join(", ");
    let values = operands();
    let got = run(&format!("{op} %r9, {sources}; cvt.u64.u32 %rd9, %r9;"), &values);
    for (v, got) in values.iter().zip(got) {
        let [a, b, c] = v.map(|v| f32::from_bits(v as u32));
        let (got, expected) = (f32::from_bits(got as u32), expected(a, b, c));
        let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        assert!(same, "{op} {a:e} {b:e} {c:e}: {got:e}, not {expected:e}");
    }
}

fn double(op: &str, sources: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    let values = operands();
    let got = run(&format!("{op} %rd9, {sources};"), &values);
    for (v, got) in values.iter().zip(got) {
        assert_eq!(got, expected(v[0], v[1], v[2]), "{op} {v:x?}");
    }
}

#[test]
fn integers_of_32_bits() {
    word("add.s32", 2, |a, b, _| a.wrapping_add(b));
    word("sub.s32", 2, |a, b, _| a.wrapping_sub(b));
    word("mul.lo.s32", 2, |a, b, _| a.wrapping_mul(b));
    word("mul.hi.s32", 2, |a, b, _| ((a as i32 as i64 * b as i32 as i64) >> 32) as u32);
    word("mul.hi.u32", 2, |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    word("mad.lo.s32", 3, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    word("div.s32", 2, |a, b, _| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 });
    word("rem.u32", 2, |a, b, _| if b == 0 { a } else { a % b });
    word("min.s32", 2, |a, b, _| (a as i32).min(b as i32) as u32);
    word("max.u32", 2, |a, b, _| a.max(b));
    word("shl.b32", 2, |a, b, _| a.checked_shl(b).unwrap_or(0));
    word("shr.u32", 2, |a, b, _| a.checked_shr(b).unwrap_or(0));
    word("shr.s32", 2, |a, b, _| (a as i32 >> b.min(31)) as u32);
    word("abs.s32", 1, |a, _, _| (a as i32).wrapping_abs() as u32);
    word("popc.b32", 1, |a, _, _| a.count_ones());
    word("clz.b32", 1, |a, _, _| a.leading_zeros());
    word("brev.b32", 1, |a, _, _| a.reverse_bits());
}

#[test]
fn bits_of_words() {
    let values = operands();
    let check = |body: &str, expected: &dyn Fn(u32, u32, u32) -> u32| {
        let got = run(&format!("{body}; cvt.u64.u32 %rd9, %r9;"), &values);
        for (v, got) in values.iter().zip(got) {
            let [a, b, c] = v.map(|v| v as u32);
            assert_eq!(got as u32, expected(a, b, c), "{body} {a:#x} {b:#x} {c:#x}");
        }
    };
    check("lop3.b32 %r9, %r1, %r2, %r3, 0x6a", &|a, b, c| (a & b) ^ c);
    check("shf.l.wrap.b32 %r9, %r1, %r2, %r3", &|a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    });
    check("shf.r.clamp.b32 %r9, %r1, %r2, %r3", &|a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
    });
    check("bfi.b32 %r9, %r1, %r2, 5, 11", &|a, b, _| b & !(0x7ff << 5) | (a & 0x7ff) << 5);
    check("bfe.u32 %r9, %r1, 3, 9", &|a, _, _| a >> 3 & 0x1ff);
    check("bfe.s32 %r9, %r1, 3, 9", &|a, _, _| {
        ((a >> 3 & 0x1ff) << 23) as i32 as u32 >> 23 | if a >> 11 & 1 == 1 { !0x1ff } else { 0 }
    });
    check("prmt.b32 %r9, %r1, %r2, 0x5410", &|a, b, _| a & 0xffff | b << 16);
    check("prmt.b32 %r9, %r1, %r2, 0x7632", &|a, b, _| a >> 16 | b & 0xffff_0000);
    check("selp.b32 %r9, %r1, %r2, 1", &|a, _, _| a);
    check("{ .reg .b16 low, high; mov.b32 {low, high}, %r1; mov.b32 %r9, {high, low}; }", &|a, _, _| {
        a.rotate_left(16)
    });
    check(
        "setp.lt.s32 %p1|%p2, %r1, %r2; @%p1 mov.u32 %r9, 1; @!%p1 add.u32 %r9, %r9, 2; @%p2 add.u32 %r9, %r9, 4",
        &|a, b, _| {
            if (a as i32) < b as i32 { 1 } else { 6 }
        },
    );
    check("bfind.u32 %r9, %r1", &|a, _, _| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() });
    check("mul.wide.u16 %r9, %h1, %h2", &|a, b, _| (a & 0xffff) * (b & 0xffff));
    check("shr.s16 %h4, %h1, 3; cvt.s32.s16 %r9, %h4", &|a, _, _| i32::from(a as i16 >> 3) as u32);
    check("cvt.s32.s8 %r9, %r1", &|a, _, _| a as i8 as u32);
    check("cvt.sat.u8.s32 %r9, %r1", &|a, _, _| (a as i32).clamp(0, 255) as u32);
    check("setp.gt.u16 %p1, %h1, %h2; selp.u32 %r9, 1, 0, %p1", &|a, b, _| u32::from(a as u16 > b as u16));
}

#[test]
fn integers_of_64_bits() {
    double("add.s64", "%rd1, %rd2", |a, b, _| a.wrapping_add(b));
    double("mul.lo.s64", "%rd1, %rd2", |a, b, _| a.wrapping_mul(b));
    double("mul.hi.u64", "%rd1, %rd2", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    double(
        "div.s64",
        "%rd1, %rd2",
        |a, b, _| {
            if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }
        },
    );
    double("shl.b64", "%rd1, %r2", |a, b, _| a.checked_shl(b as u32).unwrap_or(0));
    double("shr.s64", "%rd1, %r2", |a, b, _| (a as i64 >> (b as u32).min(63)) as u64);
    double("mul.wide.s32", "%r1, %r2", |a, b, _| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    double("mad.wide.u32", "%r1, %r2, %rd3", |a, b, c| {
        (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c)
    });
    double("cvt.s64.s32", "%r1", |a, _, _| a as i32 as u64);
    double("add.cc.u32 %r9, %r1, %r2; addc.u32 %r8, %r3, 0; mov.b64", "{%r9, %r8}", |a, b, c| {
        let low = u64::from(a as u32) + u64::from(b as u32);
        low & 0xffff_ffff | u64::from((c as u32).wrapping_add((low >> 32) as u32)) << 32
    });
}

#[test]
fn singles() {
    single("add.f32", 2, |a, b, _| a + b);
    single("mul.f32", 2, |a, b, _| a * b);
    single("fma.rn.f32", 3, f32::mul_add);
    single("div.rn.f32", 2, |a, b, _| a / b);
    single("sqrt.rn.f32", 1, |a, _, _| a.sqrt());
    single("rcp.rn.f32", 1, |a, _, _| 1.0 / a);
    single("ex2.approx.f32", 1, |a, _, _| a.exp2());
    single("max.f32", 2, |a, b, _| {
        if a == b && a == 0.0 { f32::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
    });
    single("min.NaN.f32", 2, |a, b, _| match () {
        () if a.is_nan() || b.is_nan() => f32::NAN,
        () if a == b && a == 0.0 => f32::from_bits(a.to_bits() | b.to_bits()),
        () => a.min(b),
    });
    single("neg.f32", 1, |a, _, _| -a);
    single("copysign.f32", 2, |a, b, _| b.copysign(a));
    single("cvt.sat.f32.f32", 1, |a, _, _| if a > 0.0 { a.min(1.0) } else { 0.0 });
    single("cvt.rni.f32.f32", 1, |a, _, _| a.round_ties_even());
    single("cvt.rmi.f32.f32", 1, |a, _, _| a.floor());
    single("cvt.rpi.f32.f32", 1, |a, _, _| a.ceil());
    single("cvt.rzi.f32.f32", 1, |a, _, _| a.trunc());
    // An exact product of 48 bits, rounded towards zero.
    single("mul.rz.f32", 2, |a, b, _| {
        let exact = f64::from(a) * f64::from(b);
        let near = exact as f32;
        let beyond = f64::from(near).abs() > exact.abs();
        match () {
            () if !beyond => near,
            () if exact > 0.0 => near.next_down(),
            () => near.next_up(),
        }
    });
}

#[test]
fn conversions_between_floats_and_integers() {
    word("cvt.rzi.s32.f32", 1, |a, _, _| f32::from_bits(a) as i32 as u32);
    word("cvt.rzi.u32.f32", 1, |a, _, _| f32::from_bits(a) as u32);
    word("cvt.rni.s32.f32", 1, |a, _, _| f32::from_bits(a).round_ties_even() as i32 as u32);
    word("cvt.rn.f32.s32", 1, |a, _, _| (a as i32 as f32).to_bits());
    word("cvt.rn.f32.u32", 1, |a, _, _| (a as f32).to_bits());
    let same =
        |got: f64, expected: f64| got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
    let values = operands();
    let wide = run("cvt.f64.f32 %rd9, %r1;", &values);
    let half = run("cvt.rn.f16.f32 %h9, %r1; cvt.u64.u16 %rd9, %h9;", &values);
    let back = run("cvt.f32.f16 %r9, %h1; cvt.u64.u32 %rd9, %r9;", &values);
    for (i, v) in values.iter().enumerate() {
        let a = f32::from_bits(v[0] as u32);
        assert!(same(f64::from_bits(wide[i]), f64::from(a)), "{a:e}");
        let (got, expected) = (f16::from_bits(half[i] as u16), f16::from_f32(a));
        assert!(same(got.to_f64(), expected.to_f64()), "{a:e}: {got}");
        let got = f32::from_bits(back[i] as u32);
        assert!(same(f64::from(got), f16::from_bits(v[0] as u16).to_f64()), "{v:x?}");
    }
}

#[test]
fn packed_halves_are_two_halves() {
    let values = operands();
    let check = |op: &str, sources: &str, expected: &dyn Fn(f64, f64, f64) -> f64| {
        let got = run(&format!("{op} %r9, {sources}; cvt.u64.u32 %rd9, %r9;"), &values);
        for (v, got) in values.iter().zip(got) {
            for shift in [0, 16] {
                let [a, b, c] = v.map(|v| f16::from_bits((v >> shift) as u16).to_f64());
                let (got, expected) =
                    (f16::from_bits((got >> shift) as u16), f16::from_f64(expected(a, b, c)));
                let same = got == expected || got.is_nan() && expected.is_nan();
                assert!(same, "{op} {a} {b} {c}: {got}, not {expected}");
            }
        }
    };
    check("add.f16x2", "%r1, %r2", &|a, b, _| a + b);
    check("mul.f16x2", "%r1, %r2", &|a, b, _| a * b);
    check("fma.rn.f16x2", "%r1, %r2, %r3", &|a, b, c| a * b + c);
    check("max.f16x2", "%r1, %r2", &|a, b, _| a.max(b));
    check("neg.f16x2", "%r1", &|a, _, _| -a);
}

#[test]
fn an_unknown_instruction_is_refused_with_its_line_and_text() {
    let text = ".version 8.8\n.target sm_80\n.visible .entry k()\n{\n.reg .b32 %r<4>;\nfrobnicate.u32 %r1, %r2;\nret;\n}\n";
    let error = parse(text).expect_err("no such instruction");
    assert_eq!(error.line, 6);
    assert!(error.to_string().contains("frobnicate.u32 %r1 , %r2"), "{error}");
}
