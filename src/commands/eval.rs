//! `inspectd eval`: a model's figures on a labelled dataset.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use super::device::DeviceArg;
use super::inspect::{Judge, Opinion, Output, picture_failure, progress};
use super::{Exit, Failure};
use crate::eval::dataset::{Dataset, read_mask};
use crate::eval::page::{Page, Shown};
use crate::eval::{EvalError, PixelScores, Scored, Summary};
use crate::imaging::resize::resize_rgb;
use crate::imaging::{Heatmap, RgbImage, heatmap, read_image};
use crate::model::Thresholds;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, as written by `inspectd teach`
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    #[command(flatten)]
    pub device: DeviceArg,
    /// An MVTec category: test/good, test/DEFECT, and ground_truth/DEFECT where there are masks
    #[arg(long, value_name = "DIR")]
    pub dataset: PathBuf,
    /// Write a self-contained report page
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// The figures as one JSON object even on a terminal
    #[arg(long)]
    pub json: bool,
}

/// Pictures shown per gallery, and the longer side of each, pixels.
const SHOWN: usize = 8;
const SHOWN_SIDE: usize = 220;

pub fn run(args: Args) -> Result<(), Failure> {
    let dataset = Dataset::open(&args.dataset).map_err(dataset_failure)?;
    let report = args.report.as_deref().map(Output::create).transpose()?;
    let mut judge = Judge::open(&args.model, args.device)?;
    let thresholds = judge.thresholds();
    let size = judge.input_size();
    if dataset.n_masks() > 0 && !dataset.has_all_masks() {
        let _ = writeln!(
            std::io::stderr().lock(),
            "warning: {} of {} defective pictures have a mask in {}; pixel figures need all of them and are left out",
            dataset.n_masks(),
            dataset.n_defective(),
            dataset.root.join("ground_truth").display()
        );
    }
    let mut opinion = |image: &RgbImage| judge.opinion(image);
    let (scored, summary) = measure(&dataset, size, thresholds, &mut opinion)?;

    let mut out = std::io::stdout().lock();
    let printed = if args.json || !out.is_terminal() {
        serde_json::to_string(&summary)
            .map_err(std::io::Error::other)
            .and_then(|line| writeln!(out, "{line}"))
    } else {
        summary.rows().iter().try_for_each(|(name, value)| writeln!(out, "{name:18}{value:>10}"))
    };

    if let (Some(report), Some(path)) = (report, &args.report) {
        let html = page(&args, &dataset, thresholds, &scored, &summary, &mut opinion)?;
        report.finish(html.as_bytes())?;
        let _ = writeln!(std::io::stderr().lock(), "report: {}", path.display());
    }
    printed.map_err(Failure::stdout)
}

type Judging<'a> = dyn FnMut(&RgbImage) -> Result<Opinion, Failure> + 'a;

/// Judges every test picture. Pixels are compared at `size`, the network's input.
fn measure(
    dataset: &Dataset,
    (width, height): (usize, usize),
    thresholds: Thresholds,
    opinion: &mut Judging<'_>,
) -> Result<(Vec<Scored>, Summary), Failure> {
    let mut pixels = dataset.has_all_masks().then(PixelScores::default);
    let mut scored = Vec::with_capacity(dataset.samples.len());
    let bar = progress(dataset.samples.len(), false);
    for (index, sample) in dataset.samples.iter().enumerate() {
        let image = read_image(&sample.path).map_err(picture_failure)?;
        if index == 0 {
            // The first picture of a size also pays for its buffers, and does not count.
            opinion(&image)?;
        }
        let Opinion { score, map, ms } = opinion(&image)?;
        if let Some(pixels) = &mut pixels {
            let mask = sample.mask.as_deref().map(|path| read_mask(path, width, height));
            let mask = mask.transpose().map_err(dataset_failure)?;
            pixels.add(&map.resized(width, height).data, width, mask.as_deref());
        }
        scored.push(Scored {
            path: sample.path.clone(),
            kind: sample.kind.clone(),
            defective: sample.defective,
            score,
            verdict: thresholds.verdict(score),
            ms,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let summary = Summary::new(&scored, thresholds, pixels.map(PixelScores::figures));
    Ok((scored, summary))
}

fn page(
    args: &Args,
    dataset: &Dataset,
    thresholds: Thresholds,
    scored: &[Scored],
    summary: &Summary,
    opinion: &mut Judging<'_>,
) -> Result<String, Failure> {
    let mut extremes = |defective: bool| -> Result<Vec<Shown>, Failure> {
        let mut of: Vec<&Scored> = scored.iter().filter(|s| s.defective == defective).collect();
        of.sort_by(|a, b| a.score.total_cmp(&b.score));
        if !defective {
            of.reverse();
        }
        of.into_iter().take(SHOWN).map(|s| shown(s, opinion)).collect()
    };
    let (misses, alarms) = (extremes(true)?, extremes(false)?);
    let about = format!(
        "inspectd {} · model {} · dataset {} · {}",
        env!("CARGO_PKG_VERSION"),
        args.model.display(),
        dataset.root.display(),
        jiff::ZonedDateTime::now().strftime("%Y-%m-%d %H:%M %Z")
    );
    let page = Page {
        dataset: &dataset.name(),
        about: &about,
        thresholds,
        summary,
        scored,
        misses: &misses,
        alarms: &alarms,
    };
    Ok(page.html())
}

/// The picture and its overlay side by side. Maps are not kept for all pictures, so it is judged again.
fn shown(scored: &Scored, opinion: &mut Judging<'_>) -> Result<Shown, Failure> {
    let image = read_image(&scored.path).map_err(picture_failure)?;
    let map = opinion(&image)?.map;
    let pair = beside(&thumbnail(&image), &map);
    let png = heatmap::png_bytes(&pair).map_err(picture_failure)?;
    Ok(Shown { scored: scored.clone(), png })
}

fn thumbnail(image: &RgbImage) -> RgbImage {
    let longer = image.width.max(image.height);
    let side = |n: usize| (n * SHOWN_SIDE).div_ceil(longer).max(1);
    resize_rgb(image, side(image.width), side(image.height))
}

fn beside(left: &RgbImage, map: &Heatmap) -> RgbImage {
    let right = heatmap::overlay(left, map, None);
    let row = left.width * 3;
    let data = left.data.chunks_exact(row).zip(right.data.chunks_exact(row));
    let data = data.flat_map(|(l, r)| l.iter().chain(r).copied()).collect();
    RgbImage { width: 2 * left.width, height: left.height, data }
}

pub(super) fn dataset_failure(error: EvalError) -> Failure {
    match error {
        EvalError::Imaging(error) => picture_failure(error),
        EvalError::Missing { .. } => Failure::new(Exit::NoInput, error),
        EvalError::Read { .. } => Failure::new(Exit::Io, error),
        EvalError::Layout { .. } => Failure::new(Exit::Data, error).hint(
            "CATEGORY/test/good/*.png, CATEGORY/test/DEFECT/*.png, CATEGORY/ground_truth/DEFECT/*_mask.png",
        ),
        EvalError::Categories { ref path, ref names } => {
            let first = path.join(names.first().map_or("CATEGORY", String::as_str));
            Failure::new(Exit::Data, error).hint(format!("--dataset {}", first.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::heatmap::write_png;

    /// Grey pictures of `level`, with a bright 4×4 spot where there is a defect, and its mask.
    fn category(masks: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: String, spot: bool, level: u8| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut image = RgbImage { width: 16, height: 16, data: vec![level; 16 * 16 * 3] };
            for at in 0..16 * 16 {
                if spot && (4..8).contains(&(at % 16)) && (4..8).contains(&(at / 16)) {
                    image.data[at * 3..][..3].fill(255);
                }
            }
            write_png(&path, &image).unwrap();
        };
        for i in 0..3 {
            write(format!("test/good/{i}.png"), false, 10 + i);
            write(format!("test/spot/{i}.png"), true, 10 + i);
            if masks {
                write(format!("ground_truth/spot/{i}_mask.png"), true, 0);
            }
        }
        folder
    }

    /// Sees brightness: the map is red / 255, the score its maximum.
    fn brightness(image: &RgbImage) -> Result<Opinion, Failure> {
        let data: Vec<f32> = image.data.iter().step_by(3).map(|&v| f32::from(v) / 255.0).collect();
        let score = data.iter().copied().fold(0.0, f32::max);
        Ok(Opinion { score, map: Heatmap { width: image.width, height: image.height, data }, ms: 2.0 })
    }

    const THRESHOLDS: Thresholds = Thresholds { unsure: 0.3, bad: 0.5 };

    #[test]
    fn a_judge_that_sees_every_defect_gets_full_marks() {
        let folder = category(true);
        let dataset = Dataset::open(folder.path()).unwrap();
        let (scored, summary) = measure(&dataset, (16, 16), THRESHOLDS, &mut brightness).unwrap();
        assert_eq!(scored.len(), 6);
        assert_eq!(summary.image_auroc, Some(1.0));
        assert_eq!((summary.pixel_auroc, summary.pro), (Some(1.0), Some(1.0)));
        assert_eq!((summary.false_alarm_rate, summary.miss_rate), (Some(0.0), Some(0.0)));
        assert_eq!((summary.n_good, summary.n_defective, summary.ms_p50), (3, 3, Some(2.0)));
    }

    #[test]
    fn without_masks_the_pixel_figures_are_null() {
        let folder = category(false);
        let dataset = Dataset::open(folder.path()).unwrap();
        let (_, summary) = measure(&dataset, (16, 16), THRESHOLDS, &mut brightness).unwrap();
        assert_eq!((summary.pixel_auroc, summary.pro), (None, None));
        assert_eq!(summary.image_auroc, Some(1.0));
    }

    #[test]
    fn a_corrupt_test_picture_ends_the_measurement() {
        let folder = category(false);
        std::fs::write(folder.path().join("test/good/1.png"), b"\x89PNG\r\n\x1a\n").unwrap();
        let dataset = Dataset::open(folder.path()).unwrap();
        let failure = measure(&dataset, (16, 16), THRESHOLDS, &mut brightness).unwrap_err();
        assert_eq!(failure.exit(), Exit::Data);
    }

    #[test]
    fn the_report_shows_the_worst_pictures_of_both_classes() {
        let folder = category(true);
        let dataset = Dataset::open(folder.path()).unwrap();
        let (scored, summary) = measure(&dataset, (16, 16), THRESHOLDS, &mut brightness).unwrap();
        let args = Args {
            model: "m".into(),
            dataset: folder.path().into(),
            report: None,
            json: false,
            device: Default::default(),
        };
        let html = page(&args, &dataset, THRESHOLDS, &scored, &summary, &mut brightness).unwrap();
        assert_eq!(html.matches("data:image/png;base64,iVBORw0KGgo").count(), 6);
        assert!(html.contains("1.0000"));
    }

    #[test]
    fn a_dataset_that_is_none_says_what_to_type() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| dataset_failure(Dataset::open(&folder.path().join(name)).unwrap_err());
        assert_eq!(open("none").exit(), Exit::NoInput);
        assert_eq!(open(".").exit(), Exit::Data);
        std::fs::create_dir_all(folder.path().join("wood/test/good")).unwrap();
        assert!(open(".").to_string().contains("/wood\n"), "{}", open("."));
    }

    #[test]
    fn a_thumbnail_keeps_its_shape() {
        let image = RgbImage::new(1000, 500);
        let small = thumbnail(&image);
        assert_eq!((small.width, small.height), (SHOWN_SIDE, SHOWN_SIDE / 2));
        let thin = thumbnail(&RgbImage::new(5000, 1));
        assert_eq!((thin.width, thin.height), (SHOWN_SIDE, 1));
    }
}
