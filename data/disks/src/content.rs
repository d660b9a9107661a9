//! What lies on a disk, by its first and its last bytes.

use crate::udev::Note;
use pool::ErrorKind;
use pool::PoolLabel;
use pool::signature::{Ends, LOOKED_AT_BYTES};
use rustix::fs::{Mode, OFlags};
use std::path::Path;

/// What lies on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// What it carries, as people call it; nothing if it is blank.
    pub signatures: Vec<String>,
    /// The pool that it is.
    pub pool: Option<PoolLabel>,
    /// Why it cannot be told, or why the pool on it cannot be used.
    pub problem: Option<String>,
}

impl Content {
    /// Looks at the device node at `path`, which has `size` bytes.
    pub(crate) fn probe(path: &Path, size: u64) -> Self {
        let len = LOOKED_AT_BYTES.min(size);
        match read(path, &[(0, len), (size - len, len)]) {
            Ok(parts) => Self::of(&Ends { front: &parts[0], back: &parts[1], size }),
            Err(error) => Self {
                problem: Some(format!("{} cannot be read: {error}", path.display())),
                ..Self::default()
            },
        }
    }

    fn of(ends: &Ends<'_>) -> Self {
        let signatures = ends.signatures();
        match ends.label() {
            Ok(label) => Self { signatures, pool: Some(label), problem: None },
            Err(error) if error.kind() == ErrorKind::NotAPool => Self { signatures, ..Self::default() },
            Err(error) => Self { signatures, pool: None, problem: Some(error.to_string()) },
        }
    }

    /// The same, with what udev knows: who finds nothing may not know the format.
    pub(crate) fn confirmed_by(mut self, note: &Note) -> Self {
        if self.signatures.is_empty()
            && let Some(content) = note.content()
        {
            self.signatures.push(format!("what udev calls {content}"));
        }
        self
    }
}

/// Reads parts (offset, length) of a file or device.
fn read(path: &Path, parts: &[(u64, u64)]) -> rustix::io::Result<Vec<Vec<u8>>> {
    let device = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let read_part = |(offset, len): &(u64, u64)| {
        let mut bytes = vec![0; usize::try_from(*len).map_err(|_| rustix::io::Errno::FBIG)?];
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pread(&device, &mut bytes[done..], offset + done as u64)? {
                0 => return Err(rustix::io::Errno::NODATA),
                count => done += count,
            }
        }
        Ok(bytes)
    };
    parts.iter().map(read_part).collect()
}
