//! `orlop bench` on devices that need nothing.

use crate::program::{refused, run};

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
        let figures: Vec<f64> = ["p50", "p99", "p99.9", "max"]
            .iter()
            .map(|name| latency[*name].as_f64().expect("a report has it"))
            .collect();
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
fn a_table_is_for_people() {
    let run = run(&["bench", "null://?size=1MiB", "--seconds", "1"]);
    assert!(run.stdout.starts_with("IOPS") && run.stdout.lines().count() == 2, "{run:?}");
}

#[test]
fn what_cannot_be_measured_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let missing = format!("file://{}/missing", temp.path().display());
    refused(&["bench", &missing], 1, &["missing"]);
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
