//! `orlop node ...`: what an operator wishes of a node, and waiting until it can be taken away.

use crate::arguments::{Api, NodeDrain, NodeName};
use crate::failure::{Failure, Outcome};
use crate::output;
use api::client::{self, Client, ErrorKind};
use api::{UpdateNode, UpdateNodeSpec};
use indicatif::ProgressBar;
use model::{Held, NodeView, NodeWait, Scheduling};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a node that is drained is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said how far something is, where nobody watches.
const SAY: Duration = Duration::from_secs(10);
/// The most reasons in one line.
const REASONS_MAX: usize = 5;

/// Runs `orlop node get`.
pub(crate) async fn get(arguments: &NodeName) -> Outcome {
    let node = Client::new(&arguments.api.api)?.node(&arguments.name).await?;
    output::show(arguments.output.output, &node, describe)
}

/// Runs `orlop node cordon`.
pub(crate) async fn cordon(arguments: &NodeName) -> Outcome {
    let node = wish(&arguments.api, &arguments.name, Scheduling::Cordoned).await?;
    output::show(arguments.output.output, &node, |node| {
        format!("node {:?} is cordoned: nothing new is placed on it", node.node.name)
    })
}

/// Runs `orlop node uncordon`.
pub(crate) async fn uncordon(arguments: &NodeName) -> Outcome {
    let node = wish(&arguments.api, &arguments.name, Scheduling::Enabled).await?;
    output::show(arguments.output.output, &node, |node| format!("node {:?} is uncordoned", node.node.name))
}

/// What is there no more, as programs see it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a str,
    deleted: bool,
}

/// Runs `orlop node delete`.
pub(crate) async fn delete(arguments: &NodeName) -> Outcome {
    let NodeName { name, api, output } = arguments;
    Client::new(&api.api)?.delete_node(name).await?;
    let deleted = Report { name, deleted: true };
    output::show(output.output, &deleted, |_| {
        format!("node {name:?} is forgotten, with its pools and disks; what is on them stays there")
    })
}

async fn wish(api: &Api, name: &str, scheduling: Scheduling) -> Outcome<NodeView> {
    let spec = UpdateNodeSpec { scheduling };
    Ok(Client::new(&api.api)?.update_node(name, &UpdateNode { spec }).await?)
}

/// Runs `orlop node drain`.
pub(crate) async fn drain(arguments: &NodeDrain) -> Outcome {
    let NodeDrain { name, evacuate, timeout, api, output } = arguments;
    let deadline = Instant::now() + *timeout;
    let scheduling = if *evacuate { Scheduling::Evacuated } else { Scheduling::Drained };
    let mut node = wish(api, name, scheduling).await?;
    let client = Client::new(&api.api)?;
    let mut progress = Progress::new();
    while !node.waits_for.is_empty() && Instant::now() < deadline {
        progress.show(&node);
        tokio::time::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now()))).await;
        match client.node(name).await {
            Ok(seen) => node = seen,
            // The wish is kept: the manager goes on as soon as there is one again.
            Err(client::Error { kind: ErrorKind::Unreachable, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if node.node.spec.scheduling != scheduling {
            let now = node.node.spec.scheduling;
            return Err(Failure::new(format!("node {name:?} is wished to be {now} by somebody else")));
        }
    }
    progress.end();
    if node.waits_for.is_empty() {
        return output::show(output.output, &node, done);
    }
    let (wanted, seconds) = (word(scheduling), timeout.as_secs());
    Err(Failure::new(format!(
        "node {name:?} is not {wanted} after {seconds} s: {}",
        reasons(&node.waits_for)
    ))
    .hint(format!("it goes on by itself; `orlop node get {name}` shows what is left")))
}

const fn word(scheduling: Scheduling) -> &'static str {
    match scheduling {
        Scheduling::Enabled => "uncordoned",
        Scheduling::Cordoned => "cordoned",
        Scheduling::Drained => "drained",
        Scheduling::Evacuated => "evacuated",
    }
}

fn done(node: &NodeView) -> String {
    let NodeView { node, copies, .. } = node;
    match node.spec.scheduling {
        Scheduling::Evacuated => format!("node {:?} is evacuated: nothing is left on it", node.name),
        _ => format!(
            "node {:?} is drained: it may be away; copies that stay on it: {}",
            node.name,
            copies.len()
        ),
    }
}

/// One wait in a line, such as `volume "data" (copy): ...`.
fn reason(wait: &NodeWait) -> String {
    format!("volume {:?} ({}): {}", wait.volume, wait.held, wait.message)
}

fn reasons(waits: &[NodeWait]) -> String {
    let mut reasons: Vec<String> = waits.iter().take(REASONS_MAX).map(reason).collect();
    if waits.len() > REASONS_MAX {
        reasons.push(format!("and {} more", waits.len() - REASONS_MAX));
    }
    reasons.join("; ")
}

/// What a drain waits for, on standard error: a line that changes on a terminal, elsewhere a line for each wait that is
/// new, and now and then how far the others are.
struct Progress {
    bar: Option<ProgressBar>,
    known: BTreeSet<(String, Held)>,
    said: Instant,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Self { bar, known: BTreeSet::new(), said: Instant::now() }
    }

    fn show(&mut self, node: &NodeView) {
        let waits = &node.waits_for;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("waits for {}", reasons(waits)));
            bar.tick();
            return;
        }
        let all = self.said.elapsed() >= SAY;
        for wait in waits {
            let is_new = self.known.insert((wait.volume.clone(), wait.held));
            if is_new || all {
                eprintln!("waits for {}", reason(wait));
            }
        }
        if all {
            self.said = Instant::now();
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A node for people: one fact a line, then what its drain waits for.
fn describe(view: &NodeView) -> String {
    let NodeView { node, attached, nexuses, copies, waits_for, .. } = view;
    let labels: Vec<String> = node.topology.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let names = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let facts = [
        ("name", node.name.clone()),
        ("state", node.state.to_string()),
        ("scheduling", node.spec.scheduling.to_string()),
        ("topology", names(&labels)),
        ("address", node.address.clone()),
        ("pid", node.pid.to_string()),
        ("version", node.version.clone()),
        ("attached", names(attached)),
        ("nexuses", names(nexuses)),
        ("copies", names(copies)),
    ];
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<12}{value}")).collect();
    let facts = facts.join("\n");
    if node.spec.scheduling < Scheduling::Drained {
        return facts;
    }
    let row = |wait: &NodeWait| vec![wait.volume.clone(), wait.held.to_string(), wait.message.clone()];
    let rows = waits_for.iter().map(row).collect();
    let done = format!("nothing is waited for: it is {}", word(node.spec.scheduling));
    format!("{facts}\n\n{}", output::table(&["WAITS FOR", "HELD", "WHY"], rows, &done))
}
