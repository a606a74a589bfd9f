//! The unit as systemd itself reads it. scripts/test-systemd.sh boots it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn unit() -> String {
    std::fs::read_to_string(repository("systemd/inspectd.service")).unwrap()
}

fn run(tool: &str, arguments: &[&str], file: &Path) -> Output {
    Command::new(tool).args(arguments).arg(file).output().unwrap_or_else(|error| {
        panic!("{tool} cannot be run ({error}); type: scripts/setup.sh --only system")
    })
}

/// What `systemd-analyze verify` complains of in a unit. Its exit code is 0 even where it ignores a key.
fn complaints(unit: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    // It looks whether the programs are there.
    let unit = unit.replace("/usr/bin/inspectd", env!("CARGO_BIN_EXE_inspectd"));
    let file = folder.path().join("inspectd.service");
    std::fs::write(&file, unit).unwrap();
    // Documentation of what is not installed here is no fault.
    let output = run("systemd-analyze", &["verify", "--man=no"], &file);
    let said = String::from_utf8_lossy(&output.stderr);
    // It also tells of other units of the machine that runs the test.
    said.lines().filter(|line| line.contains("inspectd")).map(str::to_owned).collect()
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    assert_eq!(complaints(&unit()), [] as [&str; 0]);
    // It would have said so.
    assert_eq!(complaints(&unit().replace("WatchdogSec=", "WatchdogSecs=")).len(), 1);
    assert!(!complaints(&unit().replace("Type=notify\n", "Type=notify-relaod\n")).is_empty());
}

#[test]
fn the_unit_is_exposed_no_more_than_cameras_and_gpus_need() {
    // Tenths: 2.5 of 10.
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold=25"];
    let output = run("systemd-analyze", &arguments, &repository("systemd/inspectd.service"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn systemd_makes_the_user_that_the_unit_runs_as() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("inspectd.conf");
    std::fs::copy(repository("systemd/inspectd.sysusers"), &file).unwrap();
    let root = format!("--root={}", folder.path().display());
    let output = run("systemd-sysusers", &[&root, "--dry-run"], &file);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("Creating user 'inspectd'"), "{said}");
    assert!(unit().contains("\nUser=inspectd\nGroup=inspectd\n"));
}

#[test]
fn what_is_opened_has_its_reason_beside_it() {
    // A relaxation that nobody explains is one that nobody dares to take back.
    let unit = unit();
    for opened in [
        "SupplementaryGroups=",
        "LimitMEMLOCK=",
        "RestrictAddressFamilies=",
        "DevicePolicy=",
        "StartLimitIntervalSec=",
    ] {
        let lines: Vec<&str> = unit.lines().collect();
        let at = lines.iter().position(|line| line.starts_with(opened)).unwrap_or_else(|| panic!("{opened}"));
        assert!(lines[at - 1].starts_with('#'), "{opened} has no reason above it");
    }
}
