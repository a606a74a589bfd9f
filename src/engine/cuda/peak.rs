//! What a GPU can do at most, from its own clocks: by what times are to be judged.

/// As the device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// Compute capability times ten.
    pub arch: u32,
    pub multiprocessors: u32,
    pub core_khz: u32,
    pub memory_khz: u32,
    pub bus_bits: u32,
}

/// Upper bounds; consumer cards of 75, 86, 89 and 120 do products with fp32 sums at half this rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Tensor cores, fp16 with fp32 sums, dense, operations a second (a multiply-add is two).
    pub mma_flops: f64,
    /// fp32 multiply-adds of ordinary cores, operations a second.
    pub fp32_flops: f64,
    /// Bytes a second.
    pub bandwidth: f64,
}

/// Operations a clock and multiprocessor: tensor cores, ordinary cores. NVIDIA's architecture papers.
fn rates(arch: u32) -> Option<(f64, f64)> {
    match arch {
        75 => Some((1024.0, 128.0)),
        80 => Some((2048.0, 128.0)),
        86 | 87 | 89 | 120 | 121 => Some((1024.0, 256.0)),
        90 => Some((4096.0, 256.0)),
        100 | 103 => Some((8192.0, 256.0)),
        _ => None,
    }
}

/// `None` for an architecture whose rates are not known here.
pub fn peaks(clocks: &Clocks) -> Option<Peaks> {
    let (mma, fp32) = rates(clocks.arch)?;
    let clocks_a_second = f64::from(clocks.multiprocessors) * f64::from(clocks.core_khz) * 1e3;
    // Memory moves two bits a clock and wire.
    let bandwidth = f64::from(clocks.memory_khz) * 1e3 * 2.0 * f64::from(clocks.bus_bits) / 8.0;
    Some(Peaks { mma_flops: mma * clocks_a_second, fp32_flops: fp32 * clocks_a_second, bandwidth })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data sheets: tera-operations of tensor cores and of fp32, gigabytes a second.
    #[test]
    fn peaks_are_those_of_the_data_sheets() {
        let cards = [
            // T4, A100 40 GB, H100 SXM: multiprocessors, MHz, memory MHz, bits.
            (75, 40, 1590, 5001, 256, [65.0, 8.1, 320.0]),
            (80, 108, 1410, 1215, 5120, [312.0, 19.5, 1555.0]),
            (90, 132, 1830, 2619, 5120, [989.4, 61.9, 3352.0]),
        ];
        for (arch, multiprocessors, core, memory, bus_bits, sheet) in cards {
            let clocks =
                Clocks { arch, multiprocessors, core_khz: core * 1000, memory_khz: memory * 1000, bus_bits };
            let p = peaks(&clocks).unwrap();
            for (got, want) in [p.mma_flops / 1e12, p.fp32_flops / 1e12, p.bandwidth / 1e9].iter().zip(sheet)
            {
                // Sheets are rounded to about a percent.
                assert!((got / want - 1.0).abs() < 0.02, "{arch}: {got} {want}");
            }
        }
        let unknown = Clocks { arch: 70, multiprocessors: 1, core_khz: 1, memory_khz: 1, bus_bits: 1 };
        assert_eq!(peaks(&unknown), None);
    }
}
