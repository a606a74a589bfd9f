//! Pixel figures: AUROC over all pixels, and PRO.
//!
//! PRO, the per-region overlap (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, §4):
//! for a threshold, the mean over all ground-truth regions of the share of the region that scores at
//! or above it; drawn against the share of defect-free pixels (of good pictures too) at or above it
//! (FPR). PRO here is the area under that curve up to FPR 0.3, divided by 0.3. Regions are the
//! 8-connected components of a mask.
//!
//! Both curves are exact: every distinct score is a threshold. A pixel of region r adds
//! `1 / (regions · area_r)` to the overlap from its own score downwards, so one sort of all pixels gives
//! the whole curve. Where the curve crosses FPR 0.3 it is interpolated linearly.
//!
//! Maps are compared at the network's input size (256 × 256), masks resized by nearest neighbour and cut
//! at one half, as published figures do. Takes 8 bytes per pixel.

/// The FPR up to which PRO integrates.
pub const PRO_LIMIT: f64 = 0.3;

/// Scores of all pixels of a test set, with the ground-truth region each belongs to.
#[derive(Clone, Debug, Default)]
pub struct PixelScores {
    /// High half: the score as an order-preserving integer; low half: region, 0 where defect-free.
    keys: Vec<u64>,
    /// Pixels of region 1, 2, …
    areas: Vec<u64>,
}

/// What pixels say of a model, each in [0, 1]; `None` where there is nothing to compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelFigures {
    pub auroc: Option<f64>,
    pub pro: Option<f64>,
    pub regions: usize,
}

impl PixelScores {
    /// Adds one picture: `map` of `width` columns, and its mask of the same size, or none where it is
    /// good.
    pub fn add(&mut self, map: &[f32], width: usize, mask: Option<&[bool]>) {
        let first = self.areas.len() as u32;
        let mut labels = vec![0; map.len()];
        if let Some(mask) = mask {
            self.areas.extend(label_regions(mask, width, &mut labels));
        }
        self.keys.extend(map.iter().zip(labels).map(|(&score, label)| {
            let region = if label == 0 { 0 } else { first + label };
            u64::from(ordered(score)) << 32 | u64::from(region)
        }));
    }

    /// Sorts once and walks down the thresholds.
    pub fn figures(mut self) -> PixelFigures {
        let regions = self.areas.len();
        let positives: u64 = self.areas.iter().sum();
        let negatives = self.keys.len() as u64 - positives;
        if positives == 0 || negatives == 0 {
            return PixelFigures { auroc: None, pro: None, regions };
        }
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        let share: Vec<f64> = self.areas.iter().map(|&area| 1.0 / (regions as f64 * area as f64)).collect();

        let (mut tp, mut fp, mut overlap) = (0u64, 0u64, 0.0f64);
        let mut twice_auc = 0u128;
        let mut pro = 0.0;
        for group in self.keys.chunk_by(|a, b| a >> 32 == b >> 32) {
            let before = (tp, fp, overlap);
            for &key in group {
                match key as u32 {
                    0 => fp += 1,
                    region => {
                        tp += 1;
                        overlap += share[region as usize - 1];
                    }
                }
            }
            twice_auc += u128::from(fp - before.1) * u128::from(before.0 + tp);
            let (from, to) = (before.1 as f64 / negatives as f64, fp as f64 / negatives as f64);
            if from < PRO_LIMIT && to > from {
                let end = to.min(PRO_LIMIT);
                let at_end = before.2 + (overlap - before.2) * (end - from) / (to - from);
                pro += (end - from) * (before.2 + at_end) / 2.0;
            }
        }
        PixelFigures {
            auroc: Some(twice_auc as f64 / (2.0 * positives as f64 * negatives as f64)),
            // Sums of up to 2^32 shares round; the definition's bound is 1.
            pro: Some((pro / PRO_LIMIT).min(1.0)),
            regions,
        }
    }
}

/// Order-preserving: a < b as floats exactly where so as integers; -0 is 0; NaN is above all.
fn ordered(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Writes 1, 2, … into `labels` for each 8-connected region of `mask`; gives their areas.
fn label_regions(mask: &[bool], width: usize, labels: &mut [u32]) -> Vec<u64> {
    let mut areas = Vec::new();
    let mut open = Vec::new();
    let Some(height) = mask.len().checked_div(width) else { return areas };
    for seed in 0..width * height {
        if !mask[seed] || labels[seed] != 0 {
            continue;
        }
        let label = areas.len() as u32 + 1;
        labels[seed] = label;
        open.push(seed);
        let mut area = 0;
        while let Some(at) = open.pop() {
            area += 1;
            let (x, y) = (at % width, at / width);
            for ny in y.saturating_sub(1)..(y + 2).min(height) {
                for nx in x.saturating_sub(1)..(x + 2).min(width) {
                    let next = ny * width + nx;
                    if mask[next] && labels[next] == 0 {
                        labels[next] = label;
                        open.push(next);
                    }
                }
            }
        }
        areas.push(area);
    }
    areas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&str]) -> (usize, Vec<bool>) {
        (rows[0].len(), rows.concat().bytes().map(|b| b == b'#').collect())
    }

    #[test]
    fn regions_touch_at_corners_and_not_across_borders() {
        let (width, mask) = mask(&["#..#", ".#.#", "....", "#..#"]);
        let mut labels = vec![0; 16];
        assert_eq!(label_regions(&mask, width, &mut labels), [2, 2, 1, 1]);
        assert_eq!(labels, [1, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0, 3, 0, 0, 4]);
    }

    #[test]
    fn a_perfect_map_scores_one_and_a_constant_map_one_half_and_fifteen_hundredths() {
        let (width, truth) = mask(&["##......", "##......", "........", "......##"]);
        let perfect: Vec<f32> = truth.iter().map(|&m| f32::from(m)).collect();
        let mut scores = PixelScores::default();
        scores.add(&perfect, width, Some(&truth));
        scores.add(&[0.0; 32], width, None);
        assert_eq!(scores.figures(), PixelFigures { auroc: Some(1.0), pro: Some(1.0), regions: 2 });

        // A constant map is the diagonal: area under y = x up to 0.3, over 0.3, is 0.15.
        let mut scores = PixelScores::default();
        scores.add(&[0.7; 32], width, Some(&truth));
        let figures = scores.figures();
        assert_eq!(figures.auroc, Some(0.5));
        assert!((figures.pro.unwrap() - 0.15).abs() < 1e-15);
    }

    #[test]
    fn small_and_large_regions_weigh_the_same() {
        // The 1-pixel region is found first (score 3), then one negative of ten (2), then the
        // 9-pixel region and nine negatives at once (1).
        let (width, truth) = mask(&["#.###", "..###", "..###", "....."]);
        let map: Vec<f32> = (0..20)
            .map(|i| {
                if i == 0 {
                    3.0
                } else if i == 1 {
                    2.0
                } else {
                    1.0
                }
            })
            .collect();
        let mut scores = PixelScores::default();
        scores.add(&map, width, Some(&truth));
        let figures = scores.figures();
        // Overlap is 1/2 up to FPR 0.1, then rises to 1 at FPR 1. At 0.3: 1/2 + 1/2 · 0.2/0.9.
        let at_limit = 0.5 + 0.5 * 0.2 / 0.9;
        let want = (0.1 * 0.5 + 0.2 * (0.5 + at_limit) / 2.0) / 0.3;
        assert!((figures.pro.unwrap() - want).abs() < 1e-15, "{figures:?} {want}");
        // AUROC: 1 of 10 positives above all; the other 9 below one negative and tied with nine.
        let want = (10.0 + 9.0 * 9.0 / 2.0) / 100.0;
        assert!((figures.auroc.unwrap() - want).abs() < 1e-15);
    }

    #[test]
    fn without_defects_or_without_good_pixels_there_is_nothing_to_say() {
        let mut scores = PixelScores::default();
        scores.add(&[0.1, 0.2], 2, None);
        assert_eq!(scores.figures(), PixelFigures { auroc: None, pro: None, regions: 0 });
        let mut scores = PixelScores::default();
        scores.add(&[0.1, 0.2], 2, Some(&[true, true]));
        assert_eq!(scores.figures().auroc, None);
        assert_eq!(PixelScores::default().figures().pro, None);
    }

    #[test]
    fn scores_keep_their_order_as_integers() {
        let sorted = [f32::NEG_INFINITY, -2.0, -1e-40, 0.0, 1e-40, 1.0, f32::INFINITY, f32::NAN];
        assert!(sorted.windows(2).all(|w| ordered(w[0]) < ordered(w[1])));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }

    #[test]
    fn figures_agree_with_a_brute_force_over_every_threshold() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/pixels.json")).unwrap();
        let mut scores = PixelScores::default();
        for picture in golden["pictures"].as_array().unwrap() {
            let map: Vec<f32> =
                picture["map"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let mask: Option<Vec<bool>> =
                picture["mask"].as_str().map(|text| text.bytes().map(|b| b == b'1').collect());
            scores.add(&map, golden["width"].as_u64().unwrap() as usize, mask.as_deref());
        }
        let figures = scores.figures();
        let want = |key: &str| golden[key].as_f64().unwrap();
        assert_eq!(figures.regions as f64, want("regions"));
        // f64 sums of a few thousand terms below 1
        assert!((figures.auroc.unwrap() - want("auroc")).abs() < 1e-12, "{figures:?}");
        assert!((figures.pro.unwrap() - want("pro")).abs() < 1e-12, "{figures:?}");
    }
}
