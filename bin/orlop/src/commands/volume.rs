//! `orlop volume ...`: each verb writes a wish and waits until it has come true, or says why it has not.

use crate::arguments::{
    Api, VolumeAttach, VolumeCreate, VolumeDetach, VolumeKey, VolumeName, VolumeRecover, VolumeResize,
};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{self, Format};
use crate::secrets;
use api::client::{Client, WAIT};
use api::{AttachVolume, CreateVolume, ResizeVolume};
use device::ByteCount;
use model::{MemberPhase, MemberView, VolumeSpec, VolumeState, VolumeView};

/// Runs `orlop volume create`.
pub(crate) async fn create(arguments: &VolumeCreate) -> Outcome {
    let VolumeCreate { name, size, copies, stripes, block_size, class, spread, api, output } = arguments;
    let block_size = u32::try_from(block_size.0).unwrap_or(u32::MAX);
    let spec = VolumeSpec {
        size_bytes: size.0,
        copies: *copies,
        stripes: *stripes,
        block_size,
        class: *class,
        spread: Some(spread.clone()).filter(|key| !key.is_empty()),
    };
    let volume = create_and_wait(&Client::new(&api.api)?, name, spec).await?;
    output::show(output.output, &volume, |volume| {
        let nodes: Vec<&str> = volume.status.members.iter().map(|member| member.node.as_str()).collect();
        format!("volume {name:?} created: {size}, copies on {}", nodes.join(", "))
    })
}

/// Creates a volume and waits until its copies exist.
pub(crate) async fn create_and_wait(client: &Client, name: &str, spec: VolumeSpec) -> Outcome<VolumeView> {
    spec.validate(name).map_err(|invalid| Failure::new(invalid.to_string()).kind(Kind::Usage))?;
    let volume = client.create_volume(&CreateVolume::anywhere(name.to_owned(), spec)).await?;
    match volume.status.state {
        VolumeState::Pending | VolumeState::Creating => Err(overdue(&volume, "created")),
        _ => Ok(volume),
    }
}

/// Runs `orlop volume list`.
pub(crate) async fn list(api: &Api, format: Format) -> Outcome {
    let volumes = Client::new(&api.api)?.volumes().await?;
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
    let volume = Client::new(&arguments.api.api)?.volume(&arguments.name).await?;
    output::show(arguments.output.output, &volume, describe)
}

/// Runs `orlop volume key`: nobody is asked for the secret, the key is made here.
pub(crate) async fn key(arguments: &VolumeKey) -> Outcome {
    let VolumeKey { name, host, secret, api } = arguments;
    if !nvmf::wire::fabrics::is_nqn(host) {
        return Err(Failure::new(format!("{host:?} is no name of a host"))
            .kind(Kind::Usage)
            .hint("give its NQN, such as the one in /etc/nvme/hostnqn"));
    }
    let secret = secrets::read(secret)?;
    let volume = Client::new(&api.api)?.volume(name).await?;
    output::line(&engine::volume_key(&secret, volume.uuid, host).reveal())
}

/// Runs `orlop volume delete`.
pub(crate) async fn delete(arguments: &VolumeName) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    let name = &arguments.name;
    if let Some(volume) = client.delete_volume(name).await? {
        return Err(overdue(&volume, "deleted"));
    }
    let gone = serde_json::json!({ "name": name, "deleted": true });
    output::show(arguments.output.output, &gone, |_| format!("volume {name:?} deleted"))
}

/// Runs `orlop volume attach`: prints the path of the device.
pub(crate) async fn attach(arguments: &VolumeAttach) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    if let (true, Some(node)) = (arguments.read_only, &arguments.node) {
        return attach_reader(&client, arguments, node).await;
    }
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

/// Attaches a volume for reading and prints the path of the device on that node.
async fn attach_reader(client: &Client, arguments: &VolumeAttach, node: &str) -> Outcome {
    let wish = AttachVolume { node: Some(node.to_owned()), read_only: true, ..AttachVolume::default() };
    let volume = client.attach_volume(&arguments.name, &wish, None).await?;
    let device = volume.status.reader(node).and_then(|reader| reader.device.clone());
    let Some(device) = device else { return Err(overdue(&volume, "attached")) };
    output::show(arguments.output.output, &volume, |_| device.clone())
}

/// Attaches a volume and waits for its device.
pub(crate) async fn attach_and_wait(
    client: &Client,
    name: &str,
    node: Option<&str>,
    take: bool,
) -> Outcome<VolumeView> {
    let wish = AttachVolume { node: node.map(str::to_owned), take, read_only: false };
    let volume = client.attach_volume(name, &wish, None).await?;
    let there = volume.status.device.is_some() && volume.status.state != VolumeState::Attaching;
    if there { Ok(volume) } else { Err(overdue(&volume, "attached")) }
}

/// Runs `orlop volume detach`.
pub(crate) async fn detach(arguments: &VolumeDetach) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    let volume = detach_and_wait(&client, &arguments.name, arguments.node.as_deref()).await?;
    output::show(arguments.output.output, &volume, |volume| format!("volume {:?} detached", volume.name))
}

/// Detaches a volume and waits until its device is gone.
pub(crate) async fn detach_and_wait(client: &Client, name: &str, node: Option<&str>) -> Outcome<VolumeView> {
    let volume = client.detach_volume(name, node, None).await?;
    if volume.status.has_device(node) { Err(overdue(&volume, "detached")) } else { Ok(volume) }
}

/// Runs `orlop volume resize`.
pub(crate) async fn resize(arguments: &VolumeResize) -> Outcome {
    let VolumeResize { name, size, api, output } = arguments;
    let wish = ResizeVolume { size_bytes: size.0 };
    let volume = Client::new(&api.api)?.resize_volume(name, &wish).await?;
    if volume.status.size_bytes != size.0 {
        return Err(overdue(&volume, "resized"));
    }
    output::show(output.output, &volume, |_| format!("volume {name:?} has {size}"))
}

/// Runs `orlop volume recover`: the explicit word of somebody who knows that the copies which do not answer are gone.
pub(crate) async fn recover(arguments: &VolumeRecover) -> Outcome {
    let VolumeRecover { name, yes, api, output } = arguments;
    let client = Client::new(&api.api)?;
    if !yes {
        let volume = client.volume(name).await?;
        return Err(Failure::new(what_is_lost(&volume)).kind(Kind::Usage).hint("say --yes to do it"));
    }
    let volume = client.recover_volume(name).await?;
    output::show(output.output, &volume, |_| {
        format!("volume {name:?} opens with the copies that answer; those that do not are made equal to them")
    })
}

fn what_is_lost(volume: &VolumeView) -> String {
    let VolumeView { name, status, .. } = volume;
    let away = |member: &&MemberView| {
        let is_asked = !matches!(member.state, MemberPhase::New | MemberPhase::Removed);
        is_asked && (!member.present || member.reachable == Some(false))
    };
    let nodes: Vec<&str> = status.members.iter().filter(away).map(|member| member.node.as_str()).collect();
    let away = if nodes.is_empty() {
        "its copies may all be there, and then it opens by itself".to_owned()
    } else {
        format!("its copies on {} are not there", nodes.join(", "))
    };
    let why = status.message.as_deref().unwrap_or("nothing is known to be wrong with it");
    format!(
        "volume {name:?} ({why}): {away}; writes that only the copies which did not answer have would be lost; nothing \
         was changed"
    )
}

/// When patience ends, the answer is what the volume itself says is missing.
fn overdue(volume: &VolumeView, wanted: &str) -> Failure {
    let why = volume.status.message.as_deref().unwrap_or("no reason is known");
    let (name, state) = (&volume.name, volume.status.state);
    let seconds = WAIT.as_secs();
    Failure::new(format!("volume {name:?} is not {wanted} after {seconds} s ({state}): {why}"))
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
        ("class", spec.class.map_or_else(|| "any".to_owned(), |class| class.to_string())),
        ("spread", spec.spread.clone().unwrap_or_else(|| "node".to_owned())),
        ("owner", status.owner.clone().unwrap_or_else(none)),
        ("epoch", status.epoch.to_string()),
        ("device", status.device.clone().unwrap_or_else(none)),
        ("target", status.target.clone().unwrap_or_else(none)),
    ];
    for reader in &status.readers {
        let device = reader.device.as_ref().or(reader.message.as_ref()).cloned().unwrap_or_else(none);
        facts.push(("read on", format!("{} {device}", reader.node)));
    }
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
