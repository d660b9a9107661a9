//! `/metrics` of a running cluster: a strict reading of the format, every family documented, counters that count.

use crate::cluster::Dev;
use device::{Device, Lba};
use nvmf::{Association, ConnectOptions};
use rt::{DmaBuf, Durability};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A sample's name and labels.
type Series = (String, BTreeMap<String, String>);

/// What one process exports.
#[derive(Debug, Default)]
struct Scrape {
    /// The type of each family.
    families: BTreeMap<String, String>,
    samples: BTreeMap<Series, f64>,
}

/// What a family of this type may add to its name.
fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total"],
        "gauge" => &[""],
        "histogram" => &["_bucket", "_sum", "_count"],
        other => panic!("type {other} is not known"),
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The labels between the braces.
fn labels(mut text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect("a label is NAME=\"VALUE\"");
        // No value here has anything that must be escaped.
        let (value, rest) = rest.split_once('"').expect("a value ends");
        assert!(is_name(name) && !value.contains('\\'), "{name}={value:?}");
        assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "label {name} twice");
        text = rest.strip_prefix(',').unwrap_or(rest);
        assert!(rest.is_empty() || rest.starts_with(','), "after a label: {rest:?}");
    }
    labels
}

impl Scrape {
    /// Asks a process.
    fn of(address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers with text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
            "{head}"
        );
        Self::parse(body)
    }

    /// Reads the format (`OpenMetrics` 1.0, section 3), and refuses everything that is not quite it.
    fn parse(body: &str) -> Self {
        let mut scrape = Self::default();
        let lines = body.strip_suffix("# EOF\n").expect("it ends with # EOF, once");
        let mut family = String::new();
        let (mut helped, mut samples) = (String::new(), 0);
        for line in lines.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let (word, rest) = comment.split_once(' ').expect("a keyword");
                let (name, rest) = rest.split_once(' ').expect("a name");
                match word {
                    "HELP" => {
                        assert!(is_name(name) && !rest.trim().is_empty(), "{line}");
                        assert!(name.starts_with("orlop_") && !scrape.families.contains_key(name), "{line}");
                        name.clone_into(&mut helped);
                    }
                    "TYPE" => {
                        assert_eq!(name, helped, "each TYPE follows its HELP");
                        suffixes(rest);
                        scrape.families.insert(name.to_owned(), rest.to_owned());
                        name.clone_into(&mut family);
                        samples = 0;
                    }
                    "UNIT" => {
                        assert!(["seconds", "bytes"].contains(&rest), "not a base unit: {line}");
                        assert!(
                            name == family && name.ends_with(&format!("_{rest}")) && samples == 0,
                            "{line}"
                        );
                    }
                    _ => panic!("{line}"),
                }
                continue;
            }
            scrape.sample(line, &family);
            samples += 1;
        }
        scrape.check_histograms();
        scrape
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, labels(rest.strip_suffix('}').expect("braces close"))),
            None => (series, BTreeMap::new()),
        };
        let kind = &self.families[family];
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} is not of {family}"));
        assert!(suffixes(kind).contains(&suffix), "{line} in a {kind}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}: not a number"));
        assert!(value.is_finite() && value >= 0.0, "{line}");
        let twice = self.samples.insert((name.to_owned(), labels), value);
        assert!(twice.is_none(), "twice: {line}");
    }

    /// Buckets are cumulative, and the last one is the count.
    fn check_histograms(&self) {
        for family in self.families.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
            let mut buckets: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
            for ((name, labels), value) in &self.samples {
                if *name == format!("{family}_bucket") {
                    let mut labels = labels.clone();
                    let end = labels.remove("le").expect("a bucket has an end");
                    let end = if end == "+Inf" { f64::INFINITY } else { end.parse().expect("a number") };
                    buckets.entry(labels).or_default().push((end, *value));
                }
            }
            for (labels, mut buckets) in buckets {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(
                    buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
                    "{family} {labels:?}: {buckets:?}"
                );
                let count = self.samples[&(format!("{family}_count"), labels.clone())];
                assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{family} {labels:?}");
                assert!(self.samples.contains_key(&(format!("{family}_sum"), labels)), "{family}");
            }
        }
    }

    /// The value of the series of this name with these among its labels.
    fn value(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let fits = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|found| found == value))
        };
        let mut found = self.samples.iter().filter(|((n, labels), _)| n == name && fits(labels));
        let (_, value) = found.next().unwrap_or_else(|| panic!("no {name} {wanted:?}"));
        assert!(found.next().is_none(), "several {name} {wanted:?}");
        *value
    }

    /// The labels of a family, but for those of buckets.
    fn labels(&self, family: &str) -> Option<BTreeSet<&str>> {
        let of_family =
            |name: &str| suffixes(&self.families[family]).iter().any(|s| name == format!("{family}{s}"));
        let (_, labels) = self.samples.keys().find(|(name, _)| of_family(name))?;
        Some(labels.keys().map(String::as_str).filter(|name| *name != "le").collect())
    }
}

/// Where the nodes export, in the order of their names.
fn addresses(dev: &Dev) -> Vec<String> {
    let nodes = dev.json(&["node", "list"]);
    let address = |node: &serde_json::Value| node["metricsAddress"].as_str().expect("it has one").to_owned();
    nodes.as_array().expect("a list").iter().map(address).collect()
}

const OPERATIONS: [&str; 4] = ["read", "write", "flush", "unmap"];

/// How many operations of each kind the volume has had, their bytes, and their errors.
fn counted(scrape: &Scrape, volume: &str) -> [[f64; 4]; 3] {
    ["orlop_volume_io_seconds_count", "orlop_volume_io_bytes_total", "orlop_volume_io_errors_total"].map(
        |name| {
            OPERATIONS.map(|operation| scrape.value(name, &[("volume", volume), ("operation", operation)]))
        },
    )
}

/// A device that was just made is looked at by the kernel, which is I/O as well: waits until that is over.
fn quiet(address: &str) -> Scrape {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut before = Scrape::of(address);
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = Scrape::of(address);
        if counted(&before, "data") == counted(&now, "data") {
            return now;
        }
        assert!(Instant::now() < deadline, "somebody uses the volume");
        before = now;
    }
}

const WRITES: u64 = 10;
const READS: u64 = 7;
const FLUSHES: u64 = 3;
const BLOCK: usize = 4096;

/// Exactly so many operations, one after the other.
fn drive(target: &str) {
    let (address, nqn) = target.trim_start_matches("nvme+tcp://").split_once('/').expect("ADDRESS/NQN");
    let (address, nqn): (SocketAddr, _) = (address.parse().expect("an address"), nqn.to_owned());
    let reactor = rt::os::Reactor::new(rt::os::Config::default()).expect("a reactor");
    reactor.run(async move {
        let options =
            ConnectOptions::new(address, nqn.as_str(), "nqn.2026-11.io.orlop:test", rt::random_uuid());
        let association = Association::connect(options).await.expect("it is served");
        let namespace = association.namespace(1);
        for block in 0..WRITES {
            let data = DmaBuf::zeroed(BLOCK).freeze();
            namespace.write(Lba(block), data, Durability::Cached).await.expect("a write");
        }
        for block in 0..READS {
            namespace.read(Lba(block), DmaBuf::zeroed(2 * BLOCK)).await.expect("a read");
        }
        for _ in 0..FLUSHES {
            namespace.flush().await.expect("a flush");
        }
        association.close().await;
    });
}

#[test]
#[expect(clippy::float_cmp, clippy::cast_precision_loss, reason = "whole numbers far below 2^52")]
fn counters_grow_by_what_was_done() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB"]).code, 0);
    assert_eq!(dev.run(&["volume", "attach", "data", "--node", "node-2"]).code, 0);
    let target = dev.json(&["volume", "get", "data"])["status"]["target"].as_str().unwrap().to_owned();
    let nodes = addresses(&dev);
    let before = quiet(&nodes[1]);
    drive(&target);
    let after = Scrape::of(&nodes[1]);

    let grown: Vec<Vec<f64>> = counted(&after, "data")
        .iter()
        .zip(counted(&before, "data"))
        .map(|(after, before)| after.iter().zip(before).map(|(after, before)| after - before).collect())
        .collect();
    let block = BLOCK as f64;
    assert_eq!(grown[0], [READS as f64, WRITES as f64, FLUSHES as f64, 0.0], "operations");
    assert_eq!(grown[1], [READS as f64 * 2.0 * block, WRITES as f64 * block, 0.0, 0.0], "bytes");
    assert_eq!(grown[2], [0.0; 4], "errors");
    let write = [("volume", "data"), ("operation", "write")];
    let took = after.value("orlop_volume_io_seconds_sum", &write);
    let stall = after.value("orlop_volume_write_stall_max_seconds", &[("volume", "data")]);
    assert!(0.0 < stall && stall <= took, "the longest write took {stall} s of {took} s");
    for member in ["node-1", "node-2", "node-3"] {
        assert_eq!(after.value("orlop_member_in_sync", &[("volume", "data"), ("member", member)]), 1.0);
        assert_eq!(after.value("orlop_member_up", &[("volume", "data"), ("member", member)]), 1.0);
    }
    let pool = Scrape::of(&nodes[0]);
    let bytes = |name: &str| pool.value(name, &[("node", "node-1")]);
    assert!(bytes("orlop_pool_used_bytes") > 0.0, "the writes have taken space");
    assert!(
        bytes("orlop_pool_used_bytes") + bytes("orlop_pool_free_bytes") <= bytes("orlop_pool_capacity_bytes")
    );
    let no_volume = pool.samples.keys().all(|(_, labels)| !labels.contains_key("volume"));
    assert!(no_volume, "only the owner answers for a volume");

    let controller = Scrape::of(dev.api.trim_start_matches("http://"));
    assert_eq!(controller.value("orlop_nodes", &[("state", "Ready")]), 3.0);
    assert_eq!(controller.value("orlop_volumes", &[("state", "Attached")]), 1.0);
    assert_eq!(controller.value("orlop_volume_state", &[("volume", "data")]), 1.0);
    assert_eq!(controller.value("orlop_volume_state", &[("state", "Attached")]), 1.0);
    is_documented(&[("node", &after), ("controller", &controller)]);
    dev.stop();
}

/// Exists only once something has gone wrong.
const AT_FIRST_ERROR: &str = "orlop_store_errors";

/// The table of the guide says what there is, and nothing else.
fn is_documented(scrapes: &[(&str, &Scrape)]) {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guides/metrics.md");
    let guide = std::fs::read_to_string(guide).expect("the guide is there");
    let mut rows = BTreeMap::new();
    for line in guide.lines().filter(|line| line.starts_with("| `orlop_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, from, meaning] = cells[..] else { panic!("{line}") };
        let name = name.trim_matches('`');
        assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        assert!(!meaning.is_empty(), "{line}");
        let labels: BTreeSet<&str> = labels.split(", ").filter(|label| !label.is_empty()).collect();
        let known = rows.insert(name.trim_end_matches("_total"), (kind, labels, from));
        assert!(known.is_none(), "twice: {line}");
    }
    for (process, scrape) in scrapes {
        for (family, kind) in &scrape.families {
            let row = rows.get(family.as_str()).unwrap_or_else(|| panic!("{family} is not in the guide"));
            assert!(
                row.0 == kind && row.2.split(", ").any(|from| from == *process),
                "{family} of {process}: {row:?}"
            );
            if let Some(labels) = scrape.labels(family) {
                assert_eq!(labels, row.1, "{family}");
            }
        }
    }
    for (family, (_, _, from)) in rows.into_iter().filter(|(family, _)| *family != AT_FIRST_ERROR) {
        for from in from.split(", ") {
            let (_, scrape) = scrapes.iter().find(|(process, _)| *process == from).expect("a process");
            assert!(scrape.families.contains_key(family), "{family} is not exported by the {from}");
        }
    }
}

#[test]
fn what_is_not_the_format_is_refused() {
    let good = "# HELP orlop_a Some.\n# TYPE orlop_a counter\norlop_a_total{x=\"1\"} 2\n# EOF\n";
    assert_eq!(Scrape::parse(good).value("orlop_a_total", &[("x", "1")]).to_bits(), 2.0_f64.to_bits());
    for (good_part, bad) in [
        ("# EOF\n", ""),
        ("# HELP orlop_a Some.\n", ""),
        ("orlop_a_total", "orlop_a"),
        ("orlop_a_total", "orlop_b_total"),
        (" 2\n", " 2\norlop_a_total{x=\"1\"} 3\n"),
        (" 2\n", " two\n"),
        ("{x=\"1\"}", "{x=1}"),
        ("counter\n", "counter\n# UNIT orlop_a milliseconds\n"),
    ] {
        let bad = good.replace(good_part, bad);
        assert!(std::panic::catch_unwind(|| Scrape::parse(&bad)).is_err(), "{bad}");
    }
}
