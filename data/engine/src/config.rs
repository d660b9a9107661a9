//! What an engine is told at its start. Only `bin` (and the simulator) fill it in.

use model::DiskClass;
use nvmf::Key;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use uuid::Uuid;

/// A pool of this node.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// For people.
    pub name: String,
    /// The device under it.
    pub uri: String,
    /// What kind of medium that is, for reports: its operator's word, else the kernel's.
    pub class: Option<DiskClass>,
    /// What has to be on that device.
    pub expected: Expected,
}

/// What has to be on a device for it to be used; all else is refused. A device is never formatted unless it is blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A pool of this cluster, or nothing: the operator has named the device, also to move a pool to this node.
    Named,
    /// Nothing: it becomes a pool.
    Blank,
    /// This pool, of this node.
    Pool(Uuid),
}

/// An engine's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// The cluster: pools of another one are refused.
    pub cluster: Uuid,
    /// The machine's boot.
    pub boot_id: Uuid,
    /// This process, for reports.
    pub pid: u32,
    /// The node's pools. One that was named has to be there, the others are tried again by [`crate::Engine::claim`].
    pub pools: Vec<PoolConfig>,
    /// Where the target listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What the engines of a cluster prove to each other, and the keys of volumes are made from; without one the target
    /// lets everybody in.
    pub secret: Option<Key>,
    /// Where `/metrics` is served, for reports.
    pub metrics_address: Option<String>,
    /// How nexuses behave; `node` in it is set by the engine.
    pub nexus: nexus::Config,
    /// How volumes become devices of the operating system; without it they are only reachable by the target.
    pub fuse: Option<FuseConfig>,
}

/// By what a volume becomes a block device. One that is there stays what it is until it is detached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Frontend {
    /// NVMe/TCP where this machine has it, else FUSE.
    #[default]
    Auto,
    /// A file over FUSE with a loop device over it.
    Fuse,
    /// The kernel's NVMe/TCP initiator.
    NvmeTcp,
}

/// How volumes become block devices.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// By what; who only reads a volume has it over FUSE.
    pub frontend: Frontend,
    /// Where sockets and mount points go.
    pub state_dir: PathBuf,
    /// What every mount, loop device and process of this run carries; the same after a restart.
    pub run_id: String,
    /// The program and arguments that start the second holder of devices; without it they die with this process.
    pub holder: Option<Vec<OsString>>,
    /// The process that restarts this one, if there is one: without it nobody waits for a restart.
    pub supervisor: Option<u32>,
}
