//! A client of a database that commits one numbered row after the other, and the ledger of those that were acknowledged,
//! kept outside of the volume.
//!
//! 1. A number enters the ledger only after the database answered the commit.
//! 2. At most one row per session is in the database and not in the ledger: the one whose answer never came.

use crate::process::Process;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The table, for SQLite and PostgreSQL alike.
pub(crate) const TABLE: &str = "CREATE TABLE ledger (n bigint PRIMARY KEY, payload text NOT NULL);";
/// Counts the rows whose payload is not what was written.
pub(crate) const WRONG: &str =
    "SELECT count(*) FROM ledger WHERE payload <> 'row ' || n || ' of the ledger';";

/// Sessions that write until they are killed or the database goes away.
pub(crate) struct Load {
    sessions: Vec<JoinHandle<Result<Written>>>,
    clients: Vec<Process>,
    acknowledged: Arc<AtomicU64>,
    ledgers: Vec<std::path::PathBuf>,
}

/// What one session saw.
struct Written {
    longest_stall: Duration,
}

impl Load {
    /// Starts `sessions` clients; session s writes the numbers s, s + sessions, ...; ledgers in `folder`.
    pub(crate) fn start(folder: &Path, sessions: u64, client: impl Fn() -> Command) -> Result<Self> {
        let mut load = Self {
            sessions: Vec::new(),
            clients: Vec::new(),
            acknowledged: Arc::default(),
            ledgers: Vec::new(),
        };
        for session in 0..sessions {
            let path = folder.join(format!("ledger-{session}"));
            let ledger = File::create(&path)?;
            // Line by line, also into a pipe: an answer that waits in a buffer would look like a stall.
            let inner = client();
            let mut command = Command::new("stdbuf");
            command.arg("-oL").arg(inner.get_program()).args(inner.get_args());
            for (name, value) in inner.get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            if let Some(folder) = inner.get_current_dir() {
                command.current_dir(folder);
            }
            let errors = File::create(folder.join(format!("session-{session}.err")))?;
            let child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(errors)
                .spawn()
                .context("start a session")?;
            load.clients.extend(Process::of(i32::try_from(child.id())?));
            load.ledgers.push(path);
            let acknowledged = load.acknowledged.clone();
            load.sessions.push(std::thread::spawn(move || {
                write(child, ledger, (session + 1, sessions), &acknowledged)
            }));
        }
        Ok(load)
    }

    /// How many commits were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `more` commits were acknowledged after now.
    pub(crate) fn wait_for(&self, more: u64, limit: Duration) -> Result<()> {
        let (begun, first) = (Instant::now(), self.acknowledged());
        while self.acknowledged() < first + more {
            let seconds = limit.as_secs();
            ensure!(self.sessions.iter().any(|session| !session.is_finished()), "all sessions ended");
            ensure!(
                begun.elapsed() < limit,
                "{} of {more} commits in {seconds} s",
                self.acknowledged() - first
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills the clients in the middle of their work; the ledger, and the longest time between question and answer.
    pub(crate) fn kill(self) -> Result<(BTreeSet<u64>, Duration)> {
        for client in self.clients {
            client.signal(Signal::KILL);
        }
        let mut longest_stall = Duration::ZERO;
        for session in self.sessions {
            let written = session.join().map_err(|_| anyhow::anyhow!("a session panicked"))??;
            longest_stall = longest_stall.max(written.longest_stall);
        }
        let mut ledger = BTreeSet::new();
        for path in self.ledgers {
            for line in fs::read_to_string(path)?.lines() {
                ledger.insert(line.parse()?);
            }
        }
        Ok((ledger, longest_stall))
    }
}

/// One session: `(first, step)` are its numbers.
fn write(
    mut child: Child,
    mut ledger: File,
    (first, step): (u64, u64),
    acknowledged: &AtomicU64,
) -> Result<Written> {
    let mut input = child.stdin.take().context("it has a standard input")?;
    let mut answers = BufReader::new(child.stdout.take().context("it has a standard output")?);
    let mut longest_stall = Duration::ZERO;
    let mut number = first;
    loop {
        let asked = Instant::now();
        // Two statements, two transactions: the answer to the second says that the first was committed.
        let row = format!("INSERT INTO ledger VALUES ({number}, 'row {number} of the ledger');");
        if writeln!(input, "{row}\nSELECT 'committed {number}' FROM ledger WHERE n = {number};").is_err() {
            break;
        }
        let mut answer = String::new();
        // Half a line is no answer: the client was killed while it spoke.
        if answers.read_line(&mut answer).is_err() || !answer.ends_with('\n') {
            break;
        }
        ensure!(answer.trim() == format!("committed {number}"), "the answer to row {number} was {answer:?}");
        writeln!(ledger, "{number}")?;
        acknowledged.fetch_add(1, Ordering::Relaxed);
        longest_stall = longest_stall.max(asked.elapsed());
        number += step;
    }
    drop(input);
    child.wait()?;
    Ok(Written { longest_stall })
}

/// Compares what the database holds with the ledger.
/// # Errors  A row that was acknowledged is not there, or more rows are there than could have been on their way.
pub(crate) fn compare(ledger: &BTreeSet<u64>, rows: &str, sessions: usize) -> Result<String> {
    let rows: BTreeSet<u64> =
        rows.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("numbers")?;
    let lost: Vec<_> = ledger.difference(&rows).take(10).collect();
    ensure!(lost.is_empty(), "LOST: acknowledged and not there: {lost:?} of {} commits", ledger.len());
    let unknown = rows.difference(ledger).count();
    ensure!(unknown <= sessions, "{unknown} rows that nobody acknowledged, with {sessions} sessions");
    Ok(format!("all {} acknowledged commits are there, {unknown} that were on their way too", ledger.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_commit_and_an_invented_row_are_found() {
        let ledger: BTreeSet<u64> = (1..=5).collect();
        assert!(compare(&ledger, "1 2 3 4 5 6", 1).unwrap().starts_with("all 5"));
        assert!(compare(&ledger, "1 2 4 5", 1).unwrap_err().to_string().contains("LOST"));
        assert!(compare(&ledger, "1 2 3 4 5 6 7", 1).unwrap_err().to_string().contains("2 rows"));
    }

    #[test]
    fn only_whole_answers_enter_the_ledger() {
        let folder = tempfile::tempdir().unwrap();
        // A database that answers twice, then dies in the middle of an answer.
        let script =
            "read a; read b; echo committed 1; read a; read b; echo committed 2; read a; printf 'commi'";
        let load = Load::start(folder.path(), 1, || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        })
        .unwrap();
        assert!(load.wait_for(3, Duration::from_secs(20)).is_err());
        assert_eq!(load.kill().unwrap().0, BTreeSet::from([1, 2]));
    }
}
