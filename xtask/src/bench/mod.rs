//! `cargo xtask bench`: the budgets of the design, measured side by side and reported as ratios.
//!
//! 1. Both sides of a ratio are measured in turn, with the same depth, direct I/O and everything written first; data is
//!    verified at the end, and a case whose data is wrong gives no figures.
//! 2. Results go to standard output, everything else to standard error.

mod bed;
mod cases;
mod cluster;
mod fio;
mod guard;
mod line;
mod machine;
mod procfs;

use anyhow::{Context, Result, bail, ensure};
use bed::{Bed, Pace};
use cases::{ALL, Case};
pub(crate) use guard::{COMMAND as GUARD_COMMAND, guard};
use line::Line;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Arguments of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArguments {
    /// The benchmarks to run; all without.
    names: Vec<String>,
    /// Names the benchmarks, and runs none.
    #[arg(long)]
    list: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    /// A folder on the disk to measure on; a new folder is made in it, and removed.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    data: PathBuf,
    /// How often both sides of each figure are measured.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// How long one measurement takes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// One short round of each, to see that everything can be measured: the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Measure this program instead of building one.
    #[arg(long, value_name = "PATH")]
    orlop: Option<PathBuf>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Runs `cargo xtask bench`; `build` makes the program when none is given.
pub(crate) fn run(arguments: &BenchArguments, build: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    if arguments.list {
        for Case { name, what, .. } in ALL {
            println!("{name:<10} {what}");
        }
        return Ok(());
    }
    let cases = chosen(&arguments.names)?;
    for program in ["fio", "losetup"] {
        let there =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(there.is_ok(), "there is no {program}: install it (Debian: apt install fio util-linux)");
    }
    let pace = if arguments.quick { Pace::QUICK } else { Pace::FULL };
    let pace = Pace {
        rounds: arguments.rounds.unwrap_or(pace.rounds),
        seconds: arguments.seconds.unwrap_or(pace.seconds),
        ..pace
    };
    let orlop = arguments.orlop.clone().map_or_else(build, Ok)?;
    let orlop = std::path::absolute(&orlop)?;
    ensure!(orlop.is_file(), "{} is no program", orlop.display());
    let (bed, machine) = Bed::new(&arguments.data, orlop, pace)?;
    let measured = measure(&bed, &cases);
    let cleaned = bed.finish();
    let lines = measured?;
    match arguments.output {
        Format::Table => {
            println!("{machine}; {} rounds of {} s\n\n{}", pace.rounds, pace.seconds, line::table(&lines));
            if arguments.quick {
                println!(
                    "One short round: these figures say that everything can be measured, and nothing else."
                );
            }
        }
        Format::Json => println!("{}", line::json(&lines)?),
    }
    cleaned
}

/// The cases with these names; all for none.
fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let find = |name: &String| {
        let case = ALL.iter().find(|case| case.name == name);
        case.with_context(|| format!("no benchmark is called {name}: `cargo xtask bench --list` names them"))
    };
    names.iter().map(find).collect()
}

/// Runs the cases; one that fails ends none of the others, and all of them together.
fn measure(bed: &Bed, cases: &[&Case]) -> Result<Vec<Line>> {
    let (without, with): (Vec<&Case>, Vec<&Case>) =
        cases.iter().copied().partition(|case| case.needs_root && !bed.is_root);
    if !without.is_empty() {
        let names: Vec<_> = without.iter().map(|case| case.name).collect();
        eprintln!("bench: not root, so without block devices and without: {}", names.join(", "));
    }
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for case in with {
        eprintln!("bench: {}: {}", case.name, case.what);
        let begun = Instant::now();
        match (case.run)(bed) {
            Ok(measured) => {
                eprintln!("bench: {} took {:.0} s", case.name, begun.elapsed().as_secs_f64());
                lines.extend(measured);
            }
            Err(error) => {
                eprintln!("bench: {} FAILED: {error:#}", case.name);
                failed.push(case.name);
            }
        }
    }
    if !failed.is_empty() {
        eprintln!("{}", line::table(&lines));
        bail!("{} gave no figures", failed.join(", "));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_found_by_name_and_others_are_refused() {
        assert_eq!(chosen(&[]).unwrap().len(), ALL.len());
        let two = chosen(&["target".into(), "local".into()]).unwrap();
        assert_eq!(two.iter().map(|case| case.name).collect::<Vec<_>>(), ["target", "local"]);
        let error = chosen(&["loco".into()]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("loco") && error.contains("--list"), "{error}");
    }
}
