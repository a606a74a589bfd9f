//! Teaching: from pictures of good parts to a model.
//!
//! Read → hold some out → survey (channel statistics, feature selection, patch memory) → train → score
//! the held-out ones → thresholds. Held-out pictures take part in nothing but the last step.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::draw::{Purpose, stream};
use super::error::{MIN_PICTURES, RealnetError};
use super::initial::fill_missing;
use super::inspector::Core;
use super::network::{self, judgement};
use super::picture::Stored;
use super::score::{Fusion, SCORE_MOMENTS};
use super::sources::Sources;
use super::spec::NetSpec;
use super::survey;
use super::train::{Ended, Progress, Trainer};
use crate::engine::{Device, Graph, ParamStore, Value, passes};
use crate::imaging::{ImagingError, Preprocessor, read_image};
use crate::model::calibration::MIN_SCORES;

/// At most this many photographs of a texture folder are kept.
const TEXTURES: usize = 400;
/// Held-out normals beyond this add little to a threshold.
const MOST_HELD_OUT: usize = 100;

/// Shares of the time left that the survey, and after it the first features, may take: the rest is for
/// training. Without hurry both need far less.
const SURVEY_SHARE: f32 = 0.35;
const CACHE_SHARE: f32 = 0.2;

/// At most this many pictures, chosen at random, are learnt from: prepared, they take 0.4 GB.
const MOST_PICTURES: usize = 2000;

/// What to teach with.
#[derive(Clone, Debug)]
pub struct Lesson {
    pub spec: NetSpec,
    pub seed: u64,
    /// Everything, calibration included, is to be over by then.
    pub deadline: Option<Instant>,
    /// Where networks run; pictures are read and painted on its threads.
    pub device: Device,
    /// Photographs to paint anomalies from.
    pub textures: Vec<PathBuf>,
}

/// What teaching is at. `share` in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    Reading { share: f32 },
    Surveying { share: f32 },
    Training(Progress),
    Calibrating { share: f32 },
}

/// A taught network and what its held-out normals scored.
#[derive(Debug)]
pub struct Taught {
    pub params: ParamStore,
    /// Scores of the held-out normals, ascending.
    pub held_out: Vec<f32>,
    pub trained_on: usize,
    pub ended: Ended,
}

/// Teaches `lesson.spec` on `images`; `backbone` holds the pretrained weights. `go_on` is asked often;
/// once it says no, training ends and what there is is calibrated (before training: an error).
pub fn teach(
    images: &[PathBuf],
    backbone: &ParamStore,
    lesson: &Lesson,
    mut go_on: impl FnMut(&Stage) -> bool,
) -> Result<Taught, RealnetError> {
    if images.len() < MIN_PICTURES {
        return Err(RealnetError::TooFewPictures { found: images.len() });
    }
    let (spec, seed) = (&lesson.spec, lesson.seed);
    let device = &lesson.device;
    let threads = device.threads().threads();
    let started = Instant::now();
    let (pictures, held_out) = split(images, seed);
    let pictures =
        read_all(&pictures, spec.input, threads, |share| go_on(&Stage::Reading { share: share * 0.9 }))?;
    if pictures.iter().all(of_one_colour) {
        return Err(RealnetError::OneColour { first: images[0].clone() });
    }
    let reading = started.elapsed();
    let mut textures: Vec<&PathBuf> = lesson.textures.iter().collect();
    if textures.len() > TEXTURES {
        let order = stream(seed, 2, 0, Purpose::Textures).permutation(textures.len());
        textures = order[..TEXTURES].iter().map(|i| textures[*i]).collect();
    }
    let textures: Vec<PathBuf> = textures.into_iter().cloned().collect();
    let textures = read_all(&textures, spec.input, threads, |share| {
        go_on(&Stage::Reading { share: 0.9 + share * 0.1 })
    })?;
    let sources = Sources::new(seed, &pictures, textures, spec.blends.sources);

    let mut params = backbone.clone();
    let (g, outputs) = network::survey(spec, 1)?;
    settle(&g, outputs.iter().map(|o| o.1), &mut params);
    let surveyed = Instant::now();
    let mut looks = 0;
    let until = lesson.deadline.map(|d| share_of_time(d, SURVEY_SHARE));
    survey::run(spec, seed, &pictures, &sources, &mut params, device, until, |share| {
        looks += 1;
        go_on(&Stage::Surveying { share })
    })?;

    // Judging a held-out picture costs about what reading it did, the backbone's pass, and some three
    // times that for the rest of the network.
    let per_picture = reading / pictures.len().max(1) as u32 + surveyed.elapsed() / looks.max(1) * 4;
    let reserve = per_picture * held_out.len() as u32 + Duration::from_secs(2);
    let deadline = lesson.deadline.map(|d| d.checked_sub(reserve).unwrap_or(d));
    let until = deadline.map(|d| share_of_time(d, CACHE_SHARE));
    let mut trainer = Trainer::new(spec, seed, &pictures, &sources, &params, device, until)?;
    let ended = trainer.run(deadline, |progress| go_on(&Stage::Training(*progress)))?;
    params.extend(trainer.into_params()?);

    // Only what a judgement needs goes into the model.
    let (g, outputs) = judgement(spec)?;
    fill_missing(&g, seed, &mut params);
    settle(&g, outputs.iter().map(|o| o.1), &mut params);
    let mut kept = ParamStore::new();
    for (name, _) in g.params() {
        if let Some(tensor) = params.get(name) {
            kept.insert(name, tensor.clone());
        }
    }
    let mut core = Core::new(spec.clone(), &kept, device)?;
    let mut raw = vec![];
    for (i, path) in held_out.iter().enumerate() {
        raw.push(core.raw(&read_image(path)?.view(), None)?);
        // Calibration is short and a model without it is useless: it does not stop.
        go_on(&Stage::Calibrating { share: (i + 1) as f32 / held_out.len() as f32 });
    }
    if spec.bank.is_some() {
        let fusion = Fusion::of_normals(&raw);
        core.set_fusion(fusion);
        kept.insert(SCORE_MOMENTS, fusion.to_tensor());
    }
    let mut scores: Vec<f32> = raw.iter().map(|r| core.score(*r)).collect();
    scores.sort_by(f32::total_cmp);
    Ok(Taught { params: kept, held_out: scores, trained_on: pictures.len(), ended })
}

/// A model scores a picture alike wherever it runs, and its thresholds hold there too.
fn settle(g: &Graph, outputs: impl Iterator<Item = Value>, params: &mut ParamStore) {
    passes::settle_weights(g, params, &outputs.collect::<Vec<_>>());
}

/// When `share` of the time from now to `deadline` will have passed.
fn share_of_time(deadline: Instant, share: f32) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now).mul_f32(share)
}

/// Pictures to learn from and pictures held out: a fifth, at least 20 where that leaves three quarters
/// to learn from, at least what a threshold needs, at most 100. Of very many pictures not all are used.
fn split(images: &[PathBuf], seed: u64) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let n = images.len();
    let held = (n / 5).max((n / 4).min(20)).clamp(MIN_SCORES, MOST_HELD_OUT);
    let order = stream(seed, 0, 0, Purpose::Split).permutation(n);
    let take = |part: &[usize]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.into_iter().map(|i| images[i].clone()).collect()
    };
    let learn = &order[held..];
    (take(&learn[..learn.len().min(MOST_PICTURES)]), take(&order[..held]))
}

fn of_one_colour(picture: &Stored) -> bool {
    let (first, rest) = picture.data.split_at(3.min(picture.data.len()));
    // Two steps of 255: what JPEG leaves of a blank picture.
    rest.as_chunks::<3>().0.iter().all(|p| p.iter().zip(first).all(|(a, b)| a.abs_diff(*b) <= 2))
}

/// Reads and prepares pictures on several threads, in order. The first error ends it.
fn read_all(
    paths: &[PathBuf],
    side: usize,
    threads: usize,
    mut go_on: impl FnMut(f32) -> bool,
) -> Result<Vec<Stored>, RealnetError> {
    let mut all = Vec::with_capacity(paths.len());
    for batch in paths.chunks(threads.max(1) * 4) {
        let parts = batch.chunks(batch.len().div_ceil(threads.max(1)));
        let read: Vec<Vec<Result<Stored, ImagingError>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = parts
                .map(|part| scope.spawn(move || part.iter().map(|path| read_one(path, side)).collect()))
                .collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect()
        });
        for picture in read.into_iter().flatten() {
            all.push(picture?);
        }
        if !go_on(all.len() as f32 / paths.len() as f32) {
            return Err(RealnetError::StoppedEarly);
        }
    }
    Ok(all)
}

fn read_one(path: &Path, side: usize) -> Result<Stored, ImagingError> {
    let image = read_image(path)?;
    let mut input = vec![0.0; side * side * 3];
    Preprocessor::new(image.width, image.height, None, side, side)?.run(&image.view(), &mut input)?;
    Ok(Stored::from_normalised(side, &input))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::{RgbImage, heatmap};
    use crate::model::Preset;
    use crate::nets::{Arch, random_weights};

    #[test]
    fn a_fifth_is_held_out_and_more_of_a_small_set() {
        let images: Vec<PathBuf> = (0..411).map(|i| format!("{i}.png").into()).collect();
        let counts = |n: usize| {
            let (learn, held) = split(&images[..n], 1);
            assert_eq!(learn.len() + held.len(), n);
            assert!(learn.iter().all(|p| !held.contains(p)));
            held.len()
        };
        assert_eq!([10, 20, 60, 100, 411].map(counts), [5, 5, 15, 20, 82]);
        let many: Vec<PathBuf> = (0..5000).map(|i| format!("{i}.png").into()).collect();
        let (learn, held) = split(&many, 1);
        assert_eq!((learn.len(), held.len()), (MOST_PICTURES, MOST_HELD_OUT));
        assert_ne!(split(&images, 1).1, split(&images, 2).1);
    }

    /// Grey noise with a bright bar: something to learn, at a size that a debug build learns in seconds.
    fn pictures(folder: &Path, count: usize, side: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|i| {
                let mut draw = stream(77, 0, i as u32, Purpose::Textures);
                let mut image = RgbImage::new(side, side);
                for (at, p) in image.data.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                    let bar = if at % side / 8 == 3 { 90.0 } else { 0.0 };
                    *p = [(100.0 + bar + 12.0 * draw.normal()).clamp(0.0, 255.0) as u8; 3];
                }
                let path = folder.join(format!("{i:03}.png"));
                heatmap::write_png(&path, &image).unwrap();
                path
            })
            .collect()
    }

    fn tiny(seed: u64, iterations: usize) -> Lesson {
        let mut spec = NetSpec { input: 64, selection_pictures: 4, normals: 8, ..NetSpec::of(Preset::Small) };
        spec.optimiser.iterations = iterations;
        Lesson { spec, seed, deadline: None, device: crate::engine::Threads::new(2).into(), textures: vec![] }
    }

    #[test]
    fn the_same_lesson_teaches_the_same_network_and_its_held_out_scores_are_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let images = pictures(folder.path(), 10, 64);
        let backbone = random_weights(Arch::EfficientnetLite0, 1);
        let mut stages = 0;
        let first = teach(&images, &backbone, &tiny(3, 4), |_| {
            stages += 1;
            true
        })
        .unwrap();
        assert_eq!((first.ended.iterations, first.trained_on, first.held_out.len()), (4, 5, 5));
        assert!(first.held_out.iter().all(|s| s.is_finite()), "{:?}", first.held_out);
        assert!(stages > 20);
        let again = teach(&images, &backbone, &tiny(3, 4), |_| true).unwrap();
        assert!(first.params == again.params, "the same lesson gave another network");
        assert_eq!(first.held_out, again.held_out);
        let other = teach(&images, &backbone, &tiny(4, 4), |_| true).unwrap();
        assert!(first.params != other.params);
    }

    #[test]
    fn a_gpu_learns_from_the_same_pictures_as_the_cpu() {
        let folder = tempfile::tempdir().unwrap();
        let images = pictures(folder.path(), 10, 64);
        let backbone = random_weights(Arch::EfficientnetLite0, 1);
        let on = |device: Device| {
            let lesson = Lesson { device, ..tiny(3, 3) };
            let mut losses = vec![];
            let taught = teach(&images, &backbone, &lesson, |stage| {
                if let Stage::Training(progress) = stage {
                    losses.push([progress.loss, progress.reconstruction, progress.segmentation]);
                }
                true
            });
            (taught.unwrap(), losses)
        };
        let (cpu, want) = on(crate::engine::Threads::new(2).into());
        let (gpu, got) = on(Device::on(crate::engine::cuda::simulator::gpu()));
        // Both saw the same pictures. Rounding to fp16 may swap channels that select alike.
        for name in ["afs.indexes.block1_layer1", "afs.indexes.block2_layer2"] {
            let channels = |taught: &Taught| taught.params.get(name).unwrap().data.clone();
            let (ours, theirs) = (channels(&cpu), channels(&gpu));
            let common = ours.iter().filter(|c| theirs.contains(c)).count();
            assert!(common * 10 >= ours.len() * 9, "{name}: {common} of {} in common", ours.len());
        }
        // A tenth of the channels, all of deviation 1, moves a mean square by a tenth of how much their
        // losses differ, which is less than a third; the rest is rounding, 1e-3.
        for (w, g) in want.iter().flatten().zip(got.iter().flatten()) {
            assert!((w - g).abs() <= 0.034 * w, "{want:?} {got:?}");
        }
        assert_eq!((want.len(), got.len()), (3, 3));
    }
}
