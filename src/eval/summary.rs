//! The figures of one model on one dataset.

use std::path::PathBuf;

use serde::Serialize;

use super::metrics::{auroc, percentile, rate_at_or_above};
use super::pixels::PixelFigures;
use crate::model::{Thresholds, Verdict};

/// One judged test picture.
#[derive(Clone, Debug)]
pub struct Scored {
    pub path: PathBuf,
    /// `good`, or the kind of defect.
    pub kind: String,
    pub defective: bool,
    pub score: f32,
    pub verdict: Verdict,
    /// From the decoded picture to its score, milliseconds.
    pub ms: f64,
}

/// What `inspectd eval` prints; rates and areas in [0, 1], `null` where the dataset cannot say.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub image_auroc: Option<f64>,
    pub pixel_auroc: Option<f64>,
    pub pro: Option<f64>,
    pub n_good: usize,
    pub n_defective: usize,
    /// Share of good pictures that score at or above the `bad` threshold.
    pub false_alarm_rate: Option<f64>,
    /// Share of defective pictures that score below the `bad` threshold; `unsure` ones are among them.
    pub miss_rate: Option<f64>,
    pub ms_p50: Option<f64>,
    pub ms_p99: Option<f64>,
}

impl Summary {
    pub fn new(scored: &[Scored], thresholds: Thresholds, pixels: Option<PixelFigures>) -> Self {
        let of = |defective: bool| -> Vec<f32> {
            scored.iter().filter(|s| s.defective == defective).map(|s| s.score).collect()
        };
        let (good, defective) = (of(false), of(true));
        let ms: Vec<f64> = scored.iter().map(|s| s.ms).collect();
        Summary {
            image_auroc: auroc(&good, &defective),
            pixel_auroc: pixels.and_then(|p| p.auroc),
            pro: pixels.and_then(|p| p.pro),
            n_good: good.len(),
            n_defective: defective.len(),
            false_alarm_rate: rate_at_or_above(&good, thresholds.bad),
            miss_rate: rate_at_or_above(&defective, thresholds.bad).map(|caught| 1.0 - caught),
            ms_p50: percentile(&ms, 0.5),
            ms_p99: percentile(&ms, 0.99),
        }
    }

    /// Names and values as they are printed and shown.
    pub fn rows(&self) -> [(&'static str, String); 9] {
        let share = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.4}"));
        let ms = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.2}"));
        [
            ("image_auroc", share(self.image_auroc)),
            ("pixel_auroc", share(self.pixel_auroc)),
            ("pro", share(self.pro)),
            ("n_good", self.n_good.to_string()),
            ("n_defective", self.n_defective.to_string()),
            ("false_alarm_rate", share(self.false_alarm_rate)),
            ("miss_rate", share(self.miss_rate)),
            ("ms_p50", ms(self.ms_p50)),
            ("ms_p99", ms(self.ms_p99)),
        ]
    }
}

#[cfg(test)]
pub(super) fn scored(kind: &str, score: f32, thresholds: Thresholds) -> Scored {
    Scored {
        path: format!("test/{kind}/{score}.png").into(),
        kind: kind.into(),
        defective: kind != "good",
        score,
        verdict: thresholds.verdict(score),
        ms: f64::from(score) + 10.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_taken_at_the_bad_threshold_and_missing_figures_are_null() {
        let thresholds = Thresholds { unsure: 1.0, bad: 2.0 };
        let pictures =
            [("good", 0.0), ("good", 1.5), ("good", 2.0), ("good", 0.5), ("dent", 1.5), ("dent", 3.0)];
        let scored: Vec<Scored> = pictures.map(|(kind, s)| scored(kind, s, thresholds)).into();
        let summary = Summary::new(&scored, thresholds, None);
        // pairs: 1.5 beats 0, .5 and ties 1.5; 3 beats all four
        assert_eq!(
            serde_json::to_string(&summary).unwrap(),
            "{\"image_auroc\":0.8125,\"pixel_auroc\":null,\"pro\":null,\"n_good\":4,\"n_defective\":2,\
             \"false_alarm_rate\":0.25,\"miss_rate\":0.5,\"ms_p50\":11.5,\"ms_p99\":12.95}"
        );
        let names: Vec<&str> = summary.rows().iter().map(|(name, _)| *name).collect();
        let value = serde_json::to_value(&summary).unwrap();
        assert_eq!(names, value.as_object().unwrap().keys().collect::<Vec<_>>());
    }
}
