//! `kubectl orlop`: called as `kubectl-orlop`, this program hands its command over to the one in the controller's pod, where
//! the API is and nowhere else.
//!
//! 1. What is wrong with the arguments is said here; those that are right are passed on as they are.
//! 2. kubectl takes the place of this process: standard input and output and the exit code are its own.

use crate::arguments::{self, Disk, Node, Pool, Support, Volume};
use crate::failure::{EXIT_CODES, Failure, Kind, Outcome};
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Those that would make a file in the pod.
const BUNDLE_EXAMPLES: &str = "  orlop support bundle
  orlop support bundle --file /tmp/orlop.tar --logs ./orlop-data/log
";
/// By what name kubectl finds it.
const NAME: &str = "kubectl-orlop";

/// Orlop in a Kubernetes: runs the command in the pod of its controller, by `kubectl exec`.
#[derive(Debug, Parser)]
#[command(name = NAME, bin_name = "kubectl orlop", version, after_help = EXIT_CODES, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Plugin {
    /// The namespace of Orlop.
    #[arg(short, long, env = "ORLOP_NAMESPACE", default_value = "orlop", global = true)]
    namespace: String,
    #[command(subcommand)]
    noun: Noun,
}

/// The nouns that the API has.
#[derive(Debug, Subcommand)]
enum Noun {
    /// Nodes: the machines that hold copies.
    #[command(subcommand)]
    Node(Node),
    /// Disks: the block devices of the nodes, and whether they can become pools.
    #[command(subcommand)]
    Disk(Disk),
    /// Pools: the disks that Orlop has formatted.
    #[command(subcommand)]
    Pool(Pool),
    /// Volumes: create, attach, look, delete.
    #[command(subcommand)]
    Volume(Volume),
    /// Support: what somebody else needs to see to help.
    #[command(subcommand)]
    Support(Support),
}

/// Whether the program was called as the plugin.
pub(crate) fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == NAME)
}

/// Hands the command over, and returns only if that fails. `raw` are the arguments without the program's name.
pub(crate) fn run(raw: &[OsString]) -> Outcome {
    let asked = command().try_get_matches_from([OsString::from(NAME)].iter().chain(raw));
    let plugin = asked.and_then(|matches: ArgMatches| Plugin::from_arg_matches(&matches));
    let plugin = match plugin {
        Ok(plugin) => plugin,
        Err(error) if arguments::is_answer(&error) => error.exit(),
        Err(error) => return Err(arguments::refusal(&error)),
    };
    if let Noun::Support(Support::Bundle(bundle)) = &plugin.noun
        && bundle.file != Path::new("-")
    {
        return Err(Failure::new("a file would be made in the pod")
            .kind(Kind::Usage)
            .hint("write `kubectl orlop support bundle --file - > orlop.tar`"));
    }
    if let Noun::Disk(Disk::Partition(_)) = &plugin.noun {
        return Err(Failure::new(
            "a partition is made on the machine that has the disk, and this would ask a controller",
        )
        .kind(Kind::Usage)
        .hint(
            "run `kubectl exec POD -- orlop disk partition ...` with the `orlop-node` pod of that machine",
        ));
    }
    let mut kubectl = std::process::Command::new("kubectl");
    kubectl.args(["--namespace", &plugin.namespace, "exec"]);
    if !std::io::stdin().is_terminal() {
        kubectl.arg("--stdin");
    }
    kubectl.args(["deployment/orlop-controller", "--container=controller", "--", "orlop"]).args(passed(raw));
    let error = kubectl.exec();
    Err(Failure::new(format!("cannot run kubectl: {error}")).hint("install it, or put it into PATH"))
}

/// The plugin's command line; examples are of the plugin, too.
fn command() -> Command {
    renamed(Plugin::command())
}

fn renamed(command: Command) -> Command {
    // It is not for the pod of a controller.
    let command = if command.get_name() == "partition" { command.hide(true) } else { command };
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.map(|help| help.replace(BUNDLE_EXAMPLES, "").replace("  orlop ", "  kubectl orlop "));
    let command = match help {
        Some(help) => command.after_help(help),
        None => command,
    };
    command.mut_subcommands(renamed)
}

/// The arguments without the namespace, which is for here.
fn passed(raw: &[OsString]) -> Vec<&OsString> {
    let mut raw = raw.iter();
    let mut passed = Vec::new();
    while let Some(argument) = raw.next() {
        let bytes = argument.as_bytes();
        if matches!(bytes, b"--namespace" | b"-n") {
            raw.next();
        } else if !bytes.starts_with(b"--namespace=") && !bytes.starts_with(b"-n") {
            passed.push(argument);
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_by_its_name() {
        for (program, is) in [
            ("kubectl-orlop", true),
            ("/usr/bin/kubectl-orlop", true),
            ("orlop", false),
            ("/kubectl-orlop/orlop", false),
        ] {
            assert_eq!(is_called(Some(OsStr::new(program))), is, "{program}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn the_namespace_is_kept_here() {
        command().debug_assert();
        for (raw, kept) in [
            ("volume list -o json", "volume list -o json"),
            ("--namespace a volume list", "volume list"),
            ("volume -n a list --namespace=b", "volume list"),
            ("-na node get node-1", "node get node-1"),
        ] {
            let raw: Vec<OsString> = raw.split(' ').map(OsString::from).collect();
            let passed: Vec<&str> = passed(&raw).into_iter().filter_map(|word| word.to_str()).collect();
            assert_eq!(passed.join(" "), kept);
        }
    }

    #[test]
    fn examples_are_of_the_plugin() {
        fn check(command: &Command, path: &str) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let path = format!("{path} {}", verb.get_name());
                if verb.has_subcommands() {
                    check(verb, &path);
                } else {
                    let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains(&path) && !help.contains("  orlop "), "{path}: {help:?}");
                }
            }
        }
        check(&command(), "kubectl orlop");
        let mut command = command();
        let bundle =
            command.find_subcommand_mut("support").and_then(|noun| noun.find_subcommand_mut("bundle"));
        let help =
            bundle.and_then(|bundle| bundle.get_after_help()).map(ToString::to_string).unwrap_or_default();
        assert_eq!(help.matches("kubectl orlop").count(), 1, "{help}");
    }
}
