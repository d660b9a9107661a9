//! Partitions that the kernel is told of.
//!
//! # Spec
//! Linux, `include/uapi/linux/blkpg.h`: one partition is added, and nothing else is read or changed; so it is possible
//! while others are in use.
#![expect(unsafe_code, reason = "an ioctl that rustix does not have")]

use rustix::fs::{Mode, OFlags};
use std::ffi::{c_int, c_longlong, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IO(0x12, 105)`.
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: c_int = 1;
/// The length of names that the kernel does not read.
const NAME_LEN: usize = 64;

#[repr(C)]
struct Argument {
    op: c_int,
    flags: c_int,
    len: c_int,
    partition: *mut c_void,
}

#[repr(C)]
struct Partition {
    start: c_longlong,
    len: c_longlong,
    number: c_int,
    device_name: [u8; NAME_LEN],
    volume_name: [u8; NAME_LEN],
}

/// Tells the kernel of one partition of the disk at `disk`; needs root.
///
/// # Errors
/// Those of `ioctl(2)`; `ResourceBusy` if it has one of this number or at this place.
pub fn add_partition(disk: &Path, number: u32, start_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = Partition {
        start: c_longlong::try_from(start_bytes).map_err(too_large)?,
        len: c_longlong::try_from(len_bytes).map_err(too_large)?,
        number: c_int::try_from(number).map_err(too_large)?,
        device_name: [0; NAME_LEN],
        volume_name: [0; NAME_LEN],
    };
    let mut argument = Argument {
        op: BLKPG_ADD_PARTITION,
        flags: 0,
        len: c_int::try_from(size_of::<Partition>()).map_err(too_large)?,
        partition: (&raw mut partition).cast(),
    };
    let device = rustix::fs::open(disk, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: BLKPG reads one argument of this layout and the partition that it points to, both alive here, and keeps
    // neither.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKPG, &raw mut argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
