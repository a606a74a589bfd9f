//! Launches of `kernels/depthwise.cu`: convolution with one filter a channel, its adjoint by the input and
//! its gradient by the weight.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Unsupported};
use super::storage::Storage;
use super::tile::{self, Wanted};
use super::{conv, conv_grad};
use crate::engine::op::{Act, Conv, Epilogue, Op};
use crate::engine::shape::Shape;

const MODULE: &str = "depthwise";
const THREADS: usize = 128;
/// Neighbouring results of one row that a thread makes.
const STRIP: usize = 4;
const WARP: usize = 32;
const GRID_YZ: usize = 65535;
/// Blocks of the gradient that fill a multiprocessor.
const GRADIENT_BLOCKS: usize = 6;
/// A small gradient is cut into more tiles than its traffic alone asks for: blocks that stand still cost
/// more than the sums of others.
const GRADIENT_OVERHEAD: f64 = 1.35;
/// Shared memory of a tile of the gradient.
const GRADIENT_SHARED: u32 = 36 << 10;
/// Strips that a thread sums at least, so that a partial sum costs less than what it sums.
const STRIPS_A_THREAD: usize = 4;

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    // Several filters a channel are left to the kernels for groups.
    let filters_a_channel = |x: Shape, y: Shape| y.c() / x.c().max(1);
    match task.op {
        Op::Conv2d { conv, epilogue } => match filters_a_channel(task.inputs[0].shape, task.out.shape) {
            1 => convolution(task, conv, epilogue, false),
            _ => conv::lower(task),
        },
        Op::ConvTranspose { conv, epilogue, .. } => {
            match filters_a_channel(task.out.shape, task.inputs[0].shape) {
                1 => convolution(task, conv, epilogue, true),
                _ => conv::lower(task),
            }
        }
        Op::ConvBackwardWeight { conv, .. } => {
            match filters_a_channel(task.inputs[0].shape, task.inputs[1].shape) {
                1 => gradient(task, conv),
                _ => conv_grad::lower(task),
            }
        }
        _ => Err(task.unsupported("is no convolution")),
    }
}

/// `Problem` of depthwise.cu.
struct Problem {
    read: Shape,
    written: Shape,
    kernel: [usize; 2],
    stride: usize,
    /// Top and left. The mirrored kernel's may be negative.
    pad: [i64; 2],
    act: Act,
    mirrored: bool,
    transposed: bool,
    lanes: usize,
    splits: usize,
}

impl Problem {
    fn bytes(&self, task: &Task) -> Result<Arg, Unsupported> {
        let act = match self.act {
            Act::None => 0,
            Act::Relu => 1,
            Act::Relu6 => 2,
            Act::Silu => 3,
        };
        let [n, h, w, c] = self.read.0.map(|v| v as i64);
        let [_, out_h, out_w, _] = self.written.0.map(|v| v as i64);
        let fields = [
            n,
            h,
            w,
            c,
            out_h,
            out_w,
            self.kernel[0] as i64,
            self.kernel[1] as i64,
            self.stride as i64,
            self.pad[0],
            self.pad[1],
            act,
            i64::from(self.mirrored),
            i64::from(self.transposed),
            self.lanes as i64,
            self.splits as i64,
        ];
        let mut bytes = Vec::with_capacity(fields.len() * 4);
        for field in fields {
            // Half the range: a position is a product of two fields plus the padding, within one axis.
            let field = i32::try_from(field)
                .ok()
                .filter(|v| v.unsigned_abs() < 1 << 30)
                .ok_or_else(|| task.unsupported("has an axis beyond 2^30"))?;
            bytes.extend(field.to_ne_bytes());
        }
        Ok(Arg::Struct(bytes))
    }
}

/// The kernel sizes and strides that have kernels of their own, for which all loops are unrolled.
fn size_of(kernel: [usize; 2], stride: usize) -> Option<&'static str> {
    match (kernel, stride) {
        ([3, 3], 1) => Some("3x3_stride1"),
        ([3, 3], 2) => Some("3x3_stride2"),
        ([5, 5], 1) => Some("5x5_stride1"),
        ([5, 5], 2) => Some("5x5_stride2"),
        _ => None,
    }
}

/// The kernel of a convolution or its adjoint.
fn pick_kernel(kernel: [usize; 2], stride: usize, transposed: bool, vector: bool) -> &'static str {
    match (size_of(kernel, stride), transposed && stride == 2, vector) {
        (Some("3x3_stride1"), _, true) => "depthwise_3x3_stride1",
        (Some("3x3_stride1"), _, false) => "depthwise_3x3_stride1_scalar",
        (Some("5x5_stride1"), _, true) => "depthwise_5x5_stride1",
        (Some("5x5_stride1"), _, false) => "depthwise_5x5_stride1_scalar",
        (Some("3x3_stride2"), false, true) => "depthwise_3x3_stride2",
        (Some("3x3_stride2"), false, false) => "depthwise_3x3_stride2_scalar",
        (Some("5x5_stride2"), false, true) => "depthwise_5x5_stride2",
        (Some("5x5_stride2"), false, false) => "depthwise_5x5_stride2_scalar",
        (Some("3x3_stride2"), true, true) => "depthwise_transpose_3x3_stride2",
        (Some("3x3_stride2"), true, false) => "depthwise_transpose_3x3_stride2_scalar",
        (Some("5x5_stride2"), true, true) => "depthwise_transpose_5x5_stride2",
        (Some("5x5_stride2"), true, false) => "depthwise_transpose_5x5_stride2_scalar",
        (_, _, true) => "depthwise_any",
        (_, _, false) => "depthwise_any_scalar",
    }
}

fn pick_gradient(kernel: [usize; 2], stride: usize, pairs: bool) -> &'static str {
    match (size_of(kernel, stride), pairs) {
        (Some("3x3_stride1"), true) => "depthwise_grad_3x3_stride1",
        (Some("3x3_stride1"), false) => "depthwise_grad_3x3_stride1_scalar",
        (Some("3x3_stride2"), true) => "depthwise_grad_3x3_stride2",
        (Some("3x3_stride2"), false) => "depthwise_grad_3x3_stride2_scalar",
        (Some("5x5_stride1"), true) => "depthwise_grad_5x5_stride1",
        (Some("5x5_stride1"), false) => "depthwise_grad_5x5_stride1_scalar",
        (Some("5x5_stride2"), true) => "depthwise_grad_5x5_stride2",
        (Some("5x5_stride2"), false) => "depthwise_grad_5x5_stride2_scalar",
        (_, true) => "depthwise_grad_any",
        (_, false) => "depthwise_grad_any_scalar",
    }
}

fn fp16_operands(task: &Task) -> Result<(), Unsupported> {
    if task.inputs.len() < 2 || task.inputs[..2].iter().any(|i| i.storage != Storage::F16) {
        return Err(task.unsupported("reads fp16 only"));
    }
    Ok(())
}

fn convolution(
    task: &Task,
    conv: &Conv,
    epilogue: &Epilogue,
    transposed: bool,
) -> Result<Lowered, Unsupported> {
    fp16_operands(task)?;
    let [kh, kw, ..] = task.inputs[1].shape.0;
    let out = task.out.shape;
    let vector = out.c().is_multiple_of(8);
    let special = size_of([kh, kw], conv.stride).is_some();
    // With stride 1 the adjoint is the convolution with the mirrored kernel.
    let mirrored = special && transposed && conv.stride == 1;
    let pad = match mirrored {
        true => [kh as i64 - 1 - conv.pad[0] as i64, kw as i64 - 1 - conv.pad[1] as i64],
        false => [conv.pad[0] as i64, conv.pad[1] as i64],
    };
    let problem = Problem {
        read: task.inputs[0].shape,
        written: out,
        kernel: [kh, kw],
        stride: conv.stride,
        pad,
        act: epilogue.act,
        mirrored,
        transposed,
        lanes: 0,
        splits: 0,
    };
    let bias = if epilogue.bias { Arg::Pointer(Place::Input(2)) } else { Arg::Null };
    let residual = match epilogue.residual {
        true => Arg::Pointer(Place::Input(2 + usize::from(epilogue.bias))),
        false => Arg::Null,
    };
    let kernel = pick_kernel([kh, kw], conv.stride, transposed, vector);
    let args = vec![
        Arg::Pointer(Place::Input(0)),
        Arg::Pointer(Place::Input(1)),
        bias,
        residual,
        Arg::Real(Place::Out),
        problem.bytes(task)?,
    ];
    if special {
        let strided = transposed && conv.stride == 2;
        let tiles = tiles(task, [kh, kw], conv, strided)
            .ok_or_else(|| task.unsupported("has no tile that fits a block"))?;
        return Ok(Lowered::one(tiles.launch(MODULE, kernel, args)));
    }
    let threads = out.n() * out.h() * out.w() * (out.c() / if vector { 8 } else { 1 });
    let blocks = u32::try_from(threads.div_ceil(THREADS))
        .ok()
        .filter(|b| *b < 1 << 31)
        .ok_or_else(|| task.unsupported("has too many elements for one launch"))?;
    let (grid, block) = ([blocks, 1, 1], [THREADS as u32, 1, 1]);
    Ok(Lowered::one(Launch { module: MODULE, kernel, grid, block, shared: 0, args }))
}

/// Tiles of the result; `strided` is the adjoint of stride 2, which reads half a row for each it writes.
fn tiles(task: &Task, kernel: [usize; 2], conv: &Conv, strided: bool) -> Option<tile::Tiling> {
    let step = if strided { 1 } else { conv.stride };
    let rows = |n: usize| match strided {
        true => n / 2 + (kernel[0] - 1) / 2,
        // Whole strips.
        false => (n.next_multiple_of(STRIP) - 1) * step + kernel[0],
    };
    let columns = |n: usize| match strided {
        true => (n + kernel[1]) / 2 + 1,
        false => (n - 1) * step + kernel[1],
    };
    let wanted = Wanted {
        source: task.inputs[0].shape,
        out: task.out.shape,
        per_tile: kernel[0] * kernel[1],
        overhead: tile::OVERHEAD,
        channels: usize::MAX,
        strip: STRIP,
        rows_before: if strided { conv.pad[0] % 2 } else { 0 },
        rows: &rows,
        columns: &columns,
        bytes: &|h, w| 2 * (rows(h) * columns(w) + kernel[0] * kernel[1]),
    };
    tile::pick(&wanted, &task.limits)
}

/// Lanes of a warp that lie along channels (a power of two), and blocks among which the strips of one
/// group of channels are divided.
fn pick_split(groups: usize, strips: usize, taps: usize, limits: &Limits) -> (usize, usize) {
    let lanes = groups.next_power_of_two().min(WARP);
    let blocks = groups.div_ceil(lanes) * taps;
    let fill = (limits.multiprocessors as usize * GRADIENT_BLOCKS).div_ceil(blocks);
    let worth = strips.div_ceil(THREADS / lanes * STRIPS_A_THREAD);
    (lanes, fill.min(worth).clamp(1, GRID_YZ))
}

fn gradient(task: &Task, conv: &Conv) -> Result<Lowered, Unsupported> {
    fp16_operands(task)?;
    let (x, dy) = (task.inputs[0].shape, task.inputs[1].shape);
    let [kh, kw, ..] = task.out.shape.0;
    let channels = x.c();
    let pairs = channels.is_multiple_of(2);
    let groups = channels / if pairs { 2 } else { 1 };
    let strips = dy.n() * dy.h() * dy.w().div_ceil(STRIP);
    let taps = if size_of([kh, kw], conv.stride).is_some() { 1 } else { kh * kw };
    if taps > GRID_YZ {
        return Err(task.unsupported("has too large a kernel for one launch"));
    }
    let tiles = if size_of([kh, kw], conv.stride).is_some() {
        let found = gradient_tiles(x, dy, [kh, kw], conv, &task.limits);
        Some(found.ok_or_else(|| task.unsupported("has no tile that fits a block"))?)
    } else {
        None
    };
    let (lanes, splits) = match tiles {
        // A tile's channels, two or one a lane; as many blocks as there are tiles, or as fill the device.
        Some(t) => {
            let lanes = t.channels.div_ceil(channels / groups).next_power_of_two();
            let all = t.images * t.row_tiles * t.column_tiles;
            let fill = (task.limits.multiprocessors as usize * GRADIENT_BLOCKS).div_ceil(t.groups);
            (lanes, all.min(fill).clamp(1, GRID_YZ))
        }
        None => pick_split(groups, strips, taps, &task.limits),
    };
    let problem = Problem {
        read: x,
        written: dy,
        kernel: [kh, kw],
        stride: conv.stride,
        pad: [conv.pad[0] as i64, conv.pad[1] as i64],
        act: Act::None,
        mirrored: false,
        transposed: false,
        lanes,
        splits,
    };
    let len = task.out.shape.len();
    let problem = problem.bytes(task)?;
    let blocks = tiles.map_or(groups.div_ceil(lanes), |t| t.groups);
    let part = |to| {
        let mut args = vec![
            Arg::Pointer(Place::Input(0)),
            Arg::Pointer(Place::Input(1)),
            Arg::Pointer(to),
            problem.clone(),
        ];
        args.extend(tiles.map(|t| t.arg()));
        Launch {
            module: MODULE,
            kernel: pick_gradient([kh, kw], conv.stride, pairs),
            grid: [blocks as u32, splits as u32, taps as u32],
            block: [THREADS as u32, 1, 1],
            shared: tiles.map_or(0, |t| t.shared as u32),
            args,
        }
    };
    if splits == 1 {
        return Ok(Lowered::one(part(Place::Out)));
    }
    Ok(Lowered {
        launches: vec![part(Place::Scratch(0)), conv_grad::sum(len, splits)],
        scratch_bytes: len * splits * 4,
    })
}

/// Tiles of dy, with what they meet of x, by channels that a warp's lanes hold.
fn gradient_tiles(
    x: Shape,
    dy: Shape,
    kernel: [usize; 2],
    conv: &Conv,
    limits: &Limits,
) -> Option<tile::Tiling> {
    let rows = |n: usize| (n - 1) * conv.stride + kernel[0];
    // Whole strips, whose last results may lie beyond the tile.
    let columns = |n: usize| (n.next_multiple_of(STRIP) - 1) * conv.stride + kernel[1];
    let wanted = Wanted {
        source: x,
        out: dy,
        // fp32 partial sums, written and read again.
        per_tile: 4 * kernel[0] * kernel[1],
        overhead: GRADIENT_OVERHEAD,
        channels: if x.c().is_multiple_of(2) { 2 * WARP } else { WARP },
        strip: 1,
        rows_before: 0,
        rows: &rows,
        columns: &columns,
        bytes: &|h, w| 2 * (rows(h) * columns(w) + h * w),
    };
    // Besides the tile, a block keeps its threads' sums, up to 25 KiB: two blocks of both.
    let limits = Limits { shared_bytes: limits.shared_bytes.min(GRADIENT_SHARED), ..*limits };
    tile::pick(&wanted, &limits)
}

#[cfg(test)]
mod tests {
    use super::super::launch::Typed;
    use super::*;

    const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

    fn half(shape: [usize; 4]) -> Typed {
        Typed { shape: Shape(shape), storage: Storage::F16 }
    }

    fn single(shape: [usize; 4]) -> Typed {
        Typed { shape: Shape(shape), storage: Storage::F32 }
    }

    fn grad(x: [usize; 4], k: usize, stride: usize) -> Lowered {
        let conv = Conv::grouped(stride, k / 2, x[3]);
        let dy = [x[0], conv.out_h(x[1], k), conv.out_w(x[2], k), x[3]];
        let op = Op::ConvBackwardWeight { conv, kh: k, kw: k };
        let out = single([k, k, 1, x[3]]);
        lower(&Task { op: &op, inputs: &[half(x), half(dy)], out, limits: A100 }).unwrap()
    }

    #[test]
    fn a_convolution_has_a_block_for_every_multiprocessor() {
        let op = Op::Conv2d { conv: Conv::grouped(2, 1, 96), epilogue: Epilogue::default() };
        let inputs = [half([1, 112, 112, 96]), half([3, 3, 1, 96])];
        let task = Task { op: &op, inputs: &inputs, out: half([1, 56, 56, 96]), limits: A100 };
        let launch = &lower(&task).unwrap().launches[0];
        assert_eq!(launch.kernel, "depthwise_3x3_stride2");
        assert!(launch.grid[0] >= 108, "{launch:?}");
    }

    #[test]
    fn the_adjoint_of_stride_one_pads_by_what_the_kernel_reaches_beyond() {
        let conv = Conv { stride: 1, pad: [0, 1, 2, 3], groups: 8 };
        let op = Op::ConvTranspose { conv, h: 6, w: 6, epilogue: Epilogue::default() };
        let inputs = [half([1, 4, 6, 8]), half([5, 5, 1, 8])];
        let task = Task { op: &op, inputs: &inputs, out: half([1, 6, 6, 8]), limits: A100 };
        let launch = &lower(&task).unwrap().launches[0];
        assert_eq!(launch.kernel, "depthwise_5x5_stride1");
        let [.., Arg::Struct(problem), _] = &launch.args[..] else { panic!() };
        let field = |i: usize| i32::from_ne_bytes(problem[4 * i..][..4].try_into().unwrap());
        assert_eq!([field(9), field(10), field(12)], [4, 3, 1], "pad top, pad left, mirrored");
    }

    #[test]
    fn a_strided_adjoint_begins_its_strips_before_an_odd_padding() {
        let conv = Conv::grouped(2, 1, 8);
        let op = Op::ConvTranspose { conv, h: 8, w: 8, epilogue: Epilogue::default() };
        let inputs = [half([16, 4, 4, 8]), half([3, 3, 1, 8])];
        let task = Task { op: &op, inputs: &inputs, out: half([16, 8, 8, 8]), limits: A100 };
        let launch = &lower(&task).unwrap().launches[0];
        // Nine rows of the padded image: three strips rather than two.
        let Some(Arg::Struct(tiling)) = launch.args.last() else { panic!() };
        let field = |i: usize| i32::from_ne_bytes(tiling[4 * i..][..4].try_into().unwrap());
        assert!(field(0) * field(3) >= 9, "rows of a tile, tiles");
    }

    #[test]
    fn odd_channel_counts_and_sizes_have_a_kernel() {
        assert_eq!(pick_kernel([3, 3], 1, false, false), "depthwise_3x3_stride1_scalar");
        assert_eq!(pick_kernel([7, 7], 1, true, true), "depthwise_any");
        assert_eq!(pick_kernel([3, 3], 3, true, false), "depthwise_any_scalar");
        assert_eq!(pick_gradient([3, 5], 1, true), "depthwise_grad_any");
    }

    #[test]
    fn a_large_gradient_fills_the_device_and_a_small_one_takes_one_launch() {
        let large = grad([8, 112, 112, 32], 3, 1);
        assert_eq!(large.launches.len(), 2);
        let blocks = large.launches[0].grid.iter().product::<u32>();
        assert!((108..=108 * 8).contains(&blocks), "{blocks} blocks");
        assert_eq!(large.scratch_bytes % (9 * 32 * 4), 0);
        let small = grad([1, 7, 7, 1152], 5, 1);
        assert_eq!(small.launches.len(), 1);
        assert_eq!(small.launches[0].args[2], Arg::Pointer(Place::Out));
    }

    #[test]
    fn few_channels_leave_lanes_to_strips() {
        assert_eq!(pick_split(1, 1 << 20, 1, &A100).0, 1);
        assert_eq!(pick_split(12, 1 << 20, 1, &A100).0, 16);
        assert_eq!(pick_split(576, 1 << 20, 1, &A100).0, 32);
    }

    #[test]
    fn several_filters_a_channel_go_to_the_grouped_kernels() {
        let op = Op::Conv2d { conv: Conv::grouped(1, 1, 4), epilogue: Epilogue::default() };
        let inputs = [half([1, 8, 8, 4]), half([3, 3, 1, 8])];
        let task = Task { op: &op, inputs: &inputs, out: half([1, 8, 8, 8]), limits: A100 };
        assert_eq!(lower(&task).unwrap().launches[0].module, "conv");
    }
}
