//! The unmodified binary on the simulated GPU: every command that takes a device, held against the CPU.
//! All memory checks are on; a fault of a kernel is a failing command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inspectd::imaging::{RgbImage, heatmap};
use inspectd::nets::{Arch, random_weights, save_weights};
use inspectd::weights::{RawData, read_tensors, write_tensors};
use serde_json::Value;

mod http;
mod untaught;

use http::get;

/// For five verdicts of a debug build on a loaded machine; a good run takes a small part of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// How far a score on the GPU may be from the CPU's. The model of these tests was hardly taught: a score
/// counts deviations of five nearly equal normals. Where rounding to fp16 swaps two residual planes that
/// rank alike, the head shows it at .7 of one, and at some .2 elsewhere.
const SCORE_BOUND: f64 = 1.0;

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
        // None of these pictures has planes that swap in rank.
        assert!(apart <= 0.25, "{want} {got}");
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
    command.env("GPUSIM_COPIES", folder.join("copies"));
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
            let (score, bound) = (|v: &Value| v["score"].as_f64().unwrap(), SCORE_BOUND);
            assert!((score(want) - score(got)).abs() <= bound, "{want} {got}");
            let near = |t: &str| (score(want) - want["thresholds"][t].as_f64().unwrap()).abs() <= bound;
            assert!(want["verdict"] == got["verdict"] || near("unsure") || near("bad"), "{want} {got}");
        }
        assert!(!log.contains("does not balance"), "{log}");
    }
}

#[test]
fn frames_go_to_the_gpu_straight_from_their_pinned_slots_and_where_pinning_fails_by_another_way() {
    // Of a size that no other copy has: the picture that warms the model up, parameters, tables.
    let (width, height) = (80, 72);
    // A program takes two pinned buffers; the third request is the slots'.
    for (fail, pinned) in [("", true), ("host-alloc:3", false)] {
        let folder = tempfile::tempdir().unwrap();
        untaught::model().save(&folder.path().join("m")).unwrap();
        for seed in 0..5 {
            let mut image = RgbImage::new(width, height);
            image.data.iter_mut().enumerate().for_each(|(at, v)| *v = (at * (seed + 3) % 251) as u8);
            heatmap::write_png(&folder.path().join(format!("p{seed}.png")), &image).unwrap();
        }
        let (verdicts, log) = serve(folder.path(), "cuda:0", fail);
        assert_eq!(verdicts.len(), 5, "{log}");
        let copies = std::fs::read_to_string(folder.path().join("copies")).unwrap();
        let copies = copies.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let frames: Vec<Value> = copies.filter(|c| c["bytes"] == width * height * 3).collect();
        assert!(frames.len() >= 5 && frames.iter().all(|c| c["pinned"] == pinned), "{frames:?}");
        assert_eq!(log.matches("cannot be pinned").count(), usize::from(!pinned), "{log}");
        assert!(!log.contains("The GPU failed"), "{log}");
    }
}

/// Asks until `find` finds something. A daemon that ends meanwhile is shown with its log.
fn wait<T>(what: &str, child: &mut Child, log: &Path, mut find: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        let runs = child.try_wait().unwrap().is_none() && Instant::now() < until;
        assert!(runs, "{what} never came: {}", std::fs::read_to_string(log).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn serve_takes_new_thresholds_and_loses_its_gpu_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    untaught::model().save(&path("m")).unwrap();
    for seed in 0..5 {
        heatmap::write_png(&path(&format!("p{seed}.png")), &striped(64, seed)).unwrap();
    }
    let (on_cpu, _) = serve(folder.path(), "cpu", "");
    let of_frame: BTreeMap<&str, &Value> =
        on_cpu.iter().map(|v| (v["frame_hash"].as_str().unwrap(), v)).collect();
    let configure = |thresholds: &str| {
        let text = format!(
            "[daemon]\nhttp = \"127.0.0.1:0\"\nstate_dir = \"state\"\ndevice = \"cuda:0\"\nlog_format = \"text\"\n\
             [[line]]\nname = \"a\"\nmodel = \"m\"\n\
             source = \"multifilesrc location={}/p%d.png loop=true start-index=0 stop-index=4 caps=image/png,framerate=10/1 ! pngdec ! videoconvert ! video/x-raw,format=RGB\"\n\
             drop = \"block\"\ndeadline_ms = 0\n[line.outputs]\nverdicts = \"v.jsonl\"\n[line.thresholds]\n{thresholds}\n",
            folder.path().display(),
        );
        std::fs::write(path("c.toml"), text).unwrap();
    };
    configure("unsure = 1e6\nbad = 1e7");
    let log = path("log");
    let mut command = inspectd();
    // It stays away, so that the page can be read at leisure.
    command.args(["serve", "--config"]).arg(path("c.toml")).env("GPUSIM_FAIL", "launch-sticky:2500+");
    let told = std::fs::File::create(&log).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(told).spawn().unwrap();
    let pid = child.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    let verdicts = || -> Vec<Value> {
        let text = std::fs::read_to_string(path("v.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    wait("a verdict", &mut child, &log, || (!verdicts().is_empty()).then_some(()));
    let address = std::fs::read_to_string(path("state/http_address")).unwrap();
    assert!(!get(address.trim(), "/status").contains("the CPU judges"));
    configure("unsure = -1e7\nbad = -1e6");
    signal("-HUP");
    wait("a verdict by the new thresholds", &mut child, &log, || {
        verdicts().iter().any(|v| v["verdict"] == "bad").then_some(())
    });
    let page = wait("the GPU's failure on the page", &mut child, &log, || {
        let page = get(address.trim(), "/status");
        page.contains("cuda:0 failed, the CPU judges").then_some(page)
    });
    assert!(page.contains("<td>a<td>runs"), "{page}");
    assert!(get(address.trim(), "/healthz").starts_with("HTTP/1.1 200"), "the line makes progress");
    // Five more, all of them the CPU's.
    let so_far = verdicts().len();
    wait("verdicts after the failure", &mut child, &log, || (verdicts().len() >= so_far + 5).then_some(()));
    let metrics = get(address.trim(), "/metrics");
    signal("-TERM");
    assert!(child.wait().unwrap().success());
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("computes on") && log.contains("The GPU failed"), "{log}");
    assert!(!log.contains("does not balance"), "{log}");

    let sum = |name: &str| -> u64 {
        let start = format!("inspectd_{name}{{line=\"a\"");
        let samples = metrics.lines().filter(|sample| sample.starts_with(&start));
        samples.map(|sample| sample.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    let accounted = sum("verdicts_total") + sum("frames_dropped_total") + sum("frames_in_flight");
    assert_eq!(sum("frames_captured_total"), accounted, "{metrics}");
    assert_eq!(sum("ledger_unbalanced_total"), 0);

    let all = verdicts();
    let first_bad = all.iter().position(|v| v["verdict"] == "bad").unwrap();
    for (i, got) in all.iter().enumerate() {
        let want = of_frame[got["frame_hash"].as_str().unwrap()];
        let score = |v: &Value| v["score"].as_f64().unwrap();
        assert!((score(want) - score(got)).abs() <= SCORE_BOUND, "{want} {got}");
        assert_eq!(got["verdict"], if i < first_bad { "good" } else { "bad" }, "{got}");
    }
    // The CPU's own scores, to the last bit.
    let last = &all[all.len() - 1];
    assert_eq!(last["score"], of_frame[last["frame_hash"].as_str().unwrap()]["score"]);
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

#[test]
fn a_simulated_gpu_has_no_peak() {
    let output = inspectd().args(["bench", "--peak", "cuda:0"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty() && told.contains("simulated"), "{told}");
}
