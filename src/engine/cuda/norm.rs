//! Launches of `kernels/norm.cu`. Every norm is one view of x: outer × rows × channels in groups, a set
//! being one group of channels in all rows of one outer.

use super::launch::{Arg, Launch, Limits, Lowered, Place, Task, Typed, Unsupported};
use super::storage::Storage;
use crate::engine::op::{Act, Norm, Op};
use crate::engine::shape::Shape;

const MODULE: &str = "norm";
const BLOCK: usize = 256;
/// Groups that one block may take.
const MAX_GROUPS: usize = 64;
/// What the kernels have of shared memory besides the dynamic part, rounded up.
const STATIC_SHARED: usize = 20 << 10;
/// Channels of a tile: whole sectors of 32 bytes, and whole lines of 128 bytes.
const SECTOR: usize = 16;
const LINE: usize = 64;

/// `View` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct View {
    outer: usize,
    rows: usize,
    channels: usize,
    groups: usize,
    /// Groups of a block.
    tile: usize,
    chunks: usize,
    chunk_rows: usize,
    moment_groups: usize,
    per_row: bool,
    eps: f32,
    act: Act,
    cached: bool,
}

impl View {
    fn new(norm: Norm, x: Shape) -> View {
        let (outer, rows, groups) = match norm {
            Norm::Batch => (1, x.rows(), x.c()),
            Norm::Group(groups) => (x.n(), x.h() * x.w(), groups),
            Norm::Layer => (x.rows(), 1, 1),
        };
        View {
            outer,
            rows,
            channels: x.c(),
            groups,
            tile: 1,
            chunks: 1,
            chunk_rows: rows,
            moment_groups: groups,
            per_row: false,
            eps: 0.0,
            act: Act::None,
            cached: false,
        }
    }

    /// Layer norm with all positions as the rows of one outer.
    fn by_rows(self, norm: Norm) -> View {
        match norm {
            Norm::Layer => View { outer: 1, rows: self.outer, chunk_rows: self.outer, per_row: true, ..self },
            _ => self,
        }
    }

    /// Groups that make whole vectors of eight.
    fn whole(&self) -> usize {
        (1..8).find(|k| (k * self.width()).is_multiple_of(8)).unwrap_or(8)
    }

    /// Neighbouring channels of a thread. Vectors across groups need a tile of several in one block.
    fn vector(&self) -> usize {
        let whole = self.whole();
        let joined = whole == 1 || whole * self.width() <= BLOCK * 8;
        if self.channels.is_multiple_of(8) && joined { 8 } else { 1 }
    }

    fn width(&self) -> usize {
        self.channels / self.groups
    }

    fn tiles(&self) -> usize {
        self.groups.div_ceil(self.tile)
    }

    fn tile_vectors(&self) -> usize {
        self.tile * self.width() / self.vector()
    }

    /// Rows that a block takes at once.
    fn slots(&self) -> usize {
        (BLOCK / self.tile_vectors()).max(1)
    }

    /// Vectors that a thread takes of so many rows.
    fn steps(&self, rows: usize) -> usize {
        rows.div_ceil(self.slots()) * self.tile_vectors().div_ceil(BLOCK)
    }

    /// Whole groups that make at least `channels` channels and start at whole vectors.
    fn pick_tile(self, channels: usize) -> View {
        let width = self.width();
        let whole = if self.vector() == 8 { self.whole() } else { 1 };
        let tile = channels.div_ceil(width).next_multiple_of(whole).min(self.groups);
        debug_assert!(tile <= MAX_GROUPS);
        View { tile, ..self }
    }

    /// Chunks of rows for a reduction: as few as keep the multiprocessors busy, since several cost a second
    /// launch.
    fn pick_chunks(self, limits: &Limits) -> View {
        if self.steps(self.rows) <= 32 {
            return View { chunks: 1, chunk_rows: self.rows, ..self };
        }
        let wanted = (4 * limits.multiprocessors as usize).div_ceil(self.outer * self.tiles());
        let most = (self.steps(self.rows) / 8).max(1);
        self.chunked(self.rows.div_ceil(wanted.clamp(1, most)))
    }

    fn chunked(self, rows: usize) -> View {
        let chunk_rows = rows.next_multiple_of(self.slots()).min(self.rows);
        View { chunk_rows, chunks: self.rows.div_ceil(chunk_rows), ..self }
    }

    /// The view for what is done to each element by itself: groups of one channel, all that a block takes.
    fn elementwise(self, limits: &Limits) -> View {
        let view = View { groups: self.channels, tile: self.channels.min(BLOCK * self.vector()), ..self };
        let steps = view.outer * view.tiles() * view.rows.div_ceil(view.slots());
        let each = steps.div_ceil(8 * limits.multiprocessors as usize).clamp(2, 16);
        view.chunked(view.slots() * each)
    }

    /// Channel by channel, whatever the norm.
    fn per_channel(self) -> View {
        View { groups: self.channels, ..self }
    }

    fn bytes(&self) -> Arg {
        let act = match self.act {
            Act::None => 0,
            Act::Relu => 1,
            Act::Relu6 => 2,
            Act::Silu => 3,
        };
        let numbers = [
            self.outer,
            self.rows,
            self.channels,
            self.groups,
            self.tile,
            self.chunks,
            self.chunk_rows,
            self.moment_groups,
            usize::from(self.per_row),
        ];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| (*n as i32).to_ne_bytes()).collect();
        bytes.extend(self.eps.to_ne_bytes());
        bytes.extend(i32::to_ne_bytes(act));
        bytes.extend(i32::from(self.cached).to_ne_bytes());
        Arg::Struct(bytes)
    }

    /// Whether the kernels' 32-bit row and block numbers suffice.
    fn fits(&self) -> bool {
        self.rows < 1 << 30
            && self.channels < 1 << 20
            && self.outer.saturating_mul(self.chunks) < 1 << 31
            && self.tiles() < 1 << 16
    }

    /// A launch by chunks and tiles.
    fn launch(&self, kernel: &'static str, args: Vec<Arg>) -> Launch {
        let grid = [(self.outer * self.chunks) as u32, self.tiles() as u32, 1];
        self.launched(kernel, grid, [BLOCK as u32, 1, 1], args)
    }

    fn launched(&self, kernel: &'static str, grid: [u32; 3], block: [u32; 3], mut args: Vec<Arg>) -> Launch {
        args.push(self.bytes());
        Launch { module: MODULE, kernel, grid, block, shared: 0, args }
    }

    /// A warp a row.
    fn launch_rows(&self, kernel: &'static str, args: Vec<Arg>) -> Launch {
        let grid = [self.outer.div_ceil(BLOCK / 32) as u32, 1, 1];
        self.launched(kernel, grid, [BLOCK as u32, 1, 1], args)
    }

    /// Adds up the chunks of 32 sets a block.
    fn launch_merge(&self, kernel: &'static str, args: Vec<Arg>) -> Launch {
        let grid = [(self.outer * self.groups).div_ceil(32) as u32, 1, 1];
        self.launched(kernel, grid, [32, 16, 1], args)
    }

    /// Which of the variants [vectors within a group, vectors across groups, single channels].
    fn variant(&self, kernels: [&'static str; 3]) -> &'static str {
        match self.vector() {
            1 => kernels[2],
            v if self.width().is_multiple_of(v) => kernels[0],
            _ => kernels[1],
        }
    }

    fn by_vector(&self, [v8, v1]: [&'static str; 2]) -> &'static str {
        if self.vector() == 8 { v8 } else { v1 }
    }

    /// Bytes of one pair for each chunk and group.
    fn partial_bytes(&self) -> usize {
        (self.outer * self.chunks * self.groups * 8).next_multiple_of(256)
    }
}

/// The kernel that can stand for this one too: sums per channel do for groups of whole vectors.
pub fn general(kernel: &'static str) -> &'static str {
    match kernel {
        "moments_v8" => "moments_v8_channels",
        "group_norm_fused_v8" => "group_norm_fused_v8_channels",
        "gradient_sums_v8" => "gradient_sums_v8_channels",
        other => other,
    }
}

/// Lets launches of several norms that differ in that alone have the same kernels.
pub fn same_variant(all: &mut [Lowered]) {
    let Some(most) = all.iter().map(|l| l.launches.len()).max() else { return };
    for i in 0..most {
        let kernels = || all.iter().filter_map(|l| l.launches.get(i)).map(|l| l.kernel);
        let Some(first) = kernels().next() else { continue };
        if kernels().all(|kernel| kernel == first) {
            continue;
        }
        for launch in all.iter_mut().filter_map(|l| l.launches.get_mut(i)).filter(|l| l.module == MODULE) {
            launch.kernel = general(launch.kernel);
        }
    }
}

fn input(i: usize) -> Arg {
    Arg::Pointer(Place::Input(i))
}

fn scratch(at: usize) -> Arg {
    Arg::Pointer(Place::Scratch(at))
}

fn optional(there: bool, i: usize) -> Arg {
    if there { input(i) } else { Arg::Null }
}

/// A `Real` that is not there.
fn no_real() -> Arg {
    Arg::Struct(vec![0; 16])
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    let lowered = match *task.op {
        Op::Moments { norm } => moments(task, norm),
        Op::Normalize { norm, eps, affine, act } => {
            let view = View { eps, act, ..View::new(norm, task.inputs[0].shape) };
            normalize(task, view.by_rows(norm), affine)
        }
        Op::NormalizeBackward { norm, eps, affine, through_moments } => {
            let view = View { eps, ..View::new(norm, task.inputs[0].shape) };
            backward(task, norm, view, affine, through_moments)
        }
        Op::NormalizeParamGrad { norm, eps } => {
            let view = View { eps, ..View::new(norm, task.inputs[0].shape) };
            param_grad(task, view.by_rows(norm))
        }
        _ => return Err(task.unsupported("is not a norm")),
    };
    lowered.ok_or_else(|| task.unsupported("is larger than the kernels count"))
}

fn moments(task: &Task, norm: Norm) -> Option<Lowered> {
    let view = View::new(norm, task.inputs[0].shape);
    let x = Arg::Real(Place::Input(0));
    if norm == Norm::Layer {
        let args = vec![x, Arg::Pointer(Place::Out), Arg::Null, Arg::Null, no_real()];
        return view.fits().then(|| Lowered::one(view.launch_rows(row_kernel(&view), args)));
    }
    let view = view.pick_tile(LINE).pick_chunks(&task.limits);
    if !view.fits() {
        return None;
    }
    let kernel = view.variant(["moments_v8", "moments_v8_channels", "moments_v1"]);
    let partial = if view.chunks > 1 { scratch(0) } else { Arg::Null };
    let mut launches = vec![view.launch(kernel, vec![x, Arg::Pointer(Place::Out), partial])];
    if view.chunks == 1 {
        return Some(Lowered { launches, scratch_bytes: 0 });
    }
    launches.push(view.launch_merge("moments_merge", vec![scratch(0), Arg::Pointer(Place::Out)]));
    Some(Lowered { launches, scratch_bytes: view.partial_bytes() })
}

fn row_kernel(view: &View) -> &'static str {
    match (view.vector(), view.channels) {
        (8, c) if c <= 1024 => "layer_norm_v8_1024",
        (8, _) => "layer_norm_v8",
        _ => "layer_norm_v1",
    }
}

fn normalize(task: &Task, view: View, affine: bool) -> Option<Lowered> {
    let view = view.elementwise(&task.limits);
    let args = vec![
        Arg::Real(Place::Input(0)),
        input(1),
        optional(affine, 2),
        optional(affine, 3),
        Arg::Real(Place::Out),
    ];
    let kernel = view.by_vector(["normalize_v8", "normalize_v1"]);
    view.fits().then(|| Lowered::one(view.launch(kernel, args)))
}

fn backward(task: &Task, norm: Norm, view: View, affine: bool, through_moments: bool) -> Option<Lowered> {
    let dy = Arg::Real(Place::Input(2 + usize::from(affine)));
    let mut args = vec![Arg::Real(Place::Input(0)), input(1), optional(affine, 2), dy];
    if norm == Norm::Layer && through_moments {
        args.push(Arg::Real(Place::Out));
        let kernel = view.by_vector(["layer_norm_backward_v8", "layer_norm_backward_v1"]);
        return view.fits().then(|| Lowered::one(view.launch_rows(kernel, args)));
    }
    let mut lowered = Lowered::default();
    let mut sums = Arg::Null;
    if through_moments {
        let view = view.pick_tile(LINE).pick_chunks(&task.limits);
        if !view.fits() {
            return None;
        }
        let mut args = args.clone();
        args.push(scratch(0));
        lowered.launches.push(view.launch(sums_kernel(&view), args));
        lowered.scratch_bytes = view.partial_bytes();
        sums = scratch(0);
        if view.chunks > 1 {
            sums = scratch(lowered.scratch_bytes);
            let merge = view.launch_merge("gradient_sums_merge", vec![scratch(0), sums.clone()]);
            lowered.launches.push(merge);
            lowered.scratch_bytes += View { chunks: 1, ..view }.partial_bytes();
        }
    }
    let inverse = 1.0 / (view.rows * view.width()) as f32;
    let view = view.by_rows(norm).elementwise(&task.limits);
    args.extend([sums, Arg::F32(inverse), Arg::Real(Place::Out)]);
    let kernel = view.by_vector(["normalize_backward_v8", "normalize_backward_v1"]);
    lowered.launches.push(view.launch(kernel, args));
    view.fits().then_some(lowered)
}

fn sums_kernel(view: &View) -> &'static str {
    view.variant(["gradient_sums_v8", "gradient_sums_v8_channels", "gradient_sums_v1"])
}

fn param_grad(task: &Task, view: View) -> Option<Lowered> {
    let view = view.per_channel().pick_tile(LINE).pick_chunks(&task.limits);
    if !view.fits() {
        return None;
    }
    let args = vec![Arg::Real(Place::Input(0)), input(1), Arg::Null, Arg::Real(Place::Input(2)), scratch(0)];
    let parts = view.launch(sums_kernel(&view), args);
    // All parts of a channel, of whichever outer: sums, which do not count their rows.
    let all = View { outer: 1, chunks: view.outer * view.chunks, chunk_rows: 0, ..view };
    let merge = all.launch_merge("param_grad_merge", vec![scratch(0), Arg::Pointer(Place::Out)]);
    Some(Lowered { launches: vec![parts, merge], scratch_bytes: view.partial_bytes() })
}

/// Moments and the normalisation by them in one launch, where one block can take whole groups of one image
/// without leaving most of the GPU idle. The places are those of `normalize`; its input 1, the moments, is
/// written.
pub fn lower_fused(moments: &Task, normalize: &Task) -> Option<Lowered> {
    let (Op::Moments { norm }, Op::Normalize { norm: same, eps, affine, act }) = (moments.op, normalize.op)
    else {
        return None;
    };
    if norm != same {
        return None;
    }
    let x: Typed = normalize.inputs[0];
    let view = View { eps: *eps, act: *act, ..View::new(*norm, x.shape) };
    let args = vec![
        Arg::Real(Place::Input(0)),
        input(1),
        optional(*affine, 2),
        optional(*affine, 3),
        Arg::Real(Place::Out),
    ];
    if *norm == Norm::Layer {
        return view.fits().then(|| Lowered::one(view.launch_rows(row_kernel(&view), args)));
    }
    let limits = &normalize.limits;
    let view = view.pick_tile(SECTOR);
    let slab = view.steps(view.rows) * BLOCK * view.vector() * 2;
    let busy = view.outer * view.tiles() >= limits.multiprocessors as usize;
    if !view.fits() || (slab > 128 << 10 && !busy) {
        return None;
    }
    let cached = x.storage == Storage::F16 && slab + STATIC_SHARED <= limits.shared_bytes as usize;
    let view = View { cached, ..view };
    let kernel = view.variant(["group_norm_fused_v8", "group_norm_fused_v8_channels", "group_norm_fused_v1"]);
    let mut launch = view.launch(kernel, args);
    if cached {
        launch.shared = slab as u32;
    }
    Some(Lowered::one(launch))
}

/// Moments and the normalisation by them as one operation, in one launch where that can be: a branch whose
/// pictures are too large for one keeps step with those whose are not.
pub fn lower_both(moments: &Task, normalize: &Task) -> Option<Lowered> {
    if let Some(fused) = lower_fused(moments, normalize) {
        return Some(fused);
    }
    let Lowered { mut launches, scratch_bytes } = lower(moments).ok()?;
    for arg in launches.iter_mut().flat_map(|l| &mut l.args) {
        if *arg == Arg::Pointer(Place::Out) {
            *arg = input(1);
        }
    }
    let then = lower(normalize).ok().filter(|then| then.scratch_bytes == 0)?;
    launches.extend(then.launches);
    Some(Lowered { launches, scratch_bytes })
}

#[cfg(test)]
#[path = "norm_tests.rs"]
mod tests;
