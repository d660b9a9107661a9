//! Front-ends: a volume as something that a kernel can open.
//!
//! On the path of a byte this is the stage above the nexus: programs see a block device, and its requests arrive here.
//! - [`fuse`]: a file over FUSE with a loop device over it; works with nothing but FUSE.
//! - [`nvme`]: the kernel's own NVMe/TCP initiator on this node's target; where the kernel has it.

mod error;
pub mod fuse;
mod isolated;
mod mounts;
pub mod nvme;
mod protect;
mod users;

pub use error::{Error, ErrorKind};
pub use protect::protect_process;

use std::path::PathBuf;

/// Removes every block device that the run `run_id` left behind, in use or not, with what is below it: the last resort
/// after the processes of the run are gone. Returns what was removed. Blocks: not for the reactor's thread.
///
/// # Errors
/// What could not be removed.
pub fn cleanup(run_id: &str) -> Result<Vec<String>, Error> {
    let removed = nvme::cleanup(&nvme::System::default(), run_id)?;
    Ok([removed, fuse::cleanup(run_id)?].concat())
}

/// The block devices that the run `run_id` made and that still exist. Blocks: not for the reactor's thread.
pub fn attached(run_id: &str) -> Vec<PathBuf> {
    let loops = fuse::attached_loops(run_id).into_iter().map(|attached| attached.device);
    loops.chain(nvme::attached(&nvme::System::default(), run_id)).collect()
}
