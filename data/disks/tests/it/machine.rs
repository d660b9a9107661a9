//! A machine of `tests/machines`, laid out in a folder.

use disks::{Allow, Found, Roots, Scanner};
use model::Disk;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const CLUSTER: Uuid = Uuid::from_u128(1);

const ONE_DISK: &str = "\
sys/block/vdb -> ../devices/pci0000:00/0000:00:05.0/virtio2/block/vdb
sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb/dev = 253:16
sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb/size = 131072
sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb/serial = data
proc/self/mountinfo = 20 1 253:1 / / rw,relatime - ext4 /dev/root rw
";

pub(crate) fn on_a_reactor<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    rt::os::Reactor::new(rt::os::Config::default()).expect("a reactor").run(work)
}

pub(crate) struct Machine {
    folder: TempDir,
    scanner: Scanner,
}

impl Machine {
    /// Lays `text` out; `allow` is the allow-list.
    pub(crate) fn new(text: &str, allow: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let mut bytes = Vec::new();
        let mut unreadable = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (path, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(target) = rest.strip_prefix("-> ") {
                symlink(target, parent_of(root, path)).expect("a link");
            } else if let Some(value) = rest.strip_prefix('=') {
                append(&parent_of(root, path), value.strip_prefix(' ').unwrap_or(value));
            } else if let Some(rest) = rest.strip_prefix('@') {
                bytes.push((root.join(path), rest));
            } else if rest == "!" {
                unreadable.push(root.join(path));
            } else {
                fs::create_dir_all(root.join(line)).expect("a folder");
            }
        }
        make_nodes(root);
        for (path, rest) in bytes {
            put(&path, rest);
        }
        for path in unreadable {
            fs::remove_file(path).expect("a node");
        }
        let allow = Allow::new(allow).expect("globs");
        Self { scanner: Scanner::new(Roots::below(root), allow), folder }
    }

    /// A machine with `/dev/vdb` of 64 MiB, beside the disk it runs from.
    pub(crate) fn with_one_disk() -> Self {
        Self::new(ONE_DISK, &["*"])
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn scan(&mut self) -> Vec<Found> {
        self.scanner.scan().expect("the machine can be read")
    }

    pub(crate) fn report(&mut self) -> Vec<Disk> {
        let disks = self.scanner.report("n1", CLUSTER).expect("the machine can be read");
        for disk in &disks {
            model::Object::validate(disk).expect("well formed");
        }
        disks
    }

    pub(crate) fn scanner(&mut self) -> &mut Scanner {
        &mut self.scanner
    }

    pub(crate) fn replace(&self, path: &str, text: &str) {
        fs::write(parent_of(self.folder.path(), path), text).expect("written");
    }

    /// The kernel sees this partition of a disk, whose folder is `disk`.
    pub(crate) fn divide(&self, disk: &str, number: u32, start_bytes: u64, size_bytes: u64) {
        let disk = self.path(disk);
        let name = format!("{}{number}", disk.file_name().expect("a name").to_string_lossy());
        let folder = disk.join(&name);
        fs::create_dir_all(&folder).expect("a folder");
        for (attribute, value) in
            [("partition", number.into()), ("start", start_bytes / 512), ("size", size_bytes / 512)]
        {
            fs::write(folder.join(attribute), format!("{value}\n")).expect("written");
        }
        let node = OpenOptions::new().create_new(true).write(true).open(self.path("dev").join(name));
        node.and_then(|node| node.set_len(size_bytes)).expect("a node");
    }

    pub(crate) fn put(&self, path: &str, offset_and_bytes: &str) {
        put(&self.path(path), offset_and_bytes);
    }
}

/// The path, whose folder is there afterwards.
fn parent_of(root: &Path, path: &str) -> PathBuf {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
    path
}

fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("a file");
    writeln!(file, "{line}").expect("written");
}

/// Every block device has a node, as large as sysfs says, and so has every partition that says how large it is.
fn make_nodes(root: &Path) {
    fs::create_dir_all(root.join("dev")).expect("a folder");
    for folder in entries(&root.join("sys/block")) {
        make_node(root, &folder);
        let is_partition = |part: &PathBuf| part.join("partition").exists() && part.join("size").exists();
        for partition in entries(&folder).into_iter().filter(is_partition) {
            make_node(root, &partition);
        }
    }
}

fn make_node(root: &Path, folder: &Path) {
    let size = fs::read_to_string(folder.join("size")).expect("a size");
    let sectors: u64 = size.trim().parse().expect("a number");
    let path = root.join("dev").join(folder.file_name().expect("a name"));
    let node = OpenOptions::new().create_new(true).write(true).open(path);
    node.and_then(|node| node.set_len(sectors * 512)).expect("a node");
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

fn put(path: &Path, offset_and_bytes: &str) {
    let (offset, hex) = offset_and_bytes.split_once(' ').expect("an offset and bytes");
    let offset: i64 = offset.parse().expect("a number");
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
    let node = OpenOptions::new().write(true).open(path).expect("a node");
    let size = node.metadata().expect("a size").len();
    let offset = u64::try_from(offset).unwrap_or_else(|_| size - offset.unsigned_abs());
    node.write_all_at(&bytes, offset).expect("written");
}
