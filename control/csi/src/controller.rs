//! The controller service: volumes are created, attached to nodes, grown and deleted by wishes in the API.
//!
//! 1. Each request writes at most one wish, so that none is ever half done; a repetition finds it granted.
//! 2. A wish that depends on what was read names the revision that was read: an answer is never about an older state.

use crate::{
    TOPOLOGY_KEY,
    capability::{Access, Kind},
    capacity::{MIN_BYTES, Range},
    id,
    locks::Locks,
    parameters::{Locality, Parameters, node_of},
    refusal::{invalid, missing, of_api},
    v1::{
        ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
        ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
        ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerServiceCapability,
        ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateVolumeRequest,
        CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest,
        GetCapacityResponse, ListVolumesRequest, ListVolumesResponse, Topology,
        ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeCondition,
        controller_get_volume_response,
        controller_server::{Controller, ControllerServer},
        controller_service_capability::{Rpc, Type, rpc},
        list_volumes_response,
        validate_volume_capabilities_response::Confirmed,
    },
};
use api::{AttachVolume, CreateVolume, ResizeVolume, Room, client, client::Client};
use model::{Node, VolumeIntent, VolumeSpec, VolumeState, VolumeView};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};
use tonic::{Code, Request, Response, Status};

/// Names are at most this long.
const NAME_MAX_BYTES: usize = 128;
/// How often a wish is made while the volume keeps changing.
const ATTEMPTS_MAX: usize = 10;
/// For how long it is not asked again where there is room.
const TOLD_LASTS: Duration = Duration::from_secs(1);
/// As many nodes as an answer names.
const NODES_SHOWN: usize = 5;
/// In front of the tokens of a list, so that not everything is one.
const TOKEN: &str = "after:";
/// The volume context's key for the file system, where the capability names none.
pub(crate) const FILESYSTEM_KEY: &str = "fsType";
/// Its key for the options of the mkfs.
pub(crate) const MKFS_OPTIONS_KEY: &str = "mkfsOptions";
/// Its key for who says that a node is off.
pub(crate) const FAILOVER_KEY: &str = "failover";

/// The controller service.
#[derive(Debug)]
struct Volumes {
    api: Client,
    locks: Locks,
    /// As it was told last, and when: a provisioner asks for each node in turn.
    told: Mutex<Option<(Instant, Told)>>,
}

/// What the API has said, a moment ago.
#[derive(Debug, Default)]
struct Told {
    nodes: Vec<Node>,
    /// How large volumes may be, as far as it was asked.
    largest: HashMap<Room, u64>,
}

/// The controller service of a plugin.
pub(crate) fn service(api: Client) -> ControllerServer<impl Controller> {
    ControllerServer::new(Volumes { api, locks: Locks::default(), told: Mutex::default() })
}

/// The volume of this id. What cannot be a name is no volume's.
pub(crate) async fn find(api: &Client, id: &str) -> Result<VolumeView, Status> {
    if id.is_empty() {
        return Err(missing("volume_id"));
    }
    api.volume(id).await.map_err(|error| match error.kind {
        client::ErrorKind::Usage => Status::not_found(format!("there is no volume {id:?}")),
        _ => of_api(&error),
    })
}

#[tonic::async_trait]
impl Controller for Volumes {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let wish = Wish::parse(request.get_ref())?;
        wish.check_topology(&self.api).await?;
        let _alone = self.locks.of(&wish.name).await;
        let spec = wish.parameters.spec(wish.size_bytes);
        let (near, on) = (wish.near.map(str::to_owned), wish.on.clone());
        let create = CreateVolume { near, on, ..CreateVolume::anywhere(wish.name.clone(), spec) };
        let view = match self.api.create_volume(&create).await {
            Ok(view) => view,
            Err(error) if error.problem == "urn:orlop:problem:conflict" => {
                let view = find(&self.api, &wish.name).await?;
                wish.check_same(&view)?;
                view
            }
            Err(error) => return Err(of_api(&error)),
        };
        let accessible_topology = wish.reachable_from(&view)?;
        let volume_context = wish.parameters.for_nodes();
        let volume = Volume { volume_context, accessible_topology, ..volume(&view) };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = &request.get_ref().volume_id;
        if id.is_empty() {
            return Err(missing("volume_id"));
        }
        let _alone = self.locks.of(id).await;
        match self.api.delete_volume(id).await {
            Ok(None) => {}
            Ok(Some(left)) => return Err(overdue(&left, "deleted")),
            // What cannot be a name is no volume's.
            Err(error) if error.is(404) || error.kind == client::ErrorKind::Usage => {}
            Err(error) => return Err(of_api(&error)),
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let ControllerPublishVolumeRequest { volume_id, node_id, volume_capability, readonly, .. } =
            request.get_ref();
        if volume_id.is_empty() || node_id.is_empty() {
            return Err(missing(if volume_id.is_empty() { "volume_id" } else { "node_id" }));
        }
        let access = Access::parse(volume_capability.as_ref())?;
        if *readonly {
            let why = "a writer's volume is not attached read only; publish it so on the node, or use a READER_ONLY mode";
            return Err(invalid(why));
        }
        let _alone = self.locks.of(volume_id).await;
        let wish = AttachVolume { node: Some(node_id.clone()), take: false, read_only: access.many_nodes };
        let attached = unchanged(|| async {
            let view = find(&self.api, volume_id).await?;
            check_published(&view, node_id, access.many_nodes)?;
            Ok(self.api.attach_volume(volume_id, &wish, Some(view.revision)).await)
        })
        .await?;
        if !is_attached(&attached, node_id, access.many_nodes) {
            return Err(overdue(&attached, "attached"));
        }
        Ok(Response::new(ControllerPublishVolumeResponse { publish_context: HashMap::new() }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let ControllerUnpublishVolumeRequest { volume_id, node_id, .. } = request.get_ref();
        // No node means all nodes.
        let node = Some(node_id.as_str()).filter(|node| !node.is_empty());
        let _alone = self.locks.of(volume_id).await;
        let detached = unchanged(|| async {
            let view = find(&self.api, volume_id).await?;
            // One that is meant to be elsewhere only is gone from here, or on its way.
            let elsewhere = view.intent.attach.as_ref().is_some_and(|attach| attach.node != *node_id);
            if node.is_some() && elsewhere {
                return Ok(Ok(view));
            }
            Ok(self.api.detach_volume(volume_id, node, Some(view.revision)).await)
        })
        .await;
        match detached {
            Ok(view) if view.intent.attach.is_none() && view.status.has_device(node) => {
                Err(overdue(&view, "detached"))
            }
            Err(status) if status.code() != Code::NotFound => Err(status),
            _ => Ok(Response::new(ControllerUnpublishVolumeResponse {})),
        }
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        if request.volume_capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        find(&self.api, &request.volume_id).await?;
        let possible = Access::parse_all(&request.volume_capabilities)
            .and_then(|_| Parameters::parse(&request.parameters))
            .and_then(|_| no_mutable(&request.mutable_parameters));
        Ok(Response::new(match possible {
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(why) => {
                ValidateVolumeCapabilitiesResponse { confirmed: None, message: why.message().to_owned() }
            }
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let ListVolumesRequest { max_entries, starting_token } = request.into_inner();
        let after = match starting_token.strip_prefix(TOKEN) {
            Some(name) => name,
            None if starting_token.is_empty() => "",
            None => return Err(Status::aborted("starting_token is not one of ours; begin anew without one")),
        };
        let entries_max = match usize::try_from(max_entries) {
            Ok(0) => usize::MAX,
            Ok(max) => max,
            Err(_) => return Err(invalid("max_entries is negative")),
        };
        let mut views = self.api.volumes().await.map_err(|error| of_api(&error))?;
        views.retain(|view| view.name.as_str() > after);
        let more = views.len() > entries_max;
        views.truncate(entries_max);
        // The name of the last one: it still means the same place when that volume is gone.
        let last = views.last().filter(|_| more);
        let next_token = last.map(|view| format!("{TOKEN}{}", view.name)).unwrap_or_default();
        let entry = |view: &VolumeView| list_volumes_response::Entry {
            volume: Some(volume(view)),
            status: Some(list_volumes_response::VolumeStatus {
                published_node_ids: published_on(view),
                volume_condition: Some(condition(view)),
            }),
        };
        Ok(Response::new(ListVolumesResponse { entries: views.iter().map(entry).collect(), next_token }))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let GetCapacityRequest { volume_capabilities, parameters, accessible_topology } =
            request.into_inner();
        volume_capabilities.iter().try_for_each(|one| Access::parse(Some(one)).map(drop))?;
        let parameters = Parameters::parse(&parameters)?;
        let place = accessible_topology.as_ref();
        // A volume is within reach of every node, wherever its copies are, unless one has to be there.
        let on = place.and_then(node_of).filter(|_| parameters.locality == Locality::Strict);
        let Parameters { copies, class, spread, .. } = parameters;
        let room = Room { copies, class, spread, on: on.map(str::to_owned) };
        let bytes = self.largest_volume(room, place).await?;
        Ok(Response::new(GetCapacityResponse {
            available_capacity: signed(bytes),
            maximum_volume_size: Some(signed(bytes)),
            minimum_volume_size: Some(signed(MIN_BYTES)),
        }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let ControllerExpandVolumeRequest { volume_id, capacity_range, volume_capability, .. } =
            request.get_ref();
        if capacity_range.is_none() {
            return Err(missing("capacity_range"));
        }
        let range = Range::parse(capacity_range.as_ref())?;
        let access = volume_capability.as_ref().map(|one| Access::parse(Some(one))).transpose()?;
        let _alone = self.locks.of(volume_id).await;
        let view = find(&self.api, volume_id).await?;
        let size_bytes = range.grown_size(view.spec.size_bytes)?;
        // Also if it has that size already: hosts may not have seen it yet.
        let grown = self.api.resize_volume(volume_id, &ResizeVolume { size_bytes }).await;
        let grown = grown.map_err(|error| of_api(&error))?;
        if grown.status.size_bytes < size_bytes {
            return Err(overdue(&grown, "larger"));
        }
        Ok(Response::new(ControllerExpandVolumeResponse {
            capacity_bytes: signed(size_bytes),
            node_expansion_required: access.is_none_or(|access| access.kind != Kind::Block),
        }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let view = find(&self.api, &request.get_ref().volume_id).await?;
        let status = controller_get_volume_response::VolumeStatus {
            published_node_ids: published_on(&view),
            volume_condition: Some(condition(&view)),
        };
        Ok(Response::new(ControllerGetVolumeResponse { volume: Some(volume(&view)), status: Some(status) }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::ListVolumesPublishedNodes,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::GetVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capability = |kind: rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = capabilities.map(capability).into();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }
}

impl Volumes {
    /// The largest volume that there is room for, as it is or was a moment ago; 0 if the place is no node.
    async fn largest_volume(&self, room: Room, place: Option<&Topology>) -> Result<u64, Status> {
        let mut last = self.told.lock().await;
        if last.as_ref().is_none_or(|(told, _)| told.elapsed() >= TOLD_LASTS) {
            let nodes = self.api.nodes().await.map_err(|error| of_api(&error))?;
            *last = Some((Instant::now(), Told { nodes, largest: HashMap::new() }));
        }
        let (_, told) = last.get_or_insert_with(|| (Instant::now(), Told::default()));
        if !place.is_none_or(|place| is_one_of(&told.nodes, place)) {
            return Ok(0);
        }
        if let Some(bytes) = told.largest.get(&room) {
            return Ok(*bytes);
        }
        let capacity = self.api.capacity(&room).await.map_err(|error| of_api(&error))?;
        told.largest.insert(room, capacity.largest_volume_bytes);
        Ok(capacity.largest_volume_bytes)
    }
}

/// A volume that is published elsewhere is never taken away from there, unless all of them only read.
fn check_published(view: &VolumeView, node: &str, many_nodes: bool) -> Result<(), Status> {
    let name = &view.name;
    let attach = view.intent.attach.as_ref().map(|attach| attach.node.as_str());
    let readers = &view.intent.readers;
    if attach.is_some_and(|there| many_nodes && there == node)
        || !many_nodes && readers.iter().any(|there| there == node)
    {
        return Err(Status::already_exists(format!(
            "volume {name:?} is published on node {node:?} in another access mode; unpublish it there first"
        )));
    }
    if let Some(there) = attach.filter(|there| *there != node) {
        return Err(Status::failed_precondition(format!(
            "volume {name:?} is published on node {there:?}; unpublish it there first"
        )));
    }
    if !many_nodes && !readers.is_empty() {
        return Err(Status::failed_precondition(format!(
            "volume {name:?} is published read only on {}; unpublish it there first",
            readers.join(", ")
        )));
    }
    Ok(())
}

/// Whether the device is there.
fn is_attached(view: &VolumeView, node: &str, many_nodes: bool) -> bool {
    let status = &view.status;
    if many_nodes {
        return status.reader(node).is_some_and(|reader| reader.device.is_some());
    }
    status.device.is_some() && status.state != VolumeState::Attaching
}

/// Makes a wish anew while the volume changes between the look and the wish: the manager writes to it, too.
async fn unchanged<F>(wish: impl Fn() -> F) -> Result<VolumeView, Status>
where
    F: Future<Output = Result<Result<VolumeView, client::Error>, Status>>,
{
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        match wish().await? {
            Ok(view) => return Ok(view),
            Err(error) if error.is(412) => last = Some(error),
            Err(error) => return Err(of_api(&error)),
        }
    }
    Err(last.map_or_else(|| Status::internal("no attempt was made"), |error| of_api(&error)))
}

/// What a request to create a volume asks for.
struct Wish<'a> {
    name: String,
    range: Range,
    size_bytes: u64,
    parameters: Parameters,
    topology: &'a [Topology],
    /// The node that should have a copy. A repetition may name another one: the volume that there is answers it.
    near: Option<&'a str>,
    /// The nodes of which one has to have a copy; none: any.
    on: Option<BTreeSet<String>>,
}

impl<'a> Wish<'a> {
    fn parse(request: &'a CreateVolumeRequest) -> Result<Self, Status> {
        if request.name.is_empty() {
            return Err(missing("name"));
        }
        if request.name.len() > NAME_MAX_BYTES {
            return Err(invalid(format!("name has more than {NAME_MAX_BYTES} bytes")));
        }
        let access = Access::parse_all(&request.volume_capabilities)?;
        if request.volume_content_source.is_some() {
            return Err(invalid("volume_content_source is not supported yet: volumes begin empty"));
        }
        no_mutable(&request.mutable_parameters)?;
        let parameters = Parameters::parse(&request.parameters)?;
        let range = Range::parse(request.capacity_range.as_ref())?;
        let size_bytes = range.new_size(&access, parameters.filesystem.unwrap_or_default())?;
        let topology = request.accessibility_requirements.as_ref();
        Ok(Self {
            name: id::of_name(&request.name),
            range,
            size_bytes,
            near: topology.and_then(|topology| parameters.locality.near(&topology.preferred)),
            on: topology.and_then(|topology| parameters.locality.on(topology)),
            parameters,
            topology: topology.map_or(&[], |topology| &topology.requisite),
        })
    }

    /// A volume is within reach of every node; only a place where there is no node at all is impossible.
    async fn check_topology(&self, api: &Client) -> Result<(), Status> {
        if self.topology.is_empty() {
            return Ok(());
        }
        let nodes = api.nodes().await.map_err(|error| of_api(&error))?;
        if self.topology.iter().any(|place| is_one_of(&nodes, place)) {
            return Ok(());
        }
        let why =
            format!("none of the places in accessibility_requirements is a node of Orlop ({TOPOLOGY_KEY})");
        Err(Status::resource_exhausted(why))
    }

    /// Whether the volume that there is could be the answer to this request.
    fn check_same(&self, view: &VolumeView) -> Result<(), Status> {
        let name = &view.name;
        if view.intent.deleting {
            return Err(Status::aborted(format!(
                "volume {name:?} is being deleted; try again when it is gone"
            )));
        }
        let VolumeSpec { size_bytes, copies, stripes, class, ref spread, .. } = view.spec;
        let wanted = &self.parameters;
        let same = self.range.holds(size_bytes)
            && (copies, stripes, class) == (wanted.copies, wanted.stripes, wanted.class)
            && *spread == wanted.spread;
        if same {
            return Ok(());
        }
        let class = class.map_or_else(|| "any".to_owned(), |class| class.to_string());
        let spread = spread.as_deref().unwrap_or("node");
        Err(Status::already_exists(format!(
            "volume {name:?} exists with {size_bytes} bytes, {copies} copies, {stripes} stripes, class {class} and placement \
             {spread}; choose another name"
        )))
    }

    /// From where pods reach the volume that there is: none stands for everywhere.
    fn reachable_from(&self, view: &VolumeView) -> Result<Vec<Topology>, Status> {
        if self.parameters.locality != Locality::Strict {
            return Ok(Vec::new());
        }
        let nodes: Vec<&str> = view.intent.members.iter().map(|member| member.node.as_str()).collect();
        if nodes.is_empty() {
            return Err(overdue(view, "placed"));
        }
        // Made for another place, where nobody has heard of it.
        if let Some(on) = &self.on
            && !nodes.iter().any(|node| on.contains(*node))
        {
            let on: Vec<&str> = on.iter().map(String::as_str).take(NODES_SHOWN).collect();
            return Err(Status::resource_exhausted(format!(
                "volume {:?} exists with copies on {}, and has none on {}; use it there",
                view.name,
                nodes.join(", "),
                on.join(" or ")
            )));
        }
        let place = |node: &str| Topology { segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into() };
        Ok(nodes.into_iter().map(place).collect())
    }
}

fn no_mutable(parameters: &HashMap<String, String>) -> Result<(), Status> {
    match parameters.keys().min() {
        None => Ok(()),
        Some(key) => {
            let shown: String = key.chars().take(80).collect();
            Err(invalid(format!("mutable parameter {shown:?} is not known: there are none yet")))
        }
    }
}

/// Whether the segments name a node that there is.
fn is_one_of(nodes: &[Node], place: &Topology) -> bool {
    place
        .segments
        .iter()
        .all(|(key, name)| key == TOPOLOGY_KEY && nodes.iter().any(|node| node.name == *name))
}

fn published_on(view: &VolumeView) -> Vec<String> {
    let VolumeIntent { attach, readers, .. } = &view.intent;
    attach.iter().map(|attach| &attach.node).chain(readers).cloned().collect()
}

fn volume(view: &VolumeView) -> Volume {
    Volume {
        capacity_bytes: signed(view.spec.size_bytes),
        volume_id: view.name.clone(),
        ..Default::default()
    }
}

/// Whether somebody should look at the volume, and why.
pub(crate) fn condition(view: &VolumeView) -> VolumeCondition {
    let state = view.status.state;
    let abnormal = matches!(state, VolumeState::Pending | VolumeState::Degraded | VolumeState::Stalled);
    let message =
        view.status.message.as_ref().map_or_else(|| state.to_string(), |why| format!("{state}: {why}"));
    VolumeCondition { abnormal, message }
}

/// A wish that has not come true in time. It goes on by itself; the repetition finds it further on.
fn overdue(view: &VolumeView, wanted: &str) -> Status {
    let why = view.status.message.as_deref().unwrap_or("no reason is known");
    Status::unavailable(format!("volume {:?} is not {wanted} yet ({}): {why}", view.name, view.status.state))
}

/// Sizes of volumes are far below what fits.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;
