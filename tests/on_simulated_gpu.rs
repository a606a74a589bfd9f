//! The unmodified binary on the simulated GPU: every command that takes a device, held against the CPU.
//! All memory checks are on; a fault of a kernel is a failing command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inspectd::imaging::{RgbImage, heatmap};
use inspectd::nets::{Arch, random_weights, save_weights};
use inspectd::weights::{RawData, read_tensors, write_tensors};
use serde_json::Value;

mod untaught;

/// For five verdicts of a debug build on a loaded machine; a good run takes a small part of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of a libcuda.so.1 that is the simulator; cargo builds it beside the tests.
fn driver_folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpusim");
    std::fs::create_dir_all(&folder).unwrap();
    let built = std::env::current_exe().unwrap().parent().unwrap().join("libgpusim.so");
    // Tests run side by side: each puts its link in place in one step.
    let link = folder.join(format!("link-{}-{:?}", std::process::id(), std::thread::current().id()));
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(built, &link).unwrap();
    std::fs::rename(&link, folder.join("libcuda.so.1")).unwrap();
    folder
}

fn inspectd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inspectd"));
    command.env("LD_LIBRARY_PATH", driver_folder()).env("RUST_BACKTRACE", "0").env_remove("INSPECTD_LOG");
    command
}

/// Runs to a good end and returns standard output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

fn striped(side: usize, seed: usize) -> RgbImage {
    let mut image = RgbImage::new(side, side);
    for (at, value) in image.data.iter_mut().enumerate() {
        *value = 80 + (at / 24 % 8 * 10) as u8 + (at.wrapping_mul(2_654_435_761 + seed) >> 7 & 31) as u8;
    }
    image
}

/// ‖a − b‖ / ‖b‖
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (apart / size.max(1e-30)).sqrt()
}

fn forward_equals_the_cpu(arch: Arch, (n, h, w): (usize, usize, usize)) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    save_weights(&path("weights"), arch, &random_weights(arch, 3)).unwrap();
    let image: Vec<f32> = (0..n * 3 * h * w).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    write_tensors(&path("in"), &[("image", vec![n, 3, h, w], &image)], &BTreeMap::new()).unwrap();
    for device in ["cpu", "cuda:0"] {
        let mut command = inspectd();
        command
            .args(["forward", "--arch", arch.name(), "--device", device, "--weights"])
            .arg(path("weights"));
        command.arg("--input").arg(path("in")).arg("--out").arg(path(device));
        run(&mut command);
    }
    let (want, got) = (read_tensors(&path("cpu")).unwrap(), read_tensors(&path("cuda:0")).unwrap());
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    for (name, want) in &want {
        let (RawData::Real(want), RawData::Real(got)) = (&want.data, &got[name].data) else {
            panic!("{name} is not real");
        };
        let error = distance(got, want);
        // Each of some 50 layers rounds to fp16, 2⁻¹¹/√3 of each element; they add up as a random walk.
        assert!(error < 5e-3, "{} {name}: {error:.1e}", arch.name());
    }
}

#[test]
fn efficientnet_lite0_forward_equals_the_cpu() {
    forward_equals_the_cpu(Arch::EfficientnetLite0, (2, 64, 32));
}

#[test]
fn wide_resnet50_2_forward_equals_the_cpu() {
    forward_equals_the_cpu(Arch::WideResnet50_2, (1, 32, 32));
}

#[test]
fn judge_gives_the_same_scores_and_verdicts_as_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    untaught::model().save(&folder.path().join("m")).unwrap();
    for seed in 0..3 {
        // One at the network's size, others to be resized.
        let side = 64 + 37 * seed;
        heatmap::write_png(&folder.path().join(format!("{seed}.png")), &striped(side, seed)).unwrap();
    }
    let judge = |device: &str| -> Vec<Value> {
        let mut command = inspectd();
        command.args(["judge", "--json", "--device", device, "--model"]).arg(folder.path().join("m"));
        command.args((0..3).map(|seed| folder.path().join(format!("{seed}.png"))));
        run(&mut command).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (want, got) = (judge("cpu"), judge("cuda:0"));
    assert_eq!((want.len(), got.len()), (3, 3));
    for (want, got) in want.iter().zip(&got) {
        let score = |v: &Value| v["score"].as_f64().unwrap();
        let apart = (score(want) - score(got)).abs();
        // Scores count deviations of this model's five nearly equal normals: what fp16 rounds off a
        // distance shows at half of one, a tenth of the way to the threshold.
        assert!(apart <= 0.5, "{want} {got}");
        assert_eq!(want["verdict"], got["verdict"]);
    }
}

#[test]
fn teach_learns_on_the_gpu_and_its_model_judges_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let arch = Arch::EfficientnetLite0;
    std::fs::create_dir_all(path("weights")).unwrap();
    std::fs::create_dir_all(path("good")).unwrap();
    save_weights(&path("weights/efficientnet_lite0.safetensors"), arch, &random_weights(arch, 1)).unwrap();
    for seed in 0..10 {
        heatmap::write_png(&path(&format!("good/{seed}.png")), &striped(64, seed)).unwrap();
    }
    let mut command = inspectd();
    command.args(["teach", "--device", "cuda:0", "--input", "64", "--minutes", "0.2", "--json"]);
    command.arg("--images").arg(path("good")).arg("--out").arg(path("m"));
    command.env("INSPECTD_WEIGHTS", path("weights"));
    let told = run(&mut command);
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "done", "{last}");
    assert!(
        last["iterations"].as_u64() >= Some(1) && last["loss"].as_f64().is_some_and(f64::is_finite),
        "{last}"
    );
    let mut command = inspectd();
    command.args(["judge", "--json", "--model"]).arg(path("m")).arg(path("good/0.png"));
    let line: Value = serde_json::from_str(run(&mut command).trim()).unwrap();
    assert!(line["score"].as_f64().is_some_and(f64::is_finite), "{line}");
}

/// Verdicts of a daemon that watches pictures in a folder, and what it logged.
fn serve(folder: &Path, device: &str, fail: &str) -> (Vec<Value>, String) {
    let config = folder.join(format!("{}.toml", device.replace(':', "")));
    let verdicts = folder.join(format!("{}{fail}.jsonl", device.replace(':', "")).replace([':', ','], "-"));
    std::fs::write(
        &config,
        format!(
            "[daemon]\nhttp = \"off\"\ndevice = \"{device}\"\nlog_format = \"text\"\n[[line]]\nname = \"a\"\nmodel = \"m\"\n\
             source = \"multifilesrc location={}/p%d.png start-index=0 stop-index=4 caps=image/png,framerate=10/1 ! pngdec ! videoconvert ! video/x-raw,format=RGB\"\n\
             drop = \"block\"\ndeadline_ms = 0\n[line.outputs]\nverdicts = \"{}\"\n",
            folder.display(),
            verdicts.display(),
        ),
    )
    .unwrap();
    let mut command = inspectd();
    command.args(["serve", "--config"]).arg(&config).env("GPUSIM_FAIL", fail);
    let log = folder.join("log");
    let mut child =
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    // The source ends and is started anew, so there are always enough pictures.
    let text = || std::fs::read_to_string(&verdicts).unwrap_or_default();
    let until = Instant::now() + PATIENCE;
    while text().lines().count() < 5 && child.try_wait().unwrap().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = child.wait().unwrap();
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{log}");
    let lines = text().lines().take(5).map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, log)
}

#[test]
fn serve_gives_the_cpus_verdicts_and_goes_on_without_a_gpu_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    untaught::model().save(&folder.path().join("m")).unwrap();
    for seed in 0..5 {
        heatmap::write_png(&folder.path().join(format!("p{seed}.png")), &striped(64, seed)).unwrap();
    }
    let (want, _) = serve(folder.path(), "cpu", "");
    assert_eq!(want.len(), 5);
    // The second one fails in the middle of a frame and loses its context.
    for (fail, told) in [("", "computes on"), ("launch-sticky:700", "The GPU failed")] {
        let (got, log) = serve(folder.path(), "cuda:0", fail);
        assert!(log.contains(told), "{log}");
        assert_eq!(got.len(), want.len(), "{log}");
        for (want, got) in want.iter().zip(&got) {
            // This model was hardly taught: its scores count deviations of normals that it can barely
            // tell apart, so rounding to fp16 shows at one of them. Beyond that the verdict is the same.
            let (score, bound) = (|v: &Value| v["score"].as_f64().unwrap(), 1.0);
            assert!((score(want) - score(got)).abs() <= bound, "{want} {got}");
            let near = |t: &str| (score(want) - want["thresholds"][t].as_f64().unwrap()).abs() <= bound;
            assert!(want["verdict"] == got["verdict"] || near("unsure") || near("bad"), "{want} {got}");
        }
        assert!(!log.contains("does not balance"), "{log}");
    }
}

#[test]
fn a_gpu_without_memory_is_told_with_the_next_command() {
    let folder = tempfile::tempdir().unwrap();
    untaught::model().save(&folder.path().join("m")).unwrap();
    heatmap::write_png(&folder.path().join("a.png"), &striped(64, 0)).unwrap();
    let mut command = inspectd();
    command.args(["judge", "--device", "cuda:0", "--model"]).arg(folder.path().join("m"));
    let output = command.arg(folder.path().join("a.png")).env("GPUSIM_FAIL", "alloc:1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("memory"), "{told}");
}
