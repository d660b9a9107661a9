//! The file systems that a volume can carry, and the programs that make, check and grow them.
//!
//! Every command is a list of words, made here and run in `node::tool`.

use crate::refusal::invalid;
use std::path::Path;
use tonic::Status;

/// A volume ends with this much that no new file system covers: the mark of one that is being made lies there
/// (`node::contents`). Growing takes it in.
pub(crate) const RESERVED_BYTES: u64 = 1 << 20;

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Filesystem {
    /// The one to take where nobody says which.
    #[default]
    Ext4,
    Xfs,
    Btrfs,
}

impl Filesystem {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As `mount` and Kubernetes call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The file system of this name; none if the name is empty.
    pub(crate) fn parse(name: &str) -> Result<Option<Self>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let known = Self::ALL.into_iter().find(|known| known.name() == name);
        known.map(Some).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            invalid(format!("file system {name:?} is not supported; use one of {names}"))
        })
    }

    /// The smallest one that its mkfs makes.
    pub(crate) const fn min_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 16 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 109 << 20,
        }
    }

    /// Makes one on a device that holds nothing that is wanted. Nothing is discarded: a new volume holds nothing, and
    /// the mark must stay.
    pub(crate) fn make(self, device: &Path, device_bytes: u64, options: &MkfsOptions) -> Vec<String> {
        let size = device_bytes.saturating_sub(RESERVED_BYTES);
        let device = device.display().to_string();
        let (mut command, options, size) = match self {
            Self::Ext4 => (
                words(&["mkfs.ext4", "-q", "-F"]),
                options.for_ext4(),
                vec![device, format!("{}k", size >> 10)],
            ),
            Self::Xfs => {
                let size = words(&["-d", &format!("size={size}"), &device]);
                (words(&["mkfs.xfs", "-q", "-f", "-K"]), options.0.clone(), size)
            }
            Self::Btrfs => {
                let size = words(&["-b", &size.to_string(), &device]);
                (words(&["mkfs.btrfs", "-q", "-f", "-K"]), options.0.clone(), size)
            }
        };
        command.extend(options);
        command.extend(size);
        command
    }

    /// Repairs what can be repaired without asking, before it is mounted; the others do that when they are mounted.
    pub(crate) fn check(self, device: &Path) -> Option<Vec<String>> {
        let device = device.display().to_string();
        (self == Self::Ext4).then(|| words(&["e2fsck", "-p", &device]))
    }

    /// Makes one that is not mounted as large as its device, as far as it can be done so.
    pub(crate) fn grow_unmounted(self, device: &Path) -> Vec<Vec<String>> {
        let device = device.display().to_string();
        let ext4 = || vec![words(&["e2fsck", "-f", "-p", &device]), words(&["resize2fs", &device])];
        if self == Self::Ext4 { ext4() } else { Vec::new() }
    }

    /// Makes a mounted one as large as its device.
    pub(crate) fn grow(self, device: &Path, mounted_on: &Path) -> Vec<String> {
        let mounted_on = mounted_on.display().to_string();
        match self {
            Self::Ext4 => words(&["resize2fs", &device.display().to_string()]),
            Self::Xfs => words(&["xfs_growfs", "-d", &mounted_on]),
            Self::Btrfs => words(&["btrfs", "filesystem", "resize", "max", &mounted_on]),
        }
    }

    /// The Debian package with its programs.
    pub(crate) const fn package(self) -> &'static str {
        match self {
            Self::Ext4 => "e2fsprogs",
            Self::Xfs => "xfsprogs",
            Self::Btrfs => "btrfs-progs",
        }
    }
}

/// Words for the mkfs, from a `StorageClass`; none of them a device, and none that would discard the mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MkfsOptions(Vec<String>);

impl MkfsOptions {
    /// Understands the words; what they mean is for the mkfs to say.
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:^+".contains(c);
        for word in text.split_whitespace() {
            let forbidden = ["discard", "offset"].iter().any(|name| word.contains(name));
            if !word.chars().all(plain) || forbidden {
                let shown: String = word.chars().take(80).collect();
                let why = "options have no paths and no quotes, and neither discard nor offset";
                return Err(invalid(format!("option {shown:?} for mkfs is not possible: {why}")));
            }
        }
        Ok(Self(words(&text.split_whitespace().collect::<Vec<_>>())))
    }

    /// As they were written.
    pub(crate) fn text(&self) -> String {
        self.0.join(" ")
    }

    /// The last `-E` of several counts there: they become one.
    fn for_ext4(&self) -> Vec<String> {
        let (mut extended, mut others) = ("nodiscard".to_owned(), Vec::new());
        let mut given = self.0.iter();
        while let Some(word) = given.next() {
            let Some(value) = word.strip_prefix("-E") else {
                others.push(word.clone());
                continue;
            };
            let value = if value.is_empty() { given.next().map_or("", String::as_str) } else { value };
            extended = format!("{extended},{value}");
        }
        others.extend(["-E".to_owned(), extended]);
        others
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(filesystem: Filesystem, options: &str) -> String {
        filesystem.make(Path::new("/dev/loop7"), 17 << 20, &MkfsOptions::parse(options).unwrap()).join(" ")
    }

    #[test]
    fn options_are_added_and_never_discard() {
        assert_eq!(make(Filesystem::Ext4, ""), "mkfs.ext4 -q -F -E nodiscard /dev/loop7 16384k");
        assert_eq!(
            make(Filesystem::Ext4, " -m 0 -E lazy_itable_init=0 -Estride=4  -O ^has_journal"),
            "mkfs.ext4 -q -F -m 0 -O ^has_journal -E nodiscard,lazy_itable_init=0,stride=4 /dev/loop7 16384k"
        );
        assert_eq!(
            make(Filesystem::Xfs, "-i size=1024"),
            "mkfs.xfs -q -f -K -i size=1024 -d size=16777216 /dev/loop7"
        );
        assert_eq!(
            make(Filesystem::Btrfs, "-m single"),
            "mkfs.btrfs -q -f -K -m single -b 16777216 /dev/loop7"
        );
    }

    #[test]
    fn options_that_name_a_path_or_take_the_mark_away_are_refused() {
        for bad in ["/dev/sda", "-L 'my disk'", "-E discard", "-Eoffset=4", "-m 0;reboot", "-L $HOME"] {
            let refused = MkfsOptions::parse(bad).unwrap_err();
            assert!(refused.message().contains("for mkfs"), "{bad}: {refused}");
        }
        assert_eq!(MkfsOptions::parse(" -m  0 ").unwrap().text(), "-m 0");
    }
}
