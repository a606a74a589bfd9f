//! Instructions that exchange values between the lanes of a warp.

use super::access::lanes;
use super::alu::put;
use super::execute::missing;
use super::worker::{Run, State, Warp};
use crate::ptx::instruction::*;

/// The lanes an instruction names, if all that live are here.
fn members(
    run: &Run<'_>,
    state: &mut State,
    warp: &Warp,
    ins: &Instruction,
    mask: u32,
    row: Row,
    what: &str,
) -> Option<u32> {
    let named = warp.words[row as usize][mask.trailing_zeros() as usize];
    let absent = named & !mask;
    if absent != 0 || mask & !named != 0 {
        let text = if absent != 0 { what.to_owned() } else { format!("{what} by lanes it does not name:") };
        let absent = if absent != 0 { absent } else { mask & !named };
        missing(run, state, warp, ins, &text, absent, mask);
        return None;
    }
    Some(named)
}

pub fn exchange(run: &Run<'_>, state: &mut State, warp: &mut Warp, ins: &Instruction, mask: u32) {
    match &ins.op {
        Op::Shuffle { mode, d, p, a, b, c, mask: row } => {
            if members(run, state, warp, ins, mask, *row, "shfl.sync").is_none() {
                return;
            }
            let (value, by, control) =
                (warp.words[*a as usize], warp.words[*b as usize], warp.words[*c as usize]);
            let (mut out, mut valid) = (value, 0);
            for i in lanes(mask) {
                let lane = i as i64;
                let segment = i64::from(control[i] >> 8 & 31);
                let clamp = i64::from(control[i] & 31);
                let last = lane & segment | clamp & !segment;
                let first = lane & segment;
                let by = i64::from(by[i] & 31);
                let (from, inside) = match mode {
                    Shuffle::Up => (lane - by, lane - by >= last),
                    Shuffle::Down => (lane + by, lane + by <= last),
                    Shuffle::Xor => (lane ^ by, lane ^ by <= last),
                    Shuffle::Index => (first | by & !segment, first | by & !segment <= last),
                };
                if inside {
                    let from = from as usize & 31;
                    valid |= 1 << i;
                    if mask >> from & 1 == 0 {
                        return missing(run, state, warp, ins, "shfl.sync reads", 1 << from, 1 << i);
                    }
                    out[i] = value[from];
                }
            }
            if *d != NONE {
                put(&mut warp.words[*d as usize], out, mask);
            }
            if *p != NONE {
                let p = &mut warp.predicates[*p as usize];
                *p = *p & !mask | valid & mask;
            }
        }
        Op::Vote { kind, d, a, negate, mask: row } => {
            let Some(named) = members(run, state, warp, ins, mask, *row, "vote.sync") else { return };
            let value = warp.predicates[*a as usize];
            let votes = named & if *negate { !value } else { value };
            let result = match kind {
                Vote::Ballot => {
                    return put(&mut warp.words[*d as usize], [votes; 32], mask);
                }
                Vote::Any => votes != 0,
                Vote::All => votes == named,
                Vote::Uniform => votes == 0 || votes == named,
            };
            let p = &mut warp.predicates[*d as usize];
            *p = *p & !mask | if result { mask } else { 0 };
        }
        Op::Match { all, double, d, p, a, mask: row } => {
            let Some(named) = members(run, state, warp, ins, mask, *row, "match.sync") else { return };
            let value: [u64; 32] =
                if *double { warp.doubles[*a as usize] } else { warp.words[*a as usize].map(u64::from) };
            let mut out = [0; 32];
            for i in lanes(named) {
                for j in lanes(named) {
                    out[i] |= u32::from(value[i] == value[j]) << j;
                }
            }
            let every = lanes(named).all(|i| out[i] == named);
            if *all {
                out = [if every { named } else { 0 }; 32];
            }
            if *d != NONE {
                put(&mut warp.words[*d as usize], out, mask);
            }
            if *p != NONE {
                let p = &mut warp.predicates[*p as usize];
                *p = *p & !mask | if every { mask } else { 0 };
            }
        }
        Op::Redux { op, signed, d, a, mask: row } => {
            let Some(named) = members(run, state, warp, ins, mask, *row, "redux.sync") else { return };
            let value = warp.words[*a as usize];
            let result = lanes(named).map(|i| value[i]).reduce(|x, y| match (op, signed) {
                (Int2::Add, _) => x.wrapping_add(y),
                (Int2::Min, true) => (x as i32).min(y as i32) as u32,
                (Int2::Max, true) => (x as i32).max(y as i32) as u32,
                (Int2::Min, false) => x.min(y),
                (Int2::Max, false) => x.max(y),
                (Int2::And, _) => x & y,
                (Int2::Or, _) => x | y,
                _ => x ^ y,
            });
            put(&mut warp.words[*d as usize], [result.unwrap_or(0); 32], mask);
        }
        _ => {}
    }
}
