//! The report page: one HTML file, no scripts, nothing loaded from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::metrics::Roc;
use super::plots;
use super::summary::{Scored, Summary};
use crate::model::{Thresholds, Verdict};

/// A judged picture to show: the picture and its overlay side by side, as PNG.
#[derive(Clone, Debug)]
pub struct Shown {
    pub scored: Scored,
    pub png: Vec<u8>,
}

/// All that the page says.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    pub dataset: &'a str,
    /// Where the model and the dataset lie, when it was made: one line under the title.
    pub about: &'a str,
    pub thresholds: Thresholds,
    pub summary: &'a Summary,
    pub scored: &'a [Scored],
    /// Defective pictures with the lowest scores, lowest first.
    pub misses: &'a [Shown],
    /// Good pictures with the highest scores, highest first.
    pub alarms: &'a [Shown],
}

impl Page<'_> {
    pub fn html(&self) -> String {
        let mut out = String::with_capacity(1 << 16);
        let title = escape(self.dataset);
        let _ = write!(
            out,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title} – inspectd</title>\n<style>\n{}</style></head>\n<body><main>\n\
             <h1>{title}</h1><p class=\"about\">{}</p>\n<div class=\"tiles\">\n",
            include_str!("page.css"),
            escape(self.about)
        );
        for (name, value) in self.summary.rows() {
            let _ = writeln!(out, "<div class=\"tile\"><b>{value}</b><span>{name}</span></div>");
        }
        out.push_str("</div>\n");
        self.plots(&mut out);
        self.kinds(&mut out);
        gallery(&mut out, "Defective pictures with the lowest scores", self.misses);
        gallery(&mut out, "Good pictures with the highest scores", self.alarms);
        out.push_str(
            "<section><h2>What the figures mean</h2><p>image_auroc, pixel_auroc: area under the ROC curve, \
             ties counted one half, never flipped. pro: mean overlap with the 8-connected regions of the \
             ground truth, area up to a false-positive rate of 0.3, divided by 0.3. Pixel figures are taken \
             at the network's input size, masks resized by nearest neighbour. false_alarm_rate: good \
             pictures at or above the bad threshold. miss_rate: defective pictures below it, unsure ones \
             among them. ms: from the decoded picture to its score.</p></section>\n</main></body></html>\n",
        );
        out
    }

    fn plots(&self, out: &mut String) {
        let of = |defective: bool| -> Vec<f32> {
            self.scored.iter().filter(|s| s.defective == defective).map(|s| s.score).collect()
        };
        let (good, defective) = (of(false), of(true));
        let _ = writeln!(
            out,
            "<div class=\"pair\"><section><h2>Scores\
             <i class=\"key\" style=\"background:var(--good)\"></i>good\
             <i class=\"key\" style=\"background:var(--defect)\"></i>defective</h2>{}</section>",
            plots::histogram(&good, &defective, self.thresholds)
        );
        if let Some(roc) = Roc::new(&good, &defective) {
            let point = self.summary.false_alarm_rate.zip(self.summary.miss_rate.map(|m| 1.0 - m));
            let _ = writeln!(out, "<section><h2>ROC</h2>{}</section>", plots::roc(&roc, point));
        }
        out.push_str("</div>\n");
    }

    /// Verdicts by kind of defect.
    fn kinds(&self, out: &mut String) {
        let mut kinds: BTreeMap<(bool, &str), Vec<&Scored>> = BTreeMap::new();
        for scored in self.scored {
            kinds.entry((scored.defective, &scored.kind)).or_default().push(scored);
        }
        out.push_str(
            "<section><h2>Verdicts</h2><div class=\"scroll\"><table><tr><th>kind</th><th>pictures</th>\
             <th>good</th><th>unsure</th><th>bad</th><th>lowest</th><th>median</th><th>highest</th></tr>\n",
        );
        for ((_, kind), members) in kinds {
            let count = |verdict| members.iter().filter(|s| s.verdict == verdict).count();
            let mut scores: Vec<f32> = members.iter().map(|s| s.score).collect();
            scores.sort_by(f32::total_cmp);
            let at = |i: usize| scores.get(i).copied().unwrap_or(f32::NAN);
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td>\
                 <td>{:.4}</td></tr>",
                escape(kind),
                members.len(),
                count(Verdict::Good),
                count(Verdict::Unsure),
                count(Verdict::Bad),
                at(0),
                at(scores.len() / 2),
                at(scores.len().saturating_sub(1)),
            );
        }
        out.push_str("</table></div></section>\n");
    }
}

fn gallery(out: &mut String, title: &str, pictures: &[Shown]) {
    if pictures.is_empty() {
        return;
    }
    let _ = writeln!(out, "<section><h2>{title}</h2><div class=\"gallery\">");
    for Shown { scored, png } in pictures {
        let verdict = verdict_name(scored.verdict);
        let name = scored.path.file_name().unwrap_or_default().to_string_lossy();
        let _ = write!(
            out,
            "<figure><img loading=\"lazy\" alt=\"picture and heatmap\" src=\"data:image/png;base64,"
        );
        base64(out, png);
        let _ = writeln!(
            out,
            "\"><figcaption><em class=\"{verdict}\">{verdict}</em> {:.4} <span>{} / {}</span></figcaption></figure>",
            scored.score,
            escape(&scored.kind),
            escape(&name)
        );
    }
    out.push_str("</div></section>\n");
}

/// As in JSON.
pub fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Unsure => "unsure",
        Verdict::Bad => "bad",
        Verdict::Late => "late",
        Verdict::Unjudged => "unjudged",
    }
}

/// For text and for attributes in double quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// RFC 4648 §4, with padding.
fn base64(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::scored;
    use super::*;

    #[test]
    fn base64_matches_the_rfc() {
        for (text, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = String::new();
            base64(&mut out, text.as_bytes());
            assert_eq!(out, want);
        }
    }

    #[test]
    fn the_page_is_complete_loads_nothing_and_escapes_names() {
        let thresholds = Thresholds { unsure: 1.0, bad: 2.0 };
        let pictures = [("good", 0.0), ("good", 1.5), ("<dent>", 1.5), ("<dent>", 3.0)];
        let scored: Vec<Scored> = pictures.map(|(kind, s)| scored(kind, s, thresholds)).into();
        let summary = Summary::new(&scored, thresholds, None);
        let shown = [Shown { scored: scored[2].clone(), png: vec![1, 2, 3] }];
        let page = Page {
            dataset: "a & b",
            about: "<model>",
            thresholds,
            summary: &summary,
            scored: &scored,
            misses: &shown,
            alarms: &[],
        };
        let html = page.html();
        assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
        for part in ["a &amp; b", "&lt;model&gt;", "&lt;dent&gt;", "AQID", "0.8750", "<svg", "lowest scores"]
        {
            assert!(html.contains(part), "{part} is not in the page");
        }
        for absent in ["http:", "https:", "<script", "<dent>", "highest scores"] {
            assert!(!html.contains(absent), "{absent} is in the page");
        }
        assert_eq!(html.matches("<section>").count(), html.matches("</section>").count());
        assert_eq!(html.matches("<div").count(), html.matches("</div>").count());
    }
}
