//! Measures the manager on a large cluster: `scale_bench [ROUNDS]`, with 1,000 nodes and 100,000 volumes of three copies.
//!
//! Prints a table: the time of a pass that examines everything, of passes after one change, and the memory that the
//! process has with all of it. What the passes plan is checked in `tests/it/scale.rs`, with the same cluster.

#[path = "../tests/it/fleet.rs"]
mod fleet;

use manager::{Action, Config, Planner, Told};
use std::time::{Duration, Instant};
use store::Change;

/// The planner, its clock, and how long its last pass took.
struct Bench {
    planner: Planner,
    now: Duration,
    uuids: u32,
}

impl Bench {
    /// A pass: what it plans, and how long it took.
    fn pass(&mut self) -> (Vec<Action>, Duration) {
        let mut new_uuid = || {
            self.uuids += 1;
            fleet::id(7, self.uuids)
        };
        let begun = Instant::now();
        let actions = self.planner.plan(&Config::default(), self.now, &mut new_uuid);
        (actions, begun.elapsed())
    }

    /// Passes whose writes are accepted, until there is nothing to do; how many writes, and how long it took with them.
    fn settle(&mut self) -> (usize, Duration) {
        let (mut writes, begun) = (0, Instant::now());
        loop {
            let (actions, _) = self.pass();
            if actions.is_empty() {
                return (writes, begun.elapsed());
            }
            writes += actions.len();
            for action in actions {
                let Action::Volume(volume) = action else { panic!("only volumes are written: {action:?}") };
                self.planner.apply(Told::Volumes(Change::Put(volume)));
            }
        }
    }

    /// All nodes but those in the rack beat.
    fn beat(&mut self) -> Duration {
        self.now += Duration::from_secs(1);
        let nodes = (0..fleet::NODES).filter(|index| !fleet::RACK.contains(index));
        let nodes: Vec<_> =
            nodes.map(|index| fleet::stored(fleet::node(index, self.now.as_secs()))).collect();
        let begun = Instant::now();
        for node in nodes {
            self.planner.apply(Told::Nodes(Change::Put(node)));
        }
        let (actions, _) = self.pass();
        assert!(actions.is_empty(), "heartbeats are no reason to do anything");
        begun.elapsed()
    }

    /// A pass that examines every volume, as the first after a gap does.
    fn full(&mut self) -> Duration {
        self.now += Duration::from_secs(3600);
        let before = self.planner.examined();
        let (actions, elapsed) = self.pass();
        assert!(actions.is_empty() && self.planner.examined() == before + u64::from(fleet::VOLUMES));
        elapsed
    }

    /// From the change of one volume's record to the end of the pass after it.
    fn one_record(&mut self, volume: u32) -> Duration {
        let record = fleet::stored(fleet::record(volume));
        let begun = Instant::now();
        self.planner.apply(Told::Records(Change::Put(record)));
        let (actions, _) = self.pass();
        assert!(actions.is_empty());
        begun.elapsed()
    }
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(5, |text| text.parse().expect("ROUNDS is a number"));
    let empty_mib = memory_mib("VmRSS:");
    let begun = Instant::now();
    let planner = fleet::planner();
    show("told of everything", begun.elapsed());
    show_memory("memory of the process without it", empty_mib);
    let mut bench = Bench { planner, now: Duration::from_secs(3600), uuids: 0 };
    let (writes, elapsed) = bench.settle();
    show(&format!("first passes, {writes} writes accepted at once"), elapsed);
    for _ in 0..rounds {
        show("full pass", bench.full());
    }
    for round in 0..rounds {
        // A healthy one that is closed.
        show("one record changed, and the pass after it", bench.one_record(1 + 3 * round));
    }
    for _ in 0..rounds {
        show("980 heartbeats, and the pass after them", bench.beat());
    }
    for _ in rounds..59 {
        bench.beat();
    }
    bench.now += Duration::from_secs(1);
    let (writes, elapsed) = bench.settle();
    show(&format!("{writes} lost copies get a place, accepted at once"), elapsed);
    show_memory("memory of the process", memory_mib("VmRSS:"));
    show_memory("the most that it was", memory_mib("VmHWM:"));
}

fn show(what: &str, elapsed: Duration) {
    println!("{what:<50} {:>12.6} s", elapsed.as_secs_f64());
}

fn show_memory(what: &str, mib: u64) {
    println!("{what:<50} {mib:>12} MiB");
}

fn memory_mib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    kib / 1024
}
