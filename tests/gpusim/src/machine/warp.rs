//! The loop over a warp's instructions.
//!
//! A warp is one group of lanes with a common place in the code, or several: of these the one furthest
//! back runs, until it meets another; so lanes come together again where their ways meet.

use super::access::lanes;
use super::execute::execute;
use super::worker::{Group, Kind, Run, State, Status, Warp};
use crate::ptx::instruction::{Instruction, NONE, Op, Reduce, Row};

/// A kernel that takes more steps in one block is taken to hang.
const STEPS: u64 = 2_000_000_000;

pub fn run(run: &Run<'_>, state: &mut State, warp: &mut Warp) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
        fn fast(run: &Run<'_>, state: &mut State, warp: &mut Warp) {
            steps(run, state, warp);
        }
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") && has!("f16c") && has!("bmi2") && has!("lzcnt") {
            // SAFETY: the processor has these features; those not asked for came with AVX2.
            return unsafe { fast(run, state, warp) };
        }
    }
    steps(run, state, warp);
}

#[inline(always)]
fn steps(run: &Run<'_>, state: &mut State, warp: &mut Warp) {
    let code = &run.kernel.code[..];
    let mut count = 0u64;
    loop {
        if warp.pc >= warp.look && !turn(warp) {
            break;
        }
        let Some(ins) = code.get(warp.pc as usize) else { break };
        let mask = if ins.guard == NONE {
            warp.mask
        } else {
            let p = warp.predicates[ins.guard as usize];
            warp.mask & if ins.negate { !p } else { p }
        };
        count += 1;
        state.counters.count(ins.class);
        match &ins.op {
            Op::Branch { to } => branch(warp, mask, *to),
            _ if mask == 0 => warp.pc += 1,
            Op::Exit | Op::Return => {
                leave(warp, mask);
                if warp.status == Status::Done {
                    break;
                }
            }
            Op::Barrier { .. } => {
                barrier(run, state, warp, ins, mask);
                if warp.status != Status::Ready {
                    break;
                }
            }
            Op::WarpBarrier { mask: row } => warp_barrier(run, state, warp, ins, mask, *row),
            Op::BranchIndex { table, a } => branch_index(run, state, warp, ins, mask, table, *a),
            Op::Trap => {
                let lane = mask.trailing_zeros() as usize;
                state.fatal(run, Kind::Trap, ins.place, warp.index * 32 + lane, "trap".to_owned());
            }
            _ => {
                execute(run, state, warp, ins, mask);
                warp.pc += 1;
            }
        }
        if state.dead {
            break;
        }
        if state.steps + count > STEPS {
            let what = format!("the block did not end after {STEPS} warp instructions");
            state.fatal(run, Kind::Deadlock, ins.place, warp.index * 32, what);
            break;
        }
    }
    state.steps += count;
}

#[inline(always)]
fn branch(warp: &mut Warp, taken: u32, to: u32) {
    if taken == warp.mask {
        warp.pc = to;
    } else if taken == 0 {
        warp.pc += 1;
    } else {
        warp.mask &= !taken;
        warp.pc += 1;
        warp.groups.push(Group { pc: to, mask: taken, waits_for: 0 });
        warp.look = warp.look.min(to);
    }
}

/// Puts the current group beside the others, joins those that are at one place, and takes the one
/// furthest back. `false`: none can run.
#[inline(never)]
fn turn(warp: &mut Warp) -> bool {
    if warp.mask != 0 {
        warp.groups.push(Group { pc: warp.pc, mask: warp.mask, waits_for: 0 });
        warp.mask = 0;
    }
    let Some(pc) = warp.groups.iter().filter(|g| g.waits_for == 0).map(|g| g.pc).min() else {
        return false;
    };
    let mut mask = 0;
    warp.groups.retain(|g| {
        let here = g.waits_for == 0 && g.pc == pc;
        if here {
            mask |= g.mask;
        }
        !here
    });
    warp.pc = pc;
    warp.mask = mask;
    warp.look = warp.groups.iter().filter(|g| g.waits_for == 0).map(|g| g.pc).min().unwrap_or(u32::MAX);
    true
}

fn leave(warp: &mut Warp, mask: u32) {
    warp.live &= !mask;
    warp.mask &= !mask;
    if warp.live == 0 {
        warp.status = Status::Done;
        return;
    }
    if warp.mask == 0 {
        release(warp);
        // Look around at once.
        warp.look = 0;
    } else {
        warp.pc += 1;
    }
}

/// Lets groups go whose `bar.warp.sync` has all its living lanes.
fn release(warp: &mut Warp) -> bool {
    let mut released = false;
    for i in 0..warp.groups.len() {
        let wanted = warp.groups[i].waits_for;
        if wanted == 0 {
            continue;
        }
        let same = |g: &Group| g.waits_for == wanted;
        let there: u32 = warp.groups.iter().filter(|g| same(g)).map(|g| g.mask).fold(0, |a, b| a | b);
        if wanted & warp.live & !there == 0 {
            for g in warp.groups.iter_mut().filter(|g| same(g)) {
                g.waits_for = 0;
                g.pc += 1;
            }
            released = true;
        }
    }
    released
}

fn warp_barrier(run: &Run<'_>, state: &mut State, warp: &mut Warp, ins: &Instruction, mask: u32, row: Row) {
    let lane = mask.trailing_zeros() as usize;
    let wanted = warp.words[row as usize][lane];
    let thread = warp.index * 32 + lane;
    if mask & !wanted != 0 {
        let what = format!("bar.warp.sync of lanes {wanted:#010x} by lanes {mask:#010x}");
        return state.fatal(run, Kind::Lanes, ins.place, thread, what);
    }
    if mask != warp.mask {
        // Under a guard: those it leaves out go on.
        warp.groups.push(Group { pc: warp.pc + 1, mask: warp.mask & !mask, waits_for: 0 });
        warp.mask = mask;
        warp.look = 0;
    }
    if wanted & warp.live & !mask == 0 {
        state.order.warp_barrier(warp.index, wanted & warp.live, warp.live);
        warp.pc += 1;
        return;
    }
    warp.groups.push(Group { pc: warp.pc, mask, waits_for: wanted });
    warp.mask = 0;
    if release(warp) {
        state.order.warp_barrier(warp.index, wanted & warp.live, warp.live);
    }
    warp.look = 0;
    if warp.groups.iter().all(|g| g.waits_for != 0) {
        let what = format!("bar.warp.sync of lanes {wanted:#010x}, of which some never come");
        state.fatal(run, Kind::Deadlock, ins.place, thread, what);
    }
}

fn barrier(run: &Run<'_>, state: &mut State, warp: &mut Warp, ins: &Instruction, mask: u32) {
    let Op::Barrier { id, count, arrive, reduce, d, p, negate } = ins.op else { return };
    let lane = mask.trailing_zeros() as usize;
    if mask == warp.mask {
        let_go(&run.kernel.code, warp);
    }
    if mask != warp.live {
        let live = warp.live;
        let what = format!("divergent barrier: reached by lanes {mask:#010x} of {live:#010x}");
        return state.fatal(run, Kind::Divergence, ins.place, warp.index * 32 + lane, what);
    }
    let threads = run.config.block.iter().product::<u32>().next_multiple_of(32);
    let id = warp.words[id as usize][lane];
    let count = if count == NONE { threads } else { warp.words[count as usize][lane] };
    if arrive {
        let what = "bar.arrive is not supported".to_owned();
        return state.fatal(run, Kind::Deadlock, ins.place, warp.index * 32 + lane, what);
    }
    if id > 15 || count == 0 || count % 32 != 0 || count > threads {
        let what = format!("barrier {id} of {count} threads in a block of {threads}");
        return state.fatal(run, Kind::Divergence, ins.place, warp.index * 32 + lane, what);
    }
    if reduce != Reduce::No {
        let value = warp.predicates[p as usize];
        warp.votes = mask & if negate { !value } else { value };
    }
    warp.result = (d, ins.place);
    warp.pc += 1;
    warp.status = Status::Waiting { id, count };
}

/// Ends groups that have only their exit before them: a barrier does not wait for threads that return
/// early.
fn let_go(code: &[Instruction], warp: &mut Warp) {
    let mut gone = 0;
    for g in warp.groups.iter().filter(|g| g.waits_for == 0) {
        let mut pc = g.pc;
        while let Some(ins) = code.get(pc as usize).filter(|i| i.guard == NONE) {
            match ins.op {
                // Only forwards: this ends.
                Op::Branch { to } if to > pc => pc = to,
                Op::Exit | Op::Return => {
                    gone |= g.mask;
                    break;
                }
                _ => break,
            }
        }
    }
    if gone != 0 {
        warp.live &= !gone;
        warp.groups.retain(|g| g.mask & gone == 0);
        warp.look = 0;
    }
}

fn branch_index(
    run: &Run<'_>,
    state: &mut State,
    warp: &mut Warp,
    ins: &Instruction,
    mask: u32,
    table: &[u32],
    a: Row,
) {
    let index = warp.words[a as usize];
    for lane in lanes(mask) {
        let Some(&to) = table.get(index[lane] as usize) else {
            let what = "an indexed branch beyond its table".to_owned();
            return state.fatal(run, Kind::Bounds, ins.place, warp.index * 32 + lane, what);
        };
        warp.groups.push(Group { pc: to, mask: 1 << lane, waits_for: 0 });
    }
    warp.mask &= !mask;
    warp.pc += 1;
    warp.look = 0;
}
