//! The table of mounts, the one truth about what is where on a machine.

use std::{
    fs, io,
    os::{linux::fs::MetadataExt, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Major and minor number of the file system's device; some file systems have made up one.
    device: (u32, u32),
    /// Where it is.
    pub(crate) point: PathBuf,
    /// The options of this mount.
    pub(crate) options: String,
    /// The kind of file system.
    pub(crate) filesystem: String,
    /// What was mounted, such as a path below `/dev`.
    source: PathBuf,
    /// The options of the file system, for all its mounts.
    super_options: String,
}

impl Mount {
    /// Whether it is of this block device.
    pub(crate) fn is_of(&self, number: u64) -> bool {
        let device = (rustix::fs::major(number), rustix::fs::minor(number));
        // btrfs has device numbers of its own.
        self.device == device || self.source.starts_with("/dev") && block_device(&self.source) == Some(number)
    }

    /// Whether its device is none any more and never will be: one of the kernel's initiator, which gave it up, or which lost
    /// it because another node has the volume, leaves its mounts behind, on which all I/O fails.
    pub(crate) fn is_dead(&self) -> bool {
        let (major, minor) = self.device;
        self.is_dead_without(Path::new(&format!("/sys/dev/block/{major}:{minor}")))
    }

    fn is_dead_without(&self, sysfs: &Path) -> bool {
        // A number of a btrfs is none of a device: what was mounted is looked at instead.
        let is_nvme = self.source.to_str().is_some_and(|source| source.starts_with("/dev/nvme"));
        is_nvme && !sysfs.exists() && block_device(&self.source).is_none()
    }

    /// Whether nobody may write here.
    pub(crate) fn is_read_only(&self) -> bool {
        has_option(&self.options, "ro")
    }

    /// Whether the file system itself is read only, which it turns after an error.
    pub(crate) fn is_read_only_inside(&self) -> bool {
        // ext4 says the other two since Linux 6.15, and stays "rw".
        ["ro", "emergency_ro", "shutdown"].iter().any(|option| has_option(&self.super_options, option))
    }
}

fn has_option(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

/// The number of the block device at this path; none if there is none.
pub(crate) fn block_device(path: &Path) -> Option<u64> {
    use std::os::unix::fs::FileTypeExt;
    let found = fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.st_rdev())
}

/// All mounts that this process sees, in the order in which they lie over each other.
#[derive(Debug)]
pub(crate) struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads the table.
    pub(crate) fn read() -> io::Result<Self> {
        // Names need not be text.
        let table = fs::read("/proc/self/mountinfo")?;
        Ok(Self(table.split(|byte| *byte == b'\n').filter_map(parse).collect()))
    }

    /// The uppermost mount at exactly this path.
    pub(crate) fn at(&self, path: &Path) -> Option<&Mount> {
        // One whose device has died cannot be looked at, but it can be found by its name.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.0.iter().rev().find(|mount| mount.point == path)
    }

    /// All mounts of a block device.
    pub(crate) fn of(&self, number: u64) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.is_of(number))
    }

    /// A mount of the node of a block device, in the folder of `target` and not there. A raw block volume is published so;
    /// in other folders the kubelet makes such mounts of its own.
    pub(crate) fn beside(&self, target: &Path, number: u64) -> Option<&Mount> {
        let folder = target.parent().and_then(|folder| fs::canonicalize(folder).ok())?;
        self.0.iter().find(|mount| {
            mount.point.parent() == Some(&folder)
                && mount.point.file_name() != target.file_name()
                && block_device(&mount.point) == Some(number)
        })
    }

    /// A mount of the device at this path, which may be gone.
    pub(crate) fn of_path(&self, path: &Path) -> Option<&Mount> {
        let number = block_device(path);
        self.0.iter().find(|mount| mount.source == path || number.is_some_and(|number| mount.is_of(number)))
    }
}

/// One line of `/proc/self/mountinfo` (proc(5)); none if it is not one.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let (_root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
    // Fields without a number of them end with a hyphen.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: path(point),
        options: text(options),
        filesystem: text(fields.next()?),
        source: path(fields.next()?),
        super_options: text(fields.next()?),
    })
}

/// Undoes the octal escapes of blanks and backslashes.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_understood() {
        let line = b"40 22 7:3 / /mnt/my\\040disk rw,noatime shared:7 master:1 - ext4 /dev/loop3 ro,errors=remount-ro";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/my disk"));
        assert!(mount.is_of(rustix::fs::makedev(7, 3)) && !mount.is_of(rustix::fs::makedev(7, 4)));
        assert!(!mount.is_read_only() && mount.is_read_only_inside());
        assert_eq!((mount.filesystem.as_str(), mount.options.as_str()), ("ext4", "rw,noatime"));
        for (options, is_read_only) in
            [("rw", false), ("rw,errors=remount-ro", false), ("rw,emergency_ro", true), ("rw,shutdown", true)]
        {
            let mount = parse(format!("40 22 7:3 / /mnt rw - ext4 /dev/loop3 {options}").as_bytes()).unwrap();
            assert_eq!(mount.is_read_only_inside(), is_read_only, "{options}");
        }
        assert!(parse(b"41 22 0:50 / /x rw - tmpfs tmpfs rw").is_some(), "without any fields between");
        for odd in
            [&b""[..], b"x", b"41 22 0:50 / /x rw", b"41 22 0:50 / /x rw - tmpfs", b"41 22 0 / /x rw - a b c"]
        {
            assert_eq!(parse(odd), None);
        }
    }

    #[test]
    fn a_mount_whose_device_is_gone_is_dead() {
        let gone = Path::new("/no/such/device");
        let of =
            |source: &str| parse(format!("40 22 259:3 / /mnt rw - ext4 {source} rw").as_bytes()).unwrap();
        assert!(of("/dev/nvme77n7").is_dead_without(gone));
        assert!(!of("/dev/nvme77n7").is_dead_without(Path::new("/sys")), "the kernel has it");
        assert!(!of("/dev/loop3").is_dead_without(gone), "a loop device has its number for ever");
    }

    #[test]
    fn this_machine_has_a_root() {
        let mounts = Mounts::read().unwrap();
        assert!(mounts.at(Path::new("/")).is_some() && mounts.at(Path::new("/no/such/path")).is_none());
    }

    proptest! {
        #[test]
        fn any_path_comes_back(name in proptest::collection::vec(1_u8.., 0..40)) {
            let escaped: Vec<u8> = name.iter().flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                other => vec![*other],
            }).collect();
            prop_assert_eq!(path(&escaped).into_os_string().into_vec(), name);
        }

        #[test]
        fn any_line_is_survived(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _understood = parse(&line);
        }
    }
}
