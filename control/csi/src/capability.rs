//! How a volume is to be used: as a file system or as a block device, by whom, read only or not.

use crate::{
    filesystem::{Filesystem, MkfsOptions},
    refusal::{invalid, missing},
    v1::{
        VolumeCapability,
        volume_capability::{AccessMode, AccessType, access_mode::Mode},
    },
};
use tonic::Status;

/// How a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// As what.
    pub(crate) kind: Kind,
    /// Nobody may write.
    pub(crate) read_only: bool,
    /// At one path of the node and no other.
    pub(crate) single_writer: bool,
    /// By several nodes at once.
    pub(crate) many_nodes: bool,
}

/// As what a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A block device.
    Block,
    /// A file system.
    Mount {
        /// Which one, if somebody says so.
        filesystem: Option<Filesystem>,
        /// Options for `mount`.
        flags: Vec<String>,
        /// Options for the mkfs, which come from the volume and not from the capability.
        mkfs_options: MkfsOptions,
    },
}

impl Access {
    /// What a capability asks for. Who writes has the volume alone: the modes for writers on several nodes are refused.
    pub(crate) fn parse(capability: Option<&VolumeCapability>) -> Result<Self, Status> {
        let capability = capability.ok_or_else(|| missing("volume_capability"))?;
        let kind = match &capability.access_type {
            None => return Err(missing("volume_capability.access_type")),
            Some(AccessType::Block(_)) => Kind::Block,
            Some(AccessType::Mount(mount)) => {
                if !mount.volume_mount_group.is_empty() {
                    return Err(invalid("volume_mount_group is not supported; leave it to the orchestrator"));
                }
                Kind::Mount {
                    filesystem: Filesystem::parse(&mount.fs_type)?,
                    flags: mount.mount_flags.clone(),
                    mkfs_options: MkfsOptions::default(),
                }
            }
        };
        let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, AccessMode::mode);
        match mode {
            Mode::Unknown => return Err(missing("volume_capability.access_mode")),
            Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
                return Err(invalid(format!(
                    "access mode {} is not supported: a volume that is written is on one node at a time; use a \
                     SINGLE_NODE mode, or MULTI_NODE_READER_ONLY",
                    mode.as_str_name()
                )));
            }
            _ => {}
        }
        Ok(Self {
            kind,
            read_only: matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly),
            single_writer: mode == Mode::SingleNodeSingleWriter,
            many_nodes: mode == Mode::MultiNodeReaderOnly,
        })
    }

    /// What several capabilities ask for.
    pub(crate) fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, Status> {
        if capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        capabilities.iter().map(|capability| Self::parse(Some(capability))).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::v1::volume_capability::{BlockVolume, MountVolume};
    use tonic::Code;

    pub(crate) fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
        let mount = MountVolume { fs_type: fs_type.into(), ..Default::default() };
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn every_mode_is_taken_or_refused() {
        for (mode, wanted) in [
            (Mode::Unknown, None),
            (Mode::SingleNodeWriter, Some((false, false, false))),
            (Mode::SingleNodeReaderOnly, Some((true, false, false))),
            (Mode::MultiNodeReaderOnly, Some((true, false, true))),
            (Mode::MultiNodeSingleWriter, None),
            (Mode::MultiNodeMultiWriter, None),
            (Mode::SingleNodeSingleWriter, Some((false, true, false))),
            (Mode::SingleNodeMultiWriter, Some((false, false, false))),
        ] {
            let found = Access::parse(Some(&mount("xfs", mode)));
            let found = found.map(|access| (access.read_only, access.single_writer, access.many_nodes));
            assert_eq!(found.as_ref().ok(), wanted.as_ref(), "{mode:?}");
            assert!(found.is_ok() || found.is_err_and(|status| status.code() == Code::InvalidArgument));
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let refused = |capability: Option<&VolumeCapability>| Access::parse(capability).unwrap_err();
        assert!(refused(None).message().contains("volume_capability is missing"));
        let reiser = refused(Some(&mount("reiserfs", Mode::SingleNodeWriter)));
        assert!(reiser.message().contains("\"reiserfs\"") && reiser.message().contains("ext4, xfs, btrfs"));
        let unknown = VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: Some(AccessMode { mode: 4711 }),
        };
        assert_eq!(refused(Some(&unknown)).code(), Code::InvalidArgument);
        assert_eq!(Access::parse_all(&[]).unwrap_err().code(), Code::InvalidArgument);
    }
}
