//! What lies on a disk, by its first and its last bytes.

use crate::gpt::{self, Division};
use pool::ErrorKind;
use pool::PoolLabel;
use pool::signature::{Ends, GPT, LOOKED_AT_BYTES, MBR};
use rustix::fs::{Mode, OFlags};
use std::path::Path;

/// What lies on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// What it carries, as people call it; nothing if it is blank.
    pub signatures: Vec<String>,
    /// The pool that it is.
    pub pool: Option<PoolLabel>,
    /// What it is divided into by a GUID partition table, if it has one.
    pub division: Option<Division>,
    /// Why it cannot be told, or why the pool on it cannot be used.
    pub problem: Option<String>,
}

impl Content {
    /// Looks at the device node at `path`, which has `size` bytes, in logical blocks of `block`.
    pub(crate) fn probe(path: &Path, size: u64, block: u32) -> Self {
        let len = LOOKED_AT_BYTES.min(size);
        match read(path, &[(0, len), (size - len, len)]) {
            Ok(parts) => Self::of(&Ends { front: &parts[0], back: &parts[1], size }, block),
            Err(error) => Self {
                problem: Some(format!("{} cannot be read: {error}", path.display())),
                ..Self::default()
            },
        }
    }

    fn of(ends: &Ends<'_>, block: u32) -> Self {
        let signatures = ends.signatures();
        match ends.label() {
            Ok(label) => Self { signatures, pool: Some(label), ..Self::default() },
            Err(error) if error.kind() == ErrorKind::NotAPool => {
                let damaged = |why| Some(Division { entries: Vec::new(), damage: Some(why) });
                let table = gpt::read(ends, block);
                let division = table.map_or_else(damaged, |table| table.map(|table| table.division()));
                Self { signatures, division, ..Self::default() }
            }
            Err(error) => Self { signatures, problem: Some(error.to_string()), ..Self::default() },
        }
    }

    /// The same, with what udev knows: who finds nothing may not know the format.
    pub(crate) fn confirmed_by(mut self, content: Option<&str>) -> Self {
        if self.signatures.is_empty()
            && let Some(content) = content
        {
            self.signatures.push(format!("what udev calls {content}"));
        }
        self
    }
}

/// What a disk carries besides the table that divides it, if it carries anything.
pub(crate) fn beside_a_table(signatures: &[String]) -> Option<String> {
    let others = signatures.iter().filter(|signature| ![GPT, MBR].contains(&signature.as_str()));
    let others: Vec<&str> = others.map(String::as_str).collect();
    (!others.is_empty()).then(|| others.join(" and "))
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
