//! The command line: nouns, verbs, options, examples.

use crate::failure::{EXIT_CODES, Failure, Kind};
use crate::output::Format;
use clap::{Args, Parser, Subcommand};
use device::ByteCount;

/// Replicated block storage: volumes with copies on several nodes, in one program.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, about, after_help = EXIT_CODES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measures a device.
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Bench),
    /// Prints the completions of a shell.
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

const BENCH_EXAMPLES: &str = "\
Examples:
  orlop bench 'null://?size=1GiB' --rw randread
  orlop bench 'file:///tmp/disk?size=1GiB' --rw randwrite --depth 1
  orlop bench 'mem://?size=256MiB' --rw write --block-size 128KiB --seconds 2 -o json";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(orlop completion bash)
  orlop completion zsh > ~/.zfunc/_orlop";

/// How to print.
#[derive(Clone, Debug, Args)]
pub(crate) struct Output {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub(crate) output: Format,
}

/// Options of `orlop bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// What to measure: a device URI; writes overwrite what is there.
    pub(crate) target: String,
    /// What to do.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) rw: crate::bench::Pattern,
    /// Bytes per read or write.
    #[arg(long, default_value = "4KiB", value_name = "SIZE")]
    pub(crate) block_size: ByteCount,
    /// How many are under way at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) depth: u32,
    /// For how long.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What clap says in paragraphs, as one line: the error, then its tip or where the help is.
pub(crate) fn refusal(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let what = paragraphs.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let tip = paragraphs.find_map(|paragraph| paragraph.trim().strip_prefix("tip: ").map(str::to_owned));
    Failure::new(what).kind(Kind::Usage).hint(tip.unwrap_or_else(|| "try --help".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_that_is_shown_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let path = format!("{path} {}", verb.get_name());
                if verb.has_subcommands() {
                    check(verb, &path);
                } else {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains(&path), "{path} has no example of itself: {help:?}");
                }
            }
        }
        check(&Arguments::command(), "orlop");
    }
}
