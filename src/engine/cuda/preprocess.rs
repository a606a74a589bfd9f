//! The launch of `kernels/preprocess.cu`: a frame as captured to an input of three channels.

use bytemuck::{Pod, Zeroable};

use super::feed::Addresses;
use super::launch::{Arg, Launch};

/// Outputs per block, and threads per block: `TILE`, `ROWS` and `BLOCK` of preprocess.cu.
const TILE: usize = 64;
const ROWS: usize = 16;
const BLOCK: u32 = 256;

/// `Frame` of preprocess.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Frame {
    planes: [u64; 3],
    pitches: [i64; 3],
    x: i32,
    y: i32,
    width: i32,
    height: i32,
    red_x: i32,
    red_y: i32,
}

/// `Resize` of preprocess.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Resize {
    y0: u64,
    wy: u64,
    x0: u64,
    wx: u64,
    taps_y: i32,
    taps_x: i32,
    out_width: i32,
    channels: i32,
    a: [f32; 3],
    b: [f32; 3],
}

/// Pixel formats that have a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    Gray8,
    Rgb,
    Bgr,
    Bgrx,
    Nv12,
    I420,
    Yuy2,
    /// Red's column and row in each 2×2.
    Bayer([u8; 2]),
}

impl Pixels {
    fn kernel(self) -> &'static str {
        match self {
            Pixels::Gray8 => "preprocess_gray8",
            Pixels::Rgb => "preprocess_rgb",
            Pixels::Bgr => "preprocess_bgr",
            Pixels::Bgrx => "preprocess_bgrx",
            Pixels::Nv12 => "preprocess_nv12",
            Pixels::I420 => "preprocess_i420",
            Pixels::Yuy2 => "preprocess_yuy2",
            Pixels::Bayer(_) => "preprocess_bayer",
        }
    }
}

/// One geometry. The tables are, in this order: first rows (i32), row weights (f32), first columns (i32),
/// column weights (f32); `taps` of each axis, rows first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    pub pixels: Pixels,
    /// Bytes from one row to the next, per plane.
    pub pitches: [usize; 3],
    /// Of the frame, pixels.
    pub width: usize,
    pub height: usize,
    /// Corner of the region, pixels.
    pub x: usize,
    pub y: usize,
    pub taps: [usize; 2],
    pub out_width: usize,
    pub out_height: usize,
    /// out = p · a + b
    pub a: [f32; 3],
    pub b: [f32; 3],
}

pub fn launch(g: &Geometry, at: &Addresses) -> Launch {
    let plane = |i: usize| at.planes.get(i).copied().unwrap_or(0);
    let table = |i: usize| at.tables.get(i).copied().unwrap_or(0);
    let red = match g.pixels {
        Pixels::Bayer(red) => red.map(i32::from),
        _ => [0; 2],
    };
    let frame = Frame {
        planes: [plane(0), plane(1), plane(2)],
        pitches: g.pitches.map(|p| p as i64),
        x: g.x as i32,
        y: g.y as i32,
        width: g.width as i32,
        height: g.height as i32,
        red_x: red[0],
        red_y: red[1],
    };
    let resize = Resize {
        y0: table(0),
        wy: table(1),
        x0: table(2),
        wx: table(3),
        taps_y: g.taps[0] as i32,
        taps_x: g.taps[1] as i32,
        out_width: g.out_width as i32,
        channels: 3,
        a: g.a,
        b: g.b,
    };
    Launch {
        module: "preprocess",
        kernel: g.pixels.kernel(),
        grid: [g.out_width.div_ceil(TILE) as u32, g.out_height.div_ceil(ROWS) as u32, 1],
        block: [BLOCK, 1, 1],
        shared: 0,
        args: vec![
            Arg::Struct(bytemuck::bytes_of(&frame).to_vec()),
            Arg::Struct(bytemuck::bytes_of(&resize).to_vec()),
            Arg::I32(g.out_height as i32),
            Arg::Struct(at.out.to_le_bytes().to_vec()),
        ],
    }
}
