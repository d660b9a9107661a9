//! What the kernel says of a process: core time and resident memory.

use anyhow::{Context, Result};
use std::fs;

/// Core time of a process with all its threads, user and system. # Units: seconds.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("{path} has no times"))?;
    #[expect(clippy::cast_precision_loss, reason = "ticks of a process fit")]
    let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(seconds)
}

/// Resident memory. # Units: bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(resident_kib(&status).with_context(|| format!("{path} has no VmRSS"))? * 1024)
}

/// Fields 14 and 15; the second field is a name that may hold anything and ends at the last parenthesis.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<u64>().ok()?)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_read_whatever_the_name() {
        let stat = "12 (a) R 9 (b) S 1 2 3 4 5 6 7 8 9 10 250 31 0 0 20 0 4 0 4711";
        assert_eq!(cpu_ticks(stat), Some(281));
        assert_eq!(cpu_ticks("nonsense"), None);
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t   20480 kB\nThreads: 3"), Some(20480));
        assert_eq!(resident_kib("Name:\tx"), None);
    }

    #[test]
    fn this_process_has_both() {
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
        assert!(cpu_seconds(u32::MAX).is_err());
    }
}
