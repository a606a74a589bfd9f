//! The geometry of a convolution, and which algorithm computes it.

/// Zero rows and columns assumed around the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Padding {
    pub top: usize,
    pub left: usize,
    pub bottom: usize,
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn all(pad: usize) -> Self {
        Self { top: pad, left: pad, bottom: pad, right: pad }
    }
}

/// A convolution: x `[n, h, w, cin]`, weights `[kh, kw, cin/groups, cout]`, y `[n, oh, ow, cout]`.
///
/// ```text
/// y[b, i, j, o] = Σ_{ky, kx, c} x[b, i·stride + ky - top, j·stride + kx - left, g·cin/groups + c] · w[ky, kx, c, o]
/// ```
/// with g = o / (cout/groups). Each group's output channels are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub cin: usize,
    pub kh: usize,
    pub kw: usize,
    pub cout: usize,
    pub stride: usize,
    pub pad: Padding,
    pub groups: usize,
}

impl ConvGeometry {
    /// A square kernel, one group.
    #[allow(clippy::too_many_arguments)]
    pub const fn new(
        n: usize,
        h: usize,
        w: usize,
        cin: usize,
        k: usize,
        cout: usize,
        stride: usize,
        pad: usize,
    ) -> Self {
        Self { n, h, w, cin, kh: k, kw: k, cout, stride, pad: Padding::all(pad), groups: 1 }
    }

    /// As [`ConvGeometry::new`], each channel with a kernel of its own.
    pub const fn depthwise(
        n: usize,
        h: usize,
        w: usize,
        c: usize,
        k: usize,
        stride: usize,
        pad: usize,
    ) -> Self {
        Self { groups: c, ..Self::new(n, h, w, c, k, c, stride, pad) }
    }

    /// Height of the output.
    pub const fn oh(&self) -> usize {
        (self.h + self.pad.top + self.pad.bottom - self.kh) / self.stride + 1
    }

    /// Width of the output.
    pub const fn ow(&self) -> usize {
        (self.w + self.pad.left + self.pad.right - self.kw) / self.stride + 1
    }

    /// Elements of x.
    pub const fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.cin
    }

    /// Elements of the weights.
    pub const fn weight_len(&self) -> usize {
        self.kh * self.kw * (self.cin / self.groups) * self.cout
    }

    /// Elements of y.
    pub const fn output_len(&self) -> usize {
        self.n * self.oh() * self.ow() * self.cout
    }

    /// Multiply-adds, padding counted as work.
    pub const fn macs(&self) -> usize {
        self.output_len() * self.kh * self.kw * (self.cin / self.groups)
    }

    /// # Panics
    /// If no such convolution exists: zero sizes, a kernel larger than the padded image, channels that
    /// the groups don't divide. The graph's shape inference refuses these with a proper error.
    pub(super) fn check(&self) {
        assert!(self.stride > 0 && self.groups > 0 && self.kh > 0 && self.kw > 0, "{self:?}");
        assert!(self.cin.is_multiple_of(self.groups) && self.cout.is_multiple_of(self.groups), "{self:?}");
        assert!(self.h + self.pad.top + self.pad.bottom >= self.kh, "{self:?}");
        assert!(self.w + self.pad.left + self.pad.right >= self.kw, "{self:?}");
    }
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algo {
    /// 1×1, stride 1, no padding: the image is the left matrix of a product.
    Pointwise,
    /// The left matrix' rows are patches, gathered block by block (implicit GEMM).
    Implicit,
    /// One kernel per channel: vectors run over channels.
    Depthwise,
}

/// The algorithm for a geometry; same answer on every machine.
pub fn pick_algo(g: &ConvGeometry) -> Algo {
    if g.groups > 1 && g.groups == g.cin && g.cout == g.cin {
        Algo::Depthwise
    } else if g.kh == 1 && g.kw == 1 && g.stride == 1 && g.pad == Padding::default() && g.groups == 1 {
        Algo::Pointwise
    } else {
        Algo::Implicit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes_are_those_of_the_field() {
        let stem = ConvGeometry::new(1, 256, 256, 3, 7, 64, 2, 3);
        assert_eq!((stem.oh(), stem.ow()), (128, 128));
        let same = ConvGeometry::new(1, 15, 16, 8, 3, 8, 1, 1);
        assert_eq!((same.oh(), same.ow()), (15, 16));
        let pad = Padding { top: 0, left: 0, bottom: 1, right: 1 };
        let tensorflow = ConvGeometry { pad, ..ConvGeometry::new(1, 256, 256, 3, 3, 32, 2, 0) };
        assert_eq!((tensorflow.oh(), tensorflow.ow()), (128, 128));
        assert_eq!(tensorflow.macs(), 128 * 128 * 32 * 27);
    }

    #[test]
    fn each_kind_of_layer_gets_its_algorithm() {
        assert_eq!(pick_algo(&ConvGeometry::new(1, 64, 64, 64, 1, 256, 1, 0)), Algo::Pointwise);
        assert_eq!(pick_algo(&ConvGeometry::new(1, 64, 64, 256, 1, 512, 2, 0)), Algo::Implicit);
        assert_eq!(pick_algo(&ConvGeometry::new(1, 64, 64, 64, 1, 64, 1, 1)), Algo::Implicit);
        assert_eq!(pick_algo(&ConvGeometry::new(1, 64, 64, 64, 3, 64, 1, 1)), Algo::Implicit);
        assert_eq!(pick_algo(&ConvGeometry::depthwise(1, 64, 64, 96, 3, 2, 1)), Algo::Depthwise);
        let grouped = ConvGeometry { groups: 32, ..ConvGeometry::new(1, 64, 64, 128, 3, 128, 1, 1) };
        assert_eq!(pick_algo(&grouped), Algo::Implicit);
        assert_eq!(pick_algo(&ConvGeometry::depthwise(1, 9, 9, 1, 3, 1, 1)), Algo::Implicit);
    }
}
