//! Commands under the simulated GPU, loaded as a driver is: by name.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Runs the program with the simulator as its driver, or without any.
fn inspectd(args: &[&str], simulated: bool) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_inspectd"));
    command.args(args);
    if simulated {
        // Cargo builds it beside the tests.
        let tests: PathBuf = std::env::current_exe().unwrap().parent().unwrap().into();
        std::os::unix::fs::symlink(tests.join("libgpusim.so"), folder.path().join("libcuda.so.1")).unwrap();
        command.env("LD_LIBRARY_PATH", folder.path());
    }
    command.output().unwrap()
}

fn embedded() -> bool {
    let version = inspectd(&["--version"], false);
    !String::from_utf8_lossy(&version.stdout).contains("no GPU kernels")
}

#[test]
fn doctor_names_the_simulated_gpu_as_simulated() {
    if !embedded() {
        return;
    }
    let output = inspectd(&["doctor"], true);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = told.lines().find(|l| l.contains("cuda:0")).unwrap_or_else(|| panic!("{told}"));
    assert!(line.contains("simulated GPU: no figure from it says anything of silicon"), "{line}");
    assert!(line.starts_with("note"), "{line}");
}

#[test]
fn traffic_without_the_simulated_gpu_says_how_to_get_it() {
    let output = inspectd(&["kernels", "--traffic"], false);
    assert_eq!(output.status.code(), Some(69));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let script = told.contains("scripts/on-simulated-gpu.sh");
    assert!(script || !embedded(), "{told}");
}
