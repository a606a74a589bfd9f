//! Opcodes of memory, of whole warps and of synchronisation.

use super::decode::{Context, Result};
use super::instruction::*;
use super::operand::Operand;

fn space(c: &Context<'_, '_, '_>) -> Result<Space> {
    for part in &c.parts[1..] {
        return Ok(match part.split("::").next().unwrap_or(part) {
            "global" | "const" => Space::Global,
            "shared" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            _ => continue,
        });
    }
    Ok(Space::Generic)
}

/// The operands of a vector, or the one that is none.
fn items<'a>(operand: &Operand<'a>) -> Vec<Operand<'a>> {
    match operand {
        Operand::Vector(items) => items.clone(),
        one => vec![one.clone()],
    }
}

fn rows<const N: usize>(rows: Vec<Row>) -> Result<[Row; N]> {
    let mut out = [NONE; N];
    if rows.len() > N {
        return Err("so many operands".to_owned());
    }
    out[..rows.len()].copy_from_slice(&rows);
    Ok(out)
}

pub fn decode(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let word = Type::U32;
    Ok(match c.parts[0] {
        "ld" | "ldu" => load(c)?,
        "st" => store(c)?,
        "atom" | "red" => atomic(c)?,
        "cvta" => {
            let ty = c.ty()?;
            Op::Cvta {
                space: space(c)?,
                to: c.has("to"),
                d: c.d(0, ty)?,
                a: c.s(1, ty)?,
                double: ty.double(),
            }
        }
        "isspacep" => Op::IsSpace { space: space(c)?, p: c.p(0)?.0, a: c.s(1, Type::U64)? },
        "shfl" => shuffle(c)?,
        "vote" => vote(c)?,
        "match" => {
            let ty = c.ty()?;
            let (d, p) = pair(c)?;
            Op::Match { all: c.has("all"), double: ty.double(), d, p, a: c.s(1, ty)?, mask: c.s(2, word)? }
        }
        "redux" => {
            let ty = c.ty()?;
            let op = match () {
                () if c.has("add") => Int2::Add,
                () if c.has("min") => Int2::Min,
                () if c.has("max") => Int2::Max,
                () if c.has("and") => Int2::And,
                () if c.has("or") => Int2::Or,
                () if c.has("xor") => Int2::Xor,
                () => return Err("this reduction".to_owned()),
            };
            Op::Redux { op, signed: ty.signed(), d: c.d(0, ty)?, a: c.s(1, ty)?, mask: c.s(2, word)? }
        }
        "activemask" => Op::ActiveMask { d: c.d(0, word)? },
        "ldmatrix" => {
            let count = match () {
                () if !c.has("m8n8") || c.has("b8") => return Err("this ldmatrix".to_owned()),
                () if c.has("x4") => 4,
                () if c.has("x2") => 2,
                () => 1,
            };
            let list = items(c.operand(0)?);
            let d = list.iter().map(|i| c.names.destination(i, word)).collect::<Result<Vec<_>>>()?;
            let operand = c.operand(1)?.clone();
            Op::LdMatrix { count, transposed: c.has("trans"), d: rows(d)?, at: c.names.address(&operand)? }
        }
        "mma" => mma(c)?,
        "cp" if c.has("commit_group") => Op::CopyCommit,
        "cp" if c.has("wait_all") => Op::CopyWait { left: None },
        "cp" if c.has("wait_group") => match c.operand(0)? {
            Operand::Number(left, _) => Op::CopyWait { left: Some(*left as u32) },
            _ => return Err("this wait_group".to_owned()),
        },
        "cp" if c.has("async") && !c.has("bulk") && !c.has("mbarrier") => copy_async(c)?,
        "bar" | "barrier" => barrier(c)?,
        "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "applypriority"
        | "griddepcontrol" => Op::Nop,
        other => return Err(other.to_owned()),
    })
}

fn count(c: &Context<'_, '_, '_>) -> u8 {
    match () {
        () if c.has("v2") => 2,
        () if c.has("v4") => 4,
        () => 1,
    }
}

fn load(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let (ty, space, count) = (c.ty()?, space(c)?, count(c));
    let list = items(c.operand(0)?);
    if list.len() != usize::from(count) {
        return Err("this vector".to_owned());
    }
    let (mut d, mut double) = (Vec::new(), false);
    for item in &list {
        d.push(match (item, c.names.any(item, ty)) {
            (Operand::Name("_"), _) => NONE,
            (_, Ok(Register::Word(row))) => row,
            (_, Ok(Register::Double(row))) => {
                double = true;
                row
            }
            _ => return Err("this destination".to_owned()),
        });
    }
    let operand = c.operand(1)?.clone();
    Ok(Op::Load { space, ty, count, double, d: rows(d)?, at: c.names.address(&operand)? })
}

fn store(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let (ty, space, count) = (c.ty()?, space(c)?, count(c));
    let list = items(c.operand(1)?);
    if list.len() != usize::from(count) {
        return Err("this vector".to_owned());
    }
    let (mut a, mut double) = (Vec::new(), ty.double());
    for item in &list {
        a.push(match c.names.any(item, ty)? {
            Register::Word(row) => row,
            Register::Double(row) => {
                double = true;
                row
            }
            Register::Predicate(_) => return Err("this operand".to_owned()),
        });
    }
    let operand = c.operand(0)?.clone();
    Ok(Op::Store { space, ty, count, double, a: rows(a)?, at: c.names.address(&operand)? })
}

fn atomic(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let ty = c.ty()?;
    if !matches!(ty.bytes(), 4 | 8) || ty == Type::F16x2 {
        return Err("an atomic of this type".to_owned());
    }
    let op = match () {
        () if c.has("add") && ty.float() => Atomic::AddFloat,
        () if c.has("add") => Atomic::Add,
        () if c.has("min") && ty.signed() => Atomic::MinSigned,
        () if c.has("max") && ty.signed() => Atomic::MaxSigned,
        () if (c.has("min") || c.has("max")) && ty.float() => return Err("this atomic".to_owned()),
        () if c.has("min") => Atomic::Min,
        () if c.has("max") => Atomic::Max,
        () if c.has("and") => Atomic::And,
        () if c.has("or") => Atomic::Or,
        () if c.has("xor") => Atomic::Xor,
        () if c.has("exch") => Atomic::Exchange,
        () if c.has("cas") => Atomic::Compare,
        () if c.has("inc") => Atomic::Inc,
        () if c.has("dec") => Atomic::Dec,
        () => return Err("this atomic".to_owned()),
    };
    let first = usize::from(c.parts[0] == "atom");
    let d = if first == 1 { c.d(0, ty)? } else { NONE };
    let operand = c.operand(first)?.clone();
    let b = if op == Atomic::Compare { c.s(first + 2, ty)? } else { NONE };
    let at = c.names.address(&operand)?;
    Ok(Op::Atomic { space: space(c)?, op, ty, d, at, a: c.s(first + 1, ty)?, b })
}

/// A destination word with an optional predicate: `%r1|%p1`.
fn pair(c: &mut Context<'_, '_, '_>) -> Result<(Row, Row)> {
    match c.operand(0)? {
        Operand::Pair(d, p) => {
            let (d, p) = (*d, *p);
            let d = c.names.destination(&Operand::Name(d), Type::U32)?;
            Ok((d, c.names.predicate(&Operand::Name(p))?.0))
        }
        _ => Ok((c.d(0, Type::U32)?, NONE)),
    }
}

fn shuffle(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let word = Type::U32;
    let mode = match () {
        () if !c.has("sync") => return Err("shfl without sync".to_owned()),
        () if c.has("up") => Shuffle::Up,
        () if c.has("down") => Shuffle::Down,
        () if c.has("bfly") => Shuffle::Xor,
        () => Shuffle::Index,
    };
    let (d, p) = pair(c)?;
    let (a, b, e, mask) = (c.s(1, word)?, c.s(2, word)?, c.s(3, word)?, c.s(4, word)?);
    Ok(Op::Shuffle { mode, d, p, a, b, c: e, mask })
}

fn vote(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let kind = match () {
        () if !c.has("sync") => return Err("vote without sync".to_owned()),
        () if c.has("ballot") => Vote::Ballot,
        () if c.has("any") => Vote::Any,
        () if c.has("all") => Vote::All,
        () => Vote::Uniform,
    };
    let d = if kind == Vote::Ballot { c.d(0, Type::U32)? } else { c.p(0)?.0 };
    let (a, negate) = c.p(1)?;
    Ok(Op::Vote { kind, d, a, negate, mask: c.s(2, Type::U32)? })
}

fn mma(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let k = match () {
        () if c.has("m16n8k16") => 16,
        () if c.has("m16n8k8") => 8,
        () => return Err("this shape of mma".to_owned()),
    };
    if c.types != [Type::F32, Type::F16, Type::F16, Type::F32] {
        return Err("mma of these types".to_owned());
    }
    let mut list = |i: usize, destination: bool, ty: Type| {
        let list = items(c.operand(i)?);
        let found = list
            .iter()
            .map(|i| if destination { c.names.destination(i, ty) } else { c.names.source(i, ty) })
            .collect::<Result<Vec<_>>>()?;
        let wanted = match i {
            0 | 3 => 4,
            1 => usize::from(k / 4),
            _ => usize::from(k / 8),
        };
        if found.len() == wanted { Ok(found) } else { Err("fragments of this size".to_owned()) }
    };
    Ok(Op::Mma {
        k,
        d: rows(list(0, true, Type::F32)?)?,
        a: rows(list(1, false, Type::U32)?)?,
        b: rows(list(2, false, Type::U32)?)?,
        c: rows(list(3, false, Type::F32)?)?,
    })
}

fn copy_async(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let bytes = match c.operand(2)? {
        Operand::Number(bytes @ (4 | 8 | 16), _) => *bytes as u8,
        _ => return Err("a copy of this size".to_owned()),
    };
    let (to, from) = (c.operand(0)?.clone(), c.operand(1)?.clone());
    let (mut source_bytes, mut ignore) = (NONE, NONE);
    if let Some(operand) = c.operands.get(3) {
        match c.names.predicate(operand) {
            Ok((p, false)) if matches!(operand, Operand::Name(_)) => ignore = p,
            _ => source_bytes = c.s(3, Type::U32)?,
        }
    }
    let (to, from) = (c.names.address(&to)?, c.names.address(&from)?);
    Ok(Op::CopyAsync { bytes, to, from, source_bytes, ignore })
}

fn barrier(c: &mut Context<'_, '_, '_>) -> Result<Op> {
    let word = Type::U32;
    if c.has("warp") {
        return Ok(Op::WarpBarrier { mask: c.s(0, word)? });
    }
    if c.has("cluster") {
        return Err("clusters".to_owned());
    }
    let (mut d, mut p, mut negate) = (NONE, NONE, false);
    let mut reduce = Reduce::No;
    let mut first = 0;
    let mut last = c.operands.len();
    if c.has("red") {
        reduce = match () {
            () if c.has("popc") => Reduce::Popc,
            () if c.has("and") => Reduce::And,
            () => Reduce::Or,
        };
        d = if reduce == Reduce::Popc { c.d(0, word)? } else { c.p(0)?.0 };
        first = 1;
        last -= 1;
        (p, negate) = c.p(last)?;
    }
    let id = if last > first { c.s(first, word)? } else { c.names.bits(false, 0) };
    let count = if last > first + 1 { c.s(first + 1, word)? } else { NONE };
    Ok(Op::Barrier { id, count, arrive: c.has("arrive"), reduce, d, p, negate })
}
