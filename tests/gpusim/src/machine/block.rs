//! Blocks of a launch: which warp runs next, and barriers.

use super::Order;
use super::warp;
use super::worker::{Kind, Run, Status, Worker};
use crate::ptx::instruction::{NONE, Op, Reduce};

/// xorshift64*
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % n.max(1)
    }
}

pub fn run_block(run: &Run<'_>, worker: &mut Worker, block: u64, order: Order) {
    let grid = run.config.grid;
    let [x, y] = [u64::from(grid[0]), u64::from(grid[1])];
    let at = [(block % x) as u32, (block / x % y) as u32, (block / x / y) as u32];
    worker.start_block(run, at, block as u32);
    let mut random = match order {
        Order::Random(seed) => Some(Random::new(seed ^ block)),
        _ => None,
    };
    let n = worker.warps.len();
    loop {
        let pick = match (&mut random, order) {
            (Some(random), _) => {
                let start = random.below(n);
                (0..n).map(|i| (start + i) % n).find(|w| worker.warps[*w].status == Status::Ready)
            }
            (None, Order::Reverse) => {
                (0..n).map(|i| n - 1 - i).find(|w| worker.warps[*w].status == Status::Ready)
            }
            _ => (0..n).find(|w| worker.warps[*w].status == Status::Ready),
        };
        match pick {
            Some(index) => {
                warp::run(run, &mut worker.state, &mut worker.warps[index]);
                if worker.state.dead {
                    return;
                }
            }
            None => {
                if worker.warps.iter().all(|w| w.status == Status::Done) {
                    return;
                }
                if !release(run, worker) {
                    return;
                }
            }
        }
    }
}

/// Opens the barriers that have all they wait for. `false`: none has, the block hangs.
fn release(run: &Run<'_>, worker: &mut Worker) -> bool {
    let mut opened = false;
    let done = worker.warps.iter().filter(|w| w.status == Status::Done).count();
    for id in 0..16 {
        let waiting: Vec<usize> = (0..worker.warps.len())
            .filter(|w| matches!(worker.warps[*w].status, Status::Waiting { id: i, .. } if i == id))
            .collect();
        let Some(&first) = waiting.first() else { continue };
        let Status::Waiting { count, .. } = worker.warps[first].status else { continue };
        let all = worker.warps.len();
        // Warps that have ended count as arrived at a barrier of all threads.
        let arrived = if count as usize == all * 32 { waiting.len() + done } else { waiting.len() };
        let agree = waiting.iter().all(|w| worker.warps[*w].status == Status::Waiting { id, count });
        if !agree || arrived * 32 != count as usize {
            continue;
        }
        opened = true;
        if waiting.len() + done == all {
            let members: Vec<usize> = (0..all).collect();
            worker.state.order.barrier(&members);
        } else {
            worker.state.order.barrier(&waiting);
        }
        worker.state.interval += 1;
        finish(run, worker, &waiting);
    }
    if !opened {
        let stuck = worker.warps.iter().find(|w| matches!(w.status, Status::Waiting { .. }));
        if let Some((index, place)) = stuck.map(|w| (w.index, w.result.1)) {
            let waiting = worker.warps.iter().filter(|w| w.status != Status::Done).count();
            let what = format!("deadlock: {waiting} warps wait at barriers that will never open");
            worker.state.fatal(run, Kind::Deadlock, place, index * 32, what);
        }
    }
    opened
}

fn finish(run: &Run<'_>, worker: &mut Worker, waiting: &[usize]) {
    let reduces = |w: usize| match &run.kernel.code[worker.warps[w].pc as usize - 1].op {
        Op::Barrier { reduce, .. } => *reduce,
        _ => Reduce::No,
    };
    let kind = waiting.first().map_or(Reduce::No, |w| reduces(*w));
    let yes: u32 = waiting.iter().map(|w| worker.warps[*w].votes.count_ones()).sum();
    let all: u32 = waiting.iter().map(|w| worker.warps[*w].live.count_ones()).sum();
    for &index in waiting {
        let warp = &mut worker.warps[index];
        warp.status = Status::Ready;
        let (d, live) = (warp.result.0, warp.live);
        if d == NONE {
            continue;
        }
        let holds = match kind {
            Reduce::No => continue,
            Reduce::Popc => {
                super::alu::put(&mut warp.words[d as usize], [yes; 32], live);
                continue;
            }
            Reduce::And => yes == all,
            Reduce::Or => yes > 0,
        };
        let p = &mut warp.predicates[d as usize];
        *p = *p & !live | if holds { live } else { 0 };
    }
}
