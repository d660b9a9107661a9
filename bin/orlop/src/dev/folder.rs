//! The data folder of `orlop dev`: who is in it, which nodes it has, on which ports they were.
//!
//! ```text
//! DIR/lock                 held by the running `dev`, holds its pid
//! DIR/cluster.json         nodes, ports, size of disks: what a restart needs
//! DIR/processes.json       the processes of the last run, by pid and start time
//! DIR/controller/          the store, if it is here
//! DIR/NODE/                the disk and the state of a node
//! DIR/log/NAME.log         what each process said
//! ```
//!
//! Invariants:
//! 1. Nothing in the folder is written before the lock is held, and files that matter are replaced as a whole.
//! 2. A cluster that has never run leaves nothing but its logs: what is wrong with it is not there the next time.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::process::Identity;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What a restart needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Cluster {
    /// The format of this file.
    version: u32,
    /// Marks the mounts and loop devices of this folder, in every run.
    pub(crate) run_id: String,
    /// The size of each node's disk.
    pub(crate) disk_size_bytes: u64,
    /// Where the records are, if not in the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<String>,
    /// The file with what the nodes prove to each other, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<PathBuf>,
    /// In how many zones the nodes say they are, if in any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) zones: Option<NonZero<u32>>,
    /// The nodes.
    pub(crate) nodes: Vec<NodeEntry>,
}

/// One node of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NodeEntry {
    /// Its name, also its folder.
    pub(crate) name: String,
    /// The port of its NVMe/TCP target.
    pub(crate) port: u16,
    /// The port of its `/metrics`.
    pub(crate) metrics_port: u16,
}

const VERSION: u32 = 1;

impl Cluster {
    /// A cluster of nodes `node-1` to `node-N` without ports yet.
    pub(crate) fn new(nodes: u32, disk_size_bytes: u64, id: Uuid) -> Self {
        // What the front-end takes as a mark is short.
        let run_id = format!("dev-{}", &id.simple().to_string()[..12]);
        let node = |number| NodeEntry { name: format!("node-{number}"), port: 0, metrics_port: 0 };
        let nodes = (1..=nodes).map(node).collect();
        Self { version: VERSION, run_id, disk_size_bytes, store: None, secret: None, zones: None, nodes }
    }

    /// The zone that a node says it is in: each node is in the one after its predecessor's.
    pub(crate) fn zone(&self, node: &str) -> Option<String> {
        let zones = usize::try_from(self.zones?.get()).ok()?;
        let index = self.nodes.iter().position(|entry| entry.name == node)?;
        Some(format!("zone-{}", index % zones + 1))
    }
}

const CLUSTER: &str = "cluster.json";
const PROCESSES: &str = "processes.json";
const LOG: &str = "log";

/// The folder, locked for this process until dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    lock: File,
    /// No cluster has run here yet (invariant 2).
    is_new: Cell<bool>,
    /// Folders in it that this process has made.
    made: RefCell<Vec<PathBuf>>,
}

impl Folder {
    /// Whether a cluster has run in the folder of this path.
    pub(crate) fn has_cluster(path: &Path) -> bool {
        path.join(CLUSTER).exists()
    }

    /// Makes the folder if need be and takes its lock.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        fs::create_dir_all(path).map_err(|error| {
            Failure::new(format!("cannot make the data folder {}: {error}", path.display()))
                .hint("choose another folder with --data")
        })?;
        let path =
            path.canonicalize().or_fail(|| format!("cannot find the data folder {}", path.display()))?;
        let name = path.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&name);
        let mut lock = open.or_fail(|| format!("cannot open {}", name.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The pid is a courtesy: without it the message still says what matters.
                let who = match lock.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => format!(" (pid {})", pid.trim()),
                    _ => String::new(),
                };
                return Err(Failure::new(format!(
                    "the data folder {} is in use by another orlop{who}",
                    path.display()
                ))
                .kind(Kind::Conflict)
                .hint("end that one, or choose another folder with --data"));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Failure::new(format!("cannot lock {}: {error}", name.display())));
            }
        }
        let wrote = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        wrote.or_fail(|| format!("cannot write {}", name.display()))?;
        let is_new = Cell::new(!Self::has_cluster(&path));
        Ok(Self { path, lock, is_new, made: RefCell::default() })
    }

    /// The cluster runs: from now on the folder keeps it.
    pub(crate) fn keep(&self) {
        self.is_new.set(false);
    }

    /// Where it is, as an absolute path without links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of one process, made if need be.
    pub(crate) fn of(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Ok(()) => self.made.borrow_mut().push(path.clone()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::new(format!("cannot make {}: {error}", path.display()))),
        }
        Ok(path)
    }

    /// The log of one process.
    pub(crate) fn log(&self, name: &str) -> Outcome<PathBuf> {
        Ok(self.of(LOG)?.join(format!("{name}.log")))
    }

    /// What earlier runs have left, if there was one.
    pub(crate) fn cluster(&self) -> Outcome<Option<Cluster>> {
        let Some(cluster) = self.load::<Cluster>(CLUSTER)? else { return Ok(None) };
        if cluster.version != VERSION {
            return Err(Failure::new(format!(
                "the data folder {} has format {}, this program knows format {VERSION}",
                self.path.display(),
                cluster.version
            ))
            .hint("use the program that made it"));
        }
        Ok(Some(cluster))
    }

    /// Keeps the cluster for the next run.
    pub(crate) fn keep_cluster(&self, cluster: &Cluster) -> Outcome {
        self.replace(CLUSTER, cluster)
    }

    /// The processes of the last run.
    pub(crate) fn processes(&self) -> Outcome<BTreeMap<String, Identity>> {
        Ok(self.load(PROCESSES)?.unwrap_or_default())
    }

    /// Keeps the processes of this run.
    pub(crate) fn keep_processes(&self, processes: &BTreeMap<String, Identity>) -> Outcome {
        self.replace(PROCESSES, processes)
    }

    fn load<T: DeserializeOwned>(&self, name: &str) -> Outcome<Option<T>> {
        let path = self.path.join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::new(format!("{} is damaged: {error}", path.display()))
                .hint("put back a copy of the file, or choose another folder with --data")
        })
    }

    /// Replaces a file as a whole: after a crash there is the old one or the new one.
    fn replace(&self, name: &str, value: &impl Serialize) -> Outcome {
        let path = self.path.join(name);
        let draft = self.path.join(format!("{name}.new"));
        let write = || {
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(value)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().or_fail(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_new.get() {
            // Invariant 2. What cannot be removed is named by the next start.
            for name in [CLUSTER, PROCESSES] {
                let _left = fs::remove_file(self.path.join(name));
            }
            for folder in self.made.take().iter().filter(|folder| !folder.ends_with(LOG)) {
                let _left = fs::remove_dir_all(folder);
            }
        }
        // Closing is not enough: a child that another thread is just starting holds a copy of every descriptor until
        // it runs its program. An error leaves what closing does.
        self.lock.unlock().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a child holds between its fork and its program is what this copy holds. It made the test below fail in
    /// one run out of some hundreds.
    #[test]
    fn a_folder_is_free_while_a_child_has_yet_to_run_its_program() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let copy = folder.lock.try_clone().unwrap();
        drop(folder);
        Folder::open(temp.path()).unwrap();
        drop(copy);
    }

    #[test]
    fn a_folder_has_one_user_and_remembers() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("data");
        let folder = Folder::open(&path).unwrap();
        assert_eq!(folder.cluster().unwrap(), None);
        let mut cluster = Cluster::new(3, 1 << 30, Uuid::from_u128(1));
        cluster.nodes[1].port = 4420;
        folder.keep_cluster(&cluster).unwrap();
        folder.keep();

        let refused = Folder::open(&path).unwrap_err();
        assert!(refused.is(Kind::Conflict));
        let text = refused.to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())) && text.contains("--data"), "{text}");

        drop(folder);
        assert_eq!(Folder::open(&path).unwrap().cluster().unwrap(), Some(cluster));
    }

    #[test]
    fn a_cluster_that_never_ran_leaves_its_logs_only() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("node-2")).unwrap();
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let folder = Folder::open(temp.path()).unwrap();
        folder.keep_cluster(&Cluster::new(2, 1 << 30, Uuid::from_u128(1))).unwrap();
        fs::write(folder.of("node-1").unwrap().join("disk"), "x").unwrap();
        fs::write(folder.of("node-2").unwrap().join("disk"), "x").unwrap();
        fs::write(folder.log("node-1").unwrap(), "why").unwrap();
        drop(folder);
        assert_eq!(names(), ["lock", "log", "node-2"], "what was there before stays");
    }

    #[test]
    fn nodes_are_in_zones_in_turn() {
        let mut cluster = Cluster::new(4, 1 << 30, Uuid::from_u128(1));
        assert!(!serde_json::to_string(&cluster).unwrap().contains("zones"), "as older programs know it");
        cluster.zones = NonZero::new(3);
        let zone = |node: &NodeEntry| cluster.zone(&node.name).unwrap();
        assert_eq!(
            cluster.nodes.iter().map(zone).collect::<Vec<_>>(),
            ["zone-1", "zone-2", "zone-3", "zone-1"]
        );
    }

    #[test]
    fn a_damaged_or_newer_file_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let file = folder.path().join("cluster.json");
        fs::write(&file, "{").unwrap();
        assert!(folder.cluster().unwrap_err().to_string().contains("cluster.json is damaged"));
        let mut cluster = Cluster::new(1, 1 << 30, Uuid::from_u128(1));
        assert_eq!(cluster.zone("node-1"), None);
        cluster.version = 2;
        folder.keep_cluster(&cluster).unwrap();
        assert!(folder.cluster().unwrap_err().to_string().contains("has format 2"));
    }
}
