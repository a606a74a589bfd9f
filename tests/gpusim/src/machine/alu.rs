//! Integer arithmetic on rows of 32 lanes. Everything here is inlined into the interpreter's loop, which
//! is compiled once for AVX2 and once for any processor.

use crate::ptx::instruction::{Int, Int1, Int2};

pub type Words = [u32; 32];
pub type Doubles = [u64; 32];

#[inline(always)]
pub fn map1<A: Copy, R: Copy + Default>(a: &[A; 32], f: impl Fn(A) -> R) -> [R; 32] {
    let mut out = [R::default(); 32];
    for i in 0..32 {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
pub fn map2<A: Copy, B: Copy, R: Copy + Default>(a: &[A; 32], b: &[B; 32], f: impl Fn(A, B) -> R) -> [R; 32] {
    let mut out = [R::default(); 32];
    for i in 0..32 {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
pub fn map3<A: Copy, B: Copy, C: Copy, R: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    c: &[C; 32],
    f: impl Fn(A, B, C) -> R,
) -> [R; 32] {
    let mut out = [R::default(); 32];
    for i in 0..32 {
        out[i] = f(a[i], b[i], c[i]);
    }
    out
}

/// Writes the lanes of the mask.
#[inline(always)]
pub fn put<T: Copy>(to: &mut [T; 32], value: [T; 32], mask: u32) {
    if mask == u32::MAX {
        *to = value;
        return;
    }
    for i in 0..32 {
        to[i] = if mask >> i & 1 == 1 { value[i] } else { to[i] };
    }
}

macro_rules! binary {
    ($op:expr, $a:expr, $b:expr, $t:ty, $unsigned:ty, $wide:ty, $cell:ty) => {{
        let (a, b) = ($a, $b);
        macro_rules! each {
            ($f:expr) => {{
                let f = $f;
                map2(a, b, |x, y| f(x as $t, y as $t) as $unsigned as $cell)
            }};
        }
        match $op {
            Int2::Add => each!(|x: $t, y: $t| x.wrapping_add(y)),
            Int2::Sub => each!(|x: $t, y: $t| x.wrapping_sub(y)),
            Int2::Mul => each!(|x: $t, y: $t| x.wrapping_mul(y)),
            Int2::MulHi => {
                each!(|x: $t, y: $t| ((x as $wide).wrapping_mul(y as $wide) >> <$t>::BITS) as $t)
            }
            // Division by zero gives all ones, as the hardware's routine does.
            Int2::Div => each!(|x: $t, y: $t| if y == 0 { !0 } else { x.wrapping_div(y) }),
            Int2::Rem => each!(|x: $t, y: $t| if y == 0 { x } else { x.wrapping_rem(y) }),
            Int2::Min => each!(|x: $t, y: $t| x.min(y)),
            Int2::Max => each!(|x: $t, y: $t| x.max(y)),
            Int2::And => each!(|x: $t, y: $t| x & y),
            Int2::Or => each!(|x: $t, y: $t| x | y),
            Int2::Xor => each!(|x: $t, y: $t| x ^ y),
            Int2::AddSat => each!(|x: $t, y: $t| x.saturating_add(y)),
            Int2::SubSat => each!(|x: $t, y: $t| x.saturating_sub(y)),
            Int2::Mul24 => each!(|x: $t, y: $t| {
                let low = |v: $t| ((v as i64) << 40) as i64;
                if <$t>::MIN == 0 {
                    ((low(x) as u64 >> 40).wrapping_mul(low(y) as u64 >> 40)) as $t
                } else {
                    ((low(x) >> 40).wrapping_mul(low(y) >> 40)) as $t
                }
            }),
            // Shifts are apart: their amount is a word.
            Int2::Shl | Int2::Shr => *a,
        }
    }};
}

#[inline(always)]
pub fn words2(op: Int2, ty: Int, a: &Words, b: &Words) -> Words {
    match ty {
        Int::U32 => binary!(op, a, b, u32, u32, u64, u32),
        Int::S32 => binary!(op, a, b, i32, u32, i64, u32),
        Int::U16 => binary!(op, a, b, u16, u16, u32, u32),
        _ => binary!(op, a, b, i16, u16, i32, u32),
    }
}

#[inline(always)]
pub fn doubles2(op: Int2, ty: Int, a: &Doubles, b: &Doubles) -> Doubles {
    match ty {
        Int::S64 => binary!(op, a, b, i64, u64, i128, u64),
        _ => binary!(op, a, b, u64, u64, u128, u64),
    }
}

/// Amounts beyond the width give zero, or the sign.
#[inline(always)]
pub fn shift_words(left: bool, ty: Int, a: &Words, n: &Words) -> Words {
    match (left, ty) {
        (true, Int::U32 | Int::S32) => map2(a, n, |x, n| if n > 31 { 0 } else { x << n }),
        (true, _) => map2(a, n, |x, n| if n > 15 { 0 } else { (x << n) & 0xffff }),
        (false, Int::U32) => map2(a, n, |x, n| if n > 31 { 0 } else { x >> n }),
        (false, Int::S32) => map2(a, n, |x, n| (x as i32 >> n.min(31)) as u32),
        (false, Int::U16) => map2(a, n, |x, n| if n > 15 { 0 } else { (x & 0xffff) >> n }),
        (false, _) => map2(a, n, |x, n| u32::from((x as i16 >> n.min(15)) as u16)),
    }
}

#[inline(always)]
pub fn shift_doubles(left: bool, ty: Int, a: &Doubles, n: &Words) -> Doubles {
    match (left, ty) {
        (true, _) => map2(a, n, |x, n| if n > 63 { 0 } else { x << n }),
        (false, Int::S64) => map2(a, n, |x, n| (x as i64 >> n.min(63)) as u64),
        (false, _) => map2(a, n, |x, n| if n > 63 { 0 } else { x >> n }),
    }
}

#[inline(always)]
pub fn words1(op: Int1, ty: Int, a: &Words) -> Words {
    let half = matches!(ty, Int::U16 | Int::S16);
    let signed = matches!(ty, Int::S16 | Int::S32);
    let keep = if half { 0xffff } else { u32::MAX };
    match op {
        Int1::Not => map1(a, |x| !x & keep),
        Int1::Cnot => map1(a, |x| u32::from(x & keep == 0)),
        Int1::Neg => map1(a, |x| x.wrapping_neg() & keep),
        Int1::Abs if half => map1(a, |x| u32::from((x as i16).wrapping_abs() as u16)),
        Int1::Abs => map1(a, |x| (x as i32).wrapping_abs() as u32),
        Int1::Brev => map1(a, |x| x.reverse_bits()),
        Int1::Popc => map1(a, |x| x.count_ones()),
        Int1::Clz => map1(a, |x| x.leading_zeros()),
        Int1::Bfind | Int1::BfindShift => map1(a, |x| {
            let x = if signed && (x as i32) < 0 { !x } else { x };
            match (x, op) {
                (0, _) => u32::MAX,
                (_, Int1::Bfind) => 31 - x.leading_zeros(),
                _ => x.leading_zeros(),
            }
        }),
    }
}

#[inline(always)]
pub fn doubles1(op: Int1, a: &Doubles) -> Doubles {
    match op {
        Int1::Not => map1(a, |x| !x),
        Int1::Cnot => map1(a, |x| u64::from(x == 0)),
        Int1::Neg => map1(a, |x| x.wrapping_neg()),
        Int1::Abs => map1(a, |x| (x as i64).wrapping_abs() as u64),
        _ => map1(a, |x| x.reverse_bits()),
    }
}

/// Counts of 64-bit lanes.
#[inline(always)]
pub fn count_doubles(op: Int1, ty: Int, a: &Doubles) -> Words {
    match op {
        Int1::Popc => map1(a, |x| x.count_ones()),
        Int1::Clz => map1(a, |x| x.leading_zeros()),
        _ => map1(a, |x| {
            let x = if ty == Int::S64 && (x as i64) < 0 { !x } else { x };
            match (x, op) {
                (0, _) => u32::MAX,
                (_, Int1::Bfind) => 63 - x.leading_zeros(),
                _ => x.leading_zeros(),
            }
        }),
    }
}

#[inline(always)]
pub fn extract(signed: bool, bits: u32, x: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    let sign_at = (position + length).wrapping_sub(1).min(bits - 1);
    let sign = signed && length > 0 && x >> sign_at & 1 == 1;
    let mut out = 0;
    for i in 0..bits {
        let bit = if i < length && position + i < bits { x >> (position + i) & 1 == 1 } else { sign };
        out |= u64::from(bit) << i;
    }
    out
}

#[inline(always)]
pub fn insert(bits: u32, x: u64, into: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    if length == 0 || position >= bits {
        return into;
    }
    let length = length.min(bits - position);
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    let mask = ones << position;
    into & !mask | x << position & mask
}

#[inline(always)]
pub fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let mut out = 0;
    for i in 0..4 {
        let select = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        out |= u32::from(byte) << (8 * i);
    }
    out
}

#[inline(always)]
pub fn logic3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let mut out = 0;
    for i in 0..8 {
        if table >> i & 1 == 1 {
            let x = if i & 4 != 0 { a } else { !a };
            let y = if i & 2 != 0 { b } else { !b };
            let z = if i & 1 != 0 { c } else { !c };
            out |= x & y & z;
        }
    }
    out
}

#[inline(always)]
pub fn funnel(left: bool, clamp: bool, low: u32, high: u32, n: u32) -> u32 {
    let n = if clamp { n.min(32) } else { n & 31 };
    let both = u64::from(high) << 32 | u64::from(low);
    if left { (both << n >> 32) as u32 } else { (both >> n) as u32 }
}
