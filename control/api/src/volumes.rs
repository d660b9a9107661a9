//! Volumes: requests become wishes in the store, by compare-and-swap.
//!
//! 1. A request that is refused has changed nothing.
//! 2. A wish that is already so is not an error, and changes nothing.
//! 3. A place is found by what watches have told, which may be a moment old; refused is only by what the store says.

use crate::{
    App, Problem,
    nodes::find,
    requests::{Body, IfMatch, OnNode, Wait, etag_header},
    wait::{complete, until},
};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use manager::{Copies, Promised, View, check_growth, place};
use model::{
    Attach, MemberIntent, MemberState, Object, Scheduling, Stored, Volume, VolumeIntent, VolumeSpec,
    VolumeState, VolumeView, limits,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use store::ErrorKind;
use utoipa::ToSchema;
use uuid::Uuid;

/// How often a change is tried again when the object changes under it.
pub(crate) const ATTEMPTS_MAX: usize = 10;

/// All volumes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// By name.
    pub items: Vec<VolumeView>,
}

/// A volume to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateVolume {
    /// A DNS label that no volume has.
    pub name: String,
    /// What it shall be.
    pub spec: VolumeSpec,
    /// The node that gets a copy if it can take one; a wish for this request only, of which nothing is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<String>,
    /// Of these nodes one gets a copy, or the volume is not made; none: any will do. For this request only, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<BTreeSet<String>>,
}

impl CreateVolume {
    /// One whose copies may be anywhere.
    pub const fn anywhere(name: String, spec: VolumeSpec) -> Self {
        Self { name, spec, near: None, on: None }
    }
}

/// Where the device shall be.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachVolume {
    /// The node; none: where it is attached already, else a node that is ready, best one with a copy.
    #[serde(default)]
    pub node: Option<String>,
    /// Take it away from a node that is ready: the device there stops working.
    #[serde(default, rename = "move")]
    pub take: bool,
    /// A device that can be read only, beside those of other nodes, while the volume is attached nowhere for writing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The new size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResizeVolume {
    /// A multiple of 1 MiB, not smaller than it is.
    pub size_bytes: u64,
}

/// All volumes.
#[utoipa::path(get, path = "/api/v1/volumes", tag = "volumes", responses((status = 200, body = VolumeList)))]
pub(crate) async fn list_volumes(State(app): State<App>) -> Result<Json<VolumeList>, Problem> {
    let view = View::load(&app.client).await?;
    let around = view.surroundings();
    let show = |volume: &Stored<Volume>| {
        let record = view.record(volume.value.uuid).map(|record| &record.value);
        let status = view.status(volume.value.uuid).map(|status| &status.value);
        model::view(&volume.value, volume.revision, record, status, &around)
    };
    Ok(Json(VolumeList { items: view.volumes.values().map(show).collect() }))
}

/// One volume. Its `status.message` says why it is not attached, placed or in sync.
#[utoipa::path(
    get, path = "/api/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    responses(
        (status = 200, body = VolumeView, headers(("ETag" = String, description = "the revision"))),
        (status = 404, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_volume(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let volume = find(&app.client, "volume", &name).await?;
    Ok(answer(StatusCode::OK, &complete(&app, volume).await?))
}

/// Makes a volume. It has a place when this returns, and with `wait` also its replicas.
#[utoipa::path(
    post, path = "/api/v1/volumes", tag = "volumes", request_body = CreateVolume,
    params(("wait" = Option<String>, Query, description = "How long to wait until it can be attached: 30s")),
    responses(
        (status = 201, body = VolumeView, headers(("Location" = String), ("ETag" = String))),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "the name is taken, or there are too few nodes, or too little space"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "not a valid volume"),
    )
)]
pub(crate) async fn create_volume(
    State(app): State<App>,
    Wait(wait): Wait,
    Body(CreateVolume { name, spec, near, on }): Body<CreateVolume>,
) -> Result<Response, Problem> {
    let mut volume = Volume {
        name: name.clone(),
        uuid: Uuid::new_v4(),
        spec,
        intent: VolumeIntent::default(),
        message: None,
    };
    volume.validate()?;
    {
        let _alone = app.placing.lock().await;
        let mut live = app.live().await?;
        let copies = Copies { near: near.as_deref(), on: on.as_ref(), ..Copies::of(&volume.spec) };
        let members = match live.see(|view| places(&app, view, &name, &copies)) {
            Ok(members) => members,
            // Invariant 3.
            Err(_) => places(&app, &View::load(&app.client).await?, &name, &copies)?,
        };
        volume.intent.members = members;
        match app.client.create(&volume).await {
            // The next one has to know what this one was promised.
            Ok(revision) => live.has(&name, revision).await,
            Err(error) if error.kind() == ErrorKind::Conflict => return Err(taken(&name)),
            Err(error) => return Err(error.into()),
        }
    }
    tracing::info!(volume = name, size_bytes = volume.spec.size_bytes, "volume created");
    let made = |seen: Option<&VolumeView>| {
        seen.is_none_or(|seen| !matches!(seen.status.state, VolumeState::Pending | VolumeState::Creating))
    };
    let (seen, _) = until(&app, &name, wait, made).await?;
    let seen = seen.ok_or_else(|| Problem::not_found("volume", &name))?;
    let mut headers = HeaderMap::new();
    if let Ok(location) = format!("/api/v1/volumes/{name}").parse() {
        headers.insert(header::LOCATION, location);
    }
    Ok((headers, answer(StatusCode::CREATED, &seen)).into_response())
}

/// Deletes a volume and all its data.
#[utoipa::path(
    delete, path = "/api/v1/volumes/{name}", tag = "volumes",
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
        ("wait" = Option<String>, Query, description = "How long to wait until it is gone: 30s"),
    ),
    responses(
        (status = 202, body = VolumeView, description = "it is on its way out"),
        (status = 204, description = "it is gone"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "it is attached"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete_volume(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
    Wait(wait): Wait,
) -> Result<Response, Problem> {
    let uuid = change(&app, &name, &if_match, |volume| {
        if let Some(attach) = &volume.intent.attach {
            let detail = format!("{} is attached on node {}", object(&name), attach.node);
            return Err(Problem::in_the_way(detail, format!("run `orlop volume detach {name}` first")));
        }
        refuse_readers(volume)?;
        volume.intent.deleting = true;
        volume.intent.owner = None;
        Ok(())
    })
    .await?;
    // Another volume of that name is not this one.
    let gone = |seen: Option<&VolumeView>| seen.is_none_or(|seen| seen.uuid != uuid);
    match until(&app, &name, wait, gone).await? {
        (Some(seen), false) => Ok(answer(StatusCode::ACCEPTED, &seen)),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// Attaches a volume: makes its device on a node.
#[utoipa::path(
    post, path = "/api/v1/volumes/{name}/attach", tag = "volumes", request_body = AttachVolume,
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
        ("wait" = Option<String>, Query, description = "How long to wait for the device: 30s"),
    ),
    responses(
        (status = 200, body = VolumeView, description = "the device is there: status.device, or status.readers"),
        (status = 202, body = VolumeView, description = "it is on its way; status.message says what it waits for"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "attached on another node that is ready, or read there, or the node is not ready"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn attach_volume(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
    Wait(wait): Wait,
    Body(wish): Body<AttachVolume>,
) -> Result<Response, Problem> {
    let wished = |view: &View, volume: &mut Volume| {
        let node = wish.node.clone().map_or_else(|| choose(view, volume), Ok)?;
        if wish.read_only {
            return attach_reader(view, volume, node);
        }
        attach(view, volume, node, wish.take)
    };
    let live = app.live().await?;
    if change(&app, &name, &if_match, |volume| live.see(|view| wished(view, volume))).await.is_err() {
        // Invariant 3.
        let view = View::load(&app.client).await?;
        change(&app, &name, &if_match, |volume| wished(&view, volume)).await?;
    }
    let attached = |seen: Option<&VolumeView>| {
        seen.is_none_or(|seen| match &wish.node {
            _ if !wish.read_only => {
                seen.status.device.is_some() && seen.status.state != VolumeState::Attaching
            }
            Some(node) => seen.status.reader(node).is_some_and(|reader| reader.device.is_some()),
            // Which one was chosen is not kept: all are there.
            None => seen.status.readers.iter().all(|reader| reader.device.is_some()),
        })
    };
    settled(&name, until(&app, &name, wait, attached).await?)
}

/// Detaches a volume: its devices go away, or with `node` the one there; its data stays.
#[utoipa::path(
    post, path = "/api/v1/volumes/{name}/detach", tag = "volumes",
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
        ("node" = Option<String>, Query, description = "Only the device on this node, if there is one"),
        ("wait" = Option<String>, Query, description = "How long to wait until the device is gone: 30s"),
    ),
    responses(
        (status = 200, body = VolumeView, description = "the device is gone"),
        (status = 202, body = VolumeView, description = "it is on its way out"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn detach_volume(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
    Wait(wait): Wait,
    OnNode(node): OnNode,
) -> Result<Response, Problem> {
    let meant = |there: &str| node.as_ref().is_none_or(|node| node == there);
    // Which nodes still have a read-only device is known from what all of them report.
    drop(app.live().await?);
    change(&app, &name, &if_match, |volume| {
        // The owner stays: the manager lets it go when no rebuild needs it.
        volume.intent.attach.take_if(|attach| meant(&attach.node));
        volume.intent.readers.retain(|reader| !meant(reader));
        Ok(())
    })
    .await?;
    let detached =
        |seen: Option<&VolumeView>| seen.is_none_or(|seen| !seen.status.has_device(node.as_deref()));
    settled(&name, until(&app, &name, wait, detached).await?)
}

/// Makes a volume larger.
#[utoipa::path(
    post, path = "/api/v1/volumes/{name}/resize", tag = "volumes", request_body = ResizeVolume,
    params(
        ("name" = String, Path), ("If-Match" = Option<String>, Header, description = "only at this revision"),
        ("wait" = Option<String>, Query, description = "How long to wait until hosts see the new size: 30s"),
    ),
    responses(
        (status = 200, body = VolumeView, description = "hosts see the new size"),
        (status = 202, body = VolumeView, description = "it is on its way"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn resize_volume(
    State(app): State<App>,
    Path(name): Path<String>,
    if_match: IfMatch,
    Wait(wait): Wait,
    Body(ResizeVolume { size_bytes }): Body<ResizeVolume>,
) -> Result<Response, Problem> {
    {
        let _alone = app.placing.lock().await;
        let view = View::load(&app.client).await?;
        change(&app, &name, &if_match, |volume| {
            let before_bytes = volume.spec.size_bytes;
            volume.spec.size_bytes = size_bytes;
            volume.validate()?;
            if size_bytes < before_bytes {
                let (from, to) = (model::SizeText(before_bytes), model::SizeText(size_bytes));
                let detail = format!("{} cannot shrink from {from} to {to}", object(&name));
                return Err(Problem::in_the_way(detail, "make a smaller volume and copy the data"));
            }
            check_growth(&view, app.overcommit, &volume.intent.members, before_bytes, size_bytes)
                .map_err(|why| Problem::no_place(&object(&name), &why))
        })
        .await?;
    }
    let grown =
        |seen: Option<&VolumeView>| seen.is_none_or(|seen| seen.status.size_bytes == seen.spec.size_bytes);
    settled(&name, until(&app, &name, wait, grown).await?)
}

/// Where a new volume's copies may be.
fn places(app: &App, view: &View, name: &str, copies: &Copies<'_>) -> Result<Vec<MemberIntent>, Problem> {
    if view.volumes.contains_key(name) {
        return Err(taken(name));
    }
    let mut promised = Promised::of(view);
    place(view, &mut promised, app.overcommit, copies, &mut Uuid::new_v4)
        .map_err(|why| Problem::no_place(&object(name), &why))
}

/// Attaches for reading: beside other readers, never beside a writer.
fn attach_reader(view: &View, volume: &mut Volume, node: String) -> Result<(), Problem> {
    let name = &volume.name;
    if !view.nodes.contains_key(&node) {
        return Err(Problem::not_found("node", &node));
    }
    if let Some(now) = &volume.intent.attach {
        let detail = format!("{} is attached for writing on node {}", object(name), now.node);
        return Err(Problem::in_the_way(detail, format!("run `orlop volume detach {name}` first")));
    }
    let Err(place) = volume.intent.readers.binary_search(&node) else { return Ok(()) };
    check_node(view, name, &node)?;
    // Somebody may have written since the readers before.
    if volume.intent.readers.is_empty() {
        volume.intent.attach_serial += 1;
    }
    volume.intent.readers.insert(place, node);
    Ok(())
}

/// Names those who read.
fn refuse_readers(volume: &Volume) -> Result<(), Problem> {
    let VolumeIntent { readers, .. } = &volume.intent;
    if readers.is_empty() {
        return Ok(());
    }
    let detail = format!("{} is attached read only on {}", object(&volume.name), readers.join(", "));
    Err(Problem::in_the_way(detail, format!("run `orlop volume detach {}` first", volume.name)))
}

/// Whether one more device can be on the node.
fn check_node(view: &View, name: &str, node: &str) -> Result<(), Problem> {
    if !view.is_ready(node) {
        let detail = format!("{}: node {node} is NotReady", object(name));
        return Err(Problem::in_the_way(detail, "start its engine, or choose another node"));
    }
    let on_node = |other: &&Stored<Volume>| {
        let VolumeIntent { attach, readers, .. } = &other.value.intent;
        let attached = attach.as_ref().is_some_and(|there| there.node == node);
        other.value.name != *name && (attached || readers.iter().any(|reader| reader == node))
    };
    let there = view.volumes.values().filter(on_node).count();
    if there >= limits::ATTACHED_MAX {
        return Err(Problem::node_full(&object(name), node, there));
    }
    Ok(())
}

fn attach(view: &View, volume: &mut Volume, node: String, take: bool) -> Result<(), Problem> {
    let name = &volume.name;
    if !view.nodes.contains_key(&node) {
        return Err(Problem::not_found("node", &node));
    }
    if !take && volume.intent.readers.iter().any(|reader| view.is_ready(reader)) {
        refuse_readers(volume)?;
    }
    if let Some(now) = &volume.intent.attach {
        if now.node == node {
            return Ok(());
        }
        // Safe at any time, for epochs fence the old nexus; but whoever uses the device there loses it.
        if view.is_ready(&now.node) && !take {
            let detail = format!("{} is attached on node {}, which is Ready", object(name), now.node);
            return Err(Problem::in_the_way(detail, format!("run `orlop volume detach {name}` first")));
        }
    }
    check_node(view, name, &node)?;
    // Their devices fail from now on: they remember what is about to change.
    volume.intent.readers.clear();
    volume.intent.owner = Some(node.clone());
    volume.intent.attach = Some(Attach { node });
    volume.intent.attach_serial += 1;
    Ok(())
}

/// Where to attach when nobody says where: where it is, else where a copy that is in sync is, else where few are; on a
/// node that is cordoned only if all are.
fn choose(view: &View, volume: &Volume) -> Result<String, Problem> {
    if let Some(attach) = &volume.intent.attach
        && view.is_ready(&attach.node)
    {
        return Ok(attach.node.clone());
    }
    let members = view.record(volume.uuid).map_or(&[][..], |record| &record.value.members);
    let mut load: BTreeMap<&str, usize> = BTreeMap::new();
    for owner in view.volumes.values().filter_map(|volume| volume.value.intent.owner.as_deref()) {
        *load.entry(owner).or_default() += 1;
    }
    // The smallest is the best; of equals, the first by name.
    let rank = |node: &&str| {
        let closed = view.scheduling(node) != Scheduling::Enabled;
        let in_sync =
            members.iter().any(|member| member.node == *node && member.state == MemberState::InSync);
        let named = volume.intent.members.iter().any(|member| member.node == *node);
        (closed, !in_sync, !named, load.get(node).copied())
    };
    let ready = view.nodes.keys().map(String::as_str).filter(|node| view.is_ready(node));
    ready.min_by_key(rank).map(str::to_owned).ok_or_else(|| {
        Problem::in_the_way(format!("{}: no node is Ready", object(&volume.name)), "start a node's engine")
    })
}

/// Changes a volume by compare-and-swap, anew whenever it has changed meanwhile; answers its UUID.
async fn change(
    app: &App,
    name: &str,
    if_match: &IfMatch,
    wish: impl Fn(&mut Volume) -> Result<(), Problem>,
) -> Result<Uuid, Problem> {
    for _ in 0..ATTEMPTS_MAX {
        let Stored { revision, value: mut volume } = find::<Volume>(&app.client, "volume", name).await?;
        if_match.check(&object(name), revision)?;
        let before = volume.clone();
        if before.intent.deleting {
            let detail = format!("{} is being deleted", object(name));
            return if_deleting(&before, &wish, detail);
        }
        wish(&mut volume)?;
        if volume == before {
            return Ok(before.uuid);
        }
        volume.validate()?;
        match app.client.replace(&volume, revision).await {
            Ok(_) => return Ok(before.uuid),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    let detail = format!("{} keeps changing", object(name));
    Err(Problem::in_the_way(detail, "try again"))
}

/// Only the wish to delete it is still granted: it is granted already.
fn if_deleting(
    volume: &Volume,
    wish: impl Fn(&mut Volume) -> Result<(), Problem>,
    detail: String,
) -> Result<Uuid, Problem> {
    let mut wished = volume.clone();
    wish(&mut wished)?;
    if wished == *volume {
        return Ok(volume.uuid);
    }
    Err(Problem::in_the_way(detail, "wait until it is gone"))
}

fn settled(name: &str, (seen, as_wished): (Option<VolumeView>, bool)) -> Result<Response, Problem> {
    let seen = seen.ok_or_else(|| Problem::not_found("volume", name))?;
    Ok(answer(if as_wished { StatusCode::OK } else { StatusCode::ACCEPTED }, &seen))
}

pub(crate) fn answer(status: StatusCode, view: &VolumeView) -> Response {
    (status, etag_header(view.revision), Json(view)).into_response()
}

pub(crate) fn object(name: &str) -> String {
    format!("volume {name:?}")
}

fn taken(name: &str) -> Problem {
    Problem::in_the_way(format!("{} exists already", object(name)), "choose another name, or delete it first")
}
