//! `orlop volume ...`: each verb writes a wish and waits until it has come true, or says why it has not.

use crate::arguments::{Api, VolumeAttach, VolumeCreate, VolumeName, VolumeResize};
use crate::client::Client;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{self, Format};
use api::VolumeList;
use device::ByteCount;
use model::{MemberPhase, MemberView, VolumeSpec, VolumeState, VolumeView};
use serde::Serialize;

/// How long a verb waits for its wish to come true: said to the API as `?wait=`.
const PATIENCE_SECONDS: u64 = 60;

#[derive(Serialize)]
struct CreateRequest<'a> {
    name: &'a str,
    spec: VolumeSpec,
}

/// The path of one volume in the API. A name that no volume can have is refused here, before it becomes a path.
fn path(name: &str) -> Outcome<String> {
    let possible = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !possible {
        return Err(Failure::new(format!("{name:?} is not the name of a volume"))
            .kind(Kind::Usage)
            .hint("names are lower-case letters, digits and hyphens"));
    }
    Ok(format!("/api/v1/volumes/{name}"))
}

/// One volume.
pub(crate) async fn view(client: &Client, name: &str) -> Outcome<VolumeView> {
    client.get(&path(name)?).await
}

/// The path of a request about one volume that is answered when it is so, or patience ends.
fn wish_path(name: &str, verb: &str) -> Outcome<String> {
    Ok(format!("{}{verb}?wait={PATIENCE_SECONDS}s", path(name)?))
}

/// Runs `orlop volume create`.
pub(crate) async fn create(arguments: &VolumeCreate) -> Outcome {
    let VolumeCreate { name, size, copies, stripes, block_size, api, output } = arguments;
    let block_size = u32::try_from(block_size.0).unwrap_or(u32::MAX);
    let spec = VolumeSpec { size_bytes: size.0, copies: *copies, stripes: *stripes, block_size };
    let volume = create_and_wait(&Client::new(&api.api)?, name, spec).await?;
    output::show(output.output, &volume, |volume| {
        let nodes: Vec<&str> = volume.status.members.iter().map(|member| member.node.as_str()).collect();
        format!("volume {name:?} created: {size}, copies on {}", nodes.join(", "))
    })
}

/// Creates a volume and waits until its copies exist.
pub(crate) async fn create_and_wait(client: &Client, name: &str, spec: VolumeSpec) -> Outcome<VolumeView> {
    path(name)?;
    spec.validate(name).map_err(|invalid| Failure::new(invalid.to_string()).kind(Kind::Usage))?;
    let request = format!("/api/v1/volumes?wait={PATIENCE_SECONDS}s");
    let volume: VolumeView = client.post(&request, &CreateRequest { name, spec }).await?;
    match volume.status.state {
        VolumeState::Pending | VolumeState::Creating => Err(overdue(&volume, "created")),
        _ => Ok(volume),
    }
}

/// Runs `orlop volume list`.
pub(crate) async fn list(api: &Api, format: Format) -> Outcome {
    let VolumeList { items: volumes } = Client::new(&api.api)?.get("/api/v1/volumes").await?;
    output::show(format, &volumes, |volumes| {
        let row = |volume: &VolumeView| {
            let status = &volume.status;
            vec![
                volume.name.clone(),
                status.state.to_string(),
                ByteCount(volume.spec.size_bytes).to_string(),
                copies(volume),
                status.owner.clone().unwrap_or_default(),
                status.device.clone().unwrap_or_default(),
                status.message.clone().unwrap_or_default(),
            ]
        };
        let header = ["NAME", "STATE", "SIZE", "IN SYNC", "OWNER", "DEVICE", "MESSAGE"];
        output::table(&header, volumes.iter().map(row).collect(), "no volumes")
    })
}

/// Runs `orlop volume get`.
pub(crate) async fn get(arguments: &VolumeName) -> Outcome {
    let volume = view(&Client::new(&arguments.api.api)?, &arguments.name).await?;
    output::show(arguments.output.output, &volume, describe)
}

/// Runs `orlop volume delete`.
pub(crate) async fn delete(arguments: &VolumeName) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    let name = &arguments.name;
    let left: Option<VolumeView> = client.delete(&wish_path(name, "")?).await?;
    if let Some(volume) = left {
        return Err(overdue(&volume, "deleted"));
    }
    let gone = serde_json::json!({ "name": name, "deleted": true });
    output::show(arguments.output.output, &gone, |_| format!("volume {name:?} deleted"))
}

/// Runs `orlop volume attach`: prints the path of the device.
pub(crate) async fn attach(arguments: &VolumeAttach) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    let volume = attach_and_wait(&client, &arguments.name, arguments.node.as_deref(), arguments.take).await?;
    if let Some(device) = &volume.status.device
        && device.starts_with("nvme+tcp://")
    {
        // Only an engine that is not root has none: where root lacks something, attaching fails with that.
        let owner = volume.status.owner.as_deref().unwrap_or("its node");
        eprintln!(
            "orlop: {owner} does not run as root, so {:?} is no block device: reach it over NVMe/TCP, or see \
             `orlop preflight`",
            volume.name
        );
    }
    output::show(arguments.output.output, &volume, |volume| volume.status.device.clone().unwrap_or_default())
}

/// Attaches a volume and waits for its device.
pub(crate) async fn attach_and_wait(
    client: &Client,
    name: &str,
    node: Option<&str>,
    take: bool,
) -> Outcome<VolumeView> {
    let request = serde_json::json!({ "node": node, "move": take });
    let volume: VolumeView = client.post(&wish_path(name, "/attach")?, &request).await?;
    let there = volume.status.device.is_some() && volume.status.state != VolumeState::Attaching;
    if there { Ok(volume) } else { Err(overdue(&volume, "attached")) }
}

/// Runs `orlop volume detach`.
pub(crate) async fn detach(arguments: &VolumeName) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    let volume = detach_and_wait(&client, &arguments.name).await?;
    output::show(arguments.output.output, &volume, |volume| format!("volume {:?} detached", volume.name))
}

/// Detaches a volume and waits until its device is gone.
pub(crate) async fn detach_and_wait(client: &Client, name: &str) -> Outcome<VolumeView> {
    let nothing = serde_json::json!({});
    let volume: VolumeView = client.post(&wish_path(name, "/detach")?, &nothing).await?;
    if volume.status.device.is_none() { Ok(volume) } else { Err(overdue(&volume, "detached")) }
}

/// Runs `orlop volume resize`.
pub(crate) async fn resize(arguments: &VolumeResize) -> Outcome {
    let VolumeResize { name, size, api, output } = arguments;
    let request = serde_json::json!({ "sizeBytes": size.0 });
    let volume: VolumeView = Client::new(&api.api)?.post(&wish_path(name, "/resize")?, &request).await?;
    if volume.status.size_bytes != size.0 {
        return Err(overdue(&volume, "resized"));
    }
    output::show(output.output, &volume, |_| format!("volume {name:?} has {size}"))
}

/// When patience ends, the answer is what the volume itself says is missing.
fn overdue(volume: &VolumeView, wanted: &str) -> Failure {
    let why = volume.status.message.as_deref().unwrap_or("no reason is known");
    let (name, state) = (&volume.name, volume.status.state);
    Failure::new(format!("volume {name:?} is not {wanted} after {PATIENCE_SECONDS} s ({state}): {why}"))
        .hint(format!("it goes on by itself; `orlop volume get {name}` shows how far it is"))
}

/// Copies in sync of those wanted, such as `2/3`.
fn copies(volume: &VolumeView) -> String {
    let members = volume.status.members.iter();
    let in_sync = members.filter(|member| member.state == MemberPhase::InSync && member.present);
    format!("{}/{}", in_sync.count(), volume.spec.copies)
}

/// A volume for people: one fact a line, then its copies.
fn describe(volume: &VolumeView) -> String {
    let VolumeView { name, spec, status, .. } = volume;
    let none = || "-".to_owned();
    let mut facts = vec![
        ("name", name.clone()),
        ("state", status.state.to_string()),
        ("size", ByteCount(status.size_bytes).to_string()),
        ("copies", format!("{} in sync", copies(volume))),
        ("block size", spec.block_size.to_string()),
        ("owner", status.owner.clone().unwrap_or_else(none)),
        ("epoch", status.epoch.to_string()),
        ("device", status.device.clone().unwrap_or_else(none)),
        ("target", status.target.clone().unwrap_or_else(none)),
    ];
    if let Some(message) = &status.message {
        facts.insert(2, ("why", message.clone()));
    }
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<12}{value}")).collect();
    let row = |member: &MemberView| {
        let rebuild = member.rebuild.map(|rebuild| {
            let (done, total) = (ByteCount(rebuild.done_bytes), ByteCount(rebuild.total_bytes));
            format!("{done} of {total}")
        });
        vec![
            member.node.clone(),
            if member.present { member.state.to_string() } else { format!("{} (not there)", member.state) },
            rebuild.unwrap_or_else(none),
            member.replica.to_string(),
            member.message.clone().unwrap_or_default(),
        ]
    };
    let header = ["NODE", "STATE", "REBUILD", "REPLICA", "MESSAGE"];
    let members = output::table(&header, status.members.iter().map(row).collect(), "no copies yet");
    format!("{}\n\n{members}", facts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_names_never_become_paths() {
        for name in ["", "..", "a/b", "a b", "a?b", "caf\u{e9}"] {
            assert!(path(name).unwrap_err().is(Kind::Usage), "{name:?}");
        }
        assert_eq!(path("data-1").unwrap(), "/api/v1/volumes/data-1");
    }
}
