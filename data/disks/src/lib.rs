//! The disks of this machine: found in sysfs and udev's database, told apart for ever, and judged: can this one become a
//! pool, and if not, why not? Beside the path of a byte: nothing here writes but [`gpt::add`], which an operator asks for,
//! and it runs on the slow side of a node.
//!
//! # Invariants
//! 1. To look at disks writes nothing, and a device is opened only if the allow-list has it, or the disk that it is a
//!    partition of.
//! 2. What `udev` adds is welcome and never needed: names, classes and signatures come from sysfs and the device as well.
//! 3. Loop, RAM, device-mapper, network and removable devices are offered only where the allow-list names them; volumes
//!    of Orlop itself never.
//! 4. A disk is free only if everybody says so: no mount, no swap, no holder, no partition, no signature, and what
//!    [`pool::Pool::format`] would refuse is refused here.
//! 5. A partition is offered only if its type says that it is meant for that; it is judged as a disk is.

mod allow;
mod class;
mod content;
mod found;
pub mod gpt;
mod judge;
mod mounts;
mod name;
mod named;
mod scan;
mod select;
mod settle;
mod sysfs;
mod udev;

pub use allow::Allow;
pub use class::{class_at, class_of};
pub use content::Content;
pub use found::{Found, How, Partition, Use};
pub use judge::Refusal;
pub use named::Named;
pub use scan::Scanner;
pub use select::{Claim, Selector, claims};
pub use settle::{Changes, settle, settled_names};

use std::path::{Path, PathBuf};

/// Where the kernel and udev tell what there is: the machine's own, or a copy of another machine's.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Where sysfs is mounted.
    pub sys: PathBuf,
    /// udev's database.
    pub udev: PathBuf,
    /// Tables of mounts, as `/proc/PID/mountinfo` has them; one that cannot be read is passed over.
    pub mounts: Vec<PathBuf>,
    /// The table of swap space.
    pub swaps: PathBuf,
    /// The device nodes.
    pub dev: PathBuf,
}

impl Roots {
    /// Those below `root`, which is `/` for this machine.
    pub fn below(root: &Path) -> Self {
        Self {
            sys: root.join("sys"),
            udev: root.join("run/udev/data"),
            // In a container that sees the machine's processes, the first one has the machine's mounts.
            mounts: vec![root.join("proc/self/mountinfo"), root.join("proc/1/mountinfo")],
            swaps: root.join("proc/swaps"),
            dev: root.join("dev"),
        }
    }
}
