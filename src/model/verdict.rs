//! From a score to a verdict.

use serde::{Deserialize, Serialize};

/// What is said of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// Between the two thresholds: a person should look.
    Unsure,
    Bad,
    /// Not judged within the line's deadline; fail-safe.
    Late,
    /// It cannot be judged: the picture is damaged, or the model failed on it; fail-safe.
    Unjudged,
}

impl Verdict {
    /// In the order of their numbers.
    pub const ALL: [Verdict; 5] =
        [Verdict::Good, Verdict::Unsure, Verdict::Bad, Verdict::Late, Verdict::Unjudged];
}

/// Score bands: below `unsure` is good, from `bad` on is bad, between them unsure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    pub unsure: f32,
    pub bad: f32,
}

impl Thresholds {
    /// A score that is not a number is bad: the fail-safe side.
    pub fn verdict(&self, score: f32) -> Verdict {
        if score < self.unsure {
            Verdict::Good
        } else if score < self.bad {
            Verdict::Unsure
        } else {
            Verdict::Bad
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_on_a_threshold_belongs_to_the_band_above() {
        let t = Thresholds { unsure: 1.0, bad: 2.0 };
        let verdicts = [0.9, 1.0, 1.9, 2.0, f32::INFINITY, f32::NEG_INFINITY].map(|score| t.verdict(score));
        use Verdict::{Bad, Good, Unsure};
        assert_eq!(verdicts, [Good, Unsure, Unsure, Bad, Bad, Good]);
    }

    #[test]
    fn a_score_that_is_no_number_is_bad() {
        assert_eq!(Thresholds { unsure: 1.0, bad: 2.0 }.verdict(f32::NAN), Verdict::Bad);
    }
}
