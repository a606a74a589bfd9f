//! Opcodes with their suffixes to operations: arithmetic, comparison, conversion, control. Memory and
//! warp-wide instructions are in `decode_memory`.

use super::decode_memory;
use super::instruction::*;
use super::operand::{Names, Operand};

pub struct Decoded<'a> {
    pub op: Op,
    pub class: Class,
    /// Of a branch, or of a branch's table.
    pub label: Option<&'a str>,
}

/// An instruction while it is decoded.
pub struct Context<'o, 'a, 'n> {
    /// The opcode's parts: `["add", "rn", "f32"]`.
    pub parts: Vec<&'o str>,
    pub types: Vec<Type>,
    pub operands: &'o [Operand<'a>],
    pub names: &'n mut Names<'a>,
}

pub type Result<T> = std::result::Result<T, String>;

impl<'a> Context<'_, 'a, '_> {
    pub fn has(&self, part: &str) -> bool {
        self.parts[1..].contains(&part)
    }

    pub fn operand(&self, i: usize) -> Result<&Operand<'a>> {
        self.operands.get(i).ok_or_else(|| format!("operand {i} of"))
    }

    pub fn ty(&self) -> Result<Type> {
        self.types.last().copied().ok_or_else(|| "an instruction without a type".to_owned())
    }

    pub fn d(&mut self, i: usize, ty: Type) -> Result<Row> {
        let operand = self.operands.get(i).ok_or("a missing destination")?;
        self.names.destination(operand, ty)
    }

    pub fn s(&mut self, i: usize, ty: Type) -> Result<Row> {
        let operand = self.operands.get(i).ok_or("a missing operand")?;
        self.names.source(operand, ty)
    }

    pub fn p(&mut self, i: usize) -> Result<(Row, bool)> {
        let operand = self.operands.get(i).ok_or("a missing predicate")?;
        self.names.predicate(operand)
    }

    fn mode(&self) -> Mode {
        let round = match () {
            () if self.has("rz") => Round::Zero,
            () if self.has("rm") => Round::Down,
            () if self.has("rp") => Round::Up,
            () => Round::Nearest,
        };
        Mode { round, ftz: self.has("ftz"), sat: self.has("sat"), relu: self.has("relu") }
    }
}

pub fn int(ty: Type) -> Result<Int> {
    Ok(match ty {
        Type::U16 | Type::B16 => Int::U16,
        Type::S16 => Int::S16,
        Type::U32 | Type::B32 => Int::U32,
        Type::S32 => Int::S32,
        Type::U64 | Type::B64 => Int::U64,
        Type::S64 => Int::S64,
        other => return Err(format!("the type {other:?}")),
    })
}

fn compare(part: &str) -> Option<Compare> {
    use Compare::*;
    Some(match part {
        "eq" => Eq,
        "ne" => Ne,
        "lt" | "lo" => Lt,
        "le" | "ls" => Le,
        "gt" | "hi" => Gt,
        "ge" | "hs" => Ge,
        "equ" => Equ,
        "neu" => Neu,
        "ltu" => Ltu,
        "leu" => Leu,
        "gtu" => Gtu,
        "geu" => Geu,
        "num" => Num,
        "nan" => Nan,
        _ => return None,
    })
}

fn logic(part: &str) -> Option<Logic> {
    Some(match part {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}

pub fn decode<'a>(opcode: &str, operands: &[Operand<'a>], names: &mut Names<'a>) -> Result<Decoded<'a>> {
    let parts: Vec<&str> = opcode.split('.').filter(|p| !p.is_empty()).collect();
    let types = parts[1..].iter().filter_map(|p| Type::parse(p)).collect();
    let mut c = Context { parts, types, operands, names };
    let label = match (c.parts[0], operands) {
        ("bra", [Operand::Name(label)]) => Some(*label),
        ("brx", [_, Operand::Name(label)]) => Some(*label),
        _ => None,
    };
    let op = match c.parts[0] {
        "bra" => Op::Branch { to: 0 },
        "brx" => Op::BranchIndex { table: Vec::new(), a: c.s(0, Type::U32)? },
        "ret" | "exit" => Op::Exit,
        "trap" => Op::Trap,
        "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr"
        | "not" | "cnot" | "neg" | "abs" | "brev" | "popc" | "clz" | "bfind" | "mul24" => arithmetic(&mut c)?,
        "mad" | "fma" | "mad24" => multiply_add(&mut c)?,
        "addc" | "subc" | "madc" => carry(&mut c)?,
        "sqrt" | "rcp" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" => {
            special_function(&mut c)?
        }
        "bfe" | "bfi" | "prmt" | "lop3" | "shf" | "sad" | "bmsk" | "szext" | "dp4a" => bits(&mut c)?,
        "setp" | "set" | "testp" | "selp" | "slct" => comparison(&mut c)?,
        "mov" => moving(&mut c)?,
        "cvt" => convert(&mut c)?,
        _ => decode_memory::decode(&mut c)?,
    };
    let class = classify(&op);
    Ok(Decoded { op, class, label })
}

fn classify(op: &Op) -> Class {
    match op {
        Op::F32 { .. } | Op::F32Fma { .. } | Op::F64 { .. } | Op::F64Fma { .. } => Class::Float,
        Op::F32One { op: Float1::Neg | Float1::Abs, .. } => Class::Float,
        Op::F64One { op: Float1::Neg | Float1::Abs, .. } => Class::Float,
        Op::F32One { .. } | Op::F64One { .. } => Class::Special,
        Op::Half2 { .. } | Op::HalfOne { .. } | Op::HalfFma { .. } => Class::Half,
        Op::Setp { ty, .. } | Op::Set { ty, .. } if ty.float() => Class::Float,
        Op::Convert { to, from, .. } if to.float() || from.float() => Class::Float,
        Op::ConvertPair { .. } | Op::Testp { .. } => Class::Float,
        Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } | Op::LdMatrix { .. } => Class::Memory,
        Op::CopyAsync { .. } | Op::CopyCommit | Op::CopyWait { .. } => Class::Memory,
        Op::Shuffle { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } => Class::Special,
        Op::Mma { .. } => Class::Mma,
        Op::WarpBarrier { .. } | Op::Barrier { .. } | Op::Branch { .. } | Op::BranchIndex { .. } => {
            Class::Control
        }
        Op::Return | Op::Exit | Op::Trap | Op::Nop => Class::Control,
        _ => Class::Integer,
    }
}

fn arithmetic(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let (name, ty, mode) = (c.parts[0], c.ty()?, c.mode());
    if c.has("cc") {
        return carry(c);
    }
    let float2 = match name {
        "add" => Some(Float2::Add),
        "sub" => Some(Float2::Sub),
        "mul" => Some(Float2::Mul),
        "div" => Some(Float2::Div),
        "min" if c.has("NaN") => Some(Float2::MinNan),
        "max" if c.has("NaN") => Some(Float2::MaxNan),
        "min" => Some(Float2::Min),
        "max" => Some(Float2::Max),
        _ => None,
    };
    let float1 = match name {
        "neg" => Some(Float1::Neg),
        "abs" => Some(Float1::Abs),
        _ => None,
    };
    match (ty, float2, float1) {
        (Type::F32, Some(op), _) => {
            return Ok(Op::F32 { op, mode, d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)? });
        }
        (Type::F64, Some(op), _) => {
            return Ok(Op::F64 { op, d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)? });
        }
        (Type::F16 | Type::F16x2, Some(op), _) => {
            let packed = ty == Type::F16x2;
            return Ok(Op::Half2 { op, packed, mode, d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)? });
        }
        (Type::F32, _, Some(op)) => {
            return Ok(Op::F32One { op, mode, d: c.d(0, ty)?, a: c.s(1, ty)? });
        }
        (Type::F64, _, Some(op)) => return Ok(Op::F64One { op, d: c.d(0, ty)?, a: c.s(1, ty)? }),
        (Type::F16 | Type::F16x2, _, Some(op)) => {
            return Ok(Op::HalfOne { op, packed: ty == Type::F16x2, d: c.d(0, ty)?, a: c.s(1, ty)? });
        }
        _ => {}
    }
    if ty == Type::Pred {
        let (d, _) = c.p(0)?;
        let (a, _) = c.p(1)?;
        return match (name, logic(name)) {
            ("not", _) => Ok(Op::PredNot { d, a }),
            (_, Some(op)) => Ok(Op::Logic { op, d, a, b: c.p(2)?.0 }),
            _ => Err("arithmetic on predicates".to_owned()),
        };
    }
    if name == "mul" && c.has("wide") {
        return wide(c, ty, false);
    }
    let kind = int(ty)?;
    let one = match name {
        "not" => Some(Int1::Not),
        "cnot" => Some(Int1::Cnot),
        "neg" => Some(Int1::Neg),
        "abs" => Some(Int1::Abs),
        "brev" => Some(Int1::Brev),
        "popc" => Some(Int1::Popc),
        "clz" => Some(Int1::Clz),
        "bfind" if c.has("shiftamt") => Some(Int1::BfindShift),
        "bfind" => Some(Int1::Bfind),
        _ => None,
    };
    if let Some(op) = one {
        let counts = matches!(op, Int1::Popc | Int1::Clz | Int1::Bfind | Int1::BfindShift);
        let d = c.d(0, if counts { Type::U32 } else { ty })?;
        return Ok(Op::Int1 { op, ty: kind, d, a: c.s(1, ty)? });
    }
    let op = match name {
        "add" if mode.sat => Int2::AddSat,
        "sub" if mode.sat => Int2::SubSat,
        "add" => Int2::Add,
        "sub" => Int2::Sub,
        "mul" if c.has("hi") => Int2::MulHi,
        "mul" => Int2::Mul,
        "mul24" if !c.has("hi") => Int2::Mul24,
        "div" => Int2::Div,
        "rem" => Int2::Rem,
        "min" => Int2::Min,
        "max" => Int2::Max,
        "and" => Int2::And,
        "or" => Int2::Or,
        "xor" => Int2::Xor,
        "shl" => Int2::Shl,
        "shr" => Int2::Shr,
        other => return Err(other.to_owned()),
    };
    let b = match op {
        // The amount is a word whatever the type.
        Int2::Shl | Int2::Shr => c.s(2, Type::U32)?,
        _ => c.s(2, ty)?,
    };
    Ok(Op::Int2 { op, ty: kind, d: c.d(0, ty)?, a: c.s(1, ty)?, b })
}

fn wide(c: &mut Context<'_, '_, '_>, ty: Type, adds: bool) -> Result<Op> {
    let twice = if ty.bytes() == 4 { Type::U64 } else { Type::U32 };
    let addend = if adds { c.s(3, twice)? } else { NONE };
    Ok(Op::Wide { ty: int(ty)?, d: c.d(0, twice)?, a: c.s(1, ty)?, b: c.s(2, ty)?, c: addend })
}

fn multiply_add(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let (ty, mode) = (c.ty()?, c.mode());
    if c.has("wide") {
        return wide(c, ty, true);
    }
    if c.has("cc") {
        return carry(c);
    }
    let (d, a, b, e) = (c.d(0, ty)?, c.s(1, ty)?, c.s(2, ty)?, c.s(3, ty)?);
    Ok(match ty {
        Type::F32 => Op::F32Fma { mode, d, a, b, c: e },
        Type::F64 => Op::F64Fma { d, a, b, c: e },
        Type::F16 | Type::F16x2 => Op::HalfFma { packed: ty == Type::F16x2, mode, d, a, b, c: e },
        _ if c.parts[0] == "mad24" => return Err("mad24".to_owned()),
        _ => Op::Mad { high: c.has("hi"), ty: int(ty)?, d, a, b, c: e },
    })
}

fn carry(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let ty = c.ty()?;
    let (reads, writes) = (c.parts[0].ends_with('c'), c.has("cc"));
    let (d, a, b) = (c.d(0, ty)?, c.s(1, ty)?, c.s(2, ty)?);
    Ok(match c.parts[0] {
        "mad" | "madc" if ty.bytes() == 4 => {
            let e = c.s(3, ty)?;
            Op::MadCarry { high: c.has("hi"), signed: ty.signed(), reads, writes, d, a, b, c: e }
        }
        "add" | "addc" | "sub" | "subc" => {
            let subtract = c.parts[0].starts_with("sub");
            Op::Carry { subtract, reads, writes, double: ty.double(), d, a, b }
        }
        _ => return Err("this form with a carry".to_owned()),
    })
}

fn special_function(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let (ty, mode) = (c.ty()?, c.mode());
    let op = match c.parts[0] {
        "sqrt" => Float1::Sqrt,
        "rcp" => Float1::Rcp,
        "rsqrt" => Float1::Rsqrt,
        "ex2" => Float1::Ex2,
        "lg2" => Float1::Lg2,
        "sin" => Float1::Sin,
        "cos" => Float1::Cos,
        "tanh" => Float1::Tanh,
        _ => {
            // copysign takes the sign from its first operand
            let (d, a, b) = (c.d(0, ty)?, c.s(2, ty)?, c.s(1, ty)?);
            return match ty {
                Type::F32 => Ok(Op::F32 { op: Float2::CopySign, mode, d, a, b }),
                Type::F64 => Ok(Op::F64 { op: Float2::CopySign, d, a, b }),
                _ => Err("copysign of this type".to_owned()),
            };
        }
    };
    let (d, a) = (c.d(0, ty)?, c.s(1, ty)?);
    Ok(match ty {
        Type::F32 => Op::F32One { op, mode, d, a },
        Type::F64 => Op::F64One { op, d, a },
        Type::F16 | Type::F16x2 => Op::HalfOne { op, packed: ty == Type::F16x2, d, a },
        other => return Err(format!("the type {other:?}")),
    })
}

fn bits(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let ty = c.ty()?;
    let word = Type::U32;
    Ok(match c.parts[0] {
        "bfe" => Op::Bfe { ty: int(ty)?, d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, word)?, c: c.s(3, word)? },
        "bfi" => Op::Bfi {
            double: ty.double(),
            d: c.d(0, ty)?,
            a: c.s(1, ty)?,
            b: c.s(2, ty)?,
            c: c.s(3, word)?,
            e: c.s(4, word)?,
        },
        "bmsk" => Op::Bmsk { d: c.d(0, ty)?, a: c.s(1, word)?, b: c.s(2, word)?, clamp: c.has("clamp") },
        "szext" if c.has("clamp") => {
            Op::Szext { d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, word)?, signed: ty.signed() }
        }
        "sad" if !ty.double() => {
            Op::Sad { ty: int(ty)?, d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)?, c: c.s(3, ty)? }
        }
        "dp4a" => Op::Dp4a {
            d: c.d(0, word)?,
            a: c.s(1, word)?,
            b: c.s(2, word)?,
            c: c.s(3, word)?,
            signed_a: c.types[0].signed(),
            signed_b: ty.signed(),
        },
        "prmt" if c.parts.len() == 2 => {
            Op::Prmt { d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)?, c: c.s(3, ty)? }
        }
        "lop3" if !c.has("and") && !c.has("or") => {
            let Operand::Number(table, _) = c.operand(4)? else { return Err("lop3's table".to_owned()) };
            let table = *table as u8;
            Op::Lop3 { d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)?, c: c.s(3, ty)?, table }
        }
        "shf" => Op::Shf {
            left: c.has("l"),
            clamp: c.has("clamp"),
            d: c.d(0, ty)?,
            a: c.s(1, ty)?,
            b: c.s(2, ty)?,
            c: c.s(3, word)?,
        },
        other => return Err(format!("this form of {other}")),
    })
}

fn comparison(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let ty = c.ty()?;
    match c.parts[0] {
        "selp" => {
            let (p, negate) = c.p(3)?;
            Ok(Op::Selp { double: ty.double(), d: c.d(0, ty)?, a: c.s(1, ty)?, b: c.s(2, ty)?, p, negate })
        }
        "slct" => {
            let first = c.types[0];
            let (d, a, b) = (c.d(0, first)?, c.s(1, first)?, c.s(2, first)?);
            Ok(Op::Slct { double: first.double(), float: ty == Type::F32, d, a, b, c: c.s(3, ty)? })
        }
        "testp" => {
            let test = match c.parts.get(1).copied().unwrap_or("") {
                "finite" => Test::Finite,
                "infinite" => Test::Infinite,
                "number" => Test::Number,
                "notanumber" => Test::NotANumber,
                "normal" => Test::Normal,
                "subnormal" => Test::Subnormal,
                other => return Err(format!("testp.{other}")),
            };
            Ok(Op::Testp { test, double: ty.double(), p: c.p(0)?.0, a: c.s(1, ty)? })
        }
        name => {
            let parts = &c.parts[1..];
            let cmp = parts.iter().find_map(|p| compare(p)).ok_or("this comparison")?;
            let with = parts.iter().find_map(|p| logic(p));
            let (a, b) = (c.s(1, ty)?, c.s(2, ty)?);
            let combine = match with {
                Some(with) => {
                    let (p, negate) = c.p(3)?;
                    Some((with, p, negate))
                }
                None => None,
            };
            if name == "set" {
                let to = c.types[0];
                return Ok(Op::Set { cmp, to, ty, d: c.d(0, to)?, a, b, combine });
            }
            let (p, q) = match c.operand(0)? {
                Operand::Pair(p, q) => {
                    let (p, q) = (*p, *q);
                    (c.names.predicate(&Operand::Name(p))?.0, c.names.predicate(&Operand::Name(q))?.0)
                }
                _ => (c.p(0)?.0, NONE),
            };
            Ok(Op::Setp { cmp, ty, p, q, a, b, combine })
        }
    }
}

fn moving(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let ty = c.ty()?;
    if ty == Type::Pred {
        return Ok(Op::PredMove { d: c.p(0)?.0, a: c.p(1)?.0 });
    }
    if let (Operand::Vector(items), ty) = (c.operand(0)?.clone(), ty) {
        let part = if ty.bytes() / items.len() == 4 { Type::U32 } else { Type::U16 };
        let rows = items.iter().map(|i| c.names.destination(i, part)).collect::<Result<Vec<_>>>()?;
        let a = c.s(1, ty)?;
        return Ok(match (ty.bytes(), rows[..].as_ref()) {
            (8, &[d, e]) => Op::Split { a, d, e },
            (4, &[d, e]) => Op::SplitHalves { a, d, e },
            (8, &[d, e, f, g]) => Op::SplitFour { a, d: [d, e, f, g] },
            _ => return Err("this split".to_owned()),
        });
    }
    let d = c.d(0, ty)?;
    match c.operand(1)?.clone() {
        Operand::Vector(items) => {
            let part = if ty.bytes() / items.len() == 4 { Type::U32 } else { Type::U16 };
            let rows = items.iter().map(|i| c.names.source(i, part)).collect::<Result<Vec<_>>>()?;
            Ok(match (ty.bytes(), rows[..].as_ref()) {
                (8, &[a, b]) => Op::Join { d, a, b },
                (4, &[a, b]) => Op::JoinHalves { d, a, b },
                (8, &[a, b, e, f]) => Op::JoinFour { d, a: [a, b, e, f] },
                _ => return Err("this join".to_owned()),
            })
        }
        Operand::Name("%clock" | "%clock_hi" | "%globaltimer_lo") => Ok(Op::Clock { double: false, d }),
        Operand::Name("%clock64" | "%globaltimer") => Ok(Op::Clock { double: true, d }),
        Operand::At(Some(name), offset) => {
            // A variable's address with an offset, written as an address.
            let at = c.names.address(&Operand::At(Some(name), offset))?;
            if at.base != NONE {
                return Err("this address".to_owned());
            }
            let a = c.names.bits(ty.double(), at.offset as u64);
            Ok(Op::Move { double: ty.double(), d, a })
        }
        _ => Ok(Op::Move { double: ty.double(), d, a: c.s(1, ty)? }),
    }
}

fn convert(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let &[to, from] = &c.types[..] else { return Err("this conversion".to_owned()) };
    if c.has("bf16") || c.has("bf16x2") || c.has("tf32") {
        return Err("this conversion".to_owned());
    }
    let mode = c.mode();
    if to == Type::F16x2 {
        return Ok(Op::ConvertPair { d: c.d(0, to)?, a: c.s(1, from)?, b: c.s(2, from)?, relu: mode.relu });
    }
    let integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|r| c.has(r));
    let round = match () {
        () if c.has("rzi") || c.has("rz") => Round::Zero,
        () if c.has("rmi") || c.has("rm") => Round::Down,
        () if c.has("rpi") || c.has("rp") => Round::Up,
        () => Round::Nearest,
    };
    let (d, a) = (c.operand(0)?.clone(), c.operand(1)?.clone());
    let d = c.names.any(&d, to)?;
    let a = c.names.any(&a, from)?;
    Ok(Op::Convert { to, from, d, a, rounding: Rounding { round, integral }, sat: mode.sat, ftz: mode.ftz })
}
