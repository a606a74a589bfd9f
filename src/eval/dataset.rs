//! Walks one category in MVTec-AD layout:
//!
//! ```text
//! CATEGORY/train/good/…                    pictures of good parts
//! CATEGORY/test/good/…                     good parts kept for the test
//! CATEGORY/test/DEFECT/NAME.png            parts with a defect
//! CATEGORY/ground_truth/DEFECT/NAME_mask.png   or NAME.png: where it is (> 127), optional
//! ```
//!
//! Whether a picture is good follows from its folder and never from its mask: a small defect may
//! vanish when its mask is resized.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::EvalError;
use crate::imaging::files::{EXTENSIONS, read_gray};
use crate::imaging::list_images;

/// The folder name of good parts.
pub const GOOD: &str = "good";

/// One test picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub path: PathBuf,
    /// The folder's name: `good`, or the kind of defect.
    pub kind: String,
    pub defective: bool,
    /// Where the defect is, if the dataset says so.
    pub mask: Option<PathBuf>,
}

/// The test part of a category, sorted: good first, then by defect and name.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub root: PathBuf,
    pub samples: Vec<Sample>,
}

impl Dataset {
    pub fn open(root: &Path) -> Result<Self, EvalError> {
        let test = root.join("test");
        if !test.is_dir() {
            return Err(not_a_category(root));
        }
        let mut kinds = folders(&test)?;
        kinds.sort_by_key(|kind| (kind != GOOD, kind.clone()));
        let mut samples = Vec::new();
        for kind in kinds {
            let folder = test.join(&kind);
            let truth = root.join("ground_truth").join(&kind);
            let defective = kind != GOOD;
            let images = match list_images(&folder) {
                Err(error) if error.is_missing() => continue,
                images => images?,
            };
            for path in images {
                let mask = defective.then(|| mask_of(&folder, &truth, &path)).flatten();
                samples.push(Sample { path, kind: kind.clone(), defective, mask });
            }
        }
        if samples.is_empty() {
            return Err(EvalError::Layout { path: root.into(), why: "test holds no pictures".into() });
        }
        Ok(Dataset { root: root.into(), samples })
    }

    /// The category's name: its folder's.
    pub fn name(&self) -> String {
        let folder = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        folder.file_name().unwrap_or(OsStr::new("dataset")).to_string_lossy().into_owned()
    }

    pub fn n_good(&self) -> usize {
        self.samples.iter().filter(|s| !s.defective).count()
    }

    pub fn n_defective(&self) -> usize {
        self.samples.len() - self.n_good()
    }

    /// Defective pictures that have a mask.
    pub fn n_masks(&self) -> usize {
        self.samples.iter().filter(|s| s.mask.is_some()).count()
    }

    /// Pixel figures need at least one defect, and a mask for every one.
    pub fn has_all_masks(&self) -> bool {
        self.n_masks() > 0 && self.n_masks() == self.n_defective()
    }
}

/// The pictures to teach from: `DIR/train/good` where DIR is an MVTec category, else all below DIR.
pub fn teaching_images(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let good = folder.join("train").join(GOOD);
    Ok(list_images(if good.is_dir() { &good } else { folder })?)
}

/// A mask at the size the maps are compared at: nearest neighbour by pixel centres (as Pillow's
/// NEAREST), defective above half of the range.
pub fn read_mask(path: &Path, width: usize, height: usize) -> Result<Vec<bool>, EvalError> {
    let (from_width, from_height, data) = read_gray(path)?;
    let mut mask = Vec::with_capacity(width * height);
    for y in 0..height {
        let row = (2 * y + 1) * from_height / (2 * height) * from_width;
        mask.extend((0..width).map(|x| data[row + (2 * x + 1) * from_width / (2 * width)] > 127));
    }
    Ok(mask)
}

/// `NAME_mask.EXT` or `NAME.EXT` at the same place below `truth` as the picture is below `folder`.
fn mask_of(folder: &Path, truth: &Path, image: &Path) -> Option<PathBuf> {
    let within = image.strip_prefix(folder).ok()?.parent()?;
    let stem = image.file_stem()?.to_str()?;
    let names = [format!("{stem}_mask"), stem.to_owned()];
    names
        .iter()
        .flat_map(|name| EXTENSIONS.iter().map(move |extension| format!("{name}.{extension}")))
        .map(|name| truth.join(within).join(name))
        .find(|path| path.is_file())
}

/// Names of the folders directly below `path`, sorted, without hidden ones.
fn folders(path: &Path) -> Result<Vec<String>, EvalError> {
    let read = |source| EvalError::Read { path: path.into(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn not_a_category(root: &Path) -> EvalError {
    match std::fs::metadata(root) {
        Err(source) if source.kind() == ErrorKind::NotFound => EvalError::Missing { path: root.into() },
        Err(source) => EvalError::Read { path: root.into(), source },
        Ok(kind) if !kind.is_dir() => EvalError::Layout { path: root.into(), why: "it is a file".into() },
        Ok(_) => {
            let names: Vec<String> = folders(root)
                .unwrap_or_default()
                .into_iter()
                .filter(|name| root.join(name).join("test").is_dir())
                .collect();
            if names.is_empty() {
                let why = "it has no folder test with test/good and test/DEFECT".into();
                EvalError::Layout { path: root.into(), why }
            } else {
                EvalError::Categories { path: root.into(), names }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::RgbImage;
    use crate::imaging::heatmap::write_png;

    fn category(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        folder
    }

    #[test]
    fn a_category_is_walked_with_labels_from_folders_and_both_mask_names() {
        let folder = category(&[
            "train/good/0.png",
            "test/good/1.png",
            "test/good/0.png",
            "test/crack/a.png",
            "test/crack/b.jpg",
            "test/dent/a.png",
            "test/readme.txt",
            "ground_truth/crack/a_mask.png",
            "ground_truth/crack/b.png",
        ]);
        let dataset = Dataset::open(folder.path()).unwrap();
        let root = folder.path().to_str().unwrap().to_owned() + "/";
        let seen: Vec<(String, bool, Option<String>)> = dataset
            .samples
            .iter()
            .map(|s| {
                let short = |p: &Path| p.to_str().unwrap().replace(&root, "");
                (short(&s.path), s.defective, s.mask.as_deref().map(short))
            })
            .collect();
        let mask = |name: &str| Some(format!("ground_truth/{name}"));
        assert_eq!(
            seen,
            [
                ("test/good/0.png".into(), false, None),
                ("test/good/1.png".into(), false, None),
                ("test/crack/a.png".into(), true, mask("crack/a_mask.png")),
                ("test/crack/b.jpg".into(), true, mask("crack/b.png")),
                ("test/dent/a.png".into(), true, None),
            ]
        );
        assert_eq!((dataset.n_good(), dataset.n_defective(), dataset.n_masks()), (2, 3, 2));
        assert!(!dataset.has_all_masks(), "the dent has none");
        assert_eq!(teaching_images(folder.path()).unwrap(), [folder.path().join("train/good/0.png")]);
    }

    #[test]
    fn what_is_not_a_category_is_told_apart() {
        let folder = category(&["wood/test/good/0.png", "tile/test/good/0.png", "a.png"]);
        let error = Dataset::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("(tile, wood)"), "{error}");
        assert!(matches!(Dataset::open(&folder.path().join("no")), Err(EvalError::Missing { .. })));
        assert!(matches!(Dataset::open(&folder.path().join("a.png")), Err(EvalError::Layout { .. })));
        let none = category(&["test/good/notes.txt"]);
        assert!(matches!(Dataset::open(none.path()), Err(EvalError::Layout { .. })));
    }

    #[test]
    fn a_mask_is_resized_by_pixel_centres_and_cut_at_one_half() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.png");
        let levels = [0u8, 127, 128, 255];
        let data = levels.iter().flat_map(|&v| [v; 3]).collect();
        write_png(&path, &RgbImage { width: 4, height: 1, data }).unwrap();
        assert_eq!(read_mask(&path, 4, 1).unwrap(), [false, false, true, true]);
        // centres of two output pixels: 1 and 3
        assert_eq!(read_mask(&path, 2, 2).unwrap(), [false, true, false, true]);
        assert_eq!(read_mask(&path, 1, 1).unwrap(), [true]);
    }
}
