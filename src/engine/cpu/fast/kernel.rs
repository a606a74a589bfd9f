//! The micro-kernel: a tile of C, MR rows × NV vectors, stays in registers while k runs.
//!
//! ```text
//! C[r, j] (+)= Σ_p A[r, p] · B[p, j]        r < MR ≤ 14 (AVX-512) or 6 or 4,  j < NV·LANES
//! ```
//! B comes in panels, NV·LANES columns wide, contiguous in p. A is read one value at a time and
//! broadcast, so its layout is free: [`Layout::Rows`] has p contiguous (an image's pixels as they lie in
//! memory, or a block of patches), [`Layout::Cols`] has r contiguous (a transposed matrix as it lies).
//! That is the decision that surprises: A needs no interleaving, and patches are packed by plain
//! copies of runs of channels.
//!
//! Registers: MR·NV accumulators + NV for B + 1 broadcast: 14·2 + 3 = 31 of 32 with AVX-512,
//! 6·2 + 3 = 15 of 16 with AVX2. Per step of k that is 28 FMA against 2 vector loads and 14
//! broadcasts: bound by the FMA units, not by the load ports.

// Indices over registers: iterators over arrays of arrays hinder their promotion to registers.
#![allow(clippy::needless_range_loop)]

use super::epilogue::{Act, act_vector};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};

/// How A lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// `A[r, p] = a[r·stride + p]`
    Rows,
    /// `A[r, p] = a[p·stride + r]`
    Cols,
}

/// Largest MR of all sets, for tables on the stack.
pub(super) const MAX_ROWS: usize = 14;

/// Rows of a full tile.
pub(super) const fn tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 14,
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    }
}

/// Vectors in a full tile's row. The last panel of B may be one vector wide.
pub(super) const fn tile_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Avx2 => 2,
        Isa::Portable => 1,
    }
}

/// One call of the micro-kernel.
pub(super) struct Tile<'a> {
    pub k: usize,
    pub a: *const f32,
    pub a_stride: usize,
    pub b: *const f32,
    pub c: *mut f32,
    /// Offset of each row from `c` (and from `residual`).
    pub rows: &'a [usize; MAX_ROWS],
    /// Valid columns, 1..=NV·LANES.
    pub cols: usize,
    /// Add to what C holds.
    pub load_c: bool,
    /// Null, or `cols` floats.
    pub bias: *const f32,
    /// Null, or laid out as C.
    pub residual: *const f32,
    pub act: Act,
}

/// # Safety
/// The processor supports the kernel's set; `a`, `b`, `c` and the optional operands are valid for the
/// extents that the struct states, C exclusively.
pub(super) type Kernel = unsafe fn(&Tile);

#[inline(always)]
unsafe fn body<S: Simd, const MR: usize, const NV: usize, const COLS: bool>(t: &Tile) {
    // SAFETY: reads A[r, p] and B panel rows for r < MR, p < k, and C rows as stated in `Tile`.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        let mut a = t.a;
        let mut b = t.b;
        let step = if COLS { t.a_stride } else { 1 };
        for _ in 0..t.k {
            let mut bv = [S::splat(0.0); NV];
            for j in 0..NV {
                bv[j] = S::load(b.add(j * S::LANES));
            }
            for r in 0..MR {
                let av = S::splat(*a.add(if COLS { r } else { r * t.a_stride }));
                for j in 0..NV {
                    acc[r][j] = S::fma(av, bv[j], acc[r][j]);
                }
            }
            a = a.add(step);
            b = b.add(NV * S::LANES);
        }
        if t.cols == NV * S::LANES {
            finish::<S, MR, NV, true>(t, acc);
        } else {
            finish::<S, MR, NV, false>(t, acc);
        }
    }
}

#[inline(always)]
unsafe fn finish<S: Simd, const MR: usize, const NV: usize, const FULL: bool>(
    t: &Tile,
    mut acc: [[S::V; NV]; MR],
) {
    // SAFETY: with FULL all columns are valid; else the loads and stores are limited to `cols`.
    unsafe {
        let valid = |j: usize| t.cols.saturating_sub(j * S::LANES).min(S::LANES);
        let load = |p: *const f32, j: usize| {
            if FULL {
                S::load(p.add(j * S::LANES))
            } else {
                S::load_first(p.wrapping_add(j * S::LANES), valid(j))
            }
        };
        if t.load_c {
            for r in 0..MR {
                for j in 0..NV {
                    acc[r][j] = S::add(acc[r][j], load(t.c.add(t.rows[r]), j));
                }
            }
        }
        if !t.bias.is_null() {
            for j in 0..NV {
                let bias = load(t.bias, j);
                for row in &mut acc {
                    row[j] = S::add(row[j], bias);
                }
            }
        }
        if !t.residual.is_null() {
            for r in 0..MR {
                for j in 0..NV {
                    acc[r][j] = S::add(acc[r][j], load(t.residual.add(t.rows[r]), j));
                }
            }
        }
        match t.act {
            Act::Relu => apply::<S, MR, NV>(Act::Relu, &mut acc),
            Act::Relu6 => apply::<S, MR, NV>(Act::Relu6, &mut acc),
            Act::LeakyRelu(slope) => apply::<S, MR, NV>(Act::LeakyRelu(slope), &mut acc),
            _ => {}
        }
        for r in 0..MR {
            let row = t.c.add(t.rows[r]);
            for j in 0..NV {
                let p = row.wrapping_add(j * S::LANES);
                if FULL {
                    S::store(p, acc[r][j]);
                } else {
                    S::store_first(p, acc[r][j], valid(j));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn apply<S: Simd, const MR: usize, const NV: usize>(act: Act, acc: &mut [[S::V; NV]; MR]) {
    for row in acc {
        for v in row {
            // SAFETY: arithmetic only.
            *v = unsafe { act_vector::<S>(act, *v) };
        }
    }
}

macro_rules! instantiate {
    ($name:ident, $feature:literal, $set:ty) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $feature)]
        unsafe fn $name<const MR: usize, const NV: usize, const COLS: bool>(t: &Tile) {
            // SAFETY: passed on from the caller.
            unsafe { body::<$set, MR, NV, COLS>(t) }
        }
    };
}
instantiate!(avx512, "avx512f", Avx512);
instantiate!(avx2, "avx2,fma", Avx2);

unsafe fn portable<const MR: usize, const NV: usize, const COLS: bool>(t: &Tile) {
    // SAFETY: passed on from the caller.
    unsafe { body::<Portable, MR, NV, COLS>(t) }
}

/// The kernel for a tile of `rows` × `vectors`.
///
/// # Panics
/// If no such tile exists: see [`tile_rows`], [`tile_vectors`].
pub(super) fn kernel(isa: Isa, layout: Layout, rows: usize, vectors: usize) -> Kernel {
    macro_rules! pick {
        ($f:ident, $($mr:literal)*; $($nv:literal)*) => { pick!(@ $f, [$($mr)*], $($nv)*) };
        (@ $f:ident, $mrs:tt, $($nv:literal)*) => {
            match (layout, vectors) {
                $(
                    (Layout::Rows, $nv) => pick!(# $f, $mrs, $nv, false),
                    (Layout::Cols, $nv) => pick!(# $f, $mrs, $nv, true),
                )*
                _ => unreachable!("no tile of {vectors} vectors"),
            }
        };
        (# $f:ident, [$($mr:literal)*], $nv:literal, $cols:literal) => {
            match rows {
                $($mr => $f::<$mr, $nv, $cols> as Kernel,)*
                _ => unreachable!("no tile of {rows} rows"),
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => pick!(avx512, 1 2 3 4 5 6 7 8 9 10 11 12 13 14; 1 2),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => pick!(avx2, 1 2 3 4 5 6; 1 2),
        _ => pick!(portable, 1 2 3 4; 1),
    }
}
