//! `inspectd doctor`: what is there, what is missing, what to type.
//!
//! Each check is a [`Finding`]; only what the CPU path cannot run without is [`State::Missing`] and
//! makes the command fail. No camera is opened.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::teach::weights_folders;
use super::{Exit, Failure};
use crate::engine::{DeviceError, Gpu, cuda};
use crate::{capture, config, kernels};

/// The backbone that `teach` starts from, imported (`inspectd import`) or as downloaded (`scripts/setup.sh`).
const WEIGHTS: [&str; 2] = ["efficientnet_lite0.safetensors", "efficientnet_lite0.pth"];
/// What the unit file starts the daemon with.
const CONFIG: &str = "/etc/inspectd/inspectd.toml";
const STATE_DIR: &str = "/var/lib/inspectd";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration to look at
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Something works worse, or not yet; inspection on the CPU runs.
    Note,
    /// Inspection cannot run.
    Missing,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    /// What to type.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn new(check: &'static str, state: State, found: impl Into<String>) -> Self {
        Finding { check, state, found: found.into(), fix: None }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

pub fn run(args: Args) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let findings = examine(args.config.as_deref());
    let missing = findings.iter().filter(|f| f.state == State::Missing).count();
    let text = if args.json {
        let object = serde_json::json!({ "ready": missing == 0, "checks": findings });
        format!("{object}\n")
    } else {
        text(&findings)
    };
    out.write_all(text.as_bytes()).map_err(Failure::stdout)?;
    match missing {
        0 => Ok(()),
        1 => Err(Failure::say(Exit::Unavailable, "one thing that inspection needs is missing")),
        n => Err(Failure::say(Exit::Unavailable, format!("{n} things that inspection needs are missing"))),
    }
}

fn examine(config: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![processor(), memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())];
    findings.extend(gstreamer());
    findings.push(weights(&weights_folders()));
    findings.push(gpu_kernels());
    findings.extend(gpus());
    findings.push(configuration(config));
    findings.push(locked_memory(&fs::read_to_string("/proc/self/limits").unwrap_or_default()));
    findings.push(state_dir());
    findings
}

// ---------------------------------------------------------------- the machine

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (isa, fast) = instruction_set();
    let found = format!("{cores} core{}, {isa}", if cores == 1 { "" } else { "s" });
    if fast {
        Finding::new("processor", State::Ok, found)
    } else {
        Finding::new("processor", State::Note, format!("{found}: without AVX2 and FMA it will be slow"))
    }
}

#[cfg(target_arch = "x86_64")]
fn instruction_set() -> (String, bool) {
    let fast = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let mut names = vec!["x86-64"];
    for (name, there) in [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            names.push(name);
        }
    }
    (names.join(" "), fast)
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_set() -> (String, bool) {
    (env::consts::ARCH.to_owned(), true)
}

/// A taught small preset and a camera's pool take some 200 MB; teaching about 1 GB.
fn memory(meminfo: &str) -> Finding {
    let mib = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
    };
    let (Some(total), Some(free)) = (mib("MemTotal"), mib("MemAvailable")) else {
        return Finding::new("memory", State::Note, "/proc/meminfo does not tell");
    };
    let found = format!("{total} MiB, {free} MiB available");
    match free {
        0..1024 => Finding::new("memory", State::Note, format!("{found}: little for teaching")),
        _ => Finding::new("memory", State::Ok, found),
    }
}

/// Frames are locked in memory so that no page fault delays a verdict; without the right to, they
/// are merely not locked.
fn locked_memory(limits: &str) -> Finding {
    let soft = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max locked memory"))
        .and_then(|rest| rest.split_whitespace().next());
    // 12 slots of a 1080p RGB frame are 75 MB.
    let enough = 128 << 20;
    match soft {
        Some("unlimited") => Finding::new("locked memory", State::Ok, "unlimited"),
        Some(bytes) => match bytes.parse::<u64>() {
            Ok(n) if n >= enough => Finding::new("locked memory", State::Ok, format!("{} MiB", n >> 20)),
            Ok(n) => Finding::new(
                "locked memory",
                State::Note,
                format!("{} MiB: frames may be swapped out, which delays a verdict", n >> 20),
            )
            .fix("ulimit -l unlimited    (the systemd unit sets LimitMEMLOCK=infinity)"),
            Err(_) => Finding::new("locked memory", State::Note, "/proc/self/limits does not tell"),
        },
        None => Finding::new("locked memory", State::Note, "/proc/self/limits does not tell"),
    }
}

fn state_dir() -> Finding {
    let (dir, from) = match env::var_os("STATE_DIRECTORY") {
        Some(dir) => (PathBuf::from(dir), " ($STATE_DIRECTORY)"),
        None => (PathBuf::from(STATE_DIR), ""),
    };
    let name = format!("{}{from}", dir.display());
    if !dir.is_dir() {
        return Finding::new("state folder", State::Note, format!("{name} is not there; systemd makes it"))
            .fix("set state_dir in the configuration to run without systemd");
    }
    match tempfile::tempfile_in(&dir) {
        Ok(_) => Finding::new("state folder", State::Ok, format!("{name} can be written")),
        Err(e) => Finding::new("state folder", State::Note, format!("{name} cannot be written: {e}"))
            .fix(format!("sudo chown $USER {}    (under systemd this is right as it is)", dir.display())),
    }
}

// ---------------------------------------------------------------- what inspectd stands on

fn gstreamer() -> Vec<Finding> {
    let version = match capture::gstreamer_version() {
        Ok(version) => version,
        Err(e) => {
            let finding = Finding::new("GStreamer", State::Missing, e.to_string());
            return vec![finding.fix("scripts/setup.sh --only system")];
        }
    };
    match capture::missing_plugins() {
        Ok(missing) => plugins(&version, &missing),
        Err(e) => vec![Finding::new("GStreamer", State::Missing, e.to_string())],
    }
}

/// Element, package, what it is for.
type Element = (&'static str, &'static str, &'static str);

fn plugins(version: &str, missing: &[Element]) -> Vec<Finding> {
    let (needed, useful): (Vec<&Element>, Vec<&Element>) =
        missing.iter().partition(|(_, _, what)| *what == "every camera");
    let packages = |elements: &[&Element]| {
        let mut packages: Vec<String> = elements.iter().map(|(_, package, _)| package.to_string()).collect();
        packages.sort();
        packages.dedup();
        packages
    };
    let mut findings = vec![if needed.is_empty() {
        Finding::new("GStreamer", State::Ok, version)
    } else {
        let names: Vec<&str> = needed.iter().map(|(element, ..)| *element).collect();
        let found = format!("{version}, without {}: no camera can run", names.join(" and "));
        let fix = format!("sudo apt install {}", packages(&needed).join(" "));
        Finding::new("GStreamer", State::Missing, found).fix(fix)
    }];
    for package in packages(&useful) {
        let mut uses: Vec<&str> =
            useful.iter().filter(|(_, p, _)| *p == package).map(|(_, _, what)| *what).collect();
        uses.sort_unstable();
        uses.dedup();
        let found = format!("not installed, for {}", uses.join(", "));
        findings.push(Finding::new("plugins", State::Note, found).fix(format!("sudo apt install {package}")));
    }
    findings
}

/// Looks where `teach` looks.
fn weights(folders: &[PathBuf]) -> Finding {
    let check = "weights";
    let found =
        folders.iter().flat_map(|folder| WEIGHTS.map(|name| folder.join(name))).find(|path| path.is_file());
    match found {
        Some(path) => Finding::new(check, State::Ok, format!("{}, to teach from", path.display())),
        None => Finding::new(
            check,
            State::Note,
            format!("no {} in any weights folder; teaching needs it, judging does not", WEIGHTS[0]),
        )
        .fix("scripts/setup.sh --only weights"),
    }
}

fn gpu_kernels() -> Finding {
    let check = "GPU kernels";
    if !kernels::embedded() {
        return Finding::new(check, State::Note, "not in this binary: it was built without NVRTC")
            .fix("scripts/setup.sh --only nvrtc && cargo build --release");
    }
    let archs: Vec<String> =
        kernels::cubin_archs(kernels::IMAGES).iter().map(|a| format!("sm_{a}")).collect();
    let archs = if archs.is_empty() { "PTX alone".to_owned() } else { archs.join(" ") };
    Finding::new(check, State::Ok, format!("embedded, by NVRTC {}: {archs}", kernels::NVRTC))
}

fn gpus() -> Vec<Finding> {
    let check = "GPU";
    let count = match cuda::device::count() {
        Ok(0) => return vec![Finding::new(check, State::Note, "the driver shows none: --device cpu")],
        Ok(count) => count,
        Err(DeviceError::NoDriver) => {
            let found = "no NVIDIA driver (no libcuda.so.1): inspection runs on the CPU";
            return vec![Finding::new(check, State::Note, found)];
        }
        Err(e) => return vec![Finding::new(check, State::Note, e.to_string()).fix(e.hint())],
    };
    (0..count).map(|i| gpu(i, Gpu::open(i))).collect()
}

fn gpu(index: usize, opened: Result<Gpu, DeviceError>) -> Finding {
    let check = "GPU";
    match opened {
        Ok(gpu) => {
            let (name, arch, mib) = (gpu.name(), gpu.limits().arch, gpu.total_bytes() >> 20);
            if gpu.is_simulated() {
                let found = format!("cuda:{index} is a {name}: no figure from it says anything of silicon");
                return Finding::new(check, State::Note, found);
            }
            let (major, minor) = (arch / 10, arch % 10);
            let found = format!("cuda:{index} {name}, compute capability {major}.{minor}, {mib} MiB");
            Finding::new(check, State::Ok, found)
        }
        Err(e) => Finding::new(check, State::Note, format!("cuda:{index}: {e}")).fix(e.hint()),
    }
}

fn configuration(given: Option<&Path>) -> Finding {
    let check = "configuration";
    let path = given.unwrap_or(Path::new(CONFIG));
    if given.is_none() && !path.exists() {
        return Finding::new(check, State::Note, format!("no {CONFIG}"))
            .fix(format!("sudo install -D -m 644 config/inspectd.toml {CONFIG}"));
    }
    match config::load(path) {
        Ok(config) => {
            let lines = config.lines.len();
            let plural = if lines == 1 { "" } else { "s" };
            Finding::new(check, State::Ok, format!("{}: {lines} line{plural}", path.display()))
        }
        Err(e) => {
            let first = e.to_string().lines().next().unwrap_or_default().to_owned();
            Finding::new(check, if given.is_some() { State::Missing } else { State::Note }, first)
                .fix(format!("inspectd check --config {}", path.display()))
        }
    }
}

// ---------------------------------------------------------------- printing

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for f in findings {
        let state = match f.state {
            State::Ok => "ok     ",
            State::Note => "note   ",
            State::Missing => "MISSING",
        };
        out += &format!("{state}  {:width$}  {}\n", f.check, f.found);
        if let Some(fix) = &f.fix {
            out += &format!("{:pad$}try: {fix}\n", "", pad = 7 + 2 + width + 2);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_aligned_and_says_what_to_type() {
        let findings = [
            Finding::new("memory", State::Ok, "8 GiB"),
            Finding::new("GStreamer", State::Missing, "no appsink").fix("sudo apt install x"),
        ];
        assert_eq!(
            text(&findings),
            "ok       memory     8 GiB\nMISSING  GStreamer  no appsink\n                    try: sudo apt install x\n"
        );
    }

    #[test]
    fn an_element_that_every_camera_needs_is_missing_and_others_are_noted_by_package() {
        let missing = [
            ("appsink", "base", "every camera"),
            ("avdec_h264", "libav", "H.264"),
            ("avdec_h265", "libav", "H.265"),
            ("aravissrc", "aravis", "GigE Vision"),
        ];
        let findings = plugins("GStreamer 1.22.0", &missing);
        let told: Vec<_> = findings.iter().map(|f| (f.state, f.fix.as_deref().unwrap_or_default())).collect();
        let want = [
            (State::Missing, "sudo apt install base"),
            (State::Note, "sudo apt install aravis"),
            (State::Note, "sudo apt install libav"),
        ];
        assert_eq!(told, want);
        assert_eq!(findings[2].found, "not installed, for H.264, H.265");
        assert_eq!(plugins("GStreamer 1.22.0", &[])[0].state, State::Ok);
    }

    #[test]
    fn memory_is_read_from_meminfo_and_little_of_it_is_noted() {
        let meminfo = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:   20480000 kB\n";
        let finding = memory(meminfo);
        assert_eq!((finding.state, finding.found.as_str()), (State::Ok, "24000 MiB, 20000 MiB available"));
        assert_eq!(memory("MemTotal: 2048000 kB\nMemAvailable: 512000 kB\n").state, State::Note);
        assert_eq!(memory("").state, State::Note);
    }

    #[test]
    fn a_small_limit_of_locked_memory_is_noted_with_what_to_type() {
        let limits = |soft: &str| {
            format!("Limit   Soft Limit  Hard Limit  Units\nMax locked memory   {soft}  {soft}  bytes\n")
        };
        assert_eq!(locked_memory(&limits("unlimited")).state, State::Ok);
        assert_eq!(locked_memory(&limits("1073741824")).found, "1024 MiB");
        let small = locked_memory(&limits("8388608"));
        assert_eq!(small.state, State::Note);
        assert!(small.fix.is_some_and(|f| f.contains("ulimit")));
        assert_eq!(locked_memory("").state, State::Note);
    }

    #[test]
    fn weights_are_looked_for_where_teach_looks() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("none"), dir.path().to_path_buf()];
        assert!(weights(&folders).fix.is_some_and(|f| f.starts_with("scripts/setup.sh")));
        for name in WEIGHTS {
            fs::write(dir.path().join(name), "").unwrap();
            let found = weights(&folders);
            assert_eq!(found.state, State::Ok);
            fs::remove_file(dir.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_configuration_that_was_named_must_be_right_and_the_default_one_need_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        assert_eq!(configuration(Some(&path)).state, State::Missing);
        fs::write(&path, "[daemom]\n").unwrap();
        let wrong = configuration(Some(&path));
        assert_eq!(wrong.state, State::Missing);
        assert!(wrong.fix.is_some_and(|f| f.starts_with("inspectd check --config ")));
        if !Path::new(CONFIG).exists() {
            assert_eq!(configuration(None).state, State::Note);
        }
    }
}
