//! A process that serves a block device must not wait for memory that only its own I/O can free.

use crate::Error;

/// Killed only when nothing else is left to kill.
const OOM_SCORE: &str = "-999";

/// Guards this process against memory reclaim that waits for itself (`PR_SET_IO_FLUSHER`) and against the kernel's
/// search for a victim when memory is short. Call it before any thread is started: threads inherit the first guard.
///
/// # Errors
/// `NotPermitted` without the capability `SYS_RESOURCE`; as much as is allowed has been done, and serving goes on.
pub fn protect_process() -> Result<(), Error> {
    let flusher = rustix::process::configure_io_flusher_behavior(true)
        .map_err(|error| Error::os("cannot make this process an I/O flusher", error));
    let score = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE)
        .map_err(|error| Error::os("cannot lower this process's out-of-memory score", error));
    flusher.and(score)
}
