//! Where the time of a local volume goes: the same file driven by `orlop bench` as it is, with a pool and a thin replica
//! on it, and as a one-copy volume behind the node's NVMe/TCP target (nexus and network, but no FUSE and no loop device).

use super::Case;
use crate::bench::bed::Bed;
use crate::bench::cluster::Cluster;
use crate::bench::fio::Rw;
use crate::bench::line::Line;
use anyhow::Result;

pub(crate) const CASE: Case = Case {
    name: "path",
    what: "the parts of a local volume's way without the kernel: pool, and nexus behind NVMe/TCP, against the file",
    needs_root: false,
    run,
};

fn run(bed: &Bed) -> Result<Vec<Line>> {
    let size = bed.pace.size;
    let cluster = Cluster::start(bed, 1, size + (size >> 2) + (64 << 20))?;
    cluster.volume("path", size, 1)?;
    let volume = cluster.target_of("path")?;
    let file = bed.new_path("raw", "disk");
    let file_uri = format!("file://{}?size={size}", file.display());
    let mut lines = Vec::new();
    for rw in Rw::BOTH {
        for depth in [32, 1] {
            let (mut pool, mut nexus) = (Vec::new(), Vec::new());
            for round in bed.rounds(&format!("path {} depth {depth}", rw.name())) {
                let figure = |target: &str, more: &[&str]| -> Result<f64> {
                    let report = bed.orlop_bench(target, rw.name(), depth, more)?;
                    Ok(if depth == 1 { report.mean_us } else { report.iops })
                };
                // A pool is made on an empty file only.
                let disk = bed.new_path("pool", "disk");
                let disk_uri = format!("file://{}?size={size}", disk.display());
                let thin = figure(&disk_uri, &["--pool", "--verify"])?;
                std::fs::remove_file(disk)?;
                let verify: &[&str] = if round == 1 { &["--verify"] } else { &[] };
                let raw = figure(&file_uri, verify)?;
                pool.push((thin, raw));
                nexus.push((figure(&volume, verify)?, raw));
            }
            let unit = if depth == 1 { "us" } else { "IOPS" };
            let name = format!("{}-d{depth}", rw.name());
            lines.push(Line::beside(format!("path/{name}, pool"), unit, &pool));
            lines.push(Line::beside(format!("path/{name}, nexus and NVMe/TCP"), unit, &nexus));
        }
    }
    std::fs::remove_file(file)?;
    cluster.remove("path")?;
    cluster.stop()?;
    Ok(lines)
}
