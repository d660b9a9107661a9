//! `orlop bench` on devices that need nothing.

use crate::program::{orlop, refused, run};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Every pattern on one device; the writes come first, because a file is made by writing.
fn check(uri: &str) {
    for rw in ["randwrite", "randread", "write", "read"] {
        let run = run(&["bench", uri, "--rw", rw, "--depth", "4", "--seconds", "1", "-o", "json"]);
        assert_eq!(run.code, 0, "{uri} {rw}: {run:?}");
        let report: serde_json::Value = serde_json::from_str(&run.stdout).expect("a report has it");
        let number = |name: &str| report[name].as_f64().expect("a report has it");
        assert!(number("ios") > 0.0 && number("seconds") >= 1.0, "{report}");
        assert!((number("iops") * number("seconds") / number("ios") - 1.0).abs() < 1e-6, "{report}");
        assert!((number("megabytesPerSecond") / number("iops") - 0.004_096).abs() < 1e-6, "{report}");
        let latency = &report["latencyMicroseconds"];
        let latency = |name: &str| latency[name].as_f64().expect("a report has it");
        let figures = ["p50", "p99", "p99.9", "max"].map(latency);
        assert!(latency("mean") > 0.0 && latency("mean") <= latency("max"), "{report}");
        assert!(figures[0] > 0.0 && figures.is_sorted(), "{report}");
        assert_eq!((report["rw"].as_str(), report["depth"].as_u64()), (Some(rw), Some(4)));
    }
}

#[test]
fn a_benchmark_of_every_pattern_gives_sound_figures() {
    let temp = tempfile::tempdir().unwrap();
    let file = format!("file://{}/disk?size=8MiB", temp.path().display());
    std::thread::scope(|scope| {
        for uri in ["mem://?size=8MiB", "null://?size=8MiB", &file] {
            scope.spawn(move || check(uri));
        }
    });
}

#[test]
fn a_device_is_served_to_initiators_until_standard_input_ends() {
    let mut command = orlop(&["bench", "mem://?size=8MiB", "--fill", "--serve", "127.0.0.1:0"]);
    let mut target = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut uri = String::new();
    BufReader::new(target.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    check(uri.trim());
    drop(target.stdin.take());
    assert!(target.wait().unwrap().success());
}

#[test]
fn a_pool_is_measured_on_an_empty_device_and_left_clean() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("disk").display().to_string();
    let file = format!("file://{path}?size=128MiB");
    let run = run(&["bench", &file, "--pool", "--verify", "--rw", "randwrite", "--seconds", "1"]);
    assert_eq!(run.code, 0, "{run:?}");
    let check = crate::program::run(&["check", &file]);
    assert!(check.code == 0 && check.stdout.contains("closed in order"), "{check:?}");
    refused(&["bench", &path, "--pool"], 5, &["is not empty", "--pool formats an empty device only"]);
}

#[test]
fn a_table_is_for_people() {
    let run = run(&["bench", "null://?size=1MiB", "--seconds", "1"]);
    assert!(run.stdout.starts_with("IOPS") && run.stdout.lines().count() == 2, "{run:?}");
}

#[test]
fn data_that_is_not_what_was_written_is_found() {
    // A device without contents takes every write and gives zeroes.
    let arguments = ["bench", "null://?size=1MiB", "--verify", "--rw", "randwrite", "--seconds", "1"];
    refused(&arguments, 1, &["block 0 does not hold what was written"]);
    assert_eq!(
        run(&["bench", "mem://?size=1MiB", "--verify", "--rw", "randwrite", "--seconds", "1"]).code,
        0
    );
}

#[test]
fn what_cannot_be_measured_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let missing = format!("file://{}/missing", temp.path().display());
    refused(&["bench", &missing], 1, &["missing"]);
    refused(&["bench", "/no/such/file"], 1, &["cannot open /no/such/file"]);
    refused(&["bench", "mem://?size=256KiB", "--pool", "--seconds", "1"], 1, &["mem://"]);
    refused(&["bench", "mem://"], 2, &["device URI \"mem://\""]);
    refused(&["bench", "tape://x"], 2, &["\"tape\" is not a known scheme"]);
    refused(&["bench", "mem://?size=lots"], 2, &["is not a size"]);
    refused(&["bench", "mem://?size=1MiB", "--block-size", "1000"], 2, &["not a multiple of 4096 bytes"]);
    refused(&["bench", "mem://?size=1MiB", "--block-size", "2MiB"], 2, &["is too large", "1 MiB"]);
    refused(
        &["bench", "fault://?of=mem%3A%2F%2F%3Fsize%3D1MiB&rule=fail:media-read,on:read", "--seconds", "1"],
        1,
        &["the disk cannot read the block"],
    );
}
