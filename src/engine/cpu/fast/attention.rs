//! Attention by batched products over heads, one image at a time. The S×S weights of all heads lie in
//! scratch: at 1024 tokens and 4 heads 16 MB, which the plan shares with other layers.

use super::epilogue::{Epilogue, exp};
use super::gemm::{Batch, Mat, gemm_batched, gemm_batched_scratch};
use super::split::{chunks, chunks2, with_isa};
use super::threads::Pool;
use crate::engine::op::{Attention, QkvLayout};
use crate::engine::shape::Shape;

/// Strides of q, k and v within a token's 3C channels.
struct Heads {
    width: usize,
    part: usize,
    head: usize,
}

fn heads(a: &Attention, channels: usize) -> Heads {
    let width = channels / a.heads;
    match a.layout {
        QkvLayout::PerHead => Heads { width, part: width, head: 3 * width },
        QkvLayout::Blocks => Heads { width, part: channels, head: width },
    }
}

fn product_scratch(pool: &Pool, tokens: usize, width: usize) -> usize {
    [(tokens, width), (width, tokens)]
        .map(|(n, k)| gemm_batched_scratch(pool, n, k))
        .into_iter()
        .max()
        .unwrap_or(0)
}

/// Floats of scratch; `backward` needs two matrices of weights.
pub fn attention_scratch(pool: &Pool, a: &Attention, xs: Shape, backward: bool) -> usize {
    let tokens = xs.h() * xs.w();
    let matrices = if backward { 2 } else { 1 };
    matrices * a.heads * tokens * tokens + product_scratch(pool, tokens, xs.c() / 3 / a.heads)
}

/// scores = q·kᵀ, then softmax(scores/√width) row by row.
fn weights(pool: &Pool, a: &Attention, qkv: &[f32], channels: usize, p: &mut [f32], scratch: &mut [f32]) {
    let Heads { width, part, head } = heads(a, channels);
    let stride = 3 * channels;
    let tokens = qkv.len() / stride;
    let square = tokens * tokens;
    let batch = Batch { outer: 1, inner: a.heads, a: [0, head], b: [0, head], c: [0, square] };
    let (q, k) = (Mat::new(qkv, stride), Mat::transposed(&qkv[part..], stride));
    gemm_batched(pool, tokens, tokens, width, &batch, q, k, p, tokens, &Epilogue::default(), scratch);
    let scale = 1.0 / (width as f32).sqrt();
    chunks(pool, p, tokens, &|start, row| {
        let seen = if a.causal { start / tokens % tokens + 1 } else { tokens };
        let (row, hidden) = row.split_at_mut(seen);
        hidden.fill(0.0);
        with_isa(pool.isa(), || {
            let mut top = f32::NEG_INFINITY;
            row.iter().for_each(|v| top = top.max(*v));
            row.iter_mut().for_each(|v| *v = exp(scale * (*v - top)));
            let sum: f32 = row.iter().sum();
            let inverse = 1.0 / sum;
            row.iter_mut().for_each(|v| *v *= inverse);
        });
    });
}

pub fn attention(pool: &Pool, a: &Attention, (xs, qkv): (Shape, &[f32]), y: &mut [f32], scratch: &mut [f32]) {
    let (tokens, channels) = (xs.h() * xs.w(), xs.c() / 3);
    let Heads { width, part, head } = heads(a, channels);
    let square = tokens * tokens;
    let (p, scratch) = scratch.split_at_mut(a.heads * square);
    for n in 0..xs.n() {
        let qkv = &qkv[n * tokens * 3 * channels..][..tokens * 3 * channels];
        weights(pool, a, qkv, channels, p, scratch);
        let batch = Batch { outer: 1, inner: a.heads, a: [0, square], b: [0, head], c: [0, width] };
        let v = Mat::new(&qkv[2 * part..], 3 * channels);
        let y = &mut y[n * tokens * channels..][..tokens * channels];
        let p = Mat::new(p, tokens);
        gemm_batched(pool, tokens, width, tokens, &batch, p, v, y, channels, &Epilogue::default(), scratch);
    }
}

pub fn attention_backward(
    pool: &Pool,
    a: &Attention,
    (xs, qkv): (Shape, &[f32]),
    dy: &[f32],
    dx: &mut [f32],
    scratch: &mut [f32],
) {
    let (tokens, channels) = (xs.h() * xs.w(), xs.c() / 3);
    let Heads { width, part, head } = heads(a, channels);
    let (square, stride) = (tokens * tokens, 3 * channels);
    let scale = 1.0 / (width as f32).sqrt();
    let (p, rest) = scratch.split_at_mut(a.heads * square);
    let (ds, scratch) = rest.split_at_mut(a.heads * square);
    let plain = Epilogue::default();
    for n in 0..xs.n() {
        let qkv = &qkv[n * tokens * stride..][..tokens * stride];
        let dx = &mut dx[n * tokens * stride..][..tokens * stride];
        let dy = &dy[n * tokens * channels..][..tokens * channels];
        weights(pool, a, qkv, channels, p, scratch);
        let dy = Mat::new(dy, channels);
        let by_head = |a_step: usize, b_step: usize, c_step: usize| Batch {
            outer: 1,
            inner: a.heads,
            a: [0, a_step],
            b: [0, b_step],
            c: [0, c_step],
        };
        let batch = by_head(width, head, square);
        let vt = Mat::transposed(&qkv[2 * part..], stride);
        gemm_batched(pool, tokens, tokens, width, &batch, dy, vt, ds, tokens, &plain, scratch);
        // dv = Pᵀ·dy while P is whole
        let batch = by_head(square, width, head);
        let pt = Mat::transposed(p, tokens);
        gemm_batched(
            pool,
            tokens,
            width,
            tokens,
            &batch,
            pt,
            dy,
            &mut dx[2 * part..],
            stride,
            &plain,
            scratch,
        );
        chunks2(pool, (ds, tokens), (p, tokens), &|_, ds, p| {
            with_isa(pool.isa(), || {
                let dot: f32 = ds.iter().zip(p.iter()).map(|(d, p)| d * p).sum();
                ds.iter_mut().zip(p.iter()).for_each(|(d, p)| *d = p * (*d - dot) * scale);
            });
        });
        let batch = by_head(square, head, head);
        let (q, k) = (Mat::new(qkv, stride), Mat::new(&qkv[part..], stride));
        gemm_batched(
            pool,
            tokens,
            width,
            tokens,
            &batch,
            Mat::new(ds, tokens),
            k,
            dx,
            stride,
            &plain,
            scratch,
        );
        let dst = Mat::transposed(ds, tokens);
        gemm_batched(pool, tokens, width, tokens, &batch, dst, q, &mut dx[part..], stride, &plain, scratch);
    }
}
