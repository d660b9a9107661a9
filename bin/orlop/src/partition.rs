//! `orlop disk partition`: makes a partition for a pool in free space of a disk of this machine.
//!
//! 1. Nothing is written without `--yes`, nor before the disk is locked and was judged once more under that lock.
//! 2. The kernel is told of the new partition alone: the others may be in use.

use crate::arguments::DiskPartition;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::output;
use device::{ByteCount, ErrorKind};
use disks::gpt::{self, Entry, Plan, Wanted};
use disks::{Allow, Found, Roots, Scanner};
use rt::Access;
use serde::Serialize;
use std::path::Path;
use uuid::Uuid;

/// What was made, or would be, as programs see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    disk: String,
    device: String,
    number: u32,
    start_bytes: u64,
    size_bytes: u64,
    label: String,
    #[serde(rename = "type")]
    kind: Uuid,
    /// None before it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    partuuid: Option<Uuid>,
    /// Whether the disk is blank, and gets its table now.
    new_table: bool,
    /// What lies there from before.
    carries: Vec<String>,
    made: bool,
}

/// Runs `orlop disk partition`.
pub(crate) fn run(arguments: &DiskPartition) -> Outcome {
    let found = look_at(&arguments.device)?;
    if !rustix::process::geteuid().is_root() {
        let failure = Failure::new(format!("/dev/{} cannot be opened without root", found.kernel_name));
        return Err(failure.hint("run this as root"));
    }
    if let Some(refusal) = found.division_refusal() {
        return Err(Failure::new(refusal.to_string()).kind(Kind::Conflict));
    }
    let reactor =
        rt::os::Reactor::new(rt::os::Config::default()).or_fail(|| "cannot start the I/O engine".into())?;
    let report = reactor.run(make(&found, arguments))?;
    output::show(arguments.output.output, &report, text)
}

/// The whole disk that is meant, as it is now.
fn look_at(device: &Path) -> Outcome<Found> {
    let shown = device.display();
    let real = device
        .canonicalize()
        .or_fail(|| format!("cannot find {shown}"))
        .map_err(|e| e.kind(Kind::NotFound))?;
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let class = Path::new("/sys/class/block").join(name);
    let usage = |cause: &str| Failure::new(format!("{shown} {cause}")).kind(Kind::Usage);
    if !real.starts_with("/dev") || !class.exists() {
        return Err(usage("is no block device").hint("name one such as /dev/sda"));
    }
    if class.join("partition").exists() {
        return Err(usage("is a partition itself").hint("name its disk; `lsblk` shows which one that is"));
    }
    let allow =
        Allow::new(&[format!("/dev/{name}")]).map_err(|error| Failure::new(error).kind(Kind::Usage))?;
    let mut scanner = Scanner::new(Roots::below(Path::new("/")), allow);
    let found = scanner.scan().or_fail(|| "the disks of this machine cannot be looked at".into())?;
    found
        .into_iter()
        .find(|disk| disk.kernel_name == name)
        .ok_or_else(|| usage("has no medium, or is a volume of Orlop").hint("name a disk of this machine"))
}

async fn make(found: &Found, arguments: &DiskPartition) -> Outcome<Report> {
    let disk = format!("/dev/{}", found.kernel_name);
    let path = Path::new(&disk);
    // A blank disk is nobody's but ours meanwhile; of one that has a table other partitions may be in use.
    let access = if found.content.signatures.is_empty() { Access::Write } else { Access::Shared };
    let device = device::disk::open(path, found.logical_block_bytes, access).await.map_err(|error| {
        let kind = if error.kind() == ErrorKind::InUse { Kind::Conflict } else { Kind::Failed };
        Failure::new(error.to_string()).kind(kind)
    })?;
    let refused = |cause: String| Failure::new(format!("no partition was made on {disk}: {cause}"));
    let wanted = Wanted { size: arguments.size, label: arguments.label.clone() };
    let plan = gpt::plan(&device, &found.partitions, &wanted).await.map_err(refused)?;
    if plan.new_table && access == Access::Shared {
        return Err(refused("it was not blank a moment ago: look again".into()));
    }
    let planned = report(&disk, &plan, arguments.yes);
    if arguments.dry_run {
        return Ok(planned);
    }
    if !arguments.yes {
        return Err(Failure::new(text(&planned)).kind(Kind::Usage).hint("say --yes to make it"));
    }
    let entry = gpt::add(&device, plan).await.map_err(|cause| {
        Failure::new(format!("the partition on {disk} may not have been made: {cause}"))
            .hint(format!("`orlop disk partition {disk} --dry-run` says whether its table is whole"))
    })?;
    announce(&disk, &entry)?;
    Ok(Report { partuuid: Some(entry.id), ..planned })
}

/// Tells the kernel, while the disk is still locked.
fn announce(disk: &str, entry: &Entry) -> Outcome {
    let told = rt::os::add_partition(Path::new(disk), entry.number, entry.start_bytes, entry.size_bytes);
    told.map_err(|error| {
        Failure::new(format!(
            "partition {} of {disk} is in its table, and the kernel does not take it: {error}",
            entry.number
        ))
        .hint(format!("`partx --add --nr {} {disk}`, or boot again", entry.number))
    })
}

fn report(disk: &str, plan: &Plan, made: bool) -> Report {
    let Entry { number, kind, start_bytes, size_bytes, label, .. } = plan.entry.clone();
    Report {
        disk: disk.to_owned(),
        device: partition_path(disk, number),
        number,
        start_bytes,
        size_bytes,
        label,
        kind,
        partuuid: None,
        new_table: plan.new_table,
        carries: plan.carries.clone(),
        made,
    }
}

/// As the kernel calls it: with a `p` behind a name that ends with a digit.
fn partition_path(disk: &str, number: u32) -> String {
    let between = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{between}{number}")
}

fn text(report: &Report) -> String {
    let Report { disk, device, label, .. } = report;
    let (size, start) = (ByteCount(report.size_bytes), ByteCount(report.start_bytes));
    let table = if report.new_table { " in a new table" } else { "" };
    let is = if report.made { "is made" } else { "would be made" };
    let mut lines = vec![format!("{device} {is}: {size} at {start} of {disk}{table}, label {label}")];
    if !report.carries.is_empty() {
        lines.push(format!(
            "what lies there from before is left: {}; it becomes a pool only when it is blank \
             (`blkdiscard --zeroout {device}`)",
            report.carries.join(" and ")
        ));
    }
    if let Some(id) = report.partuuid {
        lines.push(format!(
            "a selector of its node takes it within half a minute; or name it: disk:///dev/disk/by-partuuid/{id}"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_called_as_the_kernel_does() {
        assert_eq!(partition_path("/dev/sda", 3), "/dev/sda3");
        assert_eq!(partition_path("/dev/nvme0n1", 3), "/dev/nvme0n1p3");
        assert_eq!(partition_path("/dev/loop7", 12), "/dev/loop7p12");
    }
}
