//! Which devices are mounted, and which are swap.
//!
//! # Spec
//! proc(5): `/proc/PID/mountinfo` and `/proc/swaps`. Blanks in paths are written in octal, such as `\040`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What is mounted, and what is swap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    by_number: BTreeMap<(u32, u32), Vec<String>>,
    by_name: BTreeMap<String, Vec<String>>,
    swap: Vec<String>,
}

impl InUse {
    /// Reads the tables; of those of mounts, one has to be readable.
    pub(crate) fn read<T: AsRef<Path>>(mounts: &[T], swaps: &Path, dev: &Path) -> std::io::Result<Self> {
        let mut this = Self::default();
        let mut failed = None;
        let mut any = false;
        for table in mounts {
            match fs::read(table) {
                Ok(text) => {
                    any = true;
                    this.add_mounts(&String::from_utf8_lossy(&text), dev);
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed.filter(|_| !any) {
            return Err(error);
        }
        // A kernel without swap has no such table.
        this.add_swaps(&String::from_utf8_lossy(&fs::read(swaps).unwrap_or_default()), dev);
        Ok(this)
    }

    /// Where the device is mounted, ordered.
    pub(crate) fn mounts(&self, number: Option<(u32, u32)>, name: &str) -> Vec<String> {
        let by_number = number.and_then(|number| self.by_number.get(&number));
        let mut places: Vec<String> =
            by_number.into_iter().chain(self.by_name.get(name)).flatten().cloned().collect();
        places.sort();
        places.dedup();
        places
    }

    /// Whether the device is swap.
    pub(crate) fn is_swap(&self, name: &str) -> bool {
        self.swap.iter().any(|swap| swap == name)
    }

    fn add_mounts(&mut self, table: &str, dev: &Path) {
        for mount in table.lines().filter_map(Mount::parse) {
            // File systems of several devices have a number of their own; their source is one of the devices.
            if mount.number.0 == 0 {
                if let Some(name) = kernel_name(&mount.source, dev) {
                    self.by_name.entry(name).or_default().push(mount.place);
                }
            } else {
                self.by_number.entry(mount.number).or_default().push(mount.place);
            }
        }
    }

    fn add_swaps(&mut self, table: &str, dev: &Path) {
        let paths = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        self.swap.extend(paths.filter_map(|path| kernel_name(&unescape(path), dev)));
    }
}

struct Mount {
    number: (u32, u32),
    place: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (major, minor) = before.next()?.split_once(':')?;
        let place = unescape(before.nth(1)?);
        let source = unescape(after.split(' ').nth(1)?);
        Some(Self { number: (major.parse().ok()?, minor.parse().ok()?), place, source })
    }
}

/// The kernel's name of the device at a path below `/dev`, through links if there are any.
fn kernel_name(path: &str, dev: &Path) -> Option<String> {
    let below = path.strip_prefix("/dev/")?;
    let real = fs::canonicalize(dev.join(below)).unwrap_or_else(|_| dev.join(below));
    Some(real.file_name()?.to_str()?.to_owned())
}

/// Without the octal numbers, and in one line whatever they stood for.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let number = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (b'\\', Some(number)) = (byte, number) {
            plain.push(number);
            rest = &after[3..];
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&plain).replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mounts_are_found_by_number_and_where_that_says_nothing_by_name() {
        let table = "\
            29 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
            31 29 8:2 /var/lib /mnt/a\\040b rw shared:1 master:2 - ext4 /dev/root rw\n\
            40 29 0:35 / /data rw - btrfs /dev/sdc rw,space_cache\n\
            22 29 0:21 / /proc rw - proc proc rw\n";
        let mut in_use = InUse::default();
        in_use.add_mounts(table, Path::new("/nowhere"));
        in_use.add_swaps(
            "Filename\t\t\tType\n/dev/sda3  partition 1 0 -2\n/swap.img file 1 0 -3\n",
            Path::new("/nowhere"),
        );
        assert_eq!(in_use.mounts(Some((8, 2)), "sda2"), ["/", "/mnt/a b"]);
        assert_eq!(in_use.mounts(Some((8, 32)), "sdc"), ["/data"]);
        assert!(in_use.mounts(Some((8, 1)), "sda1").is_empty());
        assert!(in_use.is_swap("sda3") && !in_use.is_swap("sda2"));
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_tables_is_read(text in "(?s).{0,200}") {
            let mut in_use = InUse::default();
            in_use.add_mounts(&text, Path::new("/nowhere"));
            in_use.add_swaps(&text, Path::new("/nowhere"));
            prop_assert!(!unescape(&text).contains('\n'));
        }
    }
}
