//! How many blocks of a kernel a multiprocessor holds at once: a pure function of what the kernel takes
//! and what the architecture has.
//!
//! Figures: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; rounding as in
//! NVIDIA's occupancy calculator.

/// What a multiprocessor of one architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiprocessor {
    pub warps: u32,
    pub blocks: u32,
    pub registers: u32,
    /// Shared memory at its largest, bytes.
    pub shared: u32,
    /// Of it taken by the system for each block.
    pub reserved: u32,
    /// Shared memory is given in multiples of this.
    pub shared_grain: u32,
}

const REGISTERS: u32 = 65_536;
/// Registers are given to a warp in multiples of this.
const REGISTER_GRAIN: u32 = 256;
/// A multiprocessor has four parts with a quarter of the registers each.
const PARTS: u32 = 4;
const WARP: u32 = 32;
const KIB: u32 = 1024;

/// `None` for an architecture that is not in the table.
pub fn multiprocessor(arch: u32) -> Option<Multiprocessor> {
    let (warps, blocks, shared_kib) = match arch {
        75 => (32, 16, 64),
        80 => (64, 32, 164),
        86 => (48, 16, 100),
        89 => (48, 24, 100),
        90 | 100 => (64, 32, 228),
        120 => (48, 24, 100),
        _ => return None,
    };
    let (reserved, shared_grain) = if arch >= 80 { (KIB, 128) } else { (0, 256) };
    Some(Multiprocessor {
        warps,
        blocks,
        registers: REGISTERS,
        shared: shared_kib * KIB,
        reserved,
        shared_grain,
    })
}

/// What one kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub threads: u32,
    /// Per thread.
    pub registers: u32,
    /// Static and dynamic shared memory of a block, bytes.
    pub shared: u32,
}

/// What a multiprocessor holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    pub blocks: u32,
    pub warps: u32,
    /// What more blocks would lack.
    pub limit: &'static str,
}

pub fn occupancy(sm: &Multiprocessor, needs: &Needs) -> Occupancy {
    let warps = needs.threads.div_ceil(WARP).max(1);
    let registers = (needs.registers.max(1) * WARP).next_multiple_of(REGISTER_GRAIN);
    let shared = (needs.shared + sm.reserved).next_multiple_of(sm.shared_grain);
    let by_registers = sm.registers / PARTS / registers * PARTS / warps;
    let by_shared = sm.shared.checked_div(shared).unwrap_or(sm.blocks);
    let limits = [
        (sm.warps / warps, "warps"),
        (by_registers, "registers"),
        (by_shared, "shared memory"),
        (sm.blocks, "blocks"),
    ];
    let (blocks, limit) = limits.into_iter().min_by_key(|(blocks, _)| *blocks).unwrap_or((0, "warps"));
    Occupancy { blocks, warps: blocks * warps, limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(arch: u32, threads: u32, registers: u32, shared: u32) -> (u32, u32, &'static str) {
        let o = occupancy(&multiprocessor(arch).unwrap(), &Needs { threads, registers, shared });
        (o.blocks, o.warps, o.limit)
    }

    #[test]
    fn small_kernels_fill_the_multiprocessor_with_warps() {
        assert_eq!(on(75, 256, 32, 0), (4, 32, "warps"));
        assert_eq!(on(80, 256, 32, 0), (8, 64, "warps"));
        assert_eq!(on(86, 256, 32, 0), (6, 48, "warps"));
    }

    #[test]
    fn one_warp_blocks_end_at_the_number_of_blocks() {
        assert_eq!([75, 80, 86, 89, 90, 100, 120].map(|a| on(a, 32, 16, 0).0), [16, 32, 16, 24, 32, 32, 24]);
        assert_eq!(on(80, 32, 16, 0).2, "blocks");
    }

    #[test]
    fn registers_are_given_to_warps_in_whole_grains() {
        // 126 registers are rounded up to 128: 16 warps on a multiprocessor, 4 blocks of 4.
        assert_eq!(on(80, 128, 126, 0), (4, 16, "registers"));
        // 255 registers: 8192 a warp, two warps on each part.
        assert_eq!(on(80, 128, 255, 0), (2, 8, "registers"));
        assert_eq!(on(80, 1024, 65, 0).0, 0, "a block that does not fit at all");
    }

    #[test]
    fn shared_memory_counts_what_the_system_takes_with_each_block() {
        // 48 KiB and the reserved one: 3 × 49 ≤ 164, 2 × 49 ≤ 100.
        assert_eq!(on(80, 128, 32, 48 * KIB), (3, 12, "shared memory"));
        assert_eq!(on(86, 128, 32, 48 * KIB).0, 2);
        // Turing takes none for itself.
        assert_eq!(on(75, 128, 32, 32 * KIB).0, 2);
    }

    #[test]
    fn an_architecture_that_is_not_in_the_table_has_no_figures() {
        assert_eq!(multiprocessor(70), None);
    }
}
