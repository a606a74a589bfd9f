//! How a result over windows is cut into tiles whose source fits shared memory (`kernels/tile.cuh`).

use super::launch::{Arg, Launch, Limits};
use super::rows;
use crate::engine::shape::Shape;

/// Threads of a block, `TILE_THREADS`.
pub(super) const THREADS: u32 = 256;
/// Halos may cost this much of what is read and written besides; below it more blocks are worth more.
pub(super) const OVERHEAD: f64 = 1.08;
/// Shared memory of a block: two of them on a multiprocessor, but for the least of them.
const MOST_SHARED: usize = 80 << 10;
/// What it may take to align one array of a block after another.
const ALIGNED: usize = 32;
/// A sector of global memory, in halves.
const SECTOR: usize = 16;
/// Blocks a multiprocessor that hide each other's waits.
const BLOCKS: usize = 2;

/// `struct Tiling` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
    pub row_tiles: usize,
    pub column_tiles: usize,
    pub groups: usize,
    pub source_rows: usize,
    pub source_columns: usize,
    pub shared: usize,
    pub images: usize,
}

/// What tiles are chosen by.
pub(super) struct Wanted<'a> {
    pub source: Shape,
    pub out: Shape,
    /// Values of one channel that each tile reads or writes besides its source and its result.
    pub per_tile: usize,
    /// Up to which overhead more blocks are worth more.
    pub overhead: f64,
    /// Most channels of a tile.
    pub channels: usize,
    /// Rows of a tile are a multiple of this.
    pub strip: usize,
    /// The first tile begins this many rows before the result.
    pub rows_before: usize,
    /// Most rows and columns of the source that so many of the result cover.
    pub rows: &'a dyn Fn(usize) -> usize,
    pub columns: &'a dyn Fn(usize) -> usize,
    /// Bytes of shared memory that one channel of so many rows and columns of the result takes.
    pub bytes: &'a dyn Fn(usize, usize) -> usize,
}

/// Sizes worth trying: an axis cut into equal parts.
fn parts(len: usize, strip: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> =
        (1..=len.div_ceil(strip)).map(|k| len.div_ceil(k).next_multiple_of(strip)).collect();
    sizes.dedup();
    // Long axes: what is larger than shared memory holds is not worth looking at.
    sizes.retain(|s| *s <= 256);
    sizes
}

/// Channels of a group, at most `most`: all, or whole sectors.
fn groups(channels: usize, most: usize) -> Vec<usize> {
    let least = if channels.is_multiple_of(SECTOR) { SECTOR } else { 4 * SECTOR };
    let mut sizes = vec![channels];
    sizes.extend([16, 32, 64, 128].into_iter().filter(|g| *g >= least && *g < channels));
    sizes.retain(|g| *g <= most);
    if sizes.is_empty() {
        sizes.push(most);
    }
    sizes
}

/// The tiles with the fewest bytes, or among those within `OVERHEAD` of the least the ones that fill the
/// device. `None` where not even the smallest tile fits.
pub(super) fn pick(wanted: &Wanted, limits: &Limits) -> Option<Tiling> {
    let (x, y) = (wanted.source, wanted.out);
    let most = MOST_SHARED.min(limits.shared_bytes as usize);
    let enough = limits.multiprocessors as usize * BLOCKS;
    let least = (x.len() + y.len() + wanted.per_tile * y.c()) as f64;
    // How much of an axis is read, in all tiles together.
    let read = |tiles: usize, size: usize, covers: &dyn Fn(usize) -> usize, len: usize| {
        let halo = (2 * covers(size)).saturating_sub(covers(2 * size));
        (len + (tiles - 1) * halo).min(tiles * covers(size)) as f64
    };
    let mut best: Option<((bool, usize, u64), Tiling)> = None;
    for channels in groups(y.c(), wanted.channels) {
        let torn = if channels < y.c() && !y.c().is_multiple_of(SECTOR) { SECTOR / 2 } else { 0 };
        for rows in parts(y.h() + wanted.rows_before, wanted.strip) {
            for columns in parts(y.w(), 1) {
                let source_rows = (wanted.rows)(rows);
                let source_columns = (wanted.columns)(columns);
                let shared = channels * (wanted.bytes)(rows, columns) + ALIGNED;
                if shared > most {
                    continue;
                }
                let (row_tiles, column_tiles) =
                    ((y.h() + wanted.rows_before).div_ceil(rows), y.w().div_ceil(columns));
                let groups = y.c().div_ceil(channels);
                let tiling = Tiling {
                    rows,
                    columns,
                    channels,
                    row_tiles,
                    column_tiles,
                    groups,
                    source_rows,
                    source_columns,
                    shared: shared.next_multiple_of(16),
                    images: y.n(),
                };
                let pixels = read(row_tiles, rows, wanted.rows, x.h())
                    * read(column_tiles, columns, wanted.columns, x.w())
                    * (x.n() * y.c()) as f64;
                let besides = y.n() * row_tiles * column_tiles * y.c() * wanted.per_tile;
                let overhead =
                    (pixels + (y.len() + besides) as f64) / least * (1.0 + torn as f64 / channels as f64);
                let cheap = overhead <= wanted.overhead;
                let blocks = tiling.blocks().min(enough);
                // Cheap before dear, then full before empty, then the fewest bytes.
                let rank = (cheap, if cheap { blocks } else { 0 }, u64::MAX - (overhead * 1e6) as u64);
                if best.is_none_or(|(b, _)| rank > b) {
                    best = Some((rank, tiling));
                }
            }
        }
    }
    best.map(|(_, tiling)| tiling).filter(|t| t.blocks() < 1 << 31)
}

impl Tiling {
    pub fn blocks(&self) -> usize {
        self.images * self.row_tiles * self.column_tiles * self.groups
    }

    pub fn arg(&self) -> Arg {
        Arg::Struct(rows::ints(&[
            self.rows,
            self.columns,
            self.channels,
            self.row_tiles,
            self.column_tiles,
            self.groups,
            self.source_rows,
            self.source_columns,
        ]))
    }

    /// A launch of one block a tile; the tiling is the last argument.
    pub fn launch(&self, module: &'static str, kernel: &'static str, mut args: Vec<Arg>) -> Launch {
        args.push(self.arg());
        let grid = [self.blocks() as u32, 1, 1];
        Launch { module, kernel, grid, block: [THREADS, 1, 1], shared: self.shared as u32, args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn window(x: [usize; 4], size: usize) -> Tiling {
        let shape = Shape(x);
        let covers = |n: usize| n + size - 1;
        let bytes = |rows: usize, columns: usize| 2 * covers(rows) * covers(columns);
        let wanted = Wanted {
            source: shape,
            out: shape,
            per_tile: 0,
            overhead: OVERHEAD,
            channels: usize::MAX,
            strip: 4,
            rows_before: 0,
            rows: &covers,
            columns: &covers,
            bytes: &bytes,
        };
        pick(&wanted, &A100).unwrap()
    }

    #[test]
    fn tiles_cover_the_result_and_fit_shared_memory() {
        for (x, size) in
            [([1, 28, 28, 96], 3), ([2, 112, 112, 24], 5), ([1, 7, 7, 1152], 5), ([1, 1, 1, 3], 3)]
        {
            let t = window(x, size);
            assert!(t.rows * t.row_tiles >= x[1] && t.columns * t.column_tiles >= x[2], "{t:?}");
            assert!(t.channels * t.groups >= x[3] && t.shared <= MOST_SHARED, "{t:?}");
            assert!(t.rows.is_multiple_of(4), "{t:?}");
        }
    }

    #[test]
    fn halos_stay_small_and_small_maps_are_cut_along_channels() {
        let t = window([1, 112, 112, 96], 5);
        let halo = (t.source_rows * t.source_columns) as f64 / (t.rows * t.columns) as f64;
        assert!((halo + 1.0) / 2.0 < 1.16, "{t:?}");
        let t = window([1, 7, 7, 1152], 5);
        assert_eq!((t.channels, t.blocks()), (16, 72));
    }

    #[test]
    fn parts_of_channels_are_whole_sectors() {
        assert!(groups(96, usize::MAX).iter().all(|g| g % SECTOR == 0));
        assert_eq!(groups(24, usize::MAX), [24]);
        assert_eq!(groups(200, usize::MAX), [200, 64, 128]);
        assert_eq!(groups(200, 64), [64]);
        assert_eq!(groups(33, 32), [32]);
    }
}
