//! `orlop-e2e`: journeys on real parts, as root on a machine of one's own: kernel initiator, file systems, databases,
//! `kill -9`. Run by `cargo xtask e2e`; `--list` names the journeys.

mod beside;
mod cache;
mod cluster;
mod golden;
mod guard;
mod guest;
mod journey;
mod journeys;
mod kubernetes;
mod process;
mod session;

use anyhow::{Context, Result, bail, ensure};
use beside::Beside;
use clap::{Parser, Subcommand};
use guard::{Guard, Leftovers, RunId};
use journey::{Journey, Trip};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(about = "Runs journeys on real parts, as root", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Extra>,
    /// Name the journeys and end.
    #[arg(long)]
    list: bool,
    /// The release build of `orlop`; `cargo xtask e2e` makes it and names it in ORLOP.
    #[arg(long, env = "ORLOP", default_value = "target/release/orlop")]
    orlop: PathBuf,
    /// It runs beside another run, which ends after it.
    #[arg(long, hide = true)]
    beside: bool,
    /// The journeys to run; all of them if none is named.
    names: Vec<String>,
}

#[derive(Subcommand)]
enum Extra {
    /// Capture the golden PDUs of data/nvmf/tests/golden anew.
    Golden,
    /// Boot the guest and run a script of bash in it.
    Boot {
        /// The script; the folder it lies in is not shared, /vm in the guest is a new one.
        script: PathBuf,
    },
    /// Build the programs of Kubernetes into the cache, all of them if none is named.
    Programs { names: Vec<String> },
    /// Wait for the end of standard input, then remove all that carries the id.
    #[command(hide = true)]
    Guard { id: String },
    /// Plant leftovers, for the journey `guard`.
    #[command(hide = true)]
    Plant,
    /// Call the CSI plugin of node-1, for the journey `nvme-csi`.
    #[command(hide = true)]
    CsiCalls(journeys::Calls),
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("orlop-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    match &arguments.command {
        Some(Extra::Golden) => golden(),
        Some(Extra::Boot { script }) => boot(script),
        Some(Extra::Programs { names }) => programs(names),
        Some(Extra::Guard { id }) => guard::guard(&RunId(id.clone())),
        Some(Extra::Plant) => {
            let id = RunId::random()?;
            let _guard = Guard::start(&id, true)?;
            journeys::plant(&id)?;
            Ok(true)
        }
        Some(Extra::CsiCalls(calls)) => {
            calls.make()?;
            Ok(true)
        }
        None if arguments.list => {
            for journey in journeys::all() {
                println!("{:<12} {}", journey.name, journey.what);
            }
            Ok(true)
        }
        None => travel(&arguments.names, &std::path::absolute(&arguments.orlop)?, arguments.beside),
    }
}

/// Runs the journeys, one after the other; `true` when all passed and nothing was left.
fn travel(names: &[String], orlop: &Path, is_beside: bool) -> Result<bool> {
    ensure!(rustix::process::geteuid().is_root(), "the journeys mount, kill and install: run them as root");
    let mut chosen: Vec<&Journey> = Vec::new();
    for name in names {
        let Some(journey) = journeys::all().find(|journey| journey.name == name) else {
            bail!("no journey is called {name}: `--list` names them");
        };
        chosen.push(journey);
    }
    let mut beside = None;
    if chosen.is_empty() {
        chosen.extend(journeys::HERE);
        // Made first: two runs cannot install packages at once.
        guest::Guest::ready()?;
        beside = Some(Beside::start(orlop, journeys::BESIDE)?);
    }
    let id = RunId::random()?;
    let guard = Guard::start(&id, is_beside)?;
    let begun = Instant::now();
    let (mut passed, mut failed) = (0, 0);
    for journey in chosen {
        println!("{}: {}", journey.name, journey.what);
        let start = Instant::now();
        let trip = Trip::new(&id, journey.name, orlop)?;
        let result = (journey.run)(&trip).and_then(|()| nothing_left(&id, &guard));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("{}: ok in {seconds:.1} s", journey.name);
                std::fs::remove_dir_all(&trip.folder)?;
            }
            Err(error) => {
                failed += 1;
                println!("{}: FAILED after {seconds:.1} s: {error:#}", journey.name);
                // The next journey starts on a clean machine; this one's files stay until the end of the run.
                Leftovers::find(&id, &[guard.pid()]).remove();
            }
        }
    }
    if let Some(beside) = beside {
        let (also_passed, also_failed) = beside.end()?;
        passed += also_passed;
        failed += also_failed;
    }
    // After those beside: what dies of theirs is left to this one.
    if !guard.finish()? {
        failed += 1;
        println!("leftovers: FAILED: something stayed until the guard removed it");
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// A journey must clean up after itself: the guard is for those that cannot.
fn nothing_left(id: &RunId, guard: &Guard) -> Result<()> {
    let start = Instant::now();
    loop {
        let leftovers = Leftovers::find(id, &[guard.pid()]);
        if leftovers.is_empty() {
            return Ok(());
        }
        // A process that was told to end may take a moment.
        ensure!(start.elapsed() < Duration::from_secs(5), "it left behind: {leftovers}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn golden() -> Result<bool> {
    let date = Command::new("date").args(["-u", "+%F"]).output().context("run date")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/nvmf/tests/golden");
    in_folder(|shared| {
        let date = String::from_utf8_lossy(&date.stdout);
        golden::capture(&guest::Guest::ready()?, shared, &folder, date.trim())?;
        Ok(true)
    })
}

fn boot(script: &Path) -> Result<bool> {
    let script = std::fs::read_to_string(script).with_context(|| format!("read {}", script.display()))?;
    in_folder(|shared| {
        let verdict = guest::Guest::ready()?.run(shared, &script, Duration::from_secs(600))?;
        print!("{}", verdict.output);
        println!("exit code {}, {verdict}", verdict.code);
        Ok(verdict.code == 0)
    })
}

fn programs(names: &[String]) -> Result<bool> {
    let all = kubernetes::programs::names().map(str::to_owned);
    let names = if names.is_empty() { all.collect() } else { names.to_vec() };
    for name in names {
        println!("{}", kubernetes::programs::built(&name)?.display());
    }
    Ok(true)
}

/// Runs `what` with a folder that is guarded like a journey's.
fn in_folder(what: impl FnOnce(&Path) -> Result<bool>) -> Result<bool> {
    let id = RunId::random()?;
    let guard = Guard::start(&id, false)?;
    let done = what(&id.folder());
    guard.finish()?;
    done
}
