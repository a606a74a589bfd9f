//! One instruction on the lanes of a mask. Control flow is in `warp`.

use super::access::{self, AtomicOperands, Request, Shape, addresses, lanes};
use super::alu::{self, map1, map2, map3, put};
use super::worker::{Kind, Run, State, Warp};
use super::{float, staged, tensor};
use crate::ptx::instruction::*;

#[inline(always)]
fn compare_with<T: PartialOrd + Copy>(cmp: Compare, a: &[T; 32], b: &[T; 32]) -> u32 {
    #[inline(always)]
    fn each<T: Copy>(a: &[T; 32], b: &[T; 32], f: impl Fn(T, T) -> bool) -> u32 {
        let mut out = 0;
        for i in 0..32 {
            out |= u32::from(f(a[i], b[i])) << i;
        }
        out
    }
    match cmp {
        Compare::Eq => each(a, b, |x, y| x == y),
        Compare::Neu => each(a, b, |x, y| x != y),
        Compare::Lt => each(a, b, |x, y| x < y),
        Compare::Le => each(a, b, |x, y| x <= y),
        Compare::Gt => each(a, b, |x, y| x > y),
        Compare::Ge => each(a, b, |x, y| x >= y),
        Compare::Ne => each(a, b, |x, y| x.partial_cmp(&y).is_some() && x != y),
        Compare::Equ => each(a, b, |x, y| x.partial_cmp(&y).is_none() || x == y),
        Compare::Ltu => !each(a, b, |x, y| x >= y),
        Compare::Leu => !each(a, b, |x, y| x > y),
        Compare::Gtu => !each(a, b, |x, y| x <= y),
        Compare::Geu => !each(a, b, |x, y| x < y),
        Compare::Num => each(a, b, |x, y| x.partial_cmp(&y).is_some()),
        Compare::Nan => each(a, b, |x, y| x.partial_cmp(&y).is_none()),
    }
}

/// A bit a lane; of packed halves, the low ones and the high ones.
#[inline(always)]
fn compare(cmp: Compare, ty: Type, warp: &Warp, a: Row, b: Row) -> (u32, u32) {
    let (i, j) = (a as usize, b as usize);
    let (w, d) = (&warp.words, &warp.doubles);
    let one = match ty {
        Type::U32 | Type::B32 => compare_with(cmp, &w[i], &w[j]),
        Type::S32 => compare_with(cmp, &map1(&w[i], |x| x as i32), &map1(&w[j], |x| x as i32)),
        Type::U16 | Type::B16 => compare_with(cmp, &map1(&w[i], |x| x as u16), &map1(&w[j], |x| x as u16)),
        Type::S16 => compare_with(cmp, &map1(&w[i], |x| x as i16), &map1(&w[j], |x| x as i16)),
        Type::F32 => compare_with(cmp, &map1(&w[i], f32::from_bits), &map1(&w[j], f32::from_bits)),
        Type::F16 => compare_with(cmp, &map1(&w[i], float::from_half), &map1(&w[j], float::from_half)),
        Type::F16x2 => {
            let high = |x: u32| float::from_half(x >> 16);
            let second = compare_with(cmp, &map1(&w[i], high), &map1(&w[j], high));
            return (
                compare_with(cmp, &map1(&w[i], float::from_half), &map1(&w[j], float::from_half)),
                second,
            );
        }
        Type::S64 => compare_with(cmp, &map1(&d[i], |x| x as i64), &map1(&d[j], |x| x as i64)),
        Type::F64 => compare_with(cmp, &map1(&d[i], f64::from_bits), &map1(&d[j], f64::from_bits)),
        _ => compare_with(cmp, &d[i], &d[j]),
    };
    (one, !one)
}

fn combined(warp: &Warp, value: u32, combine: Option<(Logic, Row, bool)>) -> u32 {
    let Some((op, row, negate)) = combine else { return value };
    let other = warp.predicates[row as usize];
    let other = if negate { !other } else { other };
    match op {
        Logic::And => value & other,
        Logic::Or => value | other,
        Logic::Xor => value ^ other,
    }
}

#[inline(always)]
fn set(warp: &mut Warp, row: Row, value: u32, mask: u32) {
    if row != NONE {
        let p = &mut warp.predicates[row as usize];
        *p = *p & !mask | value & mask;
    }
}

#[inline(always)]
pub fn execute(run: &Run<'_>, state: &mut State, warp: &mut Warp, ins: &Instruction, mask: u32) {
    macro_rules! w {
        ($row:expr) => {
            &warp.words[*$row as usize]
        };
    }
    macro_rules! dd {
        ($row:expr) => {
            &warp.doubles[*$row as usize]
        };
    }
    macro_rules! word {
        ($d:expr, $value:expr) => {{
            let value = $value;
            if *$d != NONE {
                put(&mut warp.words[*$d as usize], value, mask)
            }
        }};
    }
    macro_rules! double {
        ($d:expr, $value:expr) => {{
            let value = $value;
            if *$d != NONE {
                put(&mut warp.doubles[*$d as usize], value, mask)
            }
        }};
    }
    // a in the lanes of p, b in the others.
    macro_rules! select {
        ($double:expr, $d:expr, $a:expr, $b:expr, $p:expr) => {
            if *$double {
                let mut out = *dd!($b);
                put(&mut out, *dd!($a), $p);
                double!($d, out)
            } else {
                let mut out = *w!($b);
                put(&mut out, *w!($a), $p);
                word!($d, out)
            }
        };
    }
    match &ins.op {
        Op::Int2 { op, ty, d, a, b } => match (ty, op) {
            (Int::U64 | Int::S64, Int2::Shl | Int2::Shr) => {
                double!(d, alu::shift_doubles(*op == Int2::Shl, *ty, dd!(a), w!(b)))
            }
            (Int::U64 | Int::S64, _) => double!(d, alu::doubles2(*op, *ty, dd!(a), dd!(b))),
            (_, Int2::Shl | Int2::Shr) => word!(d, alu::shift_words(*op == Int2::Shl, *ty, w!(a), w!(b))),
            _ => word!(d, alu::words2(*op, *ty, w!(a), w!(b))),
        },
        Op::Int1 { op, ty, d, a } => match (ty, op) {
            (Int::U64 | Int::S64, Int1::Popc | Int1::Clz | Int1::Bfind | Int1::BfindShift) => {
                word!(d, alu::count_doubles(*op, *ty, dd!(a)))
            }
            (Int::U64 | Int::S64, _) => double!(d, alu::doubles1(*op, dd!(a))),
            _ => word!(d, alu::words1(*op, *ty, w!(a))),
        },
        Op::Mad { high, ty, d, a, b, c } => {
            let product = if *high { Int2::MulHi } else { Int2::Mul };
            if matches!(ty, Int::U64 | Int::S64) {
                let p = alu::doubles2(product, *ty, dd!(a), dd!(b));
                double!(d, alu::doubles2(Int2::Add, *ty, &p, dd!(c)))
            } else {
                let p = alu::words2(product, *ty, w!(a), w!(b));
                word!(d, alu::words2(Int2::Add, *ty, &p, w!(c)))
            }
        }
        Op::Wide { ty, d, a, b, c } => match ty {
            Int::U16 | Int::S16 => {
                let p = match ty {
                    Int::U16 => map2(w!(a), w!(b), |x, y| (x & 0xffff) * (y & 0xffff)),
                    _ => map2(w!(a), w!(b), |x, y| (i32::from(x as i16) * i32::from(y as i16)) as u32),
                };
                let sum = if *c == NONE { p } else { map2(&p, w!(c), |x, y| x.wrapping_add(y)) };
                word!(d, sum)
            }
            _ => {
                let p = match ty {
                    Int::U32 => map2(w!(a), w!(b), |x, y| u64::from(x) * u64::from(y)),
                    _ => map2(w!(a), w!(b), |x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64),
                };
                let sum = if *c == NONE { p } else { map2(&p, dd!(c), |x, y| x.wrapping_add(y)) };
                double!(d, sum)
            }
        },
        Op::Carry { .. } | Op::MadCarry { .. } => carry(warp, &ins.op, mask),
        Op::Bfe { ty, d, a, b, c } => {
            let signed = matches!(ty, Int::S32 | Int::S64);
            if matches!(ty, Int::U64 | Int::S64) {
                double!(d, map3(dd!(a), w!(b), w!(c), |x, p, n| alu::extract(signed, 64, x, p, n)))
            } else {
                word!(d, map3(w!(a), w!(b), w!(c), |x, p, n| alu::extract(signed, 32, x.into(), p, n) as u32))
            }
        }
        Op::Bfi { double, d, a, b, c, e } => {
            let (at, length) = (w!(c), w!(e));
            if *double {
                let out = std::array::from_fn(|i| alu::insert(64, dd!(a)[i], dd!(b)[i], at[i], length[i]));
                double!(d, out)
            } else {
                let out = std::array::from_fn(|i| {
                    alu::insert(32, w!(a)[i].into(), w!(b)[i].into(), at[i], length[i]) as u32
                });
                word!(d, out)
            }
        }
        Op::Bmsk { d, a, b, clamp } => word!(
            d,
            map2(w!(a), w!(b), |p, n| {
                let (p, n) = if *clamp { (p.min(32), n.min(32)) } else { (p & 31, n & 31) };
                ((((1u64 << n) - 1) << p) & 0xffff_ffff) as u32
            })
        ),
        Op::Szext { d, a, b, signed } => word!(
            d,
            map2(w!(a), w!(b), |x, n| match (n, signed) {
                (0, _) => 0,
                (32.., _) => x,
                (n, true) => ((x << (32 - n)) as i32 >> (32 - n)) as u32,
                (n, false) => x & ((1 << n) - 1),
            })
        ),
        Op::Sad { ty, d, a, b, c } => word!(
            d,
            map3(w!(a), w!(b), w!(c), |x, y, z| z.wrapping_add(match ty {
                Int::S32 => (x as i32).abs_diff(y as i32),
                Int::S16 => u32::from((x as i16).abs_diff(y as i16)),
                Int::U16 => u32::from((x as u16).abs_diff(y as u16)),
                _ => x.abs_diff(y),
            }))
        ),
        Op::Dp4a { d, a, b, c, signed_a, signed_b } => word!(
            d,
            map3(w!(a), w!(b), w!(c), |x, y, z| {
                let part = |v: u32, i: usize, signed: bool| {
                    let byte = v.to_le_bytes()[i];
                    if signed { i32::from(byte as i8) } else { i32::from(byte) }
                };
                (0..4).fold(z, |sum, i| {
                    sum.wrapping_add((part(x, i, *signed_a) * part(y, i, *signed_b)) as u32)
                })
            })
        ),
        Op::Prmt { d, a, b, c } => word!(d, map3(w!(a), w!(b), w!(c), alu::permute)),
        Op::Lop3 { d, a, b, c, table } => {
            word!(d, map3(w!(a), w!(b), w!(c), |x, y, z| alu::logic3(x, y, z, *table)))
        }
        Op::Shf { left, clamp, d, a, b, c } => {
            word!(d, map3(w!(a), w!(b), w!(c), |x, y, n| alu::funnel(*left, *clamp, x, y, n)))
        }
        Op::F32 { op, mode, d, a, b } => word!(d, float::single2(*op, *mode, w!(a), w!(b))),
        Op::F32One { op, mode, d, a } => word!(d, float::single1(*op, *mode, w!(a), mask)),
        Op::F32Fma { mode, d, a, b, c } => word!(d, float::single_fma(*mode, w!(a), w!(b), w!(c))),
        Op::F64 { op, d, a, b } => double!(d, float::double2(*op, dd!(a), dd!(b))),
        Op::F64One { op, d, a } => double!(d, float::double1(*op, dd!(a))),
        Op::F64Fma { d, a, b, c } => double!(d, float::double_fma(dd!(a), dd!(b), dd!(c))),
        Op::Half2 { op, packed, mode, d, a, b } => {
            word!(d, float::half2(*op, *packed, *mode, w!(a), w!(b)))
        }
        Op::HalfOne { op, packed, d, a } => word!(d, float::half1(*op, *packed, w!(a))),
        Op::HalfFma { packed, mode, d, a, b, c } => {
            word!(d, float::half_fma(*packed, *mode, w!(a), w!(b), w!(c)))
        }
        Op::Setp { cmp, ty, p, q, a, b, combine } => {
            let (first, second) = compare(*cmp, *ty, warp, *a, *b);
            let (first, second) = (combined(warp, first, *combine), combined(warp, second, *combine));
            set(warp, *p, first, mask);
            set(warp, *q, second, mask);
        }
        Op::Set { cmp, to, ty, d, a, b, combine } => {
            let (first, second) = compare(*cmp, *ty, warp, *a, *b);
            let first = combined(warp, first, *combine);
            let out = std::array::from_fn(|i| {
                let (low, high) = (first >> i & 1, second >> i & 1);
                match (to, ty) {
                    (Type::F32, _) => low * 0x3f80_0000,
                    (Type::F16x2, _) => (low * 0x3c00) | (high * 0x3c00_0000),
                    (Type::F16, _) => low * 0x3c00,
                    (_, Type::F16x2) => (low * 0xffff) | (high * 0xffff_0000),
                    _ => low.wrapping_neg(),
                }
            });
            word!(d, out)
        }
        Op::Testp { test, double, p, a } => {
            let x: [f64; 32] = if *double {
                map1(dd!(a), f64::from_bits)
            } else {
                map1(w!(a), |x| f64::from(f32::from_bits(x)))
            };
            let least = if *double { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
            let mut out = 0;
            for (i, x) in x.iter().enumerate() {
                let small = x.abs() < least && *x != 0.0;
                out |= u32::from(match test {
                    Test::Finite => x.is_finite(),
                    Test::Infinite => x.is_infinite(),
                    Test::Number => !x.is_nan(),
                    Test::NotANumber => x.is_nan(),
                    Test::Normal => x.is_finite() && !small && *x != 0.0,
                    Test::Subnormal => small,
                }) << i;
            }
            set(warp, *p, out, mask);
        }
        Op::Selp { double, d, a, b, p, negate } => {
            let p = warp.predicates[*p as usize] ^ if *negate { u32::MAX } else { 0 };
            select!(double, d, a, b, p)
        }
        Op::Slct { double, float, d, a, b, c } => {
            let p = if *float {
                compare_with(Compare::Ge, &map1(w!(c), f32::from_bits), &[0.0; 32])
            } else {
                compare_with(Compare::Ge, &map1(w!(c), |x| x as i32), &[0; 32])
            };
            select!(double, d, a, b, p)
        }
        Op::Logic { op, d, a, b } => {
            let value = combined(warp, warp.predicates[*a as usize], Some((*op, *b, false)));
            set(warp, *d, value, mask);
        }
        Op::PredNot { d, a } => {
            let value = !warp.predicates[*a as usize];
            set(warp, *d, value, mask);
        }
        Op::PredMove { d, a } => {
            let value = warp.predicates[*a as usize];
            set(warp, *d, value, mask);
        }
        Op::Move { double: true, d, a } => double!(d, *dd!(a)),
        Op::Move { double: false, d, a } => word!(d, *w!(a)),
        Op::Clock { double: true, d } => double!(d, [state.steps; 32]),
        Op::Clock { double: false, d } => word!(d, [state.steps as u32; 32]),
        Op::Join { d, a, b } => double!(d, map2(w!(a), w!(b), |x, y| u64::from(x) | u64::from(y) << 32)),
        Op::Split { a, d, e } => {
            let x = *dd!(a);
            word!(d, map1(&x, |x| x as u32));
            word!(e, map1(&x, |x| (x >> 32) as u32))
        }
        Op::JoinHalves { d, a, b } => word!(d, map2(w!(a), w!(b), |x, y| x & 0xffff | y << 16)),
        Op::SplitHalves { a, d, e } => {
            let x = *w!(a);
            word!(d, map1(&x, |x| x & 0xffff));
            word!(e, map1(&x, |x| x >> 16))
        }
        Op::JoinFour { d, a } => {
            let low = map2(w!(&a[0]), w!(&a[1]), |x, y| x & 0xffff | y << 16);
            let high = map2(w!(&a[2]), w!(&a[3]), |x, y| x & 0xffff | y << 16);
            double!(d, map2(&low, &high, |x, y| u64::from(x) | u64::from(y) << 32))
        }
        Op::SplitFour { a, d } => {
            let x = *dd!(a);
            for (i, d) in d.iter().enumerate() {
                word!(d, map1(&x, |x| (x >> (16 * i)) as u32 & 0xffff));
            }
        }
        Op::Convert { to, from, d, a, rounding, sat, ftz } => {
            convert(warp, (*to, *from), *d, *a, *rounding, *sat, *ftz, mask)
        }
        Op::ConvertPair { d, a, b, relu } => word!(
            d,
            map2(w!(a), w!(b), |x, y| {
                let half = |x: u32| {
                    let x = f32::from_bits(x);
                    float::to_half(if *relu && (x <= 0.0 || x.is_nan()) { 0.0 } else { x })
                };
                half(x) << 16 | half(y)
            })
        ),
        Op::Load { space, ty, count, double, d, at } => {
            if let (Space::Param, NONE) = (space, at.base)
                && let Some(bytes) = run.params.get(at.offset as usize..).filter(|b| b.len() >= 4)
                && (ty.bytes(), *count, *double) == (4, 1, false)
            {
                let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                return word!(&d[0], [value; 32]);
            }
            let r = Request { space: *space, at: addresses(warp, *at), mask, place: ins.place };
            let shape = Shape { ty: *ty, rows: &d[..usize::from(*count)], double: *double };
            access::load(run, state, warp, r, shape)
        }
        Op::Store { space, ty, count, double, a, at } => {
            let r = Request { space: *space, at: addresses(warp, *at), mask, place: ins.place };
            let shape = Shape { ty: *ty, rows: &a[..usize::from(*count)], double: *double };
            access::store(run, state, warp, r, shape)
        }
        Op::Atomic { space, op, ty, d, at, a, b } => {
            let r = Request { space: *space, at: addresses(warp, *at), mask, place: ins.place };
            let o = AtomicOperands { op: *op, ty: *ty, d: *d, a: *a, b: *b };
            access::atomic(run, state, warp, r, &o)
        }
        Op::Cvta { space, to, d, a, double: true } => {
            let base = access::window(*space);
            let out = map1(dd!(a), |x| if *to { x.wrapping_sub(base) } else { x.wrapping_add(base) });
            double!(d, out)
        }
        Op::Cvta { d, a, .. } => word!(d, *w!(a)),
        Op::IsSpace { space, p, a } => {
            let mut out = 0;
            for (i, &x) in dd!(a).iter().enumerate() {
                out |= u32::from(access::space_of(x) == *space) << i;
            }
            set(warp, *p, out, mask);
        }
        Op::ActiveMask { d } => word!(d, [mask; 32]),
        Op::LdMatrix { d, count, transposed, at } => {
            if mask != u32::MAX {
                return missing(run, state, warp, ins, "ldmatrix", !mask, mask);
            }
            let at = addresses(warp, *at);
            let r = Request { space: Space::Shared, at, mask, place: ins.place };
            staged::load_matrices(run, state, warp, &r, &d[..usize::from(*count)], *transposed)
        }
        Op::Mma { k, d, a, b, c } => {
            if mask != u32::MAX {
                return missing(run, state, warp, ins, "mma", !mask, mask);
            }
            state.counters.mma += u64::from(*k / 8);
            let rows = |r: Row| &warp.words[if r == NONE { 0 } else { r as usize }];
            let out = tensor::product(a.map(rows), b.map(rows), usize::from(*k), c.map(rows));
            for (d, out) in d.iter().zip(out) {
                word!(d, out);
            }
        }
        Op::CopyAsync { bytes, to, from, source_bytes, ignore } => {
            let at = addresses(warp, *to);
            let from = addresses(warp, *from);
            let mut n = [u32::from(*bytes); 32];
            if *source_bytes != NONE {
                n = *w!(source_bytes);
            }
            if *ignore != NONE {
                let p = warp.predicates[*ignore as usize];
                put(&mut n, [0; 32], p);
            }
            let to = Request { space: Space::Shared, at, mask, place: ins.place };
            staged::copy_async(run, state, warp, to, from, usize::from(*bytes), &n)
        }
        Op::CopyCommit => {
            for lane in lanes(mask) {
                warp.commits[lane] += 1;
            }
        }
        Op::CopyWait { left } => staged::copy_wait(run, state, warp, mask, *left),
        Op::Shuffle { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } => {
            super::across::exchange(run, state, warp, ins, mask)
        }
        Op::Nop
        | Op::Branch { .. }
        | Op::BranchIndex { .. }
        | Op::Barrier { .. }
        | Op::WarpBarrier { .. }
        | Op::Return
        | Op::Exit
        | Op::Trap => {}
    }
}

#[cold]
pub fn missing(
    run: &Run<'_>,
    state: &mut State,
    warp: &Warp,
    ins: &Instruction,
    what: &str,
    absent: u32,
    mask: u32,
) {
    let lane = mask.trailing_zeros() as usize;
    let text = format!("{what} needs lanes {absent:#010x}, which are elsewhere or gone");
    state.fatal(run, Kind::Lanes, ins.place, warp.index * 32 + lane, text);
}

#[inline(never)]
fn carry(warp: &mut Warp, op: &Op, mask: u32) {
    for lane in lanes(mask) {
        let was = u128::from(warp.carry >> lane & 1);
        let (sum, bits, writes) = match *op {
            Op::Carry { subtract, reads, writes, double, a, b, .. } => {
                let value = |row: Row| {
                    if double {
                        u128::from(warp.doubles[row as usize][lane])
                    } else {
                        u128::from(warp.words[row as usize][lane])
                    }
                };
                let carry = if reads { was } else { 0 };
                let (x, y) = (value(a), value(b));
                let bits = if double { 64 } else { 32 };
                // A borrow is the bit above the difference.
                let sum = if subtract { x.wrapping_sub(y).wrapping_sub(carry) } else { x + y + carry };
                (sum, bits, writes)
            }
            Op::MadCarry { high, signed, reads, writes, a, b, c, .. } => {
                let value = |row: Row| warp.words[row as usize][lane];
                let product = if signed {
                    (i64::from(value(a) as i32) * i64::from(value(b) as i32)) as u64
                } else {
                    u64::from(value(a)) * u64::from(value(b))
                };
                let part = if high { product >> 32 } else { product & 0xffff_ffff };
                let carry = if reads { was } else { 0 };
                (u128::from(part) + u128::from(value(c)) + carry, 32, writes)
            }
            _ => return,
        };
        if writes {
            warp.carry = warp.carry & !(1 << lane) | ((sum >> bits & 1) as u32) << lane;
        }
        match *op {
            Op::Carry { double: true, d, .. } => warp.doubles[d as usize][lane] = sum as u64,
            Op::Carry { d, .. } | Op::MadCarry { d, .. } => warp.words[d as usize][lane] = sum as u32,
            _ => {}
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn convert(
    warp: &mut Warp,
    (to, from): (Type, Type),
    d: Register,
    a: Register,
    rounding: Rounding,
    sat: bool,
    ftz: bool,
    mask: u32,
) {
    let nearest = rounding.round == Round::Nearest && !rounding.integral && !sat && !ftz;
    match (to, from, d, a) {
        (Type::S64, Type::S32, Register::Double(d), Register::Word(a)) => {
            let out = map1(&warp.words[a as usize], |x| x as i32 as u64);
            put(&mut warp.doubles[d as usize], out, mask);
        }
        (Type::U64 | Type::S64, Type::U32, Register::Double(d), Register::Word(a)) => {
            let out = map1(&warp.words[a as usize], u64::from);
            put(&mut warp.doubles[d as usize], out, mask);
        }
        (Type::U32 | Type::S32, Type::U64 | Type::S64, Register::Word(d), Register::Double(a)) if !sat => {
            let out = map1(&warp.doubles[a as usize], |x| x as u32);
            put(&mut warp.words[d as usize], out, mask);
        }
        (Type::F32, Type::F16, Register::Word(d), Register::Word(a)) if nearest => {
            let out = map1(&warp.words[a as usize], |x| float::from_half(x).to_bits());
            put(&mut warp.words[d as usize], out, mask);
        }
        (Type::F16, Type::F32, Register::Word(d), Register::Word(a)) if nearest => {
            let out = map1(&warp.words[a as usize], |x| float::to_half(f32::from_bits(x)));
            put(&mut warp.words[d as usize], out, mask);
        }
        (Type::F32, Type::S32, Register::Word(d), Register::Word(a)) if nearest => {
            let out = map1(&warp.words[a as usize], |x| (x as i32 as f32).to_bits());
            put(&mut warp.words[d as usize], out, mask);
        }
        (Type::F32, Type::U32, Register::Word(d), Register::Word(a)) if nearest => {
            let out = map1(&warp.words[a as usize], |x| (x as f32).to_bits());
            put(&mut warp.words[d as usize], out, mask);
        }
        _ => {
            for lane in lanes(mask) {
                let x = match a {
                    Register::Word(a) => u64::from(warp.words[a as usize][lane]),
                    Register::Double(a) => warp.doubles[a as usize][lane],
                    Register::Predicate(_) => 0,
                };
                let out = float::convert(to, from, x, rounding, sat, ftz);
                match d {
                    Register::Word(d) => warp.words[d as usize][lane] = out as u32,
                    Register::Double(d) => warp.doubles[d as usize][lane] = out,
                    Register::Predicate(_) => {}
                }
            }
        }
    }
}
