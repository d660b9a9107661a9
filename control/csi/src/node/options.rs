//! The options of `mount`: those that the kernel takes as flags, and those that it hands to the file system.

use rustix::mount::MountFlags;

const FLAGS: [(&str, MountFlags); 12] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("silent", MountFlags::SILENT),
];
/// What the kernel does without being told.
const DEFAULTS: [&str; 7] = ["defaults", "rw", "suid", "dev", "exec", "async", "atime"];

/// The flags among the options, and all others for the file system.
pub(crate) fn split<'a>(options: impl IntoIterator<Item = &'a str>) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut others = Vec::new();
    for option in
        options.into_iter().flat_map(|options| options.split(',')).filter(|option| !option.is_empty())
    {
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None if DEFAULTS.contains(&option) => {}
            None => others.push(option),
        }
    }
    (flags, others.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_told_apart() {
        let (flags, data) = split(["noatime", "defaults,nodev", "discard", "data=ordered", ""]);
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::NODEV);
        assert_eq!(data, "discard,data=ordered");
        assert_eq!(split([]), (MountFlags::empty(), String::new()));
    }
}
