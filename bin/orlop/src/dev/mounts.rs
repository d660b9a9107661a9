//! Which file systems are mounted on volumes of this run: asked before the processes under them end.

use std::os::linux::fs::MetadataExt;

/// A mounted volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// The block device, such as `/dev/loop3`.
    pub(super) device: String,
    /// Where it is mounted.
    pub(super) on: String,
}

/// The mounts that this process sees of the devices of a run.
pub(super) fn of_run(run_id: &str) -> Vec<Mounted> {
    // On every Linux the table exists and is world-readable; without it nothing is known to be mounted.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounted = Vec::new();
    for device in frontend::attached(run_id) {
        let Ok(found) = std::fs::metadata(&device) else { continue };
        let number = found.st_rdev();
        let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        let device = device.display().to_string();
        let on = mounted_on(&mounts, &number);
        mounted.extend(on.into_iter().map(|on| Mounted { device: device.clone(), on }));
    }
    mounted
}

/// The mount points of the device `major:minor` in the text of `/proc/self/mountinfo` (proc(5)).
fn mounted_on(mountinfo: &str, number: &str) -> Vec<String> {
    let of_device = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number).then(|| fields.nth(1).map(unescape))?
    };
    mountinfo.lines().filter_map(of_device).collect()
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_of_a_device_are_found() {
        let text = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    40 22 7:3 / /mnt/my\\040disk rw - ext4 /dev/loop3 rw\n\
                    41 22 7:33 / /mnt/other rw - ext4 /dev/loop33 rw\n";
        assert_eq!(mounted_on(text, "7:3"), ["/mnt/my disk"]);
        assert!(mounted_on(text, "7:4").is_empty());
    }
}
