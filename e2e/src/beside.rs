//! Journeys beside the others: a run of its own with its own id and guard, each of its lines marked with a bar.

use crate::journey::Journey;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// The other run.
pub(crate) struct Beside {
    child: Child,
    /// Passes its output on; ends with its counts of passed and failed, if it came to say them.
    printer: JoinHandle<Option<(u32, u32)>>,
}

impl Beside {
    /// Starts `journeys` as a run of its own.
    pub(crate) fn start(orlop: &Path, journeys: &[Journey]) -> Result<Self> {
        // setpriv: it dies with this run, and its guard cleans up after it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(std::env::current_exe()?)
            .args(["--beside", "--orlop"])
            .arg(orlop);
        command.args(journeys.iter().map(|journey| journey.name));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the journeys beside the others")?;
        let output = child.stdout.take().context("the output was asked for")?;
        let printer = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.inspect(|line| println!("| {line}")).fold(None, |last, line| counts(&line).or(last))
        });
        Ok(Self { child, printer })
    }

    /// Waits for its end; how many of its journeys passed and failed.
    pub(crate) fn end(mut self) -> Result<(u32, u32)> {
        let status = self.child.wait()?;
        let said = self.printer.join().ok().flatten();
        let (passed, failed) = said.unwrap_or_default();
        // One that died in the middle, or could not clean up, has failed whatever it said before.
        Ok((passed, if status.success() { failed } else { failed.max(1) }))
    }
}

/// What the last line of a run says: `N passed, M failed`.
fn counts(line: &str) -> Option<(u32, u32)> {
    let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn only_the_last_line_of_a_run_has_counts() {
        assert_eq!(counts("3 passed, 1 failed"), Some((3, 1)));
        assert_eq!(counts("test result: FAILED. 3 passed; 1 failed; in 7 s"), None);
        assert_eq!(counts("  3 passed, x failed"), None);
    }
}
