//! Launches of `kernels/attention.cu`.

use super::launch::{Arg, Launch, Lowered, Place, Task, Unsupported};
use crate::engine::op::{Attention, Op, QkvLayout};

const MODULE: &str = "attention";
/// Rows of a warp, and columns of a tile.
const ROWS: usize = 16;
const COLUMNS: usize = 32;

/// Channels that a block puts out, the depth of its products, and its warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    slice: usize,
    depth: usize,
    warps: usize,
}

impl Tile {
    /// Halves in rows of `depth` + 8: the block's rows, `row_sets` times, and two buffers of two columns.
    fn shared_bytes(&self, row_sets: usize) -> usize {
        (row_sets * self.warps * ROWS + 4 * COLUMNS) * (self.depth + 8) * 2
    }
}

/// The tile for heads of `width` channels: as many warps, up to four, as shared memory has room for and
/// the tokens give work. None where it has not even room for one.
fn pick_tile(width: usize, widest: usize, tokens: usize, row_sets: usize, shared: usize) -> Option<Tile> {
    let slice = [16, 32, 64, 128].into_iter().find(|s| *s >= width).unwrap_or(128);
    let depth = width.next_multiple_of(slice);
    [4, 2, 1]
        .into_iter()
        .filter(|warps| *warps == 1 || tokens > warps / 2 * ROWS)
        .map(|warps| Tile { slice: slice.min(widest), depth, warps })
        .find(|tile| tile.shared_bytes(row_sets) <= shared)
}

/// `Problem` of the kernels.
fn problem(a: &Attention, tokens: usize, channels: usize, depth: usize) -> Arg {
    let width = channels / a.heads;
    let numbers = [
        tokens,
        channels,
        a.heads,
        width,
        depth,
        usize::from(a.layout == QkvLayout::PerHead),
        usize::from(a.causal),
    ];
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| (*n as i32).to_ne_bytes()).collect();
    bytes.extend((1.0 / (width as f32).sqrt()).to_ne_bytes());
    Arg::Struct(bytes)
}

fn named(slice: usize, kernels: [&'static str; 4]) -> &'static str {
    match slice {
        16 => kernels[0],
        32 => kernels[1],
        64 => kernels[2],
        _ => kernels[3],
    }
}

const FORWARD: [&str; 4] = ["attention_16", "attention_32", "attention_64", "attention_128"];
const QUERY: [&str; 4] =
    ["attention_query_16", "attention_query_32", "attention_query_64", "attention_query_128"];
const KEY_VALUE: [&str; 4] =
    ["attention_key_value_16", "attention_key_value_32", "attention_key_value_64", "attention_key_value_64"];

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    lower_beside(task, 0)
}

/// All with as many warps as the one of most tokens.
pub fn lower_together(tasks: &[Task]) -> Option<Vec<Lowered>> {
    let most = tasks.iter().filter_map(|t| t.inputs.first()).map(|x| x.shape.h() * x.shape.w()).max()?;
    tasks.iter().map(|task| lower_beside(task, most).ok()).collect()
}

/// With warps for so many tokens, if it has fewer.
fn lower_beside(task: &Task, most_tokens: usize) -> Result<Lowered, Unsupported> {
    let (a, backward) = match task.op {
        Op::Attention(a) => (a, false),
        Op::AttentionBackward(a) => (a, true),
        _ => return Err(task.unsupported("is not attention")),
    };
    let x = task.inputs[0].shape;
    let (tokens, channels) = (x.h() * x.w(), x.c() / 3);
    let width = channels / a.heads;
    let launch = |kernels: [&'static str; 4], widest: usize, row_sets: usize, args: [Arg; 4]| {
        let tile =
            pick_tile(width, widest, tokens.max(most_tokens), row_sets, task.limits.shared_bytes as usize)
                .ok_or_else(|| task.unsupported("has heads too wide for this GPU's shared memory"))?;
        let blocks = x.n().saturating_mul(a.heads).saturating_mul(tokens.div_ceil(tile.warps * ROWS));
        // A row number plus a tile must stay below 2³¹, as must a row's stride.
        if blocks >= 1 << 31 || tokens >= 1 << 30 || x.c() >= 1 << 30 {
            return Err(task.unsupported("is larger than the kernels count"));
        }
        let slices = if kernels[0] == kernels[3] { 1 } else { tile.depth / tile.slice };
        let mut args = args.to_vec();
        args.push(problem(a, tokens, channels, tile.depth));
        Ok(Launch {
            module: MODULE,
            kernel: named(tile.slice, kernels),
            grid: [blocks as u32, slices as u32, 1],
            block: [32 * tile.warps as u32, 1, 1],
            shared: tile.shared_bytes(row_sets) as u32,
            args,
        })
    };
    let (qkv, out) = (Arg::Pointer(Place::Input(0)), Arg::Pointer(Place::Out));
    if !backward {
        return Ok(Lowered::one(launch(FORWARD, 128, 1, [qkv, Arg::Null, Arg::Null, out])?));
    }
    let (dy, stats) = (Arg::Pointer(Place::Input(1)), Arg::Pointer(Place::Scratch(0)));
    let gradient = [qkv.clone(), dy.clone(), stats.clone(), out];
    let launches = vec![
        launch(["attention_statistics"; 4], 128, 2, [qkv, dy, stats, Arg::Null])?,
        launch(QUERY, 128, 2, gradient.clone())?,
        launch(KEY_VALUE, 64, 2, gradient)?,
    ];
    Ok(Lowered { launches, scratch_bytes: x.n() * a.heads * tokens * 8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: usize = 163 << 10;

    #[test]
    fn a_slice_is_no_wider_than_the_head_padded_to_a_tensor_core_product() {
        let tile = |width, widest| pick_tile(width, widest, 1024, 2, SHARED).unwrap();
        assert_eq!(tile(5, 128), Tile { slice: 16, depth: 16, warps: 4 });
        assert_eq!(tile(40, 128), Tile { slice: 64, depth: 64, warps: 4 });
        assert_eq!(tile(64, 64), Tile { slice: 64, depth: 64, warps: 4 });
        assert_eq!(tile(128, 64), Tile { slice: 64, depth: 128, warps: 4 });
        assert_eq!(tile(129, 128), Tile { slice: 128, depth: 256, warps: 4 });
    }

    #[test]
    fn few_tokens_take_few_warps() {
        let warps = |tokens| pick_tile(64, 128, tokens, 1, SHARED).unwrap().warps;
        assert_eq!([1, 16, 17, 32, 33, 64].map(warps), [1, 1, 2, 2, 4, 4]);
    }

    #[test]
    fn heads_of_128_channels_fit_the_smallest_shared_memory_and_wide_ones_are_refused() {
        assert!(pick_tile(128, 128, 1024, 1, 64 << 10).is_some());
        assert!(pick_tile(128, 64, 1024, 2, 64 << 10).is_some());
        assert!(pick_tile(512, 128, 1024, 1, SHARED).is_some());
        assert_eq!(pick_tile(2048, 128, 1024, 1, SHARED), None);
    }
}
