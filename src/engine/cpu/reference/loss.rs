//! Softmax and cross-entropy over the last axis.

/// y = exp(x − max)/Σ per row of `channels`.
pub fn softmax(channels: usize, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (y, x) in y.iter_mut().zip(x) {
            *y = (x - top).exp();
            sum += *y;
        }
        for y in y.iter_mut() {
            *y /= sum;
        }
    }
}

/// dx = y·(dy − Σ dy·y).
pub fn softmax_backward(channels: usize, y: &[f32], dy: &[f32], dx: &mut [f32]) {
    let rows = y.chunks_exact(channels).zip(dy.chunks_exact(channels)).zip(dx.chunks_exact_mut(channels));
    for ((y, dy), dx) in rows {
        let dot: f32 = y.iter().zip(dy).map(|(y, d)| y * d).sum();
        for ((dx, y), d) in dx.iter_mut().zip(y).zip(dy) {
            *dx = y * (d - dot);
        }
    }
}

fn class(target: f32, channels: usize) -> usize {
    (target.max(0.0) as usize).min(channels - 1)
}

/// Mean over positions of `−log softmax(x)[target]`.
pub fn cross_entropy(channels: usize, x: &[f32], target: &[f32]) -> f32 {
    let mut sum = 0.0f64;
    for (x, t) in x.chunks_exact(channels).zip(target) {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let z: f32 = x.iter().map(|v| (v - top).exp()).sum();
        sum += f64::from(top + z.ln() - x[class(*t, channels)]);
    }
    (sum / target.len() as f64) as f32
}

/// (softmax(x) − onehot(target))·dloss/positions.
pub fn cross_entropy_backward(channels: usize, x: &[f32], target: &[f32], dloss: f32, dx: &mut [f32]) {
    softmax(channels, x, dx);
    let factor = dloss / target.len() as f32;
    for (dx, t) in dx.chunks_exact_mut(channels).zip(target) {
        dx[class(*t, channels)] -= 1.0;
        for d in dx.iter_mut() {
            *d *= factor;
        }
    }
}
