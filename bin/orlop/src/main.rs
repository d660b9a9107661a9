//! The one binary. It alone reads arguments and environment; each command is one module.

mod arguments;
mod bench;
mod check;
mod commands;
mod controller;
mod csi;
mod demo;
mod dev;
mod device_kind;
mod failure;
mod node;
mod opened;
mod output;
mod partition;
mod plugin;
mod preflight;
mod probe;
mod process;
mod restarts;
mod secrets;
mod sim;
mod stores;
mod support;
mod wipe;

use arguments::{Arguments, Command, Disk, Node, Pool, Support, Volume};
use clap::{CommandFactory, Parser};
use failure::{OrFail, Outcome};
use std::process::ExitCode;

fn main() -> ExitCode {
    // The holder closes what it inherited: nothing may be open before it runs.
    let mut raw = std::env::args_os().skip(1);
    if raw.next().is_some_and(|first| first == node::HOLDER) {
        return match frontend::fuse::holder::main(raw) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let mut raw = std::env::args_os();
    let outcome = if plugin::is_called(raw.next().as_deref()) {
        plugin::run(&raw.collect::<Vec<_>>())
    } else {
        match Arguments::try_parse() {
            Ok(arguments) => run(arguments.command),
            Err(error) if arguments::is_answer(&error) => error.exit(),
            Err(error) => Err(arguments::refusal(&error)),
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("orlop: {failure}");
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Dev(arguments) => wait_for(dev::run(&arguments)),
        Command::Demo(arguments) => wait_for(demo::run(&arguments)),
        Command::Node(Node::List { api, output }) => wait_for(commands::inventory::list_nodes(&api, &output)),
        Command::Node(Node::Get(arguments)) => wait_for(commands::node::get(&arguments)),
        Command::Node(Node::Cordon(arguments)) => wait_for(commands::node::cordon(&arguments)),
        Command::Node(Node::Drain(arguments)) => wait_for(commands::node::drain(&arguments)),
        Command::Node(Node::Uncordon(arguments)) => wait_for(commands::node::uncordon(&arguments)),
        Command::Node(Node::Delete(arguments)) => wait_for(commands::node::delete(&arguments)),
        Command::Pool(Pool::Delete { pool, api, output }) => {
            wait_for(commands::inventory::delete_pool(&pool, &api, &output))
        }
        Command::Pool(Pool::List { api, output }) => wait_for(commands::inventory::list_pools(&api, &output)),
        Command::Disk(Disk::List { api, output }) => wait_for(commands::inventory::list_disks(&api, &output)),
        Command::Disk(Disk::Get { name, api, output }) => {
            wait_for(commands::inventory::get_disk(&name, &api, &output))
        }
        Command::Disk(Disk::Partition(arguments)) => partition::run(&arguments),
        Command::Volume(verb) => wait_for(volume(verb)),
        Command::Support(Support::Bundle(arguments)) => wait_for(support::bundle(&arguments)),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Node(Node::Run(arguments)) => node::run(&arguments),
        Command::Node(Node::Serve(arguments)) => wait_for(node::serve(&arguments)),
        Command::Controller(arguments) => controller::run(&arguments),
        Command::Csi(arguments) => csi::run(&arguments),
        Command::Probe { url } => probe::run(&url),
        Command::Check(arguments) => check::run(&arguments),
        Command::Wipe(arguments) => wipe::run(&arguments),
        Command::Preflight(arguments) => preflight::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "orlop", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

async fn volume(verb: Volume) -> Outcome {
    use commands::volume;
    match verb {
        Volume::Create(arguments) => volume::create(&arguments).await,
        Volume::List { api, output } => volume::list(&api, output.output).await,
        Volume::Get(arguments) => volume::get(&arguments).await,
        Volume::Delete(arguments) => volume::delete(&arguments).await,
        Volume::Attach(arguments) => volume::attach(&arguments).await,
        Volume::Detach(arguments) => volume::detach(&arguments).await,
        Volume::Key(arguments) => volume::key(&arguments).await,
        Volume::Resize(arguments) => volume::resize(&arguments).await,
        Volume::Recover(arguments) => volume::recover(&arguments).await,
    }
}

/// Runs a command that waits for sockets and processes, on this one thread: children that die with their parent die with
/// the thread that started them.
fn wait_for<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.or_fail(|| "cannot start".into())?.block_on(work)
}
