//! Scaled dot-product attention on packed q, k, v.

use crate::engine::op::{Attention, QkvLayout};
use crate::engine::shape::Shape;

/// Offset in a token's 3C channels of part p (0 q, 1 k, 2 v) of a head.
fn part(a: &Attention, channels: usize, head: usize, p: usize) -> usize {
    let width = channels / a.heads;
    match a.layout {
        QkvLayout::PerHead => (head * 3 + p) * width,
        QkvLayout::Blocks => p * channels + head * width,
    }
}

/// Softmax weights of query `i` over all tokens of one image; those it must not see are 0.
fn weights(
    a: &Attention,
    qkv: &[f32],
    channels: usize,
    head: usize,
    i: usize,
    tokens: usize,
    out: &mut [f32],
) {
    let width = channels / a.heads;
    let (q, k) = (part(a, channels, head, 0), part(a, channels, head, 1));
    let seen = if a.causal { i + 1 } else { tokens };
    let scale = 1.0 / (width as f32).sqrt();
    for (j, o) in out.iter_mut().enumerate().take(seen) {
        let (q, k) = (&qkv[i * 3 * channels + q..][..width], &qkv[j * 3 * channels + k..][..width]);
        *o = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>();
    }
    let top = out[..seen].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for o in &mut out[..seen] {
        *o = (*o - top).exp();
        sum += *o;
    }
    for o in &mut out[..seen] {
        *o /= sum;
    }
    out[seen..].fill(0.0);
}

/// `row` is scratch for one row of weights (tokens numbers).
pub fn attention(a: &Attention, (xs, qkv): (Shape, &[f32]), y: &mut [f32], row: &mut [f32]) {
    let (tokens, channels) = (xs.h() * xs.w(), xs.c() / 3);
    let width = channels / a.heads;
    y.fill(0.0);
    for n in 0..xs.n() {
        let qkv = &qkv[n * tokens * 3 * channels..][..tokens * 3 * channels];
        for head in 0..a.heads {
            let v = part(a, channels, head, 2);
            for i in 0..tokens {
                weights(a, qkv, channels, head, i, tokens, row);
                let y = &mut y[(n * tokens + i) * channels + head * width..][..width];
                for (j, p) in row.iter().enumerate() {
                    for (y, v) in y.iter_mut().zip(&qkv[j * 3 * channels + v..][..width]) {
                        *y += p * v;
                    }
                }
            }
        }
    }
}

/// With P the weights and D = dy·vᵀ: dS = P∘(D − rowsum(P∘D))·scale; dq = dS·k, dk = dSᵀ·q, dv = Pᵀ·dy.
/// `rows` is scratch of 2·tokens numbers.
pub fn attention_backward(
    a: &Attention,
    (xs, qkv): (Shape, &[f32]),
    dy: &[f32],
    dx: &mut [f32],
    rows: &mut [f32],
) {
    let (tokens, channels) = (xs.h() * xs.w(), xs.c() / 3);
    let width = channels / a.heads;
    let scale = 1.0 / (width as f32).sqrt();
    dx.fill(0.0);
    let (p, ds) = rows.split_at_mut(tokens);
    for n in 0..xs.n() {
        let image = n * tokens * 3 * channels;
        let qkv = &qkv[image..][..tokens * 3 * channels];
        let dx = &mut dx[image..][..tokens * 3 * channels];
        for head in 0..a.heads {
            let [q, k, v] = [0, 1, 2].map(|i| part(a, channels, head, i));
            for i in 0..tokens {
                weights(a, qkv, channels, head, i, tokens, p);
                let dy = &dy[(n * tokens + i) * channels + head * width..][..width];
                let mut dot = 0.0;
                for j in 0..tokens {
                    let token = j * 3 * channels;
                    ds[j] = dy.iter().zip(&qkv[token + v..][..width]).map(|(a, b)| a * b).sum();
                    dot += p[j] * ds[j];
                    for (d, g) in dx[token + v..][..width].iter_mut().zip(dy) {
                        *d += p[j] * g;
                    }
                }
                for j in 0..tokens {
                    let s = p[j] * (ds[j] - dot) * scale;
                    let (qi, kj) = (i * 3 * channels + q, j * 3 * channels + k);
                    for e in 0..width {
                        dx[qi + e] += s * qkv[kj + e];
                        dx[kj + e] += s * qkv[qi + e];
                    }
                }
            }
        }
    }
}
