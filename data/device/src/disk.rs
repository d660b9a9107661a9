//! A device over a whole disk or a partition of this machine: a [`File`] that is never created and must not be in use.

use crate::error::{Error, ErrorKind};
use crate::file::{File, explain, open_direct};
use crate::{BlockCount, Geometry};
use rt::Access;
use std::path::Path;

/// Opens the block device at `path`. A tail that is no whole block (old partitions) is left alone.
///
/// # Errors
/// `InUse` if it is mounted, is swap, or belongs to RAID, LVM or another process.
pub async fn open(path: &Path, block_size: u32, access: Access) -> Result<File, Error> {
    let file = open_direct(path, None, access).await.map_err(|e| explain(path, e))?;
    let blocks = BlockCount(file.len_bytes() / u64::from(block_size));
    if blocks.0 == 0 {
        let message = format!("{} has no medium or no space: it is shorter than a block", path.display());
        return Err(Error::new(ErrorKind::WrongSize, message));
    }
    File::over(path, file, Geometry { block_size, blocks })
}
