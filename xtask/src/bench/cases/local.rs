//! A volume with one local copy, as its block device, against a file of the same file system; and beside them a loop
//! device over such a file, which is what the kernel's half of the way costs without Orlop.

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::Cluster;
use crate::bench::fio::{self, Rw};
use crate::bench::line::{Budget, Line};
use anyhow::Result;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) const CASE: Case = Case {
    name: "local",
    what: "a volume with one local copy, as a block device, against a file: 4 KiB, depth 1 and 32",
    needs_root: true,
    run,
};

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let size = bed.pace.size;
    let cluster = Cluster::start(bed, 1, size + (size >> 2) + (64 << 20))?;
    let volume = PathBuf::from(cluster.volume("local", size, 1)?);
    let raw = new_file(bed, size)?;
    let looped = Loop::over(bed, new_file(bed, size)?)?;
    for target in [&volume, &raw, &looped.device] {
        fio::fill(bed, target, size)?;
    }
    let mut lines = Vec::new();
    for rw in Rw::BOTH {
        for depth in [32, 1] {
            let (mut orlop, mut kernel) = (Vec::new(), Vec::new());
            for _ in bed.rounds(&format!("local {} depth {depth}", rw.name())) {
                let figure = |target: &Path| -> Result<f64> {
                    let measured = fio::measure(bed, target, size, rw, depth)?;
                    Ok(if depth == 1 { measured.mean_us } else { measured.iops })
                };
                let (own, file, loop_) = (figure(&volume)?, figure(&raw)?, figure(&looped.device)?);
                orlop.push((own, file));
                kernel.push((loop_, file));
            }
            let (unit, budget) = match depth {
                1 => ("us", Budget::ExcessAtMost(10.0)),
                _ => ("IOPS", Budget::RatioAtLeast(0.95)),
            };
            let name = format!("{}-d{depth}", rw.name());
            lines.push(Line::beside(format!("local/{name}"), unit, &orlop).budget(budget));
            lines.push(Line::beside(format!("local/{name}, loop over the file"), unit, &kernel));
        }
    }
    for target in [&volume, &raw, &looped.device] {
        fio::verify(bed, target, size)?;
    }
    cluster.remove("local")?;
    cluster.stop()?;
    std::fs::remove_file(raw)?;
    Ok(lines)
}

/// A new file of `size`, without contents yet.
fn new_file(bed: &Bed, size: u64) -> Result<PathBuf> {
    let path = bed.new_path("raw", "disk");
    File::create_new(&path)?.set_len(size)?;
    Ok(path)
}

/// A loop device with direct I/O; detached when dropped, and its file removed.
struct Loop<'a> {
    bed: &'a Bed,
    device: PathBuf,
    file: PathBuf,
}

impl<'a> Loop<'a> {
    fn over(bed: &'a Bed, file: PathBuf) -> Result<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--direct-io=on", "--sector-size=4096"]).arg(&file);
        let device = bed.run(command, Duration::from_secs(20))?.trim().into();
        Ok(Self { bed, device, file })
    }
}

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("losetup");
        command.arg("--detach").arg(&self.device);
        if let Err(error) = self.bed.run(command, Duration::from_secs(20)) {
            eprintln!("bench: {error:#}");
        }
        // The guard removes what stays.
        std::fs::remove_file(&self.file).ok();
    }
}
