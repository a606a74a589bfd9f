//! Exit codes and messages of the binary itself.

use std::path::Path;
use std::process::{Command, Output};

fn inspectd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inspectd")).args(args).output().unwrap()
}

fn fails(args: &[&str], code: i32) -> String {
    let output = inspectd(args);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
    assert!(told.starts_with("error: "), "{args:?}: {told}");
    assert!(output.stdout.is_empty(), "{args:?}");
    told
}

#[test]
fn a_wrong_command_line_ends_in_64() {
    fails(&["judge"], 64);
    fails(&["judge", "--model", "m", "a.png", "--colour"], 64);
    fails(&["teach", "--images", "d", "--out", "m", "--preset", "huge"], 64);
}

#[test]
fn help_and_version_end_in_0() {
    for args in [&["--help"][..], &["--version"], &["judge", "--help"]] {
        let output = inspectd(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_model_that_is_missing_or_no_model_is_told_apart_and_says_what_to_type() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let told = fails(&["judge", "--model", &path("none"), &path("a.png")], 66);
    assert!(told.contains("try: inspectd teach"), "{told}");
    std::fs::write(path("junk"), b"this is no model").unwrap();
    let told = fails(&["judge", "--model", &path("junk"), &path("a.png")], 65);
    assert!(told.contains("junk") && told.contains("try: "), "{told}");
}

#[test]
fn a_dataset_or_a_report_that_cannot_be_is_told_before_the_model_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fails(&["eval", "--model", "m", "--dataset", &at("none")], 66);
    let told = fails(&["eval", "--model", "m", "--dataset", &at("")], 65);
    assert!(told.contains("test/good"), "{told}");
    std::fs::create_dir_all(folder.path().join("test/good")).unwrap();
    std::fs::write(folder.path().join("test/good/a.png"), b"x").unwrap();
    let report = at("no/such/folder/report.html");
    let told = fails(&["eval", "--model", "m", "--dataset", &at(""), "--report", &report], 73);
    assert!(told.contains(&report), "{told}");
    assert!(!Path::new(&report).exists());
}
