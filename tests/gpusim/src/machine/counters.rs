//! What a launch did, counted per warp instruction and per warp request.

use std::ops::AddAssign;

use crate::ptx::instruction::Class;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions, by class.
    pub integer: u64,
    pub float: u64,
    pub half: u64,
    pub memory: u64,
    pub control: u64,
    pub special: u64,
    /// Warp-wide matrix products, in halves of m16n8k16 while counting; whole ones when reported.
    pub mma: u64,
    /// Distinct bytes of each warp request.
    pub global_load_bytes: u64,
    pub global_store_bytes: u64,
    /// 32-byte sectors touched, summed over warp requests.
    pub sectors: u64,
    pub shared_accesses: u64,
    /// Cycles that shared accesses take beyond those without bank conflicts.
    pub shared_bank_conflicts: u64,
}

impl Counters {
    pub(super) fn count(&mut self, class: Class) {
        match class {
            Class::Integer => self.integer += 1,
            Class::Float => self.float += 1,
            Class::Half => self.half += 1,
            Class::Memory => self.memory += 1,
            Class::Control => self.control += 1,
            Class::Special => self.special += 1,
            // Counted with its size, by the instruction.
            Class::Mma => {}
        }
    }

    /// Of one request to global memory: the distinct bytes.
    pub(super) fn global(&mut self, addresses: &[u64; 32], mask: u32, bytes: u64) -> u64 {
        let (mut previous, mut sector, mut sectors, mut lanes) = (None, u64::MAX, 0, 0);
        let mut ascending = true;
        for (i, &address) in addresses.iter().enumerate() {
            if mask >> i & 1 == 0 {
                continue;
            }
            if let Some(previous) = previous {
                ascending &= address >= previous + bytes;
            }
            previous = Some(address);
            lanes += 1;
            for s in address >> 5..=(address + bytes - 1) >> 5 {
                if s != sector {
                    sectors += 1;
                    sector = s;
                }
            }
        }
        if ascending {
            self.sectors += sectors;
            return lanes * bytes;
        }
        let mut sorted = [0; 32];
        let mut n = 0;
        for (i, &address) in addresses.iter().enumerate() {
            if mask >> i & 1 == 1 {
                sorted[n] = address;
                n += 1;
            }
        }
        let sorted = &mut sorted[..n];
        sorted.sort_unstable();
        let (mut end, mut distinct, mut next_sector) = (0, 0, 0);
        for &address in &*sorted {
            let first = address.max(end);
            distinct += (address + bytes).saturating_sub(first);
            end = end.max(address + bytes);
            let first = (address >> 5).max(next_sector);
            let past = ((address + bytes - 1) >> 5) + 1;
            self.sectors += past.saturating_sub(first);
            next_sector = next_sector.max(past);
        }
        distinct
    }

    /// Of one request to shared memory. Lanes that share a 4-byte word share its cycle; 8 and 16 bytes a
    /// lane take two and four turns of 16 and 8 lanes.
    pub(super) fn shared(&mut self, addresses: &[u64; 32], mask: u32, bytes: usize) {
        self.shared_accesses += 1;
        let lanes = match bytes {
            16 => 8,
            8 => 16,
            _ => 32,
        };
        for turn in 0..32 / lanes {
            self.turn(&addresses[turn * lanes..(turn + 1) * lanes], mask >> (turn * lanes), bytes);
        }
    }

    pub(super) fn turn(&mut self, addresses: &[u64], mask: u32, bytes: usize) {
        // Most requests: every word in another bank, or all the same word.
        let words = bytes.div_ceil(4) as u64;
        let (mut banks, mut distinct, mut last) = (0u32, true, u64::MAX);
        for (i, &address) in addresses.iter().enumerate() {
            let word = address >> 2;
            if mask >> i & 1 == 0 || word == last {
                continue;
            }
            last = word;
            let mine = (((1u64 << words) - 1) as u32).rotate_left((word & 31) as u32);
            distinct &= banks & mine == 0;
            banks |= mine;
        }
        if distinct {
            return;
        }
        let mut list = [0u64; 32];
        let mut n = 0;
        for (i, &address) in addresses.iter().enumerate() {
            if mask >> i & 1 == 1 {
                for word in 0..words {
                    if n < 32 {
                        list[n] = (address >> 2) + word;
                        n += 1;
                    }
                }
            }
        }
        let list = &mut list[..n];
        list.sort_unstable();
        let (mut load, mut last) = ([0u8; 32], u64::MAX);
        for &word in &*list {
            if word != last {
                load[(word & 31) as usize] += 1;
            }
            last = word;
        }
        let most = load.iter().copied().max().unwrap_or(1);
        self.shared_bank_conflicts += u64::from(most.saturating_sub(1));
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, o: Self) {
        self.integer += o.integer;
        self.float += o.float;
        self.half += o.half;
        self.memory += o.memory;
        self.control += o.control;
        self.special += o.special;
        self.mma += o.mma;
        self.global_load_bytes += o.global_load_bytes;
        self.global_store_bytes += o.global_store_bytes;
        self.sectors += o.sectors;
        self.shared_accesses += o.shared_accesses;
        self.shared_bank_conflicts += o.shared_bank_conflicts;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(f: impl Fn(u64) -> u64) -> [u64; 32] {
        std::array::from_fn(|i| f(i as u64))
    }

    #[test]
    fn global_requests_count_sectors_and_distinct_bytes() {
        let count = |at: [u64; 32], mask, bytes| {
            let mut c = Counters::default();
            (c.global(&at, mask, bytes), c.sectors)
        };
        assert_eq!(count(lanes(|i| 256 + 4 * i), u32::MAX, 4), (128, 4));
        assert_eq!(count(lanes(|i| 260 + 4 * i), u32::MAX, 4), (128, 5), "not aligned to a sector");
        assert_eq!(count(lanes(|i| 256 + 4 * (31 - i)), u32::MAX, 4), (128, 4), "backwards");
        assert_eq!(count(lanes(|i| 256 + 32 * i), u32::MAX, 4), (128, 32));
        assert_eq!(count(lanes(|_| 256), u32::MAX, 4), (4, 1));
        assert_eq!(count(lanes(|i| 256 + 2 * (i / 2)), u32::MAX, 2), (32, 1));
        assert_eq!(count(lanes(|i| 256 + 16 * i), 0xff, 16), (128, 4));
    }

    #[test]
    fn shared_requests_count_the_cycles_that_banks_cost() {
        let count = |at: [u64; 32], mask, bytes| {
            let mut c = Counters::default();
            c.shared(&at, mask, bytes);
            c.shared_bank_conflicts
        };
        assert_eq!(count(lanes(|i| 4 * i), u32::MAX, 4), 0);
        assert_eq!(count(lanes(|_| 64), u32::MAX, 4), 0, "one word for all");
        assert_eq!(count(lanes(|i| 4 * (i / 2 * 2)), u32::MAX, 4), 0, "pairs share a word");
        assert_eq!(count(lanes(|i| 8 * i), u32::MAX, 4), 1);
        assert_eq!(count(lanes(|i| 128 * i), u32::MAX, 4), 31);
        assert_eq!(count(lanes(|i| 128 * i), 3, 4), 1, "two lanes");
        assert_eq!(count(lanes(|i| 132 * i), u32::MAX, 4), 0, "padded rows");
        assert_eq!(count(lanes(|i| 16 * i), u32::MAX, 16), 0);
        assert_eq!(count(lanes(|i| 128 * i), u32::MAX, 16), 4 * 7);
        assert_eq!(count(lanes(|i| 4 * (i % 2) + 256 * (i % 2)), u32::MAX, 4), 0, "two words in turn");
    }
}
