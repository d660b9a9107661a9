//! fio: how it is called, the same for both sides, and how its report is read.
//!
//! 1. Every block that is written carries fio's stamp (offset and CRC32C), so that all data can be verified at the end.

use super::bed::Bed;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What fio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rw {
    RandRead,
    RandWrite,
}

impl Rw {
    pub(crate) const BOTH: [Self; 2] = [Self::RandRead, Self::RandWrite];

    /// As fio and `orlop bench` call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
        }
    }

    const fn field(self) -> &'static str {
        match self {
            Self::RandRead => "read",
            Self::RandWrite => "write",
        }
    }
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// I/Os per second.
    pub(crate) iops: f64,
    /// From submission to completion. # Units: microseconds.
    pub(crate) mean_us: f64,
    /// The longest. # Units: microseconds.
    pub(crate) max_us: f64,
}

/// Bytes of one write while a target is filled.
const FILL_BLOCK: &str = "256k";
/// Invariant 1: a stamp in each 4 KiB.
const STAMPED: [&str; 4] =
    ["--verify=crc32c", "--verify_interval=4096", "--verify_fatal=1", "--verify_state_save=0"];

/// Writes every block of `target` once, each with its stamp.
pub(crate) fn fill(bed: &Bed, target: &Path, bytes: u64) -> Result<Measured> {
    let block = format!("--bs={FILL_BLOCK}");
    let arguments = ["--rw=write", &block, "--iodepth=8", "--end_fsync=1", "--do_verify=0"];
    let text = run(bed, target, bytes, &[&arguments[..], &STAMPED].concat())?;
    read_report(&text, "write")
}

/// 4 KiB at random places for the time of a round.
pub(crate) fn measure(bed: &Bed, target: &Path, bytes: u64, rw: Rw, depth: u32) -> Result<Measured> {
    let (rw_option, depth) = (format!("--rw={}", rw.name()), format!("--iodepth={depth}"));
    let runtime = format!("--runtime={}", bed.pace.seconds);
    let mut arguments = vec![&*rw_option, "--bs=4k", &depth, &runtime, "--time_based", "--randrepeat=0"];
    // Reads are verified in a pass of their own: a checksum is no part of the device's latency.
    if rw == Rw::RandWrite {
        arguments.extend(STAMPED);
        arguments.push("--do_verify=0");
    }
    let text = run(bed, target, bytes, &arguments)?;
    read_report(&text, rw.field())
}

/// `count_bytes` of 4 KiB writes at random places, none twice; then what was written is read back and verified.
pub(crate) fn write_once(
    bed: &Bed,
    target: &Path,
    bytes: u64,
    count_bytes: u64,
    depth: u32,
) -> Result<Measured> {
    let (depth, amount) = (format!("--iodepth={depth}"), format!("--io_size={count_bytes}"));
    let arguments = ["--rw=randwrite", "--bs=4k", &depth, &amount, "--randrepeat=0", "--do_verify=1"];
    let text = run(bed, target, bytes, &[&arguments[..], &STAMPED].concat())?;
    read_report(&text, "write")
}

/// Reads everything and compares it with its stamps.
pub(crate) fn verify(bed: &Bed, target: &Path, bytes: u64) -> Result<()> {
    let block = format!("--bs={FILL_BLOCK}");
    run(bed, target, bytes, &[&["--rw=read", &*block, "--iodepth=8"][..], &STAMPED].concat())
        .with_context(|| format!("{} does not hold what was written", target.display()))?;
    Ok(())
}

/// Runs fio to its end; its report.
fn run(bed: &Bed, target: &Path, bytes: u64, arguments: &[&str]) -> Result<String> {
    let report = bed.new_path("fio", "json");
    let mut command = Command::new("fio");
    command
        .current_dir(&bed.folder)
        .args(["--name=bench", "--direct=1", "--ioengine=io_uring"])
        .arg(format!("--filename={}", target.display()))
        .arg(format!("--size={bytes}"))
        .args(["--output-format=json", &format!("--output={}", report.display())])
        .args(arguments);
    bed.run(command, Duration::from_secs(300) + Duration::from_secs(bed.pace.seconds.into()))?;
    std::fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))
}

/// Reads `field` (`read` or `write`) of the one job of a report; warnings may come before it.
fn read_report(text: &str, field: &str) -> Result<Measured> {
    let start = text.find('{').context("fio printed no report")?;
    let report: Value = serde_json::from_str(&text[start..]).context("fio's report is not JSON")?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio says error {} of its job", job["error"]);
    let side = &job[field];
    let number = |value: &Value, name: &str| {
        value.as_f64().with_context(|| format!("fio's report has no {name} of {field}"))
    };
    let measured = Measured {
        iops: number(&side["iops"], "iops")?,
        mean_us: number(&side["lat_ns"]["mean"], "mean latency")? / 1000.0,
        max_us: number(&side["lat_ns"]["max"], "longest latency")? / 1000.0,
    };
    ensure!(measured.iops > 0.0, "fio did nothing");
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"fio: a warning
        {"fio version": "fio-3.33", "jobs": [{"jobname": "bench", "error": 0,
          "read": {"iops": 0.0, "lat_ns": {"min": 0, "max": 0, "mean": 0.0}},
          "write": {"iops": 19736.5, "lat_ns": {"min": 41000, "max": 3070400, "mean": 50700.0}}}]}"#;

    #[test]
    fn figures_of_a_report_are_in_their_units() {
        let measured = read_report(REPORT, "write").unwrap();
        assert_eq!(measured, Measured { iops: 19736.5, mean_us: 50.7, max_us: 3070.4 });
    }

    #[test]
    fn a_report_of_nothing_or_of_an_error_is_no_figure() {
        assert!(read_report(REPORT, "read").unwrap_err().to_string().contains("did nothing"));
        let failed = REPORT.replace(r#""error": 0"#, r#""error": 84"#);
        assert!(read_report(&failed, "write").unwrap_err().to_string().contains("error 84"));
        assert!(read_report("", "write").unwrap_err().to_string().contains("no report"));
        assert!(read_report("{}", "write").is_err() && read_report("{", "write").is_err());
    }
}
