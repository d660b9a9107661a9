//! `orlop sim`: the simulator over many seeds, on all cores, with totals; a failing seed says how to replay it.

use crate::arguments::Sim;
use crate::failure::{Failure, Kind, Outcome};
use crate::output;
use ::sim::{Bug, Totals, run_seed};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// From so many seeds on, each fault must have happened at least once.
const SEEDS_FOR_ALL: u64 = 200;
/// A planted bug must be found within so many seeds.
const SEEDS_TO_FIND: u64 = 200;
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
    /// The seed that took the longest.
    slowest: Option<Slowest>,
}

#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    violation: String,
    replay: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Slowest {
    seed: u64,
    seconds: f64,
}

/// Which seed finds a planted bug first.
#[derive(Debug, Serialize)]
struct Found {
    bug: &'static str,
    /// How many seeds ran, or were to run.
    seeds: u64,
    by: Option<Failed>,
    seconds: f64,
}

/// Runs `orlop sim`.
pub(crate) fn run(arguments: &Sim) -> Outcome {
    let bug = bug(arguments.bug.as_deref())?;
    log_if_asked();
    // A panic of the code under test is a finding: it is printed with its seed, not as it happens.
    std::panic::set_hook(Box::new(|_| {}));
    if arguments.until_found {
        return find(arguments, bug);
    }
    let report = match arguments.seed {
        Some(seed) => one(seed, bug)?,
        None => many(arguments, bug),
    };
    output::show(arguments.output.output, &report, table)?;
    report.verdict()
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
    all.add(first, began.elapsed() / 2);
    Ok(all.report(1, began.elapsed()))
}

/// Runs seeds on all cores until there are enough, or the time is over. A seed that fails is told at once.
fn many(arguments: &Sim, bug: Bug) -> Report {
    let began = Instant::now();
    let limit = arguments.minutes.map(|minutes| Duration::from_secs(60 * u64::from(minutes)));
    let seeds = arguments.seeds.unwrap_or(if limit.is_some() { u64::MAX } else { SEEDS_DEFAULT });
    let first = arguments.first_seed;
    let (done, all) = (AtomicU64::new(0), Mutex::new(All::default()));
    let bar = bar("seeds", (seeds < u64::MAX).then_some(seeds));
    let go_on = |_| {
        let failed = all.lock().is_ok_and(|all| !all.failed.is_empty());
        limit.is_none_or(|limit| began.elapsed() < limit) && !(failed && arguments.until_failure)
    };
    on_all_cores(first, seeds, go_on, |seed| {
        let start = Instant::now();
        let outcome = run_seed(seed, bug);
        done.fetch_add(1, Ordering::Relaxed);
        if outcome.violation.is_some() {
            bar.suspend(|| eprintln!("{outcome}"));
        }
        let mut all = all.lock().expect("nothing panics with the lock held");
        all.add(outcome, start.elapsed());
        if !all.failed.is_empty() {
            bar.set_message(format!("seeds, {} failed", all.failed.len()));
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    let all = all.into_inner().expect("nothing panics with the lock held");
    all.report(done.into_inner(), began.elapsed())
}

/// Takes seeds in order, on all cores at once, while `go_on` says so. Every seed before one that was taken is taken.
fn on_all_cores(first: u64, seeds: u64, go_on: impl Fn(u64) -> bool + Sync, each: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds || !go_on(first.saturating_add(index)) {
                        break;
                    }
                    each(first + index);
                }
            });
        }
    });
}

/// Runs seeds with a bug planted, or with each one in turn, until one finds it: a simulator that does not find what is
/// there proves nothing by finding nothing.
fn find(arguments: &Sim, bug: Bug) -> Outcome {
    let bugs = match bug {
        Bug::None => Bug::names().into_iter().filter_map(Bug::named).collect(),
        one => vec![one],
    };
    let seeds = arguments.seeds.unwrap_or(SEEDS_TO_FIND);
    let found: Vec<Found> = bugs.into_iter().map(|bug| find_one(bug, arguments.first_seed, seeds)).collect();
    output::show(arguments.output.output, &found, |found| found_table(found))?;
    let hidden: Vec<_> = found.iter().filter(|found| found.by.is_none()).map(|found| found.bug).collect();
    if hidden.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("{seeds} seeds did not find what was planted: {}", hidden.join(", ")))
        .hint("the simulation has proved nothing about these rules"))
}

/// The lowest seed that finds `bug`, whichever core is first to find it with one.
fn find_one(bug: Bug, first: u64, seeds: u64) -> Found {
    let began = Instant::now();
    let name = bug.name().expect("a planted bug has a name");
    let best = Mutex::new(None::<Failed>);
    let bar = bar(&format!("seeds to find {name}"), Some(seeds));
    let go_on =
        |seed| best.lock().is_ok_and(|best| best.as_ref().is_none_or(|best: &Failed| seed < best.seed));
    on_all_cores(first, seeds, go_on, |seed| {
        let outcome = run_seed(seed, bug);
        bar.inc(1);
        if outcome.violation.is_some() {
            let mut best = best.lock().expect("nothing panics with the lock held");
            if best.as_ref().is_none_or(|best| seed < best.seed) {
                *best = Failed::of(outcome);
            }
        }
    });
    bar.finish_and_clear();
    let by = best.into_inner().expect("nothing panics with the lock held");
    let seeds = by.as_ref().map_or(seeds, |by| by.seed - first + 1);
    Found { bug: name, seeds, by, seconds: began.elapsed().as_secs_f64() }
}

/// A bar of seeds; drawn on a terminal only.
fn bar(what: &str, seeds: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(seeds, ProgressDrawTarget::stderr());
    let template = match seeds {
        Some(_) => "    [{bar:30}] {pos} of {len} {msg}, {elapsed}",
        None => "    {spinner} {pos} {msg}, {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> ").tick_chars("-\\|/ "));
    }
    bar.set_message(what.to_owned());
    bar
}

impl Failed {
    fn of(outcome: ::sim::Outcome) -> Option<Self> {
        let replay = outcome.replay();
        outcome.violation.map(|violation| Self { seed: outcome.seed, violation, replay })
    }
}

#[derive(Default)]
struct All {
    totals: Totals,
    failed: Vec<Failed>,
    slowest: Option<Slowest>,
}

impl All {
    fn add(&mut self, outcome: ::sim::Outcome, took: Duration) {
        self.totals += &outcome.totals;
        let slow = Slowest { seed: outcome.seed, seconds: took.as_secs_f64() };
        if self.slowest.is_none_or(|slowest| slowest.seconds < slow.seconds) {
            self.slowest = Some(slow);
        }
        self.failed.extend(Failed::of(outcome));
    }

    fn report(mut self, seeds: u64, took: Duration) -> Report {
        self.failed.sort_by_key(|failed| failed.seed);
        Report {
            seeds,
            failed: self.failed,
            totals: self.totals.named().into_iter().collect(),
            missing: self.totals.missing(),
            seconds: took.as_secs_f64(),
            slowest: self.slowest,
        }
    }
}

impl Report {
    /// Whether the run has shown what it should.
    fn verdict(&self) -> Outcome {
        if let Some(first) = self.failed.first() {
            return Err(Failure::new(format!("{} of {} seeds failed", self.failed.len(), self.seeds))
                .hint(format!("replay one with `{}`", first.replay)));
        }
        if self.seeds >= SEEDS_FOR_ALL && !self.missing.is_empty() {
            let missing = self.missing.join(", ");
            return Err(Failure::new(format!("over {} seeds these never happened: {missing}", self.seeds))
                .hint("the simulation has proved nothing about them"));
        }
        Ok(())
    }
}

fn table(report: &Report) -> String {
    let row = |(name, count): (&&'static str, &u64)| vec![(*name).to_owned(), count.to_string()];
    let totals = output::table(&["WHAT HAPPENED", "TIMES"], report.totals.iter().map(row).collect(), "");
    let held = report.seeds - report.failed.len() as u64;
    let slowest =
        report.slowest.map(|slow| format!("; the slowest, {}, took {:.1} s", slow.seed, slow.seconds));
    format!(
        "{totals}\n\n{held} of {} seeds held in {:.1} s{}",
        report.seeds,
        report.seconds,
        slowest.unwrap_or_default()
    )
}

fn found_table(found: &[Found]) -> String {
    let row = |found: &Found| {
        let (seed, what) = match &found.by {
            Some(failed) => (failed.seed.to_string(), failed.violation.clone()),
            None => (format!("none of {}", found.seeds), String::new()),
        };
        let what: String = what.chars().take(80).collect();
        vec![found.bug.to_owned(), seed, format!("{:.1}", found.seconds), what]
    };
    output::table(&["PLANTED", "FIRST SEED", "SECONDS", "FOUND"], found.iter().map(row).collect(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(seeds: u64, totals: &Totals) -> Report {
        All { totals: totals.clone(), ..All::default() }.report(seeds, Duration::from_secs(1))
    }

    #[test]
    fn many_seeds_in_which_something_never_happened_are_a_failure() {
        report(SEEDS_FOR_ALL - 1, &Totals::default()).verdict().expect("too few seeds to say");
        let failure = report(SEEDS_FOR_ALL, &Totals::default()).verdict().expect_err("nothing happened");
        for name in Totals::default().missing() {
            assert!(failure.to_string().contains(name), "{name} is not in: {failure}");
        }
        assert_eq!(failure.exit_code(), std::process::ExitCode::FAILURE);
    }

    #[test]
    fn a_seed_that_failed_is_a_failure_that_says_how_to_replay_it() {
        let mut report = report(1, &Totals::default());
        report.failed.push(Failed { seed: 7, violation: "no".into(), replay: "orlop sim --seed 7".into() });
        let failure = report.verdict().expect_err("a seed failed");
        assert_eq!(failure.to_string(), "1 of 1 seeds failed; replay one with `orlop sim --seed 7`");
    }

    #[test]
    fn seeds_are_taken_in_order_and_all_of_them_once() {
        let taken = Mutex::new(Vec::new());
        on_all_cores(5, 20, |seed| seed < 15, |seed| taken.lock().unwrap().push(seed));
        let mut taken = taken.into_inner().unwrap();
        taken.sort_unstable();
        assert_eq!(taken, (5..15).collect::<Vec<_>>());
    }
}
