//! Steps that write parameters.

use crate::engine::op::Adam;

/// AdamW (Loshchilov and Hutter, 2019): decoupled weight decay, bias-corrected moments.
/// `rate`: lr, 1−beta1^t, 1−beta2^t.
///
/// Where `scale` is 0 or not finite the step is skipped: nothing is written, decay included. An element
/// whose new v would not be finite stays as it is: one such gradient would otherwise stay in the moments
/// for good.
pub fn adam(
    a: &Adam,
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    rate: &[f32],
    scale: f32,
) {
    if scale == 0.0 || !scale.is_finite() {
        return;
    }
    let (lr, correction1, correction2) = (rate[0], rate[1], rate[2]);
    for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        let g = g * scale;
        let new_m = a.beta1 * *m + (1.0 - a.beta1) * g;
        let new_v = a.beta2 * *v + (1.0 - a.beta2) * g * g;
        let decayed = *p - lr * a.weight_decay * *p;
        let new_p = decayed - lr * (new_m / correction1) / ((new_v / correction2).sqrt() + a.eps);
        // Chosen element by element, not left out: so the loop stays one of vectors.
        let written = new_v.is_finite();
        *m = if written { new_m } else { *m };
        *v = if written { new_v } else { *v };
        *p = if written { new_p } else { *p };
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

#[cfg(test)]
mod tests {
    use super::*;

    const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    const RATE: [f32; 3] = [0.01, 0.1, 0.01];

    #[test]
    fn adam_skips_a_step_whose_scale_is_zero_or_no_number() {
        for scale in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut p, mut m, mut v) = ([1.0, -2.0], [0.5, 0.0], [0.25, 0.0]);
            adam(&ADAM, &mut p, &[3.0, f32::NAN], &mut m, &mut v, &RATE, scale);
            assert_eq!((p, m, v), ([1.0, -2.0], [0.5, 0.0], [0.25, 0.0]), "scale {scale}");
        }
    }

    #[test]
    fn adam_leaves_alone_what_a_single_broken_gradient_would_poison() {
        let grads = [f32::NAN, f32::INFINITY, -1e30, 1.0];
        let (mut p, mut m, mut v) = ([1.0; 4], [0.5; 4], [0.25; 4]);
        adam(&ADAM, &mut p, &grads, &mut m, &mut v, &RATE, 0.5);
        assert_eq!(
            (p[..3].to_vec(), m[..3].to_vec(), v[..3].to_vec()),
            (vec![1.0; 3], vec![0.5; 3], vec![0.25; 3])
        );
        assert!(p[3] < 1.0 && m[3] == 0.9f32 * 0.5 + (1.0 - 0.9f32) * 0.5, "{} {}", p[3], m[3]);
    }
}
