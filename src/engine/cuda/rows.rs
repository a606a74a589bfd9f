//! Launches over the rows of pictures; the device side is `kernels/rows.cuh`.

use super::launch::{Arg, Launch, Typed};

/// Threads of a block.
const BLOCK: usize = 256;
/// Blocks along y that a grid may have.
const MOST_ROWS: usize = 65_535;

/// A launch of `per_row` threads for each of `rows` rows. A block takes several short rows, and goes on
/// to others where the grid has no place for all.
pub(super) fn launch(
    module: &'static str,
    kernel: &'static str,
    per_row: usize,
    rows: usize,
    args: Vec<Arg>,
) -> Launch {
    let x = per_row.next_power_of_two().min(BLOCK);
    let y = BLOCK / x;
    let grid = [per_row.div_ceil(x) as u32, rows.div_ceil(y).min(MOST_ROWS) as u32, 1];
    Launch { module, kernel, grid, block: [x as u32, y as u32, 1], shared: 0, args }
}

/// Channels that a thread takes at once: 16 bytes of fp16 where all tensors allow it.
pub(super) fn vector(channels: usize) -> usize {
    [8, 4].into_iter().find(|v| channels.is_multiple_of(*v)).unwrap_or(1)
}

/// True where rows and pixels can be counted in 32 bits, as the kernels do.
pub(super) fn countable(x: &Typed) -> bool {
    let [n, h, w, c] = x.shape.0;
    let fits = |a: usize, b: usize| a.checked_mul(b).is_some_and(|len| len < 1 << 31);
    fits(n, h) && fits(h, w) && fits(w, c)
}

/// `int`s of a kernel's struct, one after the other. What is `countable` fits.
pub(super) fn ints(values: &[usize]) -> Vec<u8> {
    values.iter().flat_map(|v| (*v as i32).to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rows_share_a_block_and_long_ones_take_several() {
        let shape = |per_row, rows| {
            let launch = launch("pool", "pool_1", per_row, rows, vec![]);
            (launch.grid, launch.block)
        };
        assert_eq!(shape(1, 1000), ([1, 4, 1], [1, 256, 1]));
        assert_eq!(shape(33, 7), ([1, 2, 1], [64, 4, 1]));
        assert_eq!(shape(600, 7), ([3, 7, 1], [256, 1, 1]));
        assert_eq!(shape(600, 100_000), ([3, 65_535, 1], [256, 1, 1]));
    }
}
