//! The parameters of a `StorageClass`: Orlop's own names, those of `MeshStor` and Mayastor for the same things, and
//! what the provisioner of Kubernetes adds. All others are refused, so that a misspelt one is never silently ignored.

use crate::{
    TOPOLOGY_KEY,
    controller::{FAILOVER_KEY, FILESYSTEM_KEY, MKFS_OPTIONS_KEY},
    filesystem::{Filesystem, MkfsOptions},
    refusal::invalid,
    v1::{Topology, TopologyRequirement},
};
use model::{DiskClass, VolumeSpec, topology::spread_by};
use std::collections::{BTreeSet, HashMap};
use tonic::Status;

/// The class of disks.
const CLASS_KEY: &str = "class";
/// What keeps copies apart.
const PLACEMENT_KEY: &str = "placement";
/// Whether a copy is wished where the volume is used first.
const LOCALITY_KEY: &str = "locality";
/// What it adds is for people; nothing depends on it.
const FROM_KUBERNETES: [&str; 3] =
    ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];

/// What a volume shall be, apart from its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// How many nodes hold each block.
    pub(crate) copies: u32,
    /// Over how many pools each copy is striped.
    pub(crate) stripes: u32,
    /// The class of the disks that hold them; none: any disk.
    pub(crate) class: Option<DiskClass>,
    /// The label of nodes that keeps copies apart; none: only nodes do.
    pub(crate) spread: Option<String>,
    /// The file system, where the capability names none.
    pub(crate) filesystem: Option<Filesystem>,
    /// What its mkfs is told.
    pub(crate) mkfs_options: MkfsOptions,
    /// Whether its pods leave a lost node without an operator: the failover looks for it in the volume's context.
    pub(crate) failover: Failover,
    /// Whether a copy is wished where the volume is used first.
    pub(crate) locality: Locality,
}

/// Who says that a node is off, before a pod with this volume is elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Failover {
    /// An operator.
    #[default]
    Manual,
    /// Orlop: what has to be fenced is its volumes, and nothing else.
    Automatic,
}

impl Failover {
    fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "manual" => Ok(Self::Manual),
            "automatic" => Ok(Self::Automatic),
            _ => Err(no_choice(FAILOVER_KEY, text, "automatic or manual")),
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Manual => "",
            Self::Automatic => "automatic",
        }
    }
}

/// Whether a copy is wished where the volume is used first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Locality {
    /// One copy is there, if that node can take one.
    #[default]
    Preferred,
    /// Copies are placed by space alone.
    None,
    /// One copy is on one of the nodes where the volume has to be within reach, or it is not made; and its pods are only
    /// where a copy was made.
    Strict,
}

impl Locality {
    fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "preferred" => Ok(Self::Preferred),
            "none" => Ok(Self::None),
            "strict" => Ok(Self::Strict),
            _ => Err(no_choice(LOCALITY_KEY, text, "preferred, strict or none")),
        }
    }

    /// The node that should have a copy. Kubernetes tells first where the first pod will be, if it knows.
    pub(crate) fn near(self, preferred: &[Topology]) -> Option<&str> {
        match self {
            Self::Preferred | Self::Strict => node_of(preferred.first()?),
            Self::None => None,
        }
    }

    /// The nodes of which one has to have a copy: where the volume has to be within reach, if that is said. None: any.
    pub(crate) fn on(self, topology: &TopologyRequirement) -> Option<BTreeSet<String>> {
        let TopologyRequirement { requisite, preferred } = topology;
        let places = if requisite.is_empty() { preferred } else { requisite };
        let nodes = places.iter().filter(|_| self == Self::Strict).filter_map(node_of);
        let nodes: BTreeSet<String> = nodes.map(str::to_owned).collect();
        (!nodes.is_empty()).then_some(nodes)
    }
}

/// The node that a place is, if it is one.
pub(crate) fn node_of(place: &Topology) -> Option<&str> {
    place.segments.get(TOPOLOGY_KEY).map(String::as_str)
}

/// The class of disks; none: any.
fn class_of(text: &str) -> Result<Option<DiskClass>, Status> {
    match text {
        "" | "any" => Ok(None),
        _ => match DiskClass::named(text) {
            Some(class) => Ok(Some(class)),
            None => Err(no_choice(CLASS_KEY, text, "any, nvme, ssd or hdd")),
        },
    }
}

/// The label that keeps copies apart; none: only nodes do.
fn spread_of(text: &str) -> Result<Option<String>, Status> {
    let choices = "node, zone, region or a label of nodes such as example.com/rack";
    spread_by(text).map_err(|_| no_choice(PLACEMENT_KEY, text, choices))
}

/// A word that is none of those that are possible.
fn no_choice(key: &str, text: &str, choices: &str) -> Status {
    let shown: String = text.chars().take(40).collect();
    invalid(format!("parameter {key:?} is {shown:?}; it can be {choices}"))
}

impl Parameters {
    /// Understands the parameters. Whether the numbers are possible is for the API to say.
    pub(crate) fn parse(given: &HashMap<String, String>) -> Result<Self, Status> {
        let mut found: HashMap<&str, (&str, &str)> = HashMap::new();
        // In order: the same request is always told the same.
        let mut given: Vec<(&str, &str)> = given.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        given.sort_unstable();
        for (key, value) in given {
            let meaning = match key {
                "copies" | "numberOfCopies" | "repl" => "copies",
                "stripes" | "drivesPerCopy" => "stripes",
                FILESYSTEM_KEY | "csi.storage.k8s.io/fstype" => FILESYSTEM_KEY,
                MKFS_OPTIONS_KEY => MKFS_OPTIONS_KEY,
                FAILOVER_KEY => FAILOVER_KEY,
                CLASS_KEY => CLASS_KEY,
                PLACEMENT_KEY => PLACEMENT_KEY,
                LOCALITY_KEY => LOCALITY_KEY,
                _ if FROM_KUBERNETES.contains(&key) => continue,
                _ => {
                    let shown: String = key.chars().take(80).collect();
                    return Err(invalid(format!(
                        "parameter {shown:?} is not known; those known are copies, stripes, class, placement, locality, fsType, mkfsOptions and failover"
                    )));
                }
            };
            if let Some((other, said)) = found.insert(meaning, (key, value))
                && said != value
            {
                return Err(invalid(format!(
                    "parameters {other:?} and {key:?} mean the same and contradict each other; leave one out"
                )));
            }
        }
        let number = |meaning: &str, default: u32| {
            let Some((key, value)) = found.get(meaning) else { return Ok(default) };
            let shown: String = value.chars().take(40).collect();
            let refused =
                |_| invalid(format!("parameter {key:?} is {shown:?}; give a number such as {default}"));
            value.parse::<u32>().map_err(refused)
        };
        let text = |meaning: &str| found.get(meaning).map_or("", |(_, value)| value);
        Ok(Self {
            copies: number("copies", 3)?,
            stripes: number("stripes", 1)?,
            class: class_of(text(CLASS_KEY))?,
            spread: spread_of(text(PLACEMENT_KEY))?,
            filesystem: Filesystem::parse(text(FILESYSTEM_KEY))?,
            mkfs_options: MkfsOptions::parse(text(MKFS_OPTIONS_KEY))?,
            failover: Failover::parse(text(FAILOVER_KEY))?,
            locality: Locality::parse(text(LOCALITY_KEY))?,
        })
    }

    /// What a volume of this size is to be.
    pub(crate) fn spec(&self, size_bytes: u64) -> VolumeSpec {
        let &Self { copies, stripes, class, .. } = self;
        VolumeSpec { size_bytes, copies, stripes, block_size: 4096, class, spread: self.spread.clone() }
    }

    /// What the nodes have to know of it: the volume's context.
    pub(crate) fn for_nodes(&self) -> HashMap<String, String> {
        let filesystem = self.filesystem.map_or("", Filesystem::name).to_owned();
        let failover = self.failover.text().to_owned();
        let all = [
            (FILESYSTEM_KEY, filesystem),
            (MKFS_OPTIONS_KEY, self.mkfs_options.text()),
            (FAILOVER_KEY, failover),
        ];
        let said = all.into_iter().filter(|(_, value)| !value.is_empty());
        said.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tonic::Code;

    fn parse(given: &[(&str, &str)]) -> Result<Parameters, Status> {
        Parameters::parse(&given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn aliases_mean_the_same() {
        let default = Parameters {
            copies: 3,
            stripes: 1,
            class: None,
            spread: None,
            filesystem: None,
            mkfs_options: MkfsOptions::default(),
            failover: Failover::Manual,
            locality: Locality::Preferred,
        };
        assert_eq!(parse(&[]).unwrap(), default);
        assert_eq!(parse(&[("csi.storage.k8s.io/pvc/name", "a")]).unwrap(), default);
        for copies in ["copies", "numberOfCopies", "repl"] {
            assert_eq!(parse(&[(copies, "2")]).unwrap(), Parameters { copies: 2, ..default.clone() });
        }
        for stripes in ["stripes", "drivesPerCopy"] {
            assert_eq!(parse(&[(stripes, "4")]).unwrap(), Parameters { stripes: 4, ..default.clone() });
        }
        for (text, class) in [("any", None), ("nvme", Some(DiskClass::Nvme)), ("HDD", Some(DiskClass::Hdd))] {
            assert_eq!(parse(&[("class", text)]).unwrap(), Parameters { class, ..default.clone() });
        }
        let zone = "topology.kubernetes.io/zone";
        for (text, key) in [("node", None), ("zone", Some(zone)), (zone, Some(zone)), ("rack", Some("rack"))]
        {
            let spread = key.map(str::to_owned);
            assert_eq!(parse(&[("placement", text)]).unwrap(), Parameters { spread, ..default.clone() });
        }
        for key in ["fsType", "csi.storage.k8s.io/fstype"] {
            let xfs = Parameters { filesystem: Some(Filesystem::Xfs), ..default.clone() };
            assert_eq!(parse(&[(key, "xfs")]).unwrap(), xfs);
        }
        assert_eq!(parse(&[("copies", "2"), ("repl", "2")]).unwrap().copies, 2);
    }

    #[test]
    fn nodes_are_told_what_to_make() {
        let told = parse(&[("fsType", "ext4"), ("mkfsOptions", "-m 0")]).unwrap().for_nodes();
        assert_eq!(
            told,
            [("fsType", "ext4"), ("mkfsOptions", "-m 0")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        );
        assert!(parse(&[("failover", "manual")]).unwrap().for_nodes().is_empty());
        let automatic = parse(&[("failover", "automatic")]).unwrap().for_nodes();
        assert_eq!(automatic, [("failover".to_owned(), "automatic".to_owned())].into());
    }

    #[test]
    fn the_first_pods_node_is_near_unless_that_is_not_wished() {
        let place = |key: &str, name: &str| Topology { segments: [(key.to_owned(), name.to_owned())].into() };
        let nodes = [place(TOPOLOGY_KEY, "n2"), place(TOPOLOGY_KEY, "n1")];
        let near = |given: &[(&str, &str)], preferred: &[Topology]| {
            parse(given).unwrap().locality.near(preferred).map(str::to_owned)
        };
        assert_eq!(near(&[], &nodes).as_deref(), Some("n2"));
        assert_eq!(near(&[("locality", "preferred")], &nodes).as_deref(), Some("n2"));
        assert_eq!(near(&[("locality", "strict")], &nodes).as_deref(), Some("n2"));
        assert_eq!(near(&[("locality", "none")], &nodes), None);
        assert_eq!(near(&[], &[]), None, "bound before there is a pod");
        assert_eq!(near(&[], &[place("topology.kubernetes.io/zone", "a"), nodes[0].clone()]), None);
        for locality in ["none", "strict"] {
            assert!(parse(&[("locality", locality)]).unwrap().for_nodes().is_empty());
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (given, named) in [
            (&[("copys", "2")][..], "\"copys\""),
            (&[("copies", "two")], "\"two\""),
            (&[("copies", "-1")], "\"copies\""),
            (&[("copies", "2"), ("repl", "3")], "\"repl\""),
            (&[("fsType", "ntfs")], "\"ntfs\""),
            (&[("failover", "always")], "\"always\""),
            (&[("locality", "there")], "\"there\"; it can be preferred, strict or none"),
            (&[("placement", "no label")], "\"no label\"; it can be node, zone, region or a label"),
            (&[("class", "fast")], "\"fast\"; it can be any, nvme, ssd or hdd"),
            (&[("locality", "Preferred")], "\"Preferred\""),
            (&[("mkfsOptions", "-m 0 /dev/sda")], "\"/dev/sda\""),
            (&[("csi.storage.k8s.io/other", "x")], "csi.storage.k8s.io/other"),
        ] {
            let refused = parse(given).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(named), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn any_other_key_is_refused(key in "[a-zA-Z./]{0,20}") {
            let known = ["copies", "numberOfCopies", "repl", "stripes", "drivesPerCopy", "fsType", "mkfsOptions", "failover", "class", "placement", "locality"];
            prop_assume!(!known.contains(&key.as_str()));
            prop_assert!(parse(&[(&key, "1")]).is_err());
        }
    }
}
