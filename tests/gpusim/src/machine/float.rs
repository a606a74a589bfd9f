//! Float arithmetic on rows: single, double and half precision, and conversions.
//!
//! Approximate instructions are computed as exactly as Rust's library does; sums and products round as
//! their suffix says.

use half::f16;

use super::alu::{Doubles, Words, map1, map2, map3};
use crate::ptx::instruction::{Float1, Float2, Mode, Round, Rounding, Type};

#[inline(always)]
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

/// A sum in double precision, its last bit set where it is not exact: rounds once more without error.
fn odd_sum(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() {
        return s;
    }
    let t = s - a;
    let error = (a - (s - t)) + (b - t);
    if error == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    // Towards the error's side, whose last bit is odd.
    if (error > 0.0) == (s > 0.0) { f64::from_bits(s.to_bits() + 1) } else { f64::from_bits(s.to_bits() - 1) }
}

/// To single precision, rounded in a direction.
pub fn narrow(x: f64, round: Round) -> f32 {
    let near = x as f32;
    let exact = f64::from(near);
    if x.is_nan() || exact == x {
        return near;
    }
    match round {
        Round::Nearest => near,
        Round::Zero if exact.abs() > x.abs() => {
            if x > 0.0 {
                near.next_down()
            } else {
                near.next_up()
            }
        }
        Round::Down if exact > x => near.next_down(),
        Round::Up if exact < x => near.next_up(),
        _ => near,
    }
}

#[inline(always)]
fn finish(x: f32, mode: Mode) -> f32 {
    let mut x = x;
    if mode.ftz && x.abs() < f32::MIN_POSITIVE {
        x = 0f32.copysign(x);
    }
    if mode.sat {
        x = if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 };
    }
    if mode.relu {
        x = if x > 0.0 { x } else { 0.0 };
    }
    x
}

#[inline(always)]
fn flush(x: f32, mode: Mode) -> f32 {
    if mode.ftz && x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// NaN gives way to the other operand; -0 is less than +0.
#[inline(always)]
fn min(x: f32, y: f32) -> f32 {
    if x == y {
        return f(x.to_bits() | y.to_bits());
    }
    if x < y || y.is_nan() { x } else { y }
}

#[inline(always)]
fn max(x: f32, y: f32) -> f32 {
    if x == y {
        return f(x.to_bits() & y.to_bits());
    }
    if x > y || y.is_nan() { x } else { y }
}

#[inline(always)]
fn op2(op: Float2, x: f32, y: f32) -> f32 {
    match op {
        Float2::Add => x + y,
        Float2::Sub => x - y,
        Float2::Mul => x * y,
        Float2::Div => x / y,
        Float2::Min => min(x, y),
        Float2::Max => max(x, y),
        Float2::MinNan if x.is_nan() || y.is_nan() => f32::NAN,
        Float2::MaxNan if x.is_nan() || y.is_nan() => f32::NAN,
        Float2::MinNan => min(x, y),
        Float2::MaxNan => max(x, y),
        Float2::CopySign => x.copysign(y),
    }
}

#[inline(always)]
pub fn single2(op: Float2, mode: Mode, a: &Words, b: &Words) -> Words {
    if mode.plain() {
        macro_rules! each {
            ($op:expr) => {
                map2(a, b, |x, y| op2($op, f(x), f(y)).to_bits())
            };
        }
        return match op {
            Float2::Add => each!(Float2::Add),
            Float2::Sub => each!(Float2::Sub),
            Float2::Mul => each!(Float2::Mul),
            Float2::Div => each!(Float2::Div),
            Float2::Min => each!(Float2::Min),
            Float2::Max => each!(Float2::Max),
            other => each!(other),
        };
    }
    map2(a, b, |x, y| {
        let (x, y) = (flush(f(x), mode), flush(f(y), mode));
        let (wide_x, wide_y) = (f64::from(x), f64::from(y));
        let value = match (op, mode.round) {
            (_, Round::Nearest) => op2(op, x, y),
            (Float2::Add, round) => narrow(odd_sum(wide_x, wide_y), round),
            (Float2::Sub, round) => narrow(odd_sum(wide_x, -wide_y), round),
            (Float2::Mul, round) => narrow(wide_x * wide_y, round),
            (Float2::Div, round) => narrow(wide_x / wide_y, round),
            _ => op2(op, x, y),
        };
        finish(value, mode).to_bits()
    })
}

#[inline(always)]
pub fn single_fma(mode: Mode, a: &Words, b: &Words, c: &Words) -> Words {
    if mode.plain() {
        return map3(a, b, c, |x, y, z| f(x).mul_add(f(y), f(z)).to_bits());
    }
    map3(a, b, c, |x, y, z| {
        let (x, y, z) = (flush(f(x), mode), flush(f(y), mode), flush(f(z), mode));
        let value = match mode.round {
            Round::Nearest => x.mul_add(y, z),
            round => narrow(odd_sum(f64::from(x) * f64::from(y), f64::from(z)), round),
        };
        finish(value, mode).to_bits()
    })
}

/// A function of one number, of either precision.
macro_rules! one {
    ($op:expr, $x:expr) => {
        match $op {
            Float1::Neg => -$x,
            Float1::Abs => $x.abs(),
            Float1::Sqrt => $x.sqrt(),
            Float1::Rcp => 1.0 / $x,
            Float1::Rsqrt => 1.0 / $x.sqrt(),
            Float1::Ex2 => $x.exp2(),
            Float1::Lg2 => $x.log2(),
            Float1::Sin => $x.sin(),
            Float1::Cos => $x.cos(),
            Float1::Tanh => $x.tanh(),
        }
    };
}

/// Only lanes of the mask where the function is slow.
#[inline(always)]
pub fn single1(op: Float1, mode: Mode, a: &Words, mask: u32) -> Words {
    if mode.plain() {
        match op {
            Float1::Neg => return map1(a, |x| x ^ 0x8000_0000),
            Float1::Abs => return map1(a, |x| x & 0x7fff_ffff),
            Float1::Sqrt => return map1(a, |x| f(x).sqrt().to_bits()),
            Float1::Rcp => return map1(a, |x| (1.0 / f(x)).to_bits()),
            _ => {}
        }
    }
    let mut out = [0; 32];
    for i in 0..32 {
        if mask >> i & 1 == 1 {
            let x = flush(f(a[i]), mode);
            let value = match (op, mode.round) {
                (Float1::Sqrt, round @ (Round::Zero | Round::Down | Round::Up)) => {
                    narrow(f64::from(x).sqrt(), round)
                }
                (Float1::Rcp, round @ (Round::Zero | Round::Down | Round::Up)) => {
                    narrow(1.0 / f64::from(x), round)
                }
                _ => one!(op, x),
            };
            out[i] = finish(value, mode).to_bits();
        }
    }
    out
}

pub fn double2(op: Float2, a: &Doubles, b: &Doubles) -> Doubles {
    map2(a, b, |x, y| {
        let (x, y) = (f64::from_bits(x), f64::from_bits(y));
        match op {
            Float2::Add => x + y,
            Float2::Sub => x - y,
            Float2::Mul => x * y,
            Float2::Div => x / y,
            Float2::Min | Float2::MinNan => x.min(y),
            Float2::Max | Float2::MaxNan => x.max(y),
            Float2::CopySign => x.copysign(y),
        }
        .to_bits()
    })
}

pub fn double_fma(a: &Doubles, b: &Doubles, c: &Doubles) -> Doubles {
    map3(a, b, c, |x, y, z| f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z)).to_bits())
}

pub fn double1(op: Float1, a: &Doubles) -> Doubles {
    map1(a, |x| {
        let x = f64::from_bits(x);
        one!(op, x).to_bits()
    })
}

fn h(x: u32) -> f32 {
    f16::from_bits(x as u16).to_f32()
}

fn pack(x: f32) -> u32 {
    u32::from(f16::from_f32(x).to_bits())
}

/// On the low half, or on both.
fn halves(packed: bool, g: impl Fn(u32) -> u32) -> u32 {
    if packed { g(0) | g(16) << 16 } else { g(0) }
}

/// Single precision has more than twice a half's digits: rounding twice gives what rounding once does.
pub fn half2(op: Float2, packed: bool, mode: Mode, a: &Words, b: &Words) -> Words {
    let mode = Mode { ftz: false, ..mode };
    map2(a, b, |x, y| halves(packed, |s| pack(finish(op2(op, h(x >> s), h(y >> s)), mode))))
}

pub fn half_fma(packed: bool, mode: Mode, a: &Words, b: &Words, c: &Words) -> Words {
    let mode = Mode { ftz: false, ..mode };
    map3(a, b, c, |x, y, z| {
        halves(packed, |s| {
            // The product is exact in double precision.
            let sum = odd_sum(f64::from(h(x >> s)) * f64::from(h(y >> s)), f64::from(h(z >> s)));
            pack(finish(f16::from_f64(sum).to_f32(), mode))
        })
    })
}

pub fn half1(op: Float1, packed: bool, a: &Words) -> Words {
    map1(a, |x| {
        halves(packed, |s| match op {
            Float1::Neg => x >> s & 0xffff ^ 0x8000,
            Float1::Abs => x >> s & 0x7fff,
            op => pack(one!(op, h(x >> s))),
        })
    })
}

#[inline(always)]
pub fn to_half(x: f32) -> u32 {
    pack(x)
}

#[inline(always)]
pub fn from_half(x: u32) -> f32 {
    h(x)
}

fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn half_directed(x: f64, round: Round) -> u32 {
    let near = f16::from_f64(x);
    let exact = near.to_f64();
    if x.is_nan() || exact == x || round == Round::Nearest {
        return u32::from(near.to_bits());
    }
    let inwards = match round {
        Round::Zero => exact.abs() > x.abs(),
        Round::Down => exact > x && x > 0.0,
        Round::Up => exact < x && x < 0.0,
        Round::Nearest => false,
    };
    let outwards = match round {
        Round::Down => exact > x && x < 0.0,
        Round::Up => exact < x && x > 0.0,
        _ => false,
    };
    let bits = u32::from(near.to_bits());
    if inwards {
        bits - 1
    } else if outwards {
        bits + 1
    } else {
        bits
    }
}

/// One lane of `cvt`, any types; bits in, bits out.
pub fn convert(to: Type, from: Type, x: u64, rounding: Rounding, sat: bool, ftz: bool) -> u64 {
    let float = match from {
        Type::F16 => Some(f64::from(h(x as u32))),
        Type::F32 => {
            let v = f(x as u32);
            Some(f64::from(if ftz && v.abs() < f32::MIN_POSITIVE { 0f32.copysign(v) } else { v }))
        }
        Type::F64 => Some(f64::from_bits(x)),
        _ => None,
    };
    let bits = 8 * from.bytes() as u32;
    let int: i128 = match float {
        Some(_) => 0,
        None if from.signed() => i128::from((x << (64 - bits)) as i64 >> (64 - bits)),
        None => i128::from(x << (64 - bits) >> (64 - bits)),
    };
    if to.float() {
        let mut value = match float {
            Some(v) if rounding.integral => integral(v, rounding.round),
            Some(v) => v,
            None if to == Type::F32 && rounding.round == Round::Nearest => {
                return u64::from((int as f32).to_bits());
            }
            None => int as f64,
        };
        if sat {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        let round = if rounding.integral { Round::Nearest } else { rounding.round };
        return match to {
            Type::F16 => u64::from(half_directed(value, round)),
            Type::F32 => {
                let v = narrow(value, round);
                let v = if ftz && v.abs() < f32::MIN_POSITIVE { 0f32.copysign(v) } else { v };
                u64::from(v.to_bits())
            }
            _ => value.to_bits(),
        };
    }
    let bits = 8 * to.bytes() as u32;
    let (low, high) = if to.signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    let value = match float {
        // Beyond the range: its end. NaN: 0.
        Some(v) if v.is_nan() => 0,
        Some(v) => (integral(v, rounding.round) as i128).clamp(low, high),
        None if sat => int.clamp(low, high),
        None => int,
    };
    let kept = (value as u64) << (64 - bits);
    if to.signed() { (kept as i64 >> (64 - bits)) as u64 } else { kept >> (64 - bits) }
}
