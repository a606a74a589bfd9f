//! The report's drawings as inline SVG: score histogram and ROC curve. Colours come from the page's
//! style sheet, so that they follow its light and dark mode.

use std::fmt::Write;

use super::metrics::Roc;
use crate::model::Thresholds;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 274.0;
const LEFT: f64 = 46.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 36.0;
const BINS: usize = 44;

/// Finite scores of both classes as shares per bin, with both thresholds.
pub fn histogram(good: &[f32], defective: &[f32], thresholds: Thresholds) -> String {
    let finite = |s: &&f32| s.is_finite();
    let marks = [thresholds.unsure, thresholds.bad];
    let all = || good.iter().chain(defective).chain(&marks).filter(finite).map(|&s| f64::from(s));
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return String::new();
    }
    let span = if high > low { high - low } else { 1.0 };
    let place = |s: f64| ((s - low) / span).clamp(0.0, 1.0);
    let counts = |scores: &[f32]| {
        let mut bins = [0usize; BINS];
        for &s in scores.iter().filter(finite) {
            bins[((place(f64::from(s)) * BINS as f64) as usize).min(BINS - 1)] += 1;
        }
        bins.map(|n| n as f64 / scores.len().max(1) as f64)
    };
    let classes = [("good", counts(good)), ("defect", counts(defective))];
    let top = classes.iter().flat_map(|(_, bins)| bins).fold(0.01f64, |a, &b| a.max(b));

    let mut svg = open("Histogram of the scores of good and defective pictures");
    let (w, h) = (WIDTH - LEFT - 8.0, HEIGHT - BOTTOM - TOP);
    grid(&mut svg, |share| format!("{:.0} %", share * top * 100.0));
    for (class, bins) in &classes {
        for (i, share) in bins.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            let (x, bar) = (LEFT + w * i as f64 / BINS as f64, h * share / top);
            let _ = write!(
                svg,
                r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{bar:.1}" rx="1.5"/>"#,
                x + 0.75,
                TOP + h - bar,
                w / BINS as f64 - 1.5
            );
        }
    }
    // Each label on a line of its own, towards the middle, so that none leaves the drawing.
    for (name, mark, y) in [("unsure", marks[0], 12.0), ("bad", marks[1], 26.0)] {
        if mark.is_finite() {
            let share = place(f64::from(mark));
            let x = LEFT + w * share;
            let (shift, anchor) = if share > 0.5 { (-4.0, "end") } else { (4.0, "start") };
            let _ = write!(
                svg,
                r#"<line class="mark" x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{:.1}"/><text x="{:.1}" y="{y}" text-anchor="{anchor}">{name} ≥ {mark:.4}</text>"#,
                y - 10.0,
                TOP + h,
                x + shift,
            );
        }
    }
    for (share, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{:.3}</text>"#,
            LEFT + w * share,
            HEIGHT - 16.0,
            low + span * share
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">score</text></svg>"#,
        LEFT + w / 2.0,
        HEIGHT - 3.0
    );
    svg
}

/// True-positive rate over false-positive rate, with the working point of the `bad` threshold.
pub fn roc(curve: &Roc, working_point: Option<(f64, f64)>) -> String {
    let mut svg = open("ROC curve");
    let (w, h) = (WIDTH - LEFT - 8.0, HEIGHT - BOTTOM - TOP);
    grid(&mut svg, |share| format!("{share:.2}"));
    let at = |(f, t): (f64, f64)| format!("{:.1},{:.1}", LEFT + w * f, TOP + h * (1.0 - t));
    let points: Vec<String> = curve.rates().map(at).collect();
    let _ = write!(
        svg,
        r#"<polyline class="chance" points="{} {}"/><polyline class="curve" points="{}"/>"#,
        at((0.0, 0.0)),
        at((1.0, 1.0)),
        points.join(" ")
    );
    if let Some((f, t)) = working_point {
        let _ = write!(
            svg,
            r#"<circle class="point" cx="{:.1}" cy="{:.1}" r="5"><title>bad threshold: {:.1} % false alarms, {:.1} % found</title></circle>"#,
            LEFT + w * f,
            TOP + h * (1.0 - t),
            f * 100.0,
            t * 100.0
        );
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{}">{share:.2}</text>"#,
            LEFT + w * share,
            HEIGHT - 16.0,
            if share == 1.0 { "end" } else { "middle" }
        );
    }
    let _ = write!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">false-positive rate</text></svg>"#,
        LEFT + w / 2.0,
        HEIGHT - 3.0
    );
    svg
}

fn open(label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">"#)
}

fn grid(svg: &mut String, label: impl Fn(f64) -> String) {
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let y = TOP + (HEIGHT - BOTTOM - TOP) * (1.0 - share);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - 8.0,
            LEFT - 6.0,
            y + 4.0,
            label(share)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_scores_still_draw() {
        let thresholds = Thresholds { unsure: 0.0, bad: 1.0 };
        let never = Thresholds { unsure: f32::INFINITY, bad: f32::NAN };
        for (good, bad, t) in [
            (vec![], vec![], thresholds),
            (vec![], vec![], never),
            (vec![f32::NAN, f32::INFINITY], vec![1.0], never),
            (vec![3.0], vec![3.0], never),
            (vec![-1e30, 1e30], vec![0.0], thresholds),
        ] {
            let svg = histogram(&good, &bad, t);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn every_picture_is_in_a_bar() {
        let svg = histogram(&[0.0, 0.1, 1.0], &[0.5], Thresholds { unsure: 0.2, bad: 0.3 });
        assert_eq!(svg.matches(r#"class="good""#).count(), 3);
        assert_eq!(svg.matches(r#"class="defect""#).count(), 1);
        assert_eq!(svg.matches(r#"class="mark""#).count(), 2);
    }
}
