//! Stages: commands with a name, whose seconds and test counts are kept and printed at the end.

use crate::count::Count;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The stages of one run, in order.
#[derive(Default)]
pub(crate) struct Stages {
    done: Vec<(String, Duration)>,
    pub(crate) count: Count,
}

impl Stages {
    /// Runs `work` as the stage `name`; the first stage that fails ends the run, with its name.
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce(&mut Count) -> Result<()>) -> Result<()> {
        println!("=== {name}");
        let start = Instant::now();
        let result = work(&mut self.count);
        let took = start.elapsed();
        println!(
            "=== {name}: {} in {:.1} s",
            if result.is_ok() { "ok" } else { "FAILED" },
            took.as_secs_f64()
        );
        self.done.push((name.to_owned(), took));
        if let Err(error) = result {
            self.print();
            return Err(error.context(format!("stage `{name}` failed")));
        }
        Ok(())
    }

    /// Prints the seconds of each stage and the counts of the tests; the last line is `N passed, M failed`.
    pub(crate) fn print(&self) {
        println!("\n{:<12} {:>8}", "stage", "seconds");
        for (name, took) in &self.done {
            println!("{name:<12} {:>8.1}", took.as_secs_f64());
        }
        let total: f64 = self.done.iter().map(|(_, took)| took.as_secs_f64()).sum();
        println!("{:<12} {total:>8.1}\n", "total");
        let Count { passed, failed, ignored } = self.count;
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        println!("test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored");
        println!("{passed} passed, {failed} failed");
    }
}

/// Runs `command`, passes its output on line by line, and adds the tests that it reports to `count`.
pub(crate) fn run(mut command: Command, count: &mut Count) -> Result<()> {
    let shown = show(&command);
    println!("$ {shown}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.stdout.take().context("the output was asked for")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("cannot read the output of `{shown}`"))?;
        let line = String::from_utf8_lossy(&line);
        count.add_line(&line);
        println!("{line}");
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// The command as one would type it.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_an_error_that_names_it_and_still_counts() {
        let mut count = Count::default();
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: FAILED. 3 passed; 1 failed; 0 ignored'; exit 3"]);
        let error = run(command, &mut count).expect_err("exit code 3");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert_eq!((count.passed, count.failed), (3, 1));
    }

    #[test]
    fn the_first_failing_stage_gives_its_name() {
        let mut stages = Stages::default();
        stages.run("one", |_| Ok(())).expect("nothing fails");
        let error = stages.run("two", |_| bail!("no")).expect_err("it fails");
        assert_eq!(format!("{error:#}"), "stage `two` failed: no");
    }
}
