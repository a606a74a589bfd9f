//! Steps that write parameters.

use crate::engine::op::Adam;

/// AdamW (Loshchilov and Hutter, 2019): decoupled weight decay, bias-corrected moments.
/// `rate`: lr, 1−beta1^t, 1−beta2^t.
pub fn adam(
    a: &Adam,
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    rate: &[f32],
    scale: f32,
) {
    let (lr, correction1, correction2) = (rate[0], rate[1], rate[2]);
    for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        let g = g * scale;
        *m = a.beta1 * *m + (1.0 - a.beta1) * g;
        *v = a.beta2 * *v + (1.0 - a.beta2) * g * g;
        *p -= lr * a.weight_decay * *p;
        *p -= lr * (*m / correction1) / ((*v / correction2).sqrt() + a.eps);
    }
}

/// running += momentum·(new − running); the second half (variances) of `new` times `variance_factor`.
pub fn moving_average(momentum: f32, variance_factor: f32, running: &mut [f32], new: &[f32]) {
    let half = running.len() / 2;
    for (i, (r, n)) in running.iter_mut().zip(new).enumerate() {
        let n = if i < half { *n } else { n * variance_factor };
        *r += momentum * (n - *r);
    }
}
