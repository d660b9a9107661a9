//! `orlop support bundle`: everything that can be asked about a cluster, in one tar that can be given away.
//!
//! 1. What does not answer, or cannot be read, is named in the bundle; it never fails the whole.
//! 2. Nothing of an environment, of a process's arguments or of a file is in it but the logs: those of the folder that was
//!    named or, in a pod of Orlop, those of its pods.

mod bundle;
mod redact;

use crate::arguments::SupportBundle;
use crate::failure::{Failure, Kind, OrFail, Outcome};
use crate::{output, preflight};
use api::client::Client;
use bundle::Bundle;
use serde::Serialize;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long each one that is asked may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many are asked at the same time.
const AT_ONCE: usize = 32;
/// Of each log the end is taken.
const LOG_MAX_BYTES: u64 = 4 << 20;
/// The kinds of objects that the API lists.
const KINDS: [&str; 4] = ["nodes", "disks", "pools", "volumes"];

/// What was made, as programs see it.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    files: Vec<String>,
    missing: Vec<String>,
}

/// Runs `orlop support bundle`.
pub(crate) async fn bundle(arguments: &SupportBundle) -> Outcome {
    let client = Client::new(&arguments.api.api)?;
    let shown = arguments.file.display().to_string();
    // Made first: nobody waits only to hear that it cannot be.
    let file = (shown != "-").then(|| make(&arguments.file)).transpose()?;
    let mut bundle = Bundle::default();
    this_machine(&mut bundle);
    cluster(&mut bundle, &client).await;
    match (&arguments.logs, k8s::own_namespace()) {
        (Some(folder), _) => logs(&mut bundle, folder),
        (None, Some(namespace)) => logs_of_pods(&mut bundle, &namespace).await,
        (None, None) => bundle.miss("logs", "no folder was named by --logs, and this is no pod of Orlop"),
    }
    let report = Report { file: shown.clone(), files: bundle.names(), missing: bundle.missing() };
    let cannot = || format!("cannot write {shown}");
    let Some(file) = file else {
        bundle.write(std::io::stdout().lock()).or_fail(cannot)?;
        eprintln!("{}", table(&report));
        return Ok(());
    };
    bundle.write(file).or_fail(cannot)?;
    output::show(arguments.output.output, &report, table)
}

/// A new file, for nobody else to read.
fn make(path: &Path) -> Outcome<File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| {
        let failure = Failure::new(format!("cannot make {}: {error}", path.display()));
        let failure = failure.hint("name another file with --file");
        if error.kind() == ErrorKind::AlreadyExists { failure.kind(Kind::Conflict) } else { failure }
    })
}

fn table(report: &Report) -> String {
    let made = format!("{}: {} files", report.file, report.files.len());
    let missing = report.missing.iter().map(|line| format!("missing: {line}"));
    std::iter::once(made).chain(missing).collect::<Vec<_>>().join("\n")
}

/// Versions, and what the machine allows.
fn this_machine(bundle: &mut Bundle) {
    let kernel = rustix::system::uname();
    let about = serde_json::json!({
        "program": env!("CARGO_PKG_VERSION"),
        "kernel": kernel.release().to_string_lossy(),
        "machine": kernel.machine().to_string_lossy(),
    });
    bundle.add("about.json", pretty(&about));
    bundle.add("preflight.json", pretty(&preflight::checked()));
}

/// Objects and metrics: whatever answers.
async fn cluster(bundle: &mut Bundle, client: &Client) {
    let mut nodes = Vec::new();
    for kind in KINDS {
        let answer = ask(client.clone(), &format!("/api/v1/{kind}")).await;
        let list = answer.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        if let ("nodes", Ok(Value::Object(list))) = (kind, &list) {
            nodes = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        }
        bundle.add(&format!("objects/{kind}.json"), list.and_then(|list: Value| pretty(&list)));
    }
    let document = ask(client.clone(), "/openapi.json").await;
    let version = document.and_then(|text| controller_version(&text));
    bundle.add("controller-version.txt", version);
    bundle.add("metrics/controller.txt", ask(client.clone(), "/metrics").await);
    for nodes in nodes.chunks(AT_ONCE) {
        metrics(bundle, nodes).await;
    }
}

fn controller_version(document: &str) -> Result<String, String> {
    let document: Value = serde_json::from_str(document).map_err(|error| error.to_string())?;
    let version = document.pointer("/info/version").and_then(Value::as_str);
    version.map(|version| format!("{version}\n")).ok_or_else(|| "the API does not say".to_owned())
}

/// The metrics of nodes, which are asked at the same time.
async fn metrics(bundle: &mut Bundle, nodes: &[Value]) {
    let mut asked = JoinSet::new();
    for node in nodes {
        let text = |field: &str| node.get(field).and_then(Value::as_str).map(str::to_owned);
        let name = text("name").unwrap_or_default();
        let Some(file) = metrics_file(&name) else {
            bundle.miss("metrics", &format!("{name:?} is not the name of a node"));
            continue;
        };
        let Some(address) = text("metricsAddress") else {
            bundle.miss(&file, "the node has no metricsAddress");
            continue;
        };
        asked.spawn(async move {
            let client = Client::new(&format!("http://{address}")).map_err(|error| error.detail);
            let answer = match client {
                Ok(client) => ask(client, "/metrics").await,
                Err(why) => Err(why),
            };
            (file, answer.map_err(|why| format!("{address}: {why}")))
        });
    }
    while let Some(Ok((file, answer))) = asked.join_next().await {
        bundle.add(&file, answer);
    }
}

/// The file for a node's metrics; none if the name, which may have dots, could lead elsewhere.
fn metrics_file(node: &str) -> Option<String> {
    let is_label =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    node.split('.').all(is_label).then(|| format!("metrics/{node}.txt"))
}

/// What is at a path, or why not.
async fn ask(client: Client, path: &str) -> Result<String, String> {
    match tokio::time::timeout(PATIENCE, client.text(path)).await {
        Ok(answer) => answer.map_err(|error| error.detail),
        Err(_) => Err(format!("{}{path} has not answered within {} s", client.base(), PATIENCE.as_secs())),
    }
}

/// The ends of all logs of a folder.
fn logs(bundle: &mut Bundle, folder: &Path) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return bundle.miss("logs", &format!("cannot read {}: {error}", folder.display())),
    };
    let mut found = false;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link may lead to what is no log.
        if entry.path().extension().is_some_and(|kind| kind == "log")
            && entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            found = true;
            let text = end_of(&entry.path(), LOG_MAX_BYTES).map_err(|error| error.to_string());
            bundle.add(&format!("logs/{name}"), text);
        }
    }
    if !found {
        bundle.miss("logs", &format!("no NAME.log is in {}", folder.display()));
    }
}

/// The ends of the logs of all pods of Orlop.
async fn logs_of_pods(bundle: &mut Bundle, namespace: &str) {
    let had = match k8s::Kubernetes::in_cluster() {
        Ok(kubernetes) => kubernetes.logs(namespace).await,
        Err(error) => Err(error),
    };
    match had {
        Ok(logs) => logs.into_iter().for_each(|log| bundle.add(&format!("logs/{}.log", log.name), log.text)),
        Err(error) => bundle.miss("logs", &error.to_string()),
    }
}

/// At most so many bytes of the end of a file, in whole lines.
fn end_of(path: &Path, max: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let skipped = file.metadata()?.len().saturating_sub(max);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(max).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    if skipped == 0 {
        return Ok(text.into_owned());
    }
    let whole = text.split_once('\n').map_or("", |(_, whole)| whole);
    Ok(format!("[the log begins earlier]\n{whole}"))
}

fn pretty(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(value).map(|text| format!("{text}\n")).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_file_and_no_name_leads_elsewhere() {
        assert_eq!(metrics_file("node-1").as_deref(), Some("metrics/node-1.txt"));
        assert_eq!(
            metrics_file("ip-10-0-0-1.ec2.internal").as_deref(),
            Some("metrics/ip-10-0-0-1.ec2.internal.txt")
        );
        for name in ["", ".", "..", "../x", "a/b", "a..b"] {
            assert_eq!(metrics_file(name), None, "{name}");
        }
    }

    #[test]
    fn of_a_long_log_whole_lines_of_the_end_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node-1.log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(end_of(&path, 14).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(end_of(&path, 8).unwrap(), "[the log begins earlier]\nthree\n");
        assert_eq!(end_of(&path, 3).unwrap(), "[the log begins earlier]\n");
    }

    #[test]
    fn logs_are_files_and_no_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("secret"), "planted").unwrap();
        std::os::unix::fs::symlink(path("secret"), path("link.log")).unwrap();
        let mut bundle = Bundle::default();
        logs(&mut bundle, folder.path());
        assert_eq!((bundle.names(), bundle.missing().len()), (vec!["missing.txt".to_owned()], 1));
        std::fs::write(path("node-1.log"), [b'a', 0xff, b'\n']).unwrap();
        logs(&mut bundle, folder.path());
        assert_eq!(bundle.names(), ["logs/node-1.log", "missing.txt"]);
    }
}
