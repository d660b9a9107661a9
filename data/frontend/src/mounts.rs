//! The tables of mounts: what is mounted, here and in other namespaces. Everything here blocks.

use crate::Error;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) device: (u32, u32),
    pub(crate) point: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: String,
}

/// Everything mounted in this process's namespace, in the order of mounting.
pub(crate) fn mounts() -> Result<Vec<Mount>, Error> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::os("cannot read /proc/self/mountinfo", error))?;
    Ok(lines(&table).collect())
}

fn lines(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|byte| *byte == b'\n').filter_map(mount_line)
}

/// Where the device with this number is mounted, in whichever namespace of a process below `proc`.
pub(crate) fn mounted_anywhere(proc: &Path, number: (u32, u32)) -> Option<PathBuf> {
    let mut seen = BTreeSet::new();
    let processes = std::fs::read_dir(proc).ok()?.flatten().map(|entry| entry.path());
    let tables = processes.filter_map(|process| {
        // One look for each namespace; where its name cannot be read, one for each process.
        let namespace = std::fs::read_link(process.join("ns/mnt")).unwrap_or_else(|_| process.clone());
        let is_new = process.file_name()?.to_str()?.parse::<u32>().is_ok() && seen.insert(namespace);
        is_new.then(|| std::fs::read(process.join("mountinfo")).ok())?
    });
    tables.flat_map(|table| lines(&table).collect::<Vec<_>>()).find(|m| m.device == number).map(|m| m.point)
}

/// # Spec
/// proc(5), `/proc/pid/mountinfo`.
fn mount_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let end = fields.iter().position(|field| *field == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        fs_type: String::from_utf8_lossy(fields.get(end + 1)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(fields.get(end + 2)?)).into_owned(),
    })
}

/// Undoes `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read() {
        let line =
            b"36 35 98:0 /root /mnt/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/loop\\0543 rw,errors=x";
        let expected = Mount {
            device: (98, 0),
            point: "/mnt/a b".into(),
            fs_type: "ext4".into(),
            source: "/dev/loop,3".into(),
        };
        assert_eq!(mount_line(line), Some(expected));
        for line in [&b""[..], b"36 35", b"36 35 98:0 / /mnt rw", b"36 35 98 / /mnt rw - ext4 x y"] {
            assert_eq!(mount_line(line), None);
        }
    }

    #[test]
    fn a_mount_is_found_in_another_namespace() {
        let proc = tempfile::tempdir().unwrap();
        for (process, namespace, table) in [
            ("1", "mnt:[1]", "22 1 254:0 / / rw - ext4 /dev/vda rw\n"),
            ("7", "mnt:[1]", "22 1 254:0 / / rw - ext4 /dev/vda rw\n"),
            ("8", "mnt:[2]", "40 22 259:3 / /pod/data rw - ext4 /dev/nvme0n1 rw\n"),
            ("self", "mnt:[3]", "40 22 259:9 / /x rw - ext4 /dev/nvme9n1 rw\n"),
        ] {
            let folder = proc.path().join(process);
            std::fs::create_dir_all(folder.join("ns")).unwrap();
            std::os::unix::fs::symlink(namespace, folder.join("ns/mnt")).unwrap();
            std::fs::write(folder.join("mountinfo"), table).unwrap();
        }
        assert_eq!(mounted_anywhere(proc.path(), (259, 3)), Some("/pod/data".into()));
        assert_eq!(mounted_anywhere(proc.path(), (259, 9)), None, "what is no process");
    }

    #[test]
    fn this_machine_has_mounts() {
        assert!(mounts().unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
    }
}
