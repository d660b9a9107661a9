//! `orlop sim`: the simulator over many seeds, on all cores, with totals; a failing seed says how to replay it.

use crate::arguments::Sim;
use crate::failure::{Failure, Kind, Outcome};
use crate::output;
use ::sim::{Bug, Totals, run_seed};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// From so many seeds on, each fault must have happened at least once.
const SEEDS_FOR_ALL: u64 = 200;
const SEEDS_DEFAULT: u64 = 20;

/// The result as programs see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    seeds: u64,
    failed: Vec<Failed>,
    totals: BTreeMap<&'static str, u64>,
    /// What has to happen over many seeds and never did.
    missing: Vec<&'static str>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    violation: String,
    replay: String,
}

/// Runs `orlop sim`.
pub(crate) fn run(arguments: &Sim) -> Outcome {
    let bug = bug(arguments.bug.as_deref())?;
    log_if_asked();
    // A panic of the code under test is a finding: it is printed with its seed, not as it happens.
    std::panic::set_hook(Box::new(|_| {}));
    let report = match arguments.seed {
        Some(seed) => one(seed, bug)?,
        None => many(arguments, bug),
    };
    output::show(arguments.output.output, &report, table)?;
    if !report.failed.is_empty() {
        return Err(Failure::new(format!("{} of {} seeds failed", report.failed.len(), report.seeds))
            .hint(format!("replay one with `{}`", report.failed[0].replay)));
    }
    if report.seeds >= SEEDS_FOR_ALL && !report.missing.is_empty() {
        return Err(Failure::new(format!(
            "over {} seeds these never happened: {}",
            report.seeds,
            report.missing.join(", ")
        ))
        .hint("the simulation has proved nothing about them"));
    }
    Ok(())
}

/// Logs are for one seed that is looked into: only where `ORLOP_LOG` says which, and without the time of this machine.
fn log_if_asked() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("ORLOP_LOG") else { return };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time();
    log.with_writer(std::io::stderr).init();
}

fn bug(name: Option<&str>) -> Outcome<Bug> {
    let Some(name) = name else { return Ok(Bug::None) };
    Bug::named(name).ok_or_else(|| {
        Failure::new(format!("there is no planted bug {name:?}"))
            .kind(Kind::Usage)
            .hint(format!("there are {}", Bug::names().join(", ")))
    })
}

/// Runs one seed twice: a replay must be exact.
fn one(seed: u64, bug: Bug) -> Outcome<Report> {
    let began = Instant::now();
    let (first, second) = (run_seed(seed, bug), run_seed(seed, bug));
    if first.trace_hash != second.trace_hash {
        return Err(Failure::new(format!(
            "seed {seed} gave trace {:016x}, then {:016x}: something in it does not depend on the seed alone",
            first.trace_hash, second.trace_hash
        )));
    }
    let mut all = All::default();
    output::line(&first.to_string())?;
    all.add(first);
    Ok(all.report(1, began.elapsed()))
}

/// Runs seeds on all cores until there are enough, or the time is over.
fn many(arguments: &Sim, bug: Bug) -> Report {
    let began = Instant::now();
    let limit = arguments.minutes.map(|minutes| Duration::from_secs(60 * u64::from(minutes)));
    let seeds = arguments.seeds.unwrap_or(if limit.is_some() { u64::MAX } else { SEEDS_DEFAULT });
    let first = arguments.first_seed;
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let all = Mutex::new(All::default());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while limit.is_none_or(|limit| began.elapsed() < limit) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let failed = all.lock().is_ok_and(|all| !all.failed.is_empty());
                    if index >= seeds || (failed && arguments.until_failure) {
                        break;
                    }
                    let outcome = run_seed(first + index, bug);
                    done.fetch_add(1, Ordering::Relaxed);
                    if outcome.violation.is_some() {
                        eprintln!("{outcome}");
                    }
                    all.lock().expect("nothing panics with the lock held").add(outcome);
                }
            });
        }
    });
    let all = all.into_inner().expect("nothing panics with the lock held");
    all.report(done.into_inner(), began.elapsed())
}

#[derive(Default)]
struct All {
    totals: Totals,
    failed: Vec<Failed>,
}

impl All {
    fn add(&mut self, outcome: ::sim::Outcome) {
        self.totals += &outcome.totals;
        if let Some(violation) = outcome.violation {
            let replay = format!("orlop sim --seed {}", outcome.seed);
            self.failed.push(Failed { seed: outcome.seed, violation, replay });
        }
    }

    fn report(mut self, seeds: u64, took: Duration) -> Report {
        self.failed.sort_by_key(|failed| failed.seed);
        Report {
            seeds,
            failed: self.failed,
            totals: self.totals.named().into_iter().collect(),
            missing: self.totals.missing(),
            seconds: took.as_secs_f64(),
        }
    }
}

fn table(report: &Report) -> String {
    let row = |(name, count): (&&'static str, &u64)| vec![(*name).to_owned(), count.to_string()];
    let totals = output::table(&["WHAT HAPPENED", "TIMES"], report.totals.iter().map(row).collect(), "");
    let held = report.seeds - report.failed.len() as u64;
    format!("{totals}\n\n{held} of {} seeds held in {:.1} s", report.seeds, report.seconds)
}
