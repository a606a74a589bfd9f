//! Pictures and masks on which training anomalies are painted: fp32, row-major, RGB in [0, 1].

/// ImageNet's channel means and deviations, of RGB in [0, 1].
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// A square RGB picture, three numbers in [0, 1] a pixel.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub size: usize,
    pub data: Vec<f32>,
}

impl Picture {
    pub fn flat(size: usize, colour: [f32; 3]) -> Self {
        Picture { size, data: colour.iter().copied().cycle().take(size * size * 3).collect() }
    }

    pub fn pixels(&self) -> impl ExactSizeIterator<Item = &[f32; 3]> {
        self.data.as_chunks::<3>().0.iter()
    }

    pub fn pixels_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f32; 3]> {
        self.data.as_chunks_mut::<3>().0.iter_mut()
    }

    pub fn pixel(&self, x: usize, y: usize) -> [f32; 3] {
        let at = (y * self.size + x) * 3;
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// As the network sees it: (value − mean) / std per channel. `out` has the picture's length.
    pub fn normalised_into(&self, out: &mut [f32]) {
        for (to, from) in out.as_chunks_mut::<3>().0.iter_mut().zip(self.pixels()) {
            for c in 0..3 {
                to[c] = (from[c] - MEAN[c]) / STD[c];
            }
        }
    }
}

/// A picture kept in memory at one byte a channel: hundreds of normals fit where floats would not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub size: usize,
    pub data: Vec<u8>,
}

impl Stored {
    /// From network input (normalised); rounds to 1/255.
    pub fn from_normalised(size: usize, input: &[f32]) -> Self {
        let data = input
            .as_chunks::<3>()
            .0
            .iter()
            .flat_map(|p| [0, 1, 2].map(|c| quantise(p[c] * STD[c] + MEAN[c])))
            .collect();
        Stored { size, data }
    }

    pub fn from_picture(picture: &Picture) -> Self {
        Stored { size: picture.size, data: picture.data.iter().map(|v| quantise(*v)).collect() }
    }

    pub fn picture(&self) -> Picture {
        let mut picture = Picture { size: self.size, data: vec![0.0; self.data.len()] };
        self.picture_into(&mut picture);
        picture
    }

    pub fn picture_into(&self, out: &mut Picture) {
        out.size = self.size;
        out.data.clear();
        out.data.extend(self.data.iter().map(|v| *v as f32 * (1.0 / 255.0)));
    }

    /// The largest distance between two channels of one pixel, in the 99th percentile over pixels, of
    /// 255: near zero for a grey picture.
    pub fn colourfulness(&self) -> u8 {
        let mut histogram = [0usize; 256];
        for p in self.data.as_chunks::<3>().0 {
            let (lo, hi) = (p[0].min(p[1]).min(p[2]), p[0].max(p[1]).max(p[2]));
            histogram[(hi - lo) as usize] += 1;
        }
        let mut left = self.data.len() / 3 / 100;
        for (value, count) in histogram.iter().enumerate().rev() {
            if *count > left {
                return value as u8;
            }
            left -= count;
        }
        0
    }
}

fn quantise(value: f32) -> u8 {
    (value * 255.0).round().clamp(0.0, 255.0) as u8
}

/// Opacity per pixel in [0, 1]; where it is 0 or 1 only, a binary mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    pub size: usize,
    pub data: Vec<f32>,
}

impl Mask {
    pub fn empty(size: usize) -> Self {
        Mask { size, data: vec![0.0; size * size] }
    }

    /// Number of pixels above one half.
    pub fn area(&self) -> usize {
        self.data.iter().filter(|v| **v > 0.5).count()
    }

    /// The share of each cell of a `cells`×`cells` grid that the mask covers; `size` must be a
    /// multiple of `cells`.
    pub fn coverage(&self, cells: usize) -> Vec<f32> {
        let side = self.size / cells.max(1);
        let mut cover = vec![0.0; cells * cells];
        for (y, row) in self.data.chunks_exact(self.size).enumerate() {
            let line = &mut cover[(y / side).min(cells - 1) * cells..][..cells];
            for (cell, part) in line.iter_mut().zip(row.chunks_exact(side)) {
                *cell += part.iter().sum::<f32>();
            }
        }
        let share = 1.0 / (side * side) as f32;
        cover.iter_mut().for_each(|v| *v *= share);
        cover
    }

    /// Box blur of the given radius in both directions; edges repeat.
    pub fn blur(&mut self, radius: usize) {
        blur_plane(&mut self.data, self.size, radius);
        // Running sums leave rounding dust where the exact result is 0 or 1.
        self.data.iter_mut().for_each(|v| *v = if *v < 1e-4 { 0.0 } else { v.min(1.0) });
    }
}

/// Box blur of a square plane, running sums, edges repeat.
pub fn blur_plane(data: &mut [f32], size: usize, radius: usize) {
    if radius == 0 || size == 0 {
        return;
    }
    let mut line = vec![0.0f32; size];
    let norm = 1.0 / (2 * radius + 1) as f32;
    let mut pass = |data: &mut [f32], start: usize, stride: usize| {
        for (i, v) in line.iter_mut().enumerate() {
            *v = data[start + i * stride];
        }
        let at = |i: isize| line[i.clamp(0, size as isize - 1) as usize];
        let r = radius as isize;
        let mut sum: f32 = (-r..=r).map(at).sum();
        for i in 0..size as isize {
            data[start + i as usize * stride] = sum * norm;
            sum += at(i + r + 1) - at(i - r);
        }
    };
    for y in 0..size {
        pass(data, y * size, 1);
    }
    for x in 0..size {
        pass(data, x, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_the_mean_of_each_cell() {
        let mut mask = Mask::empty(8);
        mask.data[0] = 1.0;
        mask.data[7 * 8 + 7] = 0.5;
        let cover = mask.coverage(2);
        assert_eq!(cover, vec![1.0 / 16.0, 0.0, 0.0, 0.5 / 16.0]);
    }

    #[test]
    fn a_blur_keeps_a_constant_and_the_mean_of_an_inner_spot() {
        let mut flat = vec![0.25; 64];
        blur_plane(&mut flat, 8, 2);
        assert!(flat.iter().all(|v| (v - 0.25).abs() < 1e-6));
        let mut spot = vec![0.0; 81];
        spot[40] = 1.0;
        blur_plane(&mut spot, 9, 1);
        assert!((spot.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!((spot[40] - 1.0 / 9.0).abs() < 1e-6);
    }

    #[test]
    fn storing_a_picture_loses_less_than_half_a_step() {
        let picture = Picture::flat(4, [0.123, 0.456, 0.789]);
        let mut input = vec![0.0; 48];
        picture.normalised_into(&mut input);
        let back = Stored::from_normalised(4, &input).picture();
        for (a, b) in picture.data.iter().zip(&back.data) {
            assert!((a - b).abs() <= 0.5 / 255.0 + 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn a_grey_picture_is_told_from_a_coloured_one() {
        assert_eq!(Stored::from_picture(&Picture::flat(8, [0.5; 3])).colourfulness(), 0);
        assert_eq!(Stored::from_picture(&Picture::flat(8, [1.0, 0.0, 0.0])).colourfulness(), 255);
    }
}
