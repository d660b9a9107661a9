//! What the kernel says of its NVMe controllers, below a root that tests can give. Everything here blocks, and opens no
//! device but `/dev/nvme-fabrics`.
//!
//! # Spec
//! `drivers/nvme/host/{sysfs,multipath}.c`: `/sys/class/nvme/nvmeC` is a controller; in it `nvmeScCnH` is its path to the
//! namespace whose device is `/dev/nvmeSnH`.

use super::{Name, Patience};
use crate::users::BlockDevice;
use crate::{Error, ErrorKind};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const SECTOR_BYTES: u64 = 512;
/// The kernel's answers are short.
const ANSWER_BYTES_MAX: usize = 4096;

/// Where a machine shows its devices.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self::at(Path::new("/"))
    }
}

impl System {
    /// A machine whose `/sys`, `/dev` and `/proc` are below `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn class(&self) -> PathBuf {
        self.root.join("sys/class/nvme")
    }

    /// Where the processes are.
    pub(super) fn proc(&self) -> PathBuf {
        self.root.join("proc")
    }

    /// What the kernel says of the options that it knows.
    pub(super) fn fabrics_options(&self) -> io::Result<String> {
        read_some(&self.open_fabrics()?)
    }

    fn open_fabrics(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(
            self.root.join("dev/nvme-fabrics"),
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// Connects; the kernel's answer. Waits for the target.
    pub(super) fn connect(&self, line: &str) -> io::Result<String> {
        let fabrics = self.open_fabrics()?;
        // A line is one call: the kernel takes it whole or not at all.
        rustix::io::write(&fabrics, line.as_bytes())?;
        read_some(&fabrics)
    }

    /// Whether the kernel has a module, loaded or built in.
    pub(super) fn has_module(&self, name: &str) -> bool {
        self.root.join("sys/module").join(name).exists()
    }

    /// Whether this process is in the network of the machine itself. There are settings that no other network shows.
    pub(super) fn is_in_own_network(&self) -> bool {
        self.proc().join("sys/net/core/netdev_budget").exists()
    }

    /// Whether the kernel joins paths by itself.
    pub(super) fn has_multipath(&self) -> bool {
        text(&self.root.join("sys/module/nvme_core/parameters/multipath")).is_some_and(|text| text == "Y")
    }

    /// The controller with a number.
    pub(super) fn controller(&self, instance: u32) -> Option<Controller> {
        let folder = self.class().join(format!("nvme{instance}"));
        let name = Name::read(&text(&folder.join("subsysnqn"))?, &text(&folder.join("hostnqn"))?)?;
        Some(Controller { instance, folder, name })
    }

    /// Those that are ours and as `wanted`, by number.
    pub(super) fn controllers(&self, wanted: impl Fn(&Name) -> bool) -> Vec<Controller> {
        let Ok(entries) = fs::read_dir(self.class()) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut found: Vec<_> = names
            .filter_map(|name| self.controller(name.to_str()?.strip_prefix("nvme")?.parse().ok()?))
            .filter(|controller| wanted(&controller.name))
            .collect();
        found.sort_unstable_by_key(|controller| controller.instance);
        found
    }

    /// The device of a controller, once the kernel and `/dev` have it.
    pub(super) fn head(&self, controller: &Controller) -> Option<Head> {
        let names = fs::read_dir(&controller.folder).ok()?.flatten().map(|entry| entry.file_name());
        let of = |name: String| {
            let folder = self.root.join("sys/block").join(&name);
            let is_it = text(&folder.join("uuid"))?.parse() == Ok(controller.name.id);
            let number = device_number(&text(&folder.join("dev"))?)?;
            let path = self.root.join("dev").join(name);
            let device = BlockDevice { path, number };
            is_it.then_some(Head { folder, device })
        };
        let mut heads = names.filter_map(|name| of(head_name(name.to_str()?, controller.instance)?));
        heads.find(|head| head.device.path.exists())
    }
}

fn read_some(file: &OwnedFd) -> io::Result<String> {
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let len = rustix::io::read(file, &mut answer)?;
    answer.truncate(len);
    String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `259:3`.
fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The device to which `path`, such as `nvme0c2n1`, belongs, if it is one of the controller: `nvme0n1`.
fn head_name(path: &str, controller: u32) -> Option<String> {
    let (subsystem, rest) = path.strip_prefix("nvme")?.split_once('c')?;
    let (of, head) = rest.split_once('n')?;
    let (subsystem, head): (u32, u32) = (subsystem.parse().ok()?, head.parse().ok()?);
    (of.parse() == Ok(controller)).then(|| format!("nvme{subsystem}n{head}"))
}

/// A controller of the kernel's that is ours.
#[derive(Clone, Debug)]
pub(super) struct Controller {
    pub(super) instance: u32,
    folder: PathBuf,
    pub(super) name: Name,
}

impl Controller {
    /// Whether it is still there: another one may have its number by now.
    pub(super) fn is_there(&self) -> bool {
        text(&self.folder.join("hostid")).and_then(|id| id.parse::<Uuid>().ok()) == Some(self.name.id)
    }

    /// Whether it is connected.
    pub(super) fn is_live(&self) -> bool {
        text(&self.folder.join("state")).is_some_and(|state| state == "live")
    }

    /// Removes it, whoever uses it, and waits: what was asked of the device fails if nobody answers it.
    pub(super) fn delete(&self) -> Result<(), Error> {
        if !self.is_there() {
            return Ok(());
        }
        match self.write("delete_controller", "1") {
            // Somebody was faster, or the kernel was.
            Err(_) if !self.is_there() => Ok(()),
            result => result,
        }
    }

    /// Keeps the keys from everybody but root: the kernel shows them to all, in every container that has `/sys`.
    pub(super) fn hide_keys(&self) -> Result<(), Error> {
        for attribute in ["dhchap_secret", "dhchap_ctrl_secret"] {
            let path = self.folder.join(attribute);
            match fs::set_permissions(&path, fs::Permissions::from_mode(0o600)) {
                // Without keys it may not be there.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::os(format_args!("cannot hide {}", path.display()), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the kernel look at the namespace again.
    pub(super) fn rescan(&self) -> Result<(), Error> {
        self.write("rescan_controller", "1")
    }

    /// How long the kernel tries to connect again. Counted from when the connection was lost.
    pub(super) fn be_patient(&self, patience: Patience) -> Result<(), Error> {
        let wanted = patience.0.as_secs().to_string();
        if text(&self.folder.join("ctrl_loss_tmo")).is_some_and(|known| known == wanted) {
            return Ok(());
        }
        self.write("ctrl_loss_tmo", &wanted)
    }

    fn write(&self, attribute: &str, value: &str) -> Result<(), Error> {
        let path = self.folder.join(attribute);
        // Never made: what is not there is the kernel's to make.
        let written = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, value.as_bytes()));
        written
            .map(drop)
            .map_err(|error| Error::os(format_args!("cannot write to {}", path.display()), error))
    }
}

/// The block device of a controller.
#[derive(Clone, Debug)]
pub(super) struct Head {
    folder: PathBuf,
    pub(super) device: BlockDevice,
}

impl Head {
    /// Its size.
    pub(super) fn size_bytes(&self) -> Result<u64, Error> {
        let path = self.folder.join("size");
        let size = text(&path).and_then(|text| text.parse::<u64>().ok()?.checked_mul(SECTOR_BYTES));
        size.ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("{} holds no size: the device is gone", path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{keep, lost};
    use super::*;
    use std::time::Duration;

    /// Plants a controller as Linux 6.12 shows it, with its device.
    fn plant(root: &Path, instance: u32, name: &Name) {
        let controller = root.join(format!("sys/class/nvme/nvme{instance}"));
        let head = root.join("sys/block/nvme3n1");
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(controller.join("subsysnqn"), &format!("{}\n", name.subnqn()));
        write(controller.join("hostnqn"), &format!("{}\n", name.hostnqn()));
        write(controller.join("hostid"), &format!("{}\n", name.id));
        write(controller.join("state"), "live\n");
        write(controller.join("ctrl_loss_tmo"), "20\n");
        write(controller.join("delete_controller"), "");
        write(controller.join("dhchap_secret"), "DHHC-1:01:x:\n");
        write(controller.join("rescan_controller"), "");
        fs::create_dir_all(controller.join(format!("nvme3c{instance}n1"))).unwrap();
        write(head.join("uuid"), &format!("{}\n", name.id));
        write(head.join("dev"), "259:3\n");
        write(head.join("size"), "2048\n");
    }

    fn name(id: u128) -> Name {
        Name { run_id: "run".into(), node: "n1".into(), volume: Uuid::from_u128(1), id: Uuid::from_u128(id) }
    }

    #[test]
    fn paths_lead_to_devices() {
        assert_eq!(head_name("nvme0c2n1", 2), Some("nvme0n1".into()));
        assert_eq!(head_name("nvme12c34n56", 34), Some("nvme12n56".into()));
        for odd in
            ["nvme0n1", "nvme0c1n1", "nvme0c2", "nvme0c2n", "nvmec2n1", "hwmon2", "power", "nvme0c2n1p1"]
        {
            assert_eq!(head_name(odd, 2), None, "{odd}");
        }
        assert_eq!(device_number("259:3"), Some((259, 3)));
        assert_eq!(device_number("259"), None);
    }

    #[test]
    fn a_controller_is_found_by_its_name_and_so_is_its_device() {
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        assert!(system.controllers(|_| true).is_empty(), "no class");
        plant(root.path(), 2, &name(9));
        // A disk of the machine.
        fs::create_dir_all(root.path().join("sys/class/nvme/nvme0")).unwrap();
        fs::write(root.path().join("sys/class/nvme/nvme0/subsysnqn"), "nqn.2014.08.org.nvmexpress:x\n")
            .unwrap();
        assert!(system.controllers(|name| name.run_id == "other").is_empty());
        let found = system.controllers(|name| name.run_id == "run");
        let [controller] = &found[..] else { panic!("{found:?}") };
        assert!(controller.name == name(9) && controller.is_there() && controller.is_live());
        assert!(system.head(controller).is_none(), "not in /dev yet");
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/nvme3n1"), "").unwrap();
        let head = system.head(controller).unwrap();
        assert_eq!((head.device.number, head.size_bytes().unwrap()), ((259, 3), 1 << 20));
        // A device that belongs to another attachment.
        fs::write(root.path().join("sys/block/nvme3n1/uuid"), Uuid::from_u128(8).to_string()).unwrap();
        assert!(system.head(controller).is_none());
    }

    #[test]
    fn what_is_told_is_written_where_the_kernel_reads_it() {
        let root = tempfile::tempdir().unwrap();
        plant(root.path(), 2, &name(9));
        let controller = System::at(root.path()).controller(2).unwrap();
        let read = |attribute: &str| fs::read_to_string(controller.folder.join(attribute)).unwrap();
        controller.be_patient(Patience(Duration::from_secs(20))).unwrap();
        assert_eq!(read("ctrl_loss_tmo"), "20\n", "nothing to say");
        controller.be_patient(Patience(Duration::from_secs(600))).unwrap();
        controller.rescan().unwrap();
        controller.delete().unwrap();
        assert!(read("ctrl_loss_tmo").starts_with("600"), "{}", read("ctrl_loss_tmo"));
        assert_eq!((read("rescan_controller"), read("delete_controller")), ("1".into(), "1".into()));
        controller.hide_keys().unwrap();
        let secret = fs::metadata(controller.folder.join("dhchap_secret")).unwrap();
        assert_eq!(secret.permissions().mode() & 0o777, 0o600);
        fs::remove_file(controller.folder.join("rescan_controller")).unwrap();
        assert!(controller.rescan().unwrap_err().to_string().contains("rescan_controller"));
        // Another one has its number by now.
        fs::write(controller.folder.join("hostid"), Uuid::from_u128(8).to_string()).unwrap();
        fs::write(controller.folder.join("delete_controller"), "").unwrap();
        controller.delete().unwrap();
        assert!(!controller.is_there() && read("delete_controller").is_empty());
    }

    #[test]
    fn only_lost_devices_of_the_node_wait_as_long_as_is_said() {
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        let of = |instance: u32, attribute: &str| {
            root.path().join(format!("sys/class/nvme/nvme{instance}/{attribute}"))
        };
        plant(root.path(), 1, &name(8));
        plant(root.path(), 2, &name(9));
        plant(root.path(), 3, &Name { node: "n2".into(), ..name(7) });
        for instance in [2, 3] {
            fs::write(of(instance, "state"), "connecting\n").unwrap();
        }
        let volume = name(9).volume;
        assert_eq!(lost(&system, "run", "n1"), [volume]);
        assert!(lost(&system, "other", "n1").is_empty());
        keep(&system, "run", "n1", volume, Patience(Duration::from_secs(300)));
        keep(&system, "run", "n1", Uuid::nil(), Patience(Duration::from_secs(400)));
        let told = [1, 2, 3].map(|instance| fs::read_to_string(of(instance, "ctrl_loss_tmo")).unwrap());
        assert_eq!(told.each_ref().map(|told| told.starts_with("300")), [false, true, false], "{told:?}");
    }
}
