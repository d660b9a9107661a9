//! The result of one I/O that failed: small, `Copy`, the same from the disk to the host.

use rt::Errno;
use std::fmt;

/// Why an I/O failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// The range reaches beyond the end, or its shape is wrong. The host's mistake.
    OutOfRange,
    /// A malformed or unsupported request.
    Invalid,
    /// No space for new data; overwrites go on. Nothing of the command has been done.
    NoSpace,
    /// The medium could not read the block: its contents are lost here, perhaps not elsewhere.
    MediaRead,
    /// The medium could not write.
    MediaWrite,
    /// A checksum did not hold: what was read is not what was written.
    Corrupt,
    /// The epoch of the sender is over: a newer nexus owns the volume.
    Fenced,
    /// The connection or the device is gone; the command may or may not have been executed.
    Gone,
    /// It took too long; the command may still be executed.
    TimedOut,
    /// Cancelled before it started.
    Aborted,
    /// Data that was completed but not flushed may be lost; the host must detach and attach again (DESIGN I10).
    Gap,
    /// A failure inside that fits nothing else.
    Internal,
}

impl Status {
    /// Whether the command may nevertheless have been executed, now or later.
    pub const fn is_ambiguous(self) -> bool {
        matches!(self, Self::Gone | Self::TimedOut | Self::Internal | Self::MediaWrite)
    }

    /// What a failed read of a file or disk means.
    pub const fn of_read(errno: Errno) -> Self {
        match errno {
            Errno::IO | Errno::NODATA | Errno::REMOTEIO => Self::MediaRead,
            other => Self::of_any(other),
        }
    }

    /// What a failed write, unmap or flush of a file or disk means.
    ///
    /// A disk that has no space for a block which it promised (a thin one, a sparse file) is a broken disk, and part of
    /// the command may have been done: that is not [`Self::NoSpace`], which promises that nothing was.
    pub const fn of_write(errno: Errno) -> Self {
        match errno {
            Errno::IO
            | Errno::NODATA
            | Errno::REMOTEIO
            | Errno::NOSPC
            | Errno::DQUOT
            | Errno::FBIG
            | Errno::ROFS
            | Errno::PERM => Self::MediaWrite,
            other => Self::of_any(other),
        }
    }

    const fn of_any(errno: Errno) -> Self {
        match errno {
            Errno::ILSEQ => Self::Corrupt,
            Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM | Errno::NOLINK => Self::Gone,
            Errno::TIMEDOUT | Errno::TIME => Self::TimedOut,
            Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF => Self::Invalid,
            Errno::CANCELED => Self::Aborted,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "the range lies beyond the end of the device",
            Self::Invalid => "the request is malformed or not supported",
            Self::NoSpace => "no space left for new data",
            Self::MediaRead => "the disk cannot read the block",
            Self::MediaWrite => "the disk cannot write the block",
            Self::Corrupt => "the data does not match its checksum",
            Self::Fenced => "a newer owner has fenced this one off",
            Self::Gone => "the connection or the device is gone",
            Self::TimedOut => "the device did not answer in time",
            Self::Aborted => "the request was cancelled before it started",
            Self::Gap => "completed but unflushed data may be lost; detach and attach again",
            Self::Internal => "internal failure",
        })
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_become_statuses() {
        assert_eq!(Status::of_read(Errno::IO), Status::MediaRead);
        assert_eq!(Status::of_write(Errno::IO), Status::MediaWrite);
        assert_eq!(Status::of_write(Errno::NODEV), Status::Gone);
        assert_eq!(Status::of_read(Errno::ILSEQ), Status::Corrupt);
        assert_eq!(Status::of_read(Errno::NOMEM), Status::Internal);
    }

    #[test]
    fn a_full_disk_under_a_write_is_ambiguous() {
        assert!(Status::of_write(Errno::NOSPC).is_ambiguous());
    }
}
