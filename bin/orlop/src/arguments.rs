//! The command line: nouns, verbs, options, examples.

use crate::device_kind::Frontend;
use crate::failure::{EXIT_CODES, Failure, Kind};
use crate::output::Format;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use device::ByteCount;
use model::DiskClass;
use model::topology::{check_labels, spread_by};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// Replicated block storage: volumes with copies on several nodes, in one program.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, about, after_help = EXIT_CODES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a cluster on this machine: a controller and nodes, in the foreground.
    #[command(after_help = DEV_EXAMPLES)]
    Dev(Dev),
    /// Shows on this machine that a volume survives the death of its nodes; takes about a minute.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(Demo),
    /// Nodes: the machines (in `orlop dev`: the processes) that hold copies.
    #[command(subcommand)]
    Node(Node),
    /// Disks: the block devices of the nodes, and whether they can become pools.
    #[command(subcommand)]
    Disk(Disk),
    /// Pools: the disks that Orlop has formatted.
    #[command(subcommand)]
    Pool(Pool),
    /// Volumes: create, attach, look, delete.
    #[command(subcommand)]
    Volume(Volume),
    /// Support: what somebody else needs to see to help.
    #[command(subcommand)]
    Support(Support),
    /// Measures a device, a target or a volume.
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Bench),
    /// Verifies a pool that no node has open; writes nothing.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Makes a disk blank that is a pool which no node has open: its copies of volumes are gone for good.
    #[command(after_help = WIPE_HELP)]
    Wipe(Wipe),
    /// Shows what this machine allows, what is missing, and what to do about it.
    #[command(after_help = PREFLIGHT_EXAMPLES)]
    Preflight(Preflight),
    /// Asks a web server whether all is well, a CSI plugin whether it answers, or a target whether it keeps strangers out.
    #[command(hide = true)]
    Probe {
        /// http://IP:PORT/PATH (2xx means yes), unix:// and a plugin's socket (any answer does), nvme+tcp://IP:PORT[/NQN].
        url: String,
    },
    /// Runs a whole cluster in the simulator, with faults, and checks that nothing is lost.
    #[command(after_help = SIM_EXAMPLES)]
    Sim(Sim),
    /// Prints the completions of a shell.
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// The controller process of `orlop dev`.
    #[command(hide = true)]
    Controller(Controller),
    /// The process by which containers get the volumes of one node.
    #[command(hide = true)]
    Csi(Csi),
}

const DEV_EXAMPLES: &str = "\
Examples:
  orlop dev                                     three nodes, data in ./orlop-data
  orlop dev --data /srv/orlop --nodes 5 --disk-size 20GiB
  orlop dev --listen 127.0.0.1:7071             another API address; then set ORLOP_API
  orlop dev --nodes 6 --zones 3                 nodes in zones; see `orlop volume create --spread zone`
  orlop dev --store etcd://127.0.0.1:2379       records in an etcd that runs already
  orlop dev --secret ./secret                   nodes that let in only who knows it; see `orlop volume key`
  orlop dev --csi ./csi                         a CSI plugin for each node, on ./csi/NODE/csi.sock";

const DEMO_EXAMPLES: &str = "\
Examples:
  orlop demo
  TMPDIR=/var/tmp orlop demo --keep";

const BENCH_EXAMPLES: &str = "\
Examples:
  orlop bench 'null://?size=1GiB' --rw randread
  orlop bench data --depth 1
  orlop bench /dev/loop0 --rw randread
  orlop bench 'file:///tmp/disk?size=1GiB' --rw randwrite --depth 1 --fill
  orlop bench nvme+tcp://127.0.0.1:4420/nqn.2026-11.io.orlop:volume:data
  orlop bench 'mem://?size=256MiB' --rw write --block-size 128KiB --seconds 2 -o json";

const VOLUME_ATTACH_EXAMPLES: &str = "\
Examples:
  orlop volume attach data
  orlop volume attach data --node node-2
  orlop volume attach data --node node-2 --read-only";
const VOLUME_RECOVER_HELP: &str = "\
The store was restored, or had lost the record of the volume, and what it has now is what a copy had kept.
Such a volume opens by itself when all its copies have answered. Say this only if one of them is gone for
good: writes that only the copies which did not answer have are lost.
Without --yes it says which these are, and changes nothing.

Example:
  orlop volume recover data --yes";
const VOLUME_KEY_EXAMPLES: &str = "\
Examples:
  orlop volume key data --secret ./secret --host \"$(cat /etc/nvme/hostnqn)\"
  orlop volume key data --secret ./secret --host nqn.2026-11.io.orlop:tool > tool.key && chmod 600 tool.key
  orlop bench nvme+tcp://127.0.0.1:4420/nqn.2026-11.io.orlop:volume:data --key tool.key

To connect with it (both keys are the same: host and target prove themselves to each other):
  nvme connect -t tcp -a ADDRESS -s 4420 -n nqn.2026-11.io.orlop:volume:data \\
    --dhchap-secret KEY --dhchap-ctrl-secret KEY";

const SUPPORT_BUNDLE_HELP: &str = "\
Objects, metrics of the controller and of all nodes, versions, what this machine allows, and logs if
their folder is named. What does not answer is listed in missing.txt.
Values behind the names of secrets, keys and tokens, and what looks like one, are removed. Names of
volumes, nodes and disks, and addresses, are in it: look through it before you give it away.

Examples:
  orlop support bundle
  orlop support bundle --file /tmp/orlop.tar --logs ./orlop-data/log
  orlop support bundle --file - > orlop.tar";

const CHECK_EXAMPLES: &str = "\
Examples:
  orlop check file:///srv/orlop/node-1/disk
  orlop check disk:///dev/disk/by-id/nvme-example -o json";

const WIPE_HELP: &str = "\
Without --yes-destroy it says which pool that is and of which volumes copies are on it, and destroys
nothing. Both ends of the disk are made zero, so that another pool can be made there. What was written
between stays readable for who reads the disk itself, until it is overwritten.

Examples:
  orlop wipe disk:///dev/disk/by-id/nvme-example
  orlop wipe disk:///dev/disk/by-id/nvme-example --yes-destroy 0c7d8d8e-4a4e-4d0a-9a3f-b1f3c2f7a001";

const DISK_PARTITION_HELP: &str = "\
The disk has a GUID partition table with free space, or is blank and gets one. Partitions that are there
are neither changed nor moved, and may be in use meanwhile. The new one has Orlop's own type: a selector
of its node takes it if it is blank, or name it.
Without --yes it says what it would make, and writes nothing.

Examples:
  orlop disk partition /dev/sda --size 100GiB --dry-run
  orlop disk partition /dev/disk/by-id/wwn-0x5000c500a1b2c3d4 --size 100GiB --label orlop-data --yes";

const PREFLIGHT_EXAMPLES: &str = "\
Examples:
  orlop preflight
  orlop preflight --data /srv/orlop -o json";

const SIM_EXAMPLES: &str = "\
Examples:
  orlop sim                          20 seeds
  orlop sim --seeds 1000             more of them
  orlop sim --minutes 10             as many as fit
  orlop sim --seed 4711              one, twice: a replay must be exact
  ORLOP_LOG=info orlop sim --seed 4711   with what it logs";

const DRAIN_HELP: &str = "\
Nothing new is placed on the node, and nexuses that run there for work move elsewhere.
A volume that is attached there stays: detach it, or let Kubernetes move its pods first.
The copies stay too, for a node that comes back, and are not made anew elsewhere for an hour; the drain ends
when each of them has another one in sync on a node that stays.
With --evacuate the copies leave as well: another one is made first.

Exit code 1: the time is over, and what is left is said; the wish stays, and is worked on.

Examples:
  orlop node drain node-1                     before a reboot; afterwards: orlop node uncordon node-1
  orlop node drain node-1 --evacuate --timeout 2h     before it goes for good";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(orlop completion bash)
  orlop completion zsh > ~/.zfunc/_orlop";

/// Options of `orlop dev`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Dev {
    /// Where disks, records and logs are kept.
    #[arg(long, value_name = "DIR", default_value = "./orlop-data")]
    pub(crate) data: PathBuf,
    /// How many nodes; a folder that has nodes already keeps them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) nodes: Option<u32>,
    /// The size of each node's disk.
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk_size: Option<ByteCount>,
    /// In how many zones the nodes say they are, in turn; 0 is none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=64))]
    pub(crate) zones: Option<u32>,
    /// The address of the API, which only this machine can reach.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070", value_parser = loopback)]
    pub(crate) listen: SocketAddr,
    /// Keep the records in an etcd (etcd://HOST:PORT) or a Kubernetes (kubernetes:KUBECONFIG), and not in the data folder.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) store: Option<String>,
    /// Let only those use the targets who prove the secret in this file, or a volume's key.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: Option<PathBuf>,
    /// Serve the Container Storage Interface for each node on DIR/NODE/csi.sock.
    #[arg(long, value_name = "DIR")]
    pub(crate) csi: Option<PathBuf>,
    /// Let the first node look at the disks of this machine that match, such as /dev/loop7; may be given several times.
    #[arg(long, value_name = "GLOB")]
    pub(crate) disks_allow: Vec<String>,
}

/// Options of `orlop demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// Keep the folder with the disks and logs.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Flip one bit of one copy before they are compared: the demo must then fail.
    #[arg(long, hide = true)]
    pub(crate) plant_flip: bool,
}

/// Where the API is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Api {
    /// The address of the API.
    #[arg(
        long,
        env = "ORLOP_API",
        value_name = "URL",
        default_value = "http://127.0.0.1:7070",
        global = true
    )]
    pub(crate) api: String,
}

/// How to print.
#[derive(Clone, Debug, Args)]
pub(crate) struct Output {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(crate) output: Format,
}

/// Verbs of `orlop node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Lists the nodes.
    #[command(after_help = "Example:\n  orlop node list -o json")]
    List {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
    /// Shows one node: what is on it, what is wished of it, and what its drain waits for.
    #[command(after_help = "Example:\n  orlop node get node-1")]
    Get(NodeName),
    /// Places nothing new on a node; what is there stays. Ends a drain.
    #[command(after_help = "Example:\n  orlop node cordon node-1")]
    Cordon(NodeName),
    /// Makes a node ready to be taken away, and waits until it is.
    #[command(after_help = DRAIN_HELP)]
    Drain(NodeDrain),
    /// Takes back what cordon or drain has wished.
    #[command(after_help = "Example:\n  orlop node uncordon node-1")]
    Uncordon(NodeName),
    /// Forgets a node that is gone for good, with its pools and disks; refused while a volume has a copy there.
    #[command(after_help = "Example:\n  orlop node delete node-4")]
    Delete(NodeName),
    /// The process of one node.
    #[command(hide = true)]
    Run(NodeRun),
    /// The first process of a container that is a node: starts the other one, again whenever it ends.
    #[command(hide = true)]
    Serve(NodeOptions),
}

/// Verbs of `orlop disk`.
#[derive(Debug, Subcommand)]
pub(crate) enum Disk {
    /// Lists the disks that the nodes may look at, and why those in use are refused.
    #[command(after_help = "Example:\n  orlop disk list")]
    List {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
    /// Shows one disk: what it is, what lies on it, and what to do if it is refused.
    #[command(after_help = "Example:\n  orlop disk get wwn-0x5000c500a1b2c3d4 -o json")]
    Get {
        /// The disk.
        name: String,
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
    /// Makes a partition for a pool in free space of a disk of this machine; asks no cluster, needs root.
    #[command(after_help = DISK_PARTITION_HELP)]
    Partition(DiskPartition),
}

/// Verbs of `orlop pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Lists the pools with their space.
    #[command(after_help = "Example:\n  orlop pool list")]
    List {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
    /// Gives the disk of a pool back: it is blank then. Refused while a volume has a copy in it. Also forgets a pool whose
    /// disk is gone.
    #[command(after_help = POOL_DELETE_HELP)]
    Delete {
        /// The pool: its node and its name, as `orlop pool list` shows them, or its UUID.
        #[arg(value_name = "NODE/NAME")]
        pool: String,
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
}

const POOL_DELETE_HELP: &str = "The node does not use the disk again while it runs. Take the disk out of what the node is \
                                told to use (--disk, node.disks), or the next start makes a new pool of it.\n\n\
                                Example:\n  orlop pool delete node-1/disk0";

/// Verbs of `orlop volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Creates a volume and waits until its copies exist.
    #[command(after_help = "Examples:\n  orlop volume create data --size 1GiB\n  \
                            orlop volume create scratch --size 512MiB --copies 1\n  \
                            orlop volume create apart --size 1GiB --spread zone")]
    Create(VolumeCreate),
    /// Lists the volumes.
    #[command(after_help = "Example:\n  orlop volume list -o yaml")]
    List {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        output: Output,
    },
    /// Shows one volume: its device, its copies, and why it is not as wanted.
    #[command(after_help = "Example:\n  orlop volume get data -o json")]
    Get(VolumeName),
    /// Deletes a volume with all its data and waits until it is gone.
    #[command(after_help = "Example:\n  orlop volume delete data")]
    Delete(VolumeName),
    /// Makes a volume a device of a node, waits, and prints the path.
    #[command(after_help = VOLUME_ATTACH_EXAMPLES)]
    Attach(VolumeAttach),
    /// Takes the device away, or those of all readers, and waits until it is gone.
    #[command(after_help = "Examples:\n  orlop volume detach data\n  orlop volume detach data --node node-2")]
    Detach(VolumeDetach),
    /// Prints the key by which a host elsewhere reaches a volume; the nodes have to run with the secret.
    #[command(after_help = VOLUME_KEY_EXAMPLES)]
    Key(VolumeKey),
    /// Makes a volume larger.
    #[command(after_help = "Example:\n  orlop volume resize data --size 2GiB")]
    Resize(VolumeResize),
    /// Opens a volume whose record is from a copy, without the copies that do not answer: what only these have is lost.
    #[command(after_help = VOLUME_RECOVER_HELP)]
    Recover(VolumeRecover),
}

/// Verbs of `orlop support`.
#[derive(Debug, Subcommand)]
pub(crate) enum Support {
    /// Makes a tar of everything that can be asked, without secrets.
    #[command(after_help = SUPPORT_BUNDLE_HELP)]
    Bundle(SupportBundle),
}

/// Options of `orlop support bundle`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SupportBundle {
    /// The file to make, which must not be there yet; - is standard output.
    #[arg(long, value_name = "FILE", default_value = "orlop-support.tar")]
    pub(crate) file: PathBuf,
    /// A folder with logs: the end of each NAME.log in it is taken along.
    #[arg(long, value_name = "DIR")]
    pub(crate) logs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// A node by its name.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeName {
    /// The node.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop node drain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeDrain {
    /// The node.
    pub(crate) name: String,
    /// Make its copies elsewhere, and give them up here: it is to go for good.
    #[arg(long)]
    pub(crate) evacuate: bool,
    /// How long to wait, such as 30s, 10m or 2h; 0 only writes the wish.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Longer than anybody waits.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    let known = api::parse_duration(text).filter(|duration| *duration <= DURATION_MAX);
    known.ok_or_else(|| "use one such as 30s, 10m or 2h".into())
}

/// A volume by its name.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeName {
    /// The volume.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop volume create`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeCreate {
    /// Its name: lower-case letters, digits and hyphens.
    pub(crate) name: String,
    /// Its size, a multiple of 1 MiB.
    #[arg(long)]
    pub(crate) size: ByteCount,
    /// How many nodes hold each block.
    #[arg(long, default_value_t = 3)]
    pub(crate) copies: u32,
    /// Over how many pools each copy is striped.
    #[arg(long, default_value_t = 1)]
    pub(crate) stripes: u32,
    /// Its logical block size: 4096, or 512 for software that insists.
    #[arg(long, default_value = "4096", value_name = "BYTES")]
    pub(crate) block_size: ByteCount,
    /// The class of the disks that hold copies, as `orlop pool list` shows them.
    #[arg(long, default_value = "any", value_parser = class(), ignore_case = true)]
    pub(crate) class: Class,
    /// Keep the copies in different zones, regions, or values of another label of the nodes (zone, region, KEY).
    #[arg(long, value_name = "KEY", default_value = "node", value_parser = spread)]
    pub(crate) spread: String,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// The class of disks that a volume wants; none: any. An alias, for clap takes an `Option` for an argument without default.
type Class = Option<DiskClass>;

/// Options of `orlop volume attach`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeAttach {
    /// The volume.
    pub(crate) name: String,
    /// The node to have the device; by default one with a copy.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Take it away from a node that is ready: whoever uses the device there loses it.
    #[arg(long = "move")]
    pub(crate) take: bool,
    /// A device that can be read only, on any number of nodes, while nobody has the volume for writing.
    #[arg(long, requires = "node", conflicts_with = "take")]
    pub(crate) read_only: bool,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop volume detach`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeDetach {
    /// The volume.
    pub(crate) name: String,
    /// Only the device on this node.
    #[arg(long)]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop volume resize`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeResize {
    /// The volume.
    pub(crate) name: String,
    /// Its new size, larger than before.
    #[arg(long)]
    pub(crate) size: ByteCount,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop volume recover`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeRecover {
    /// The volume.
    pub(crate) name: String,
    /// Do it.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop volume key`.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeKey {
    /// The volume.
    pub(crate) name: String,
    /// The host's name, its NQN: the key is for no other.
    #[arg(long, value_name = "NQN")]
    pub(crate) host: String,
    /// The file with the secret of the cluster.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: PathBuf,
    #[command(flatten)]
    pub(crate) api: Api,
}

/// Options of `orlop bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// What to measure: a device URI, the path of a file or block device, or the name of an attached volume.
    pub(crate) target: String,
    /// What to do.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) rw: crate::bench::Pattern,
    /// Bytes per read or write.
    #[arg(long, default_value = "4KiB", value_name = "SIZE")]
    pub(crate) block_size: ByteCount,
    /// How many are under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) depth: u32,
    /// For how long.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Write every block once before measuring; overwrites what is there.
    #[arg(long)]
    pub(crate) fill: bool,
    /// A file with the key for a volume at a target that asks for one; as a host this program is nqn.2026-11.io.orlop:tool.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Fill and write with blocks that say where they belong, and compare everything at the end.
    #[arg(long, conflicts_with = "serve")]
    pub(crate) verify: bool,
    /// Format the device as a pool, and measure a new thin volume in it; refused if it carries anything.
    #[arg(long)]
    pub(crate) pool: bool,
    /// Serve the device over NVMe/TCP until standard input ends, instead of measuring it; prints what to measure.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) serve: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop check`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Check {
    /// The device, as a URI.
    pub(crate) uri: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop wipe`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Wipe {
    /// The device, as a URI.
    pub(crate) uri: String,
    /// The UUID of the pool: it, and no other, is destroyed.
    #[arg(long, value_name = "UUID")]
    pub(crate) yes_destroy: Option<Uuid>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop disk partition`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DiskPartition {
    /// The disk, such as /dev/sda or a link to it.
    pub(crate) device: PathBuf,
    /// The partition's size, a multiple of 1 MiB; by default the largest free piece is taken whole.
    #[arg(long)]
    pub(crate) size: Option<ByteCount>,
    /// Its name in the table; by default orlop- and its number.
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
    /// Only say what would be made.
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    /// Make it.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop preflight`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Preflight {
    /// A folder for disks, to be looked at too.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of `orlop sim`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Sim {
    /// Runs this one seed.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    pub(crate) seed: Option<u64>,
    /// Runs so many seeds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seeds: Option<u64>,
    /// Runs for so long at most.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) minutes: Option<u32>,
    /// The first seed of several.
    #[arg(long, default_value_t = 0)]
    pub(crate) first_seed: u64,
    /// Breaks this rule on purpose, to see it found.
    #[arg(long, hide = true)]
    pub(crate) bug: Option<String>,
    /// Ends with the first seed that fails.
    #[arg(long, hide = true)]
    pub(crate) until_failure: bool,
    /// Runs seeds with the planted bug, or each planted bug, until one finds it; fails where none does.
    #[arg(long, hide = true, conflicts_with_all = ["seed", "minutes", "until_failure"])]
    pub(crate) until_found: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Options of the controller process.
#[derive(Clone, Debug, Args)]
pub(crate) struct Controller {
    /// How long a copy may be away before another one is made, for tests: they cannot wait for a minute.
    #[arg(long, env = "ORLOP_REPLACE_AFTER_SECONDS", value_name = "SECONDS")]
    pub(crate) replace_after: Option<u64>,
    /// How many times the capacity of a pool may be promised to volumes, which are thin.
    #[arg(long, env = "ORLOP_OVERCOMMIT", value_name = "TIMES", default_value_t = manager::OVERCOMMIT_DEFAULT,
        value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) overcommit: u64,
    /// The folder of its own store.
    #[arg(long, required_unless_present = "store", conflicts_with = "store")]
    pub(crate) data: Option<PathBuf>,
    /// The address of the store, where it is not its own.
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// Where the API listens.
    #[arg(long, value_parser = loopback)]
    pub(crate) listen: SocketAddr,
    /// Decide only while holding the Lease `orlop-controller`; needs a Kubernetes as the store.
    #[arg(long, requires = "store")]
    pub(crate) leader_election: bool,
    /// The namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "orlop")]
    pub(crate) namespace: String,
    /// By what name this process holds the Lease; a random part is added.
    #[arg(long, env = "POD_NAME", default_value = "orlop-controller")]
    pub(crate) pod: String,
    /// Free the pods that have opted in of nodes that are lost, without an operator.
    #[arg(long, requires = "leader_election")]
    pub(crate) failover: bool,
    /// How long a node is `NotReady` before they leave it.
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub(crate) failover_after: u64,
    /// How many nodes of a hundred may be given up at the same time; one always may.
    #[arg(long, value_name = "PERCENT", default_value_t = 34, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) failover_share: u32,
    /// Where to answer kube-scheduler, which asks where copies of a pod's volumes are; needs a Kubernetes as the store.
    #[arg(long, requires = "store", value_name = "HOST:PORT")]
    pub(crate) extender: Option<SocketAddr>,
    /// From what addresses kube-scheduler asks; who connects from elsewhere gets nothing.
    #[arg(long, requires = "extender", value_name = "CIDR")]
    pub(crate) extender_from: Vec<k8s::Cidr>,
    /// End when this process, the parent, ends.
    #[arg(long)]
    pub(crate) parent: Option<u32>,
}

/// Options of a plugin's process.
#[derive(Clone, Debug, Args)]
pub(crate) struct Csi {
    /// The node that it serves.
    #[arg(long)]
    pub(crate) node: String,
    /// Where it listens.
    #[arg(long)]
    pub(crate) socket: PathBuf,
    /// The address of the API.
    #[arg(long, required_unless_present = "store", conflicts_with = "store")]
    pub(crate) api: Option<String>,
    /// The address of the store: the plugin then needs nobody to answer the API.
    #[arg(long)]
    pub(crate) store: Option<String>,
    /// End when this process, the parent, ends.
    #[arg(long)]
    pub(crate) parent: Option<u32>,
}

/// Options of a node's process.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeRun {
    #[command(flatten)]
    pub(crate) node: NodeOptions,
    /// Carried by its mounts and loop devices, so that a later run knows them.
    #[arg(long)]
    pub(crate) run_id: String,
    /// Devices outlive this process, held by a second one until it is started again.
    #[arg(long)]
    pub(crate) hold_devices: bool,
    /// End when this process, the parent, ends.
    #[arg(long)]
    pub(crate) parent: Option<u32>,
}

/// What a node is.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeOptions {
    /// Its name.
    #[arg(long)]
    pub(crate) name: String,
    /// The folder of its state.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// A device to use as a pool, as a URI, with `class=ssd` (nvme, hdd) where the kernel does not know what it is; or a
    /// selector of free disks among those that may be looked at, such as `select://?class=NVMe&min_size=100GiB`. May be
    /// given several times.
    #[arg(long = "disk", required = true)]
    pub(crate) disks: Vec<String>,
    /// Which disks are looked at and reported, as `/dev/...` with wildcards; `*` are all but loop, removable and remote
    /// ones. May be given several times.
    #[arg(long, value_name = "GLOB")]
    pub(crate) disks_allow: Vec<String>,
    /// Where its NVMe/TCP target listens.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Where its metrics are.
    #[arg(long)]
    pub(crate) metrics: SocketAddr,
    /// The address of the store.
    #[arg(long)]
    pub(crate) store: String,
    /// A file with the secret of the cluster: without it everybody who reaches the target may use it.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: Option<PathBuf>,
    /// By what volumes become block devices of this node: auto is nvme-tcp where the kernel has it, else fuse. Those that
    /// are there stay what they are until they are detached.
    #[arg(long, env = "ORLOP_FRONTEND", value_enum, default_value_t)]
    pub(crate) frontend: Frontend,
    /// A label that says where the node is, such as topology.kubernetes.io/zone=a; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) topology: Vec<(String, String)>,
    /// A label of the Kubernetes node that says where it is, beside its zone and region; may be given several times.
    #[arg(long = "topology-key", value_name = "KEY")]
    pub(crate) topology_keys: Vec<String>,
}

/// An address for what asks nobody who they are.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error: std::net::AddrParseError| error.to_string())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err(format!(
        "{address} can be reached from elsewhere, and the API asks nobody who they are; use one such as 127.0.0.1:7070, \
         and reach it by `ssh -L`"
    ))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("use one such as topology.kubernetes.io/zone=a")?;
    let label = (key.to_owned(), value.to_owned());
    check_labels("label", &[label.clone()].into()).map_err(|why| format!("{}; {}", why.cause, why.hint))?;
    Ok(label)
}

fn class() -> impl TypedValueParser<Value = Class> {
    PossibleValuesParser::new(["any", "nvme", "ssd", "hdd"]).map(|name| DiskClass::named(&name))
}

fn spread(text: &str) -> Result<String, String> {
    // What keeps copies on different nodes is what is always so.
    let key = spread_by(text).map_err(|why| format!("{}; {}", why.cause, why.hint))?;
    Ok(key.unwrap_or_default())
}

/// Whether what clap says is what was asked for, such as the help.
pub(crate) fn is_answer(error: &clap::Error) -> bool {
    error.exit_code() == 0 || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// What clap says in paragraphs, as one line: the error, then its tip or where the help is.
pub(crate) fn refusal(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let what = paragraphs.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let tip = paragraphs.find_map(|paragraph| paragraph.trim().strip_prefix("tip: ").map(str::to_owned));
    Failure::new(what).kind(Kind::Usage).hint(tip.unwrap_or_else(|| "try --help".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn each_class_of_disks_can_be_wished() {
        let class = |more: &[&str]| {
            let words = [&["orlop", "volume", "create", "data", "--size", "1GiB"], more].concat();
            match Arguments::try_parse_from(words).unwrap().command {
                Command::Volume(Volume::Create(create)) => create.class,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((class(&[]), class(&["--class", "any"])), (None, None));
        for wished in DiskClass::ALL {
            let name = wished.to_string();
            for name in [name.to_lowercase(), name] {
                assert_eq!(class(&["--class", &name]), Some(wished));
            }
        }
    }

    #[test]
    fn every_command_that_is_shown_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let path = format!("{path} {}", verb.get_name());
                if verb.has_subcommands() {
                    check(verb, &path);
                } else {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains(&path), "{path} has no example of itself: {help:?}");
                }
            }
        }
        check(&Arguments::command(), "orlop");
    }
}
