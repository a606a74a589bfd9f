//! Loads, stores and atomics: one request of a warp at a time, checked.

use std::sync::atomic::Ordering::Relaxed;

use super::global::{Who, Wrong};
use super::memory::Allocation;
use super::shared::{Order, Shared, SharedWrong};
use super::worker::{Kind, Run, State, Warp};
use crate::ptx::instruction::{Address, Atomic, NONE, Row, Space, Type};

/// Where other spaces lie in the generic one.
pub const SHARED_WINDOW: u64 = 0x0100_0000_0000;
pub const LOCAL_WINDOW: u64 = 0x0200_0000_0000;
pub const PARAM_WINDOW: u64 = 0x0300_0000_0000;
const WINDOW: u64 = 0x0100_0000_0000;

pub fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Generic => 0,
    }
}

pub fn space_of(address: u64) -> Space {
    match address & !(WINDOW - 1) {
        SHARED_WINDOW => Space::Shared,
        LOCAL_WINDOW => Space::Local,
        PARAM_WINDOW => Space::Param,
        _ => Space::Global,
    }
}

/// One request.
pub struct Request {
    pub space: Space,
    pub at: [u64; 32],
    pub mask: u32,
    pub place: u32,
}

#[inline(always)]
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}

#[inline(always)]
pub fn addresses(warp: &Warp, at: Address) -> [u64; 32] {
    if at.base == NONE {
        return [at.offset as u64; 32];
    }
    let mut out = [0; 32];
    if at.double {
        let base = &warp.doubles[at.base as usize];
        for i in 0..32 {
            out[i] = base[i].wrapping_add(at.offset as u64);
        }
    } else {
        let base = &warp.words[at.base as usize];
        for i in 0..32 {
            out[i] = u64::from(base[i].wrapping_add(at.offset as u32));
        }
    }
    out
}

/// Splits a generic request into those of the spaces that its lanes name.
fn each_space(mut request: Request, mut each: impl FnMut(Request)) {
    if request.space != Space::Generic {
        return each(request);
    }
    while request.mask != 0 {
        let space = space_of(request.at[request.mask.trailing_zeros() as usize]);
        let mut mask = 0;
        let mut at = request.at;
        for lane in lanes(request.mask) {
            if space_of(request.at[lane]) == space {
                mask |= 1 << lane;
                at[lane] = request.at[lane].wrapping_sub(window(space));
            }
        }
        request.mask &= !mask;
        each(Request { space, at, mask, place: request.place });
    }
}

impl State {
    /// The lanes whose address is a multiple of `bytes`.
    #[inline(always)]
    pub(super) fn aligned(&mut self, run: &Run<'_>, warp: usize, r: &Request, bytes: usize) -> u32 {
        let low = bytes as u64 - 1;
        let mut bad = 0u32;
        for i in 0..32 {
            bad |= u32::from(r.at[i] & low != 0) << i;
        }
        bad &= r.mask;
        if bad != 0 {
            let lane = bad.trailing_zeros() as usize;
            let what = format!("misaligned access: {bytes} bytes at {:#x}", r.at[lane]);
            self.fault(run, Kind::Alignment, r.place, warp * 32 + lane, what);
        }
        r.mask & !bad
    }

    /// The allocation of the first lane, and the lanes in it; lanes in none are reported and left out.
    #[inline(always)]
    pub(super) fn next_allocation(
        &mut self,
        run: &Run<'_>,
        warp: usize,
        r: &Request,
        rest: &mut u32,
        bytes: usize,
        what: &str,
    ) -> Option<(usize, u32)> {
        while *rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            let found = run.memory.find(r.at[lane]);
            let Some(index) = found.filter(|i| {
                let a = &run.memory.allocations[*i];
                r.at[lane] - a.address + bytes as u64 <= a.bytes as u64
            }) else {
                *rest &= !(1 << lane);
                let at = r.at[lane];
                let text = format!("{what} of {bytes} bytes at {at:#x}, {}", run.memory.describe(at));
                self.fault(run, Kind::Bounds, r.place, warp * 32 + lane, text);
                continue;
            };
            let a = &run.memory.allocations[index];
            let last = (a.bytes - bytes) as u64;
            let mut inside = 0u32;
            for i in 0..32 {
                inside |= u32::from(r.at[i].wrapping_sub(a.address) <= last) << i;
            }
            inside &= *rest;
            *rest &= !inside;
            return Some((index, inside));
        }
        None
    }

    /// The lanes whose bytes lie in a shared variable.
    #[inline(always)]
    pub(super) fn in_shared(
        &mut self,
        run: &Run<'_>,
        warp: usize,
        r: &Request,
        mask: u32,
        bytes: usize,
    ) -> u32 {
        let mut good = 0;
        for lane in lanes(mask) {
            if self.shared.inside(r.at[lane], bytes) {
                good |= 1 << lane;
            } else {
                let what = format!("{bytes} bytes of shared memory at {:#x}, in no variable", r.at[lane]);
                self.fault(run, Kind::Bounds, r.place, warp * 32 + lane, what);
            }
        }
        good
    }

    /// Checks the lanes' accesses to an allocation, by their offsets in it.
    #[inline(always)]
    fn check_global(
        &mut self,
        run: &Run<'_>,
        warp: usize,
        r: &Request,
        allocation: &Allocation,
        mask: u32,
        check: impl Fn(usize, Who) -> Option<Wrong>,
    ) {
        if !run.check {
            return;
        }
        allocation.used.store(true, Relaxed);
        for lane in lanes(mask) {
            let who = self.who(run, warp, lane);
            if let Some(wrong) = check((r.at[lane] - allocation.address) as usize, who) {
                self.wrong(run, wrong, "global", r.place, warp * 32 + lane, r.at[lane]);
            }
        }
    }

    /// Checks a lane's access to shared memory.
    #[inline(always)]
    fn check_shared(
        &mut self,
        run: &Run<'_>,
        warp: usize,
        r: &Request,
        lane: usize,
        check: impl FnOnce(&mut Shared, &Order, u16) -> Option<SharedWrong>,
    ) {
        if !run.check {
            return;
        }
        let thread = warp * 32 + lane;
        if let Some(wrong) = check(&mut self.shared, &self.order, thread as u16) {
            self.shared_wrong(run, wrong, r.place, thread, r.at[lane]);
        }
    }

    /// Where a lane's bytes lie in the local memory of its warp; outside of it is reported.
    fn local_at(
        &mut self,
        run: &Run<'_>,
        warp: usize,
        lane: usize,
        r: &Request,
        bytes: usize,
    ) -> Option<usize> {
        let each = run.kernel.local_bytes;
        if r.at[lane].saturating_add(bytes as u64) > each as u64 {
            self.outside(run, warp, lane, r, "local");
            return None;
        }
        Some(lane * each + r.at[lane] as usize)
    }

    fn outside(&mut self, run: &Run<'_>, warp: usize, lane: usize, r: &Request, space: &str) {
        let what = format!("access outside {space} memory at {:#x}", r.at[lane]);
        self.fault(run, Kind::Bounds, r.place, warp * 32 + lane, what);
    }
}

/// Where a vector load puts its parts.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    pub ty: Type,
    pub rows: &'a [Row],
    pub double: bool,
}

impl Shape<'_> {
    #[inline(always)]
    fn set(&self, warp: &mut Warp, part: usize, lane: usize, value: u64) {
        let row = self.rows[part];
        if row == NONE {
            return;
        }
        let value = match self.ty {
            Type::S8 => value as i8 as u64,
            Type::S16 => value as i16 as u64,
            Type::S32 => value as i32 as u64,
            _ => value,
        };
        if self.double {
            warp.doubles[row as usize][lane] = value;
        } else {
            warp.words[row as usize][lane] = value as u32;
        }
    }

    #[inline(always)]
    fn get(&self, warp: &Warp, part: usize, lane: usize) -> u64 {
        let row = self.rows[part] as usize;
        if self.double { warp.doubles[row][lane] } else { u64::from(warp.words[row][lane]) }
    }
}

pub fn load(run: &Run<'_>, state: &mut State, warp: &mut Warp, request: Request, shape: Shape<'_>) {
    let (size, count) = (shape.ty.bytes(), shape.rows.len());
    let bytes = size * count;
    each_space(request, |mut r| {
        r.mask = state.aligned(run, warp.index, &r, bytes);
        match r.space {
            Space::Global => {
                let distinct = state.counters.global(&r.at, r.mask, bytes as u64);
                state.counters.global_load_bytes += distinct;
                let mut rest = r.mask;
                while let Some((index, mask)) =
                    state.next_allocation(run, warp.index, &r, &mut rest, bytes, "read")
                {
                    let a = &run.memory.allocations[index];
                    state.check_global(run, warp.index, &r, a, mask, |offset, who| {
                        a.check_read(offset, bytes, who)
                    });
                    for part in 0..count {
                        for lane in lanes(mask) {
                            let offset = (r.at[lane] - a.address) as usize + part * size;
                            shape.set(warp, part, lane, a.load(offset, size));
                        }
                    }
                }
            }
            Space::Shared => {
                state.counters.shared(&r.at, r.mask, bytes);
                let mask = state.in_shared(run, warp.index, &r, r.mask, bytes);
                for lane in lanes(mask) {
                    let offset = r.at[lane] as usize;
                    state.check_shared(run, warp.index, &r, lane, |shared, order, me| {
                        shared.check_read(offset, bytes, me, false, order)
                    });
                    for part in 0..count {
                        let value = state.shared.load(offset + part * size, size);
                        shape.set(warp, part, lane, value);
                    }
                }
            }
            Space::Param => {
                for lane in lanes(r.mask) {
                    let at = r.at[lane] as usize;
                    let Some(all) = run.params.get(at..at + bytes) else {
                        state.outside(run, warp.index, lane, &r, "parameter");
                        continue;
                    };
                    for (part, value) in all.chunks(size).enumerate() {
                        let mut word = [0; 8];
                        word[..size].copy_from_slice(value);
                        shape.set(warp, part, lane, u64::from_le_bytes(word));
                    }
                }
            }
            _ => {
                for lane in lanes(r.mask) {
                    let Some(at) = state.local_at(run, warp.index, lane, &r, bytes) else { continue };
                    for part in 0..count {
                        let mut word = [0; 8];
                        word[..size].copy_from_slice(&warp.local[at + part * size..][..size]);
                        shape.set(warp, part, lane, u64::from_le_bytes(word));
                    }
                }
            }
        }
    });
}

pub fn store(run: &Run<'_>, state: &mut State, warp: &mut Warp, request: Request, shape: Shape<'_>) {
    let (size, count) = (shape.ty.bytes(), shape.rows.len());
    let bytes = size * count;
    each_space(request, |mut r| {
        r.mask = state.aligned(run, warp.index, &r, bytes);
        match r.space {
            Space::Global => {
                let distinct = state.counters.global(&r.at, r.mask, bytes as u64);
                state.counters.global_store_bytes += distinct;
                if run.check && distinct < u64::from(r.mask.count_ones()) * bytes as u64 {
                    lockstep(run, state, warp, &r, shape);
                }
                let mut rest = r.mask;
                while let Some((index, mask)) =
                    state.next_allocation(run, warp.index, &r, &mut rest, bytes, "write")
                {
                    let a = &run.memory.allocations[index];
                    state.check_global(run, warp.index, &r, a, mask, |offset, who| {
                        a.check_write(offset, bytes, who, false)
                    });
                    for part in 0..count {
                        for lane in lanes(mask) {
                            let offset = (r.at[lane] - a.address) as usize + part * size;
                            a.store(offset, size, shape.get(warp, part, lane));
                        }
                    }
                }
            }
            Space::Shared => {
                state.counters.shared(&r.at, r.mask, bytes);
                let mask = state.in_shared(run, warp.index, &r, r.mask, bytes);
                let ones = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
                for lane in lanes(mask) {
                    let offset = r.at[lane] as usize;
                    state.check_shared(run, warp.index, &r, lane, |shared, order, me| {
                        let kept = |part| {
                            shared.load(offset + part * size, size) == shape.get(warp, part, lane) & ones
                        };
                        let same = (0..count).all(kept);
                        shared.check_write(offset, bytes, me, same, false, order)
                    });
                    for part in 0..count {
                        state.shared.store(offset + part * size, size, shape.get(warp, part, lane));
                    }
                }
            }
            Space::Local => {
                for lane in lanes(r.mask) {
                    let Some(at) = state.local_at(run, warp.index, lane, &r, bytes) else { continue };
                    for part in 0..count {
                        let value = shape.get(warp, part, lane).to_le_bytes();
                        warp.local[at + part * size..][..size].copy_from_slice(&value[..size]);
                    }
                }
            }
            _ => {
                for lane in lanes(r.mask) {
                    state.outside(run, warp.index, lane, &r, "writable");
                }
            }
        }
    });
}

/// Lanes of one instruction that write different values to the same place.
#[cold]
fn lockstep(run: &Run<'_>, state: &mut State, warp: &Warp, r: &Request, shape: Shape<'_>) {
    for lane in lanes(r.mask) {
        for other in lanes(r.mask & ((1 << lane) - 1)) {
            let different =
                (0..shape.rows.len()).any(|p| shape.get(warp, p, lane) != shape.get(warp, p, other));
            if r.at[lane] == r.at[other] && different {
                let thread = warp.index * 32 + lane;
                return state.wrong(run, Wrong::Atomicity, "global", r.place, thread, r.at[lane]);
            }
        }
    }
}

fn apply(op: Atomic, bytes: usize, old: u64, a: u64, b: u64) -> u64 {
    let narrow = |v: u64| if bytes == 4 { v & 0xffff_ffff } else { v };
    let signed = |v: u64| if bytes == 4 { i64::from(v as i32) } else { v as i64 };
    narrow(match op {
        Atomic::Add => old.wrapping_add(a),
        Atomic::AddFloat if bytes == 4 => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(a as u32)).to_bits())
        }
        Atomic::AddFloat => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        Atomic::Min => old.min(a),
        Atomic::Max => old.max(a),
        Atomic::MinSigned => signed(old).min(signed(a)) as u64,
        Atomic::MaxSigned => signed(old).max(signed(a)) as u64,
        Atomic::And => old & a,
        Atomic::Or => old | a,
        Atomic::Xor => old ^ a,
        Atomic::Exchange => a,
        Atomic::Compare => {
            if old == a {
                b
            } else {
                old
            }
        }
        Atomic::Inc => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        Atomic::Dec => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    })
}

/// Operands of an atomic.
pub struct AtomicOperands {
    pub op: Atomic,
    pub ty: Type,
    pub d: Row,
    pub a: Row,
    pub b: Row,
}

pub fn atomic(run: &Run<'_>, state: &mut State, warp: &mut Warp, request: Request, o: &AtomicOperands) {
    let bytes = o.ty.bytes();
    let (a, b, d) = ([o.a], [o.b], [o.d]);
    let operand = |rows| Shape { ty: o.ty, rows, double: bytes == 8 };
    each_space(request, |mut r| {
        r.mask = state.aligned(run, warp.index, &r, bytes);
        let one = |old, warp: &Warp, lane| {
            let second = if o.b == NONE { 0 } else { operand(&b).get(warp, 0, lane) };
            apply(o.op, bytes, old, operand(&a).get(warp, 0, lane), second)
        };
        match r.space {
            Space::Global => {
                let distinct = state.counters.global(&r.at, r.mask, bytes as u64);
                state.counters.global_store_bytes += distinct;
                let mut rest = r.mask;
                while let Some((index, mask)) =
                    state.next_allocation(run, warp.index, &r, &mut rest, bytes, "atomic")
                {
                    let allocation = &run.memory.allocations[index];
                    let check = |offset, who| allocation.check_write(offset, bytes, who, true);
                    state.check_global(run, warp.index, &r, allocation, mask, check);
                    for lane in lanes(mask) {
                        let offset = (r.at[lane] - allocation.address) as usize;
                        let old = if bytes == 4 {
                            let step = |old| Some(one(u64::from(old), warp, lane) as u32);
                            let found = allocation.data.u32(offset).fetch_update(Relaxed, Relaxed, step);
                            u64::from(found.unwrap_or_else(|v| v))
                        } else {
                            let step = |old| Some(one(old, warp, lane));
                            let found = allocation.data.u64(offset).fetch_update(Relaxed, Relaxed, step);
                            found.unwrap_or_else(|v| v)
                        };
                        operand(&d).set(warp, 0, lane, old);
                    }
                }
            }
            Space::Shared => {
                state.counters.shared(&r.at, r.mask, bytes);
                let mask = state.in_shared(run, warp.index, &r, r.mask, bytes);
                for lane in lanes(mask) {
                    let offset = r.at[lane] as usize;
                    state.check_shared(run, warp.index, &r, lane, |shared, order, me| {
                        shared.check_write(offset, bytes, me, false, true, order)
                    });
                    let old = state.shared.load(offset, bytes);
                    state.shared.store(offset, bytes, one(old, warp, lane));
                    operand(&d).set(warp, 0, lane, old);
                }
            }
            _ => {
                for lane in lanes(r.mask) {
                    state.outside(run, warp.index, lane, &r, "atomic");
                }
            }
        }
    });
}
