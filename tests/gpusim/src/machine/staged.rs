//! What brings tiles into registers: asynchronous copies to shared memory, and ldmatrix out of it.

use std::sync::atomic::Ordering::Relaxed;

use super::access::{Request, lanes};
use super::alu::{Words, put};
use super::worker::{Copy, Kind, Run, State, Warp};
use crate::ptx::instruction::{NONE, Row, Space};

/// cp.async: the bytes are taken now, but land when the copy is waited for.
pub fn copy_async(
    run: &Run<'_>,
    state: &mut State,
    warp: &mut Warp,
    to: Request,
    from: [u64; 32],
    bytes: usize,
    source_bytes: &Words,
) {
    let mut mask = state.aligned(run, warp.index, &to, bytes);
    state.counters.shared(&to.at, mask, bytes);
    mask = state.in_shared(run, warp.index, &to, mask, bytes);
    let mut copy = Copy { mask, group: warp.commits, to: [0; 32], bytes, data: [[0; 16]; 32] };
    let mut reads = 0;
    for lane in lanes(mask) {
        let offset = to.at[lane] as usize;
        copy.to[lane] = offset as u32;
        reads |= u32::from(source_bytes[lane] != 0) << lane;
        if run.check {
            let me = (warp.index * 32 + lane) as u16;
            if let Some(wrong) = state.shared.check_write(offset, bytes, me, false, false, &state.order) {
                state.shared_wrong(run, wrong, to.place, usize::from(me), to.at[lane]);
            }
            state.shared.set_pending(offset, bytes, true, me, state.order.now);
        }
    }
    let source = Request { space: Space::Global, at: from, mask: reads, place: to.place };
    let mut rest = state.aligned(run, warp.index, &source, bytes);
    let distinct = state.counters.global(&from, rest, bytes as u64);
    state.counters.global_load_bytes += distinct;
    let least = lanes(rest).map(|l| source_bytes[l] as usize).min().unwrap_or(0).min(bytes).max(1);
    while let Some((index, found)) =
        state.next_allocation(run, warp.index, &source, &mut rest, least, "asynchronous read")
    {
        let a = &run.memory.allocations[index];
        a.used.store(true, Relaxed);
        for lane in lanes(found) {
            let offset = (from[lane] - a.address) as usize;
            let n = (source_bytes[lane] as usize).min(bytes);
            let thread = warp.index * 32 + lane;
            if offset + n > a.bytes {
                let what = format!("asynchronous read of {n} bytes, {}", run.memory.describe(from[lane]));
                state.fault(run, Kind::Bounds, to.place, thread, what);
                continue;
            }
            if run.check {
                let who = state.who(run, warp.index, lane);
                let wrong = if n == bytes {
                    a.check_read(offset, n, who)
                } else {
                    (offset..offset + n).find_map(|o| a.check_read(o, 1, who))
                };
                if let Some(wrong) = wrong {
                    state.wrong(run, wrong, "global", to.place, thread, from[lane]);
                }
            }
            if n == 16 {
                copy.data[lane][..8].copy_from_slice(&a.load(offset, 8).to_le_bytes());
                copy.data[lane][8..].copy_from_slice(&a.load(offset + 8, 8).to_le_bytes());
            } else {
                for i in 0..n {
                    copy.data[lane][i] = a.load(offset + i, 1) as u8;
                }
            }
        }
    }
    warp.copies.push(copy);
}

/// The copies of these lanes land, but for their newest `left` groups; `None`: all, also of no group yet.
pub fn copy_wait(run: &Run<'_>, state: &mut State, warp: &mut Warp, mask: u32, left: Option<u32>) {
    let mut copies = std::mem::take(&mut warp.copies);
    for copy in &mut copies {
        for lane in lanes(copy.mask & mask) {
            let lands = left.is_none_or(|left| copy.group[lane] + left < warp.commits[lane]);
            if lands {
                copy.mask &= !(1 << lane);
                let at = copy.to[lane] as usize;
                state.shared.bytes_mut()[at..at + copy.bytes].copy_from_slice(&copy.data[lane][..copy.bytes]);
                if run.check {
                    let me = (warp.index * 32 + lane) as u16;
                    state.shared.set_pending(at, copy.bytes, false, me, state.order.now);
                }
            }
        }
    }
    copies.retain(|c| c.mask != 0);
    warp.copies = copies;
}

/// Row addresses from lanes 0 to 8·count, fragments out.
pub fn load_matrices(
    run: &Run<'_>,
    state: &mut State,
    warp: &mut Warp,
    r: &Request,
    d: &[Row],
    transposed: bool,
) {
    let rows = if d.len() == 4 { u32::MAX } else { (1 << (8 * d.len())) - 1 };
    let r = Request { space: Space::Shared, at: r.at, mask: rows, place: r.place };
    let mask = state.aligned(run, warp.index, &r, 16);
    let mask = state.in_shared(run, warp.index, &r, mask, 16);
    for (i, &row) in d.iter().enumerate() {
        state.counters.shared_accesses += 1;
        state.counters.turn(&r.at[8 * i..8 * i + 8], 255, 16);
        // Two columns a word.
        let mut matrix = [[0u32; 4]; 8];
        for lane in lanes(mask & 255 << (8 * i)) {
            let offset = r.at[lane] as usize;
            if run.check {
                let me = (warp.index * 32 + lane) as u16;
                if let Some(wrong) = state.shared.check_read(offset, 16, me, true, &state.order) {
                    state.shared_wrong(run, wrong, r.place, usize::from(me), r.at[lane]);
                }
            }
            let (low, high) = (state.shared.load(offset, 8), state.shared.load(offset + 8, 8));
            matrix[lane - 8 * i] = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
        }
        let mut out = [0u32; 32];
        for (lane, value) in out.iter_mut().enumerate() {
            let (row, pair) = (lane / 4, lane % 4);
            *value = if transposed {
                let half = |r: usize| matrix[r][row / 2] >> (16 * (row % 2)) & 0xffff;
                half(2 * pair) | half(2 * pair + 1) << 16
            } else {
                matrix[row][pair]
            };
        }
        if row != NONE {
            put(&mut warp.words[row as usize], out, u32::MAX);
        }
    }
}
