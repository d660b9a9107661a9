//! An orchestrator of containers, one step at a time: the calls that it makes for one claim.

use crate::journey::Trip;
use anyhow::{Result, ensure};
use csi::client::{Plugin, Status};
use csi::v1::volume_capability::access_mode::Mode;
use csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume, VolumeCapability,
    VolumeCondition,
};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// A mebibyte, as sizes are counted there.
pub(super) const MIB: i64 = 1 << 20;

/// The plugins of a cluster, as an orchestrator that calls them.
pub(super) struct Caller {
    runtime: Runtime,
    /// Where their sockets are, each in the folder of its node.
    sockets: PathBuf,
}

impl Caller {
    pub(super) fn new(sockets: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, sockets })
    }

    pub(super) fn socket(&self, node: &str) -> PathBuf {
        self.sockets.join(node).join("csi.sock")
    }

    /// Waits until the plugins of these nodes listen: they start when the cluster is ready.
    pub(super) fn ready(&self, nodes: &[&str]) -> Result<()> {
        let begun = Instant::now();
        while !nodes.iter().all(|node| UnixStream::connect(self.socket(node)).is_ok()) {
            ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "no plugin listens below {}",
                text(&self.sockets)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Calls a node's plugin, on a connection of its own.
    pub(super) fn call<T, F>(&self, node: &str, request: impl FnOnce(Plugin) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.runtime.block_on(async {
            let plugin = Plugin::connect(&self.socket(node)).await;
            request(plugin.map_err(|error| Status::unavailable(error.to_string()))?).await
        })
    }
}

/// A claim, and the paths at which a pod finds it.
pub(super) struct Claim<'a> {
    pub(super) caller: &'a Caller,
    pub(super) folder: PathBuf,
    pub(super) name: String,
    /// None: a block device.
    pub(super) filesystem: Option<&'static str>,
    pub(super) mode: Mode,
    /// Those of its class.
    pub(super) parameters: &'static [(&'static str, &'static str)],
    /// What the nodes are told, by the answer to `create_volume`.
    pub(super) context: HashMap<String, String>,
}

impl<'a> Claim<'a> {
    pub(super) fn new(
        trip: &Trip,
        caller: &'a Caller,
        name: &str,
        filesystem: Option<&'static str>,
    ) -> Result<Self> {
        Self::below(&trip.folder, caller, name, filesystem)
    }

    /// The same with its paths below any folder.
    pub(super) fn below(
        folder: &Path,
        caller: &'a Caller,
        name: &str,
        filesystem: Option<&'static str>,
    ) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            caller,
            folder,
            name: name.to_owned(),
            filesystem,
            mode: Mode::SingleNodeWriter,
            parameters: &[("copies", "2")],
            context: HashMap::new(),
        })
    }

    pub(super) fn staging(&self, node: &str) -> PathBuf {
        self.folder.join(format!("stage-{node}"))
    }

    /// Where the pod on this node sees it.
    pub(super) fn target(&self, node: &str) -> PathBuf {
        self.folder.join(format!("pod-{node}"))
    }

    pub(super) fn capability(&self) -> VolumeCapability {
        let access_type = match self.filesystem {
            Some(fs_type) => {
                AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..Default::default() })
            }
            None => AccessType::Block(BlockVolume {}),
        };
        let access_mode = AccessMode { mode: self.mode.into() };
        VolumeCapability { access_type: Some(access_type), access_mode: Some(access_mode) }
    }

    pub(super) fn create(&self, node: &str, bytes: i64) -> Result<(), Status> {
        self.create_volume(node, bytes).map(drop)
    }

    pub(super) fn create_volume(&self, node: &str, bytes: i64) -> Result<Volume, Status> {
        let words = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let request = CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![self.capability()],
            parameters: self.parameters.iter().map(words).collect(),
            ..Default::default()
        };
        let answer = self.caller.call(node, |mut plugin| async move {
            Ok(plugin.controller.create_volume(request).await?.into_inner())
        })?;
        answer.volume.ok_or_else(|| Status::internal("no volume"))
    }

    pub(super) fn delete(&self, node: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: self.name.clone(), ..Default::default() };
        self.caller
            .call(node, |mut plugin| async move { plugin.controller.delete_volume(request).await.map(drop) })
    }

    pub(super) fn attach(&self, node: &str) -> Result<(), Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: self.name.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(self.capability()),
            ..Default::default()
        };
        self.caller.call(node, |mut plugin| async move {
            plugin.controller.controller_publish_volume(request).await.map(drop)
        })
    }

    pub(super) fn detach(&self, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: self.name.clone(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.caller.call(node, |mut plugin| async move {
            plugin.controller.controller_unpublish_volume(request).await.map(drop)
        })
    }

    pub(super) fn stage(&self, node: &str) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: self.name.clone(),
            staging_target_path: text(&self.staging(node)),
            volume_capability: Some(self.capability()),
            volume_context: self.context.clone(),
            ..Default::default()
        };
        self.caller
            .call(node, |mut plugin| async move { plugin.node.node_stage_volume(request).await.map(drop) })
    }

    pub(super) fn unstage(&self, node: &str) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: self.name.clone(),
            staging_target_path: text(&self.staging(node)),
        };
        self.caller
            .call(node, |mut plugin| async move { plugin.node.node_unstage_volume(request).await.map(drop) })
    }

    pub(super) fn publish_at(&self, node: &str, target: &Path, readonly: bool) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: self.name.clone(),
            staging_target_path: text(&self.staging(node)),
            target_path: text(target),
            volume_capability: Some(self.capability()),
            readonly,
            ..Default::default()
        };
        self.caller
            .call(node, |mut plugin| async move { plugin.node.node_publish_volume(request).await.map(drop) })
    }

    pub(super) fn publish(&self, node: &str) -> Result<(), Status> {
        self.publish_at(node, &self.target(node), false)
    }

    pub(super) fn unpublish_at(&self, node: &str, target: &Path) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: self.name.clone(), target_path: text(target) };
        self.caller.call(node, |mut plugin| async move {
            plugin.node.node_unpublish_volume(request).await.map(drop)
        })
    }

    pub(super) fn unpublish(&self, node: &str) -> Result<(), Status> {
        self.unpublish_at(node, &self.target(node))
    }

    pub(super) fn expand(&self, node: &str, bytes: i64) -> Result<(), Status> {
        self.expand_in_controller(node, bytes)?;
        self.expand_on_node(node, bytes)
    }

    pub(super) fn expand_in_controller(&self, node: &str, bytes: i64) -> Result<(), Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: self.name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(self.capability()),
            ..Default::default()
        };
        self.caller.call(node, |mut plugin| async move {
            plugin.controller.controller_expand_volume(request).await.map(drop)
        })
    }

    pub(super) fn expand_on_node(&self, node: &str, bytes: i64) -> Result<(), Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: self.name.clone(),
            volume_path: text(&self.target(node)),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        self.caller
            .call(node, |mut plugin| async move { plugin.node.node_expand_volume(request).await.map(drop) })
    }

    /// The size that a pod sees.
    pub(super) fn total_bytes(&self, node: &str) -> Result<i64, Status> {
        let usage = self.stats(node)?.usage;
        usage.first().map(|usage| usage.total).ok_or_else(|| Status::internal("no usage"))
    }

    /// What its node says of its condition.
    pub(super) fn condition_on_node(&self, node: &str) -> Result<VolumeCondition, Status> {
        self.stats(node)?.volume_condition.ok_or_else(|| Status::internal("no condition"))
    }

    /// What a controller says of its condition, asked for it alone and for all.
    pub(super) fn conditions(&self, node: &str) -> Result<[VolumeCondition; 2], Status> {
        let name = self.name.clone();
        self.caller.call(node, |mut plugin| async move {
            let request = ControllerGetVolumeRequest { volume_id: name.clone() };
            let alone = plugin.controller.controller_get_volume(request).await?.into_inner();
            let list = plugin.controller.list_volumes(ListVolumesRequest::default()).await?.into_inner();
            let is_it = |volume: Option<&Volume>| volume.is_some_and(|volume| volume.volume_id == name);
            let listed = list.entries.into_iter().find(|entry| is_it(entry.volume.as_ref()));
            let alone = alone.status.and_then(|status| status.volume_condition);
            let listed = listed.and_then(|entry| entry.status?.volume_condition);
            alone.zip(listed).map(<[_; 2]>::from).ok_or_else(|| Status::internal("no condition"))
        })
    }

    fn stats(&self, node: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.name.clone(),
            volume_path: text(&self.target(node)),
            ..Default::default()
        };
        self.caller.call(node, |mut plugin| async move {
            Ok(plugin.node.node_get_volume_stats(request).await?.into_inner())
        })
    }

    /// From the claim to the pod.
    pub(super) fn up(&self, node: &str) -> Result<(), Status> {
        self.attach(node)?;
        self.stage(node)?;
        self.publish(node)
    }

    /// And back.
    pub(super) fn down(&self, node: &str) -> Result<(), Status> {
        self.unpublish(node)?;
        self.unstage(node)?;
        self.detach(node)
    }
}

pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}
