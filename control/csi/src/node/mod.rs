//! The node service: what is attached on this machine becomes a mount where a container looks for it. Needs root.
//!
//! 1. What blocks runs on a thread of its own with the volume's lock, and goes on to its end when the request is given
//!    up: the repetition waits for it.

mod contents;
mod device;
mod mounting;
mod mounts;
mod options;
mod read_only;
mod tool;
mod twin;

use crate::{
    TOPOLOGY_KEY,
    capability::{Access, Kind},
    controller::{FILESYSTEM_KEY, MKFS_OPTIONS_KEY, condition, find, signed},
    filesystem::{Filesystem, MkfsOptions},
    locks::Locks,
    refusal::{invalid, missing},
    v1::{
        NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
        NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
        NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse,
        NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
        NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology,
        VolumeCondition, VolumeUsage,
        node_server::{Node, NodeServer},
        node_service_capability::{Rpc, Type, rpc},
        volume_usage::Unit,
    },
};
use api::client::Client;
use device::Attached;
use model::limits;
use mounts::{Mount, Mounts, block_device};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tonic::{Request, Response, Status};

/// The node service.
#[derive(Debug)]
struct Machine {
    node: String,
    api: Client,
    locks: Locks,
}

/// The node service of a plugin.
pub(crate) fn service(node: String, api: Client) -> NodeServer<impl Node> {
    NodeServer::new(Machine { node, api, locks: Locks::default() })
}

#[tonic::async_trait]
impl Node for Machine {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let access = access(Access::parse(request.volume_capability.as_ref())?, &request.volume_context)?;
        self.alone(id, async {
            let attached = Attached::on(&find(&self.api, id).await?, &self.node)?;
            Ok(move || mounting::stage(&attached.open()?, &staging, &access))
        })
        .await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let NodeUnstageVolumeRequest { volume_id, staging_target_path } = request.get_ref();
        let staging = path("staging_target_path", staging_target_path)?;
        self.alone(id(volume_id)?, async { Ok(move || mounting::unstage(&staging)) }).await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let access = access(Access::parse(request.volume_capability.as_ref())?, &request.volume_context)?;
        let staging = path("staging_target_path", &request.staging_target_path)
            .map_err(|why| Status::failed_precondition(why.message()))?;
        self.alone(id, async {
            let attached = Attached::on(&find(&self.api, id).await?, &self.node)?;
            Ok(move || mounting::publish(&attached.open()?, &staging, &target, &access, request.readonly))
        })
        .await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let NodeUnpublishVolumeRequest { volume_id, target_path } = request.get_ref();
        let target = path("target_path", target_path)?;
        self.alone(id(volume_id)?, async { Ok(move || mounting::unpublish(&target)) }).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let NodeGetVolumeStatsRequest { volume_id, volume_path, .. } = request.get_ref();
        let id = id(volume_id)?;
        if volume_path.is_empty() {
            return Err(missing("volume_path"));
        }
        let view = find(&self.api, id).await?;
        let volume_path = PathBuf::from(volume_path);
        let attached = Attached::on(&view, &self.node)?;
        let (usage, trouble) = self.alone(id, async { Ok(move || usage(attached, &volume_path)) }).await?;
        let mut condition = condition(&view);
        if let Some(trouble) = trouble {
            condition = VolumeCondition { abnormal: true, message: trouble };
        }
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = id(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(missing("volume_path"));
        }
        let range = crate::capacity::Range::parse(request.capacity_range.as_ref())?;
        let bytes = self
            .alone(id, async {
                let attached = Attached::on(&find(&self.api, id).await?, &self.node)?;
                Ok(move || {
                    let device = attached.open()?;
                    if range.grown_size(device.bytes)? > device.bytes {
                        let why =
                            "the device is smaller than that; expand the volume in the controller first";
                        return Err(Status::failed_precondition(why));
                    }
                    let paths = [Path::new(&request.volume_path), Path::new(&request.staging_target_path)];
                    mounting::expand(&device, &paths)?;
                    Ok(device.bytes)
                })
            })
            .await?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: signed(bytes) }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capability =
            |kind: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: capabilities.map(capability).into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([(TOPOLOGY_KEY.to_owned(), self.node.clone())]);
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node.clone(),
            max_volumes_per_node: i64::try_from(limits::ATTACHED_MAX).unwrap_or(0),
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

impl Machine {
    /// Prepares something and does it on a thread of its own, with no other request for the volume beside it.
    async fn alone<T: Send + 'static, W: FnOnce() -> Result<T, Status> + Send + 'static>(
        &self,
        volume: &str,
        prepare: impl Future<Output = Result<W, Status>>,
    ) -> Result<T, Status> {
        let lock = self.locks.of(volume).await;
        let work = prepare.await?;
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop(lock);
            outcome
        });
        done.await.map_err(|error| Status::internal(format!("volume {volume:?}: {error}")))?
    }
}

fn id(volume: &str) -> Result<&str, Status> {
    if volume.is_empty() { Err(missing("volume_id")) } else { Ok(volume) }
}

/// A path of the orchestrator. It has to be absolute: the plugin's own folder means nothing to it.
fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    if text.is_empty() {
        return Err(missing(field));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(invalid(format!("{field} {text:?} is not an absolute path")))
    }
}

/// The file system that the `StorageClass` names is taken where the capability names none; so are its options.
fn access(mut access: Access, context: &HashMap<String, String>) -> Result<Access, Status> {
    let of_class = |key: &str| context.get(key).map_or("", String::as_str);
    if let Kind::Mount { filesystem, mkfs_options, .. } = &mut access.kind {
        if filesystem.is_none() {
            *filesystem = Filesystem::parse(of_class(FILESYSTEM_KEY))?;
        }
        *mkfs_options = MkfsOptions::parse(of_class(MKFS_OPTIONS_KEY))?;
    }
    Ok(access)
}

/// What is used of a volume at a path, and what is wrong with it there.
fn usage(attached: Attached, path: &Path) -> Result<(Vec<VolumeUsage>, Option<String>), Status> {
    let not_there = format!("volume {:?} is not published at {}", attached.volume, path.display());
    let device = attached.open()?;
    if let Some(number) = block_device(path)
        && mounting::is_shown(&device, number)?
    {
        let total = signed(device.bytes);
        return Ok((vec![VolumeUsage { total, unit: Unit::Bytes.into(), ..Default::default() }], None));
    }
    let mounts =
        Mounts::read().map_err(|error| Status::internal(format!("cannot read the mounts: {error}")))?;
    let mount = mounts.at(path);
    if mount.is_some_and(Mount::is_dead) {
        return Ok((Vec::new(), Some("its device is gone, and another was made: end the pod".to_owned())));
    }
    let mount =
        mount.filter(|mount| mount.is_of(device.number)).ok_or_else(|| Status::not_found(not_there))?;
    let found = rustix::fs::statvfs(path)
        .map_err(|error| Status::internal(format!("cannot look at {}: {error}", path.display())))?;
    let used = |unit: Unit, scale: u64, total: u64, free: u64, available: u64| {
        let scaled = |count: u64| signed(count.saturating_mul(scale));
        VolumeUsage {
            available: scaled(available),
            total: scaled(total),
            used: scaled(total.saturating_sub(free)),
            unit: unit.into(),
        }
    };
    let usage = vec![
        used(Unit::Bytes, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail),
        used(Unit::Inodes, 1, found.f_files, found.f_ffree, found.f_favail),
    ];
    let broken = mount.is_read_only_inside() && !mount.is_read_only();
    let trouble = broken
        .then(|| "the file system has turned read only after an error; look at the kernel's log".into());
    Ok((usage, trouble))
}
