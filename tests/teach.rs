//! `inspectd teach` as its user meets it: bad input, an interrupt, the clock.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use inspectd::imaging::{RgbImage, heatmap};
use inspectd::model::Model;
use inspectd::nets::{Arch, random_weights, save_weights};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Backbone weights (random) and `count` pictures of stripes with a dot that wanders.
    fn new(count: usize) -> Self {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        let arch = Arch::EfficientnetLite0;
        std::fs::create_dir_all(bench.path("weights")).unwrap();
        save_weights(&bench.path("weights/efficientnet_lite0.safetensors"), arch, &random_weights(arch, 1))
            .unwrap();
        std::fs::create_dir_all(bench.path("good")).unwrap();
        for i in 0..count {
            bench.picture(&format!("good/{i:02}.png"), |x, y| {
                let dot = x.abs_diff(10 + 3 * i) < 4 && y.abs_diff(20 + 2 * i) < 4;
                if dot { 200 } else { 90 + (x / 6 % 4) as u8 * 20 + ((x * 31 + y * 17 + i) % 13) as u8 }
            });
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn picture(&self, name: &str, grey: impl Fn(usize, usize) -> u8) {
        let mut image = RgbImage::new(64, 64);
        for (i, p) in image.data.chunks_exact_mut(3).enumerate() {
            p.fill(grey(i % 64, i / 64));
        }
        heatmap::write_png(&self.path(name), &image).unwrap();
    }

    fn teach(&self, out: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inspectd"));
        command.arg("teach").arg("--images").arg(self.path("good")).arg("--out").arg(out).args(more);
        command.env("INSPECTD_WEIGHTS", self.path("weights")).current_dir(self.folder.path());
        command
    }

    /// Teaching fails with this code, says so, and leaves nothing where the model was to be.
    fn fails(&self, mut command: Command, code: i32) -> String {
        let Output { status, stderr, .. } = command.output().unwrap();
        let told = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{told}");
        assert!(told.contains("error: ") && told.contains("try: "), "{told}");
        let left: Vec<_> =
            std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("model")), "{left:?}");
        told
    }
}

#[test]
fn too_few_good_pictures_are_counted() {
    let bench = Bench::new(9);
    let told = bench.fails(bench.teach(&bench.path("model"), &[]), 65);
    assert!(told.contains("too few good pictures: 9"), "{told}");
}

#[test]
fn pictures_of_one_colour_teach_nothing() {
    let bench = Bench::new(0);
    for i in 0..12 {
        bench.picture(&format!("good/{i}.png"), |_, _| 128);
    }
    let told = bench.fails(bench.teach(&bench.path("model"), &[]), 65);
    assert!(told.contains("of one colour"), "{told}");
}

#[test]
fn missing_weights_missing_folders_and_corrupt_pictures_are_named() {
    let bench = Bench::new(12);
    let mut command = bench.teach(&bench.path("model"), &[]);
    command.env("INSPECTD_WEIGHTS", bench.path("nowhere"));
    // The checkout's own weights lie below the crate's folder, not below this one.
    std::fs::rename(bench.path("weights"), bench.path("elsewhere")).unwrap();
    let told = bench.fails(command, 66);
    assert!(told.contains("efficientnet_lite0.safetensors") && told.contains("scripts/setup.sh"), "{told}");
    std::fs::rename(bench.path("elsewhere"), bench.path("weights")).unwrap();

    let told = bench.fails(bench.teach(&bench.path("no/such/folder/model"), &[]), 73);
    assert!(told.contains("no/such/folder"), "{told}");
    let told = bench.fails(bench.teach(&bench.path("model"), &["--minutes", "0"]), 64);
    assert!(told.contains("--minutes"), "{told}");

    let png = std::fs::read(bench.path("good/03.png")).unwrap();
    std::fs::write(bench.path("good/03.png"), &png[..png.len() / 2]).unwrap();
    let told = bench.fails(bench.teach(&bench.path("model"), &[]), 65);
    assert!(told.contains("03.png"), "{told}");
}

#[test]
fn an_interrupt_saves_what_was_learnt() {
    let bench = Bench::new(12);
    let mut child = bench.teach(&bench.path("model"), &["--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut last = serde_json::Value::Null;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        last = serde_json::from_str(&line.unwrap()).unwrap();
        if last["stage"] == "training" {
            // SAFETY: a signal to our own child, which has not been waited for.
            unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        }
    }
    assert!(child.wait().unwrap().success());
    assert_eq!((&last["event"], &last["interrupted"]), (&"done".into(), &true.into()), "{last}");
    let model = Model::load(&bench.path("model")).unwrap();
    assert_eq!((model.meta.training.images, model.meta.calibration.n), (7, 5));
    assert!(model.meta.training.stopped_early);
}

#[test]
fn teaching_is_over_when_its_time_is() {
    let bench = Bench::new(12);
    let started = std::time::Instant::now();
    let output = bench.teach(&bench.path("model"), &["--json", "--minutes", "0.5"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Half a minute, and what starting a process and one step of the longest stage take on a busy machine.
    assert!(started.elapsed().as_secs_f32() < 40.0, "{:?}", started.elapsed());
    assert!(Model::load(&bench.path("model")).is_ok());
}
