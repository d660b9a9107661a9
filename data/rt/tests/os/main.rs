//! The reactor on a real kernel, through the crate's public API.

mod accept;
mod files;
mod handover;
mod receive;
mod sockets;
mod tasks;

use rt::os::{Config, DriverChoice, Reactor};

/// Runs `test` on a fresh reactor with each driver that this machine has, and with each way to receive.
fn run(test: impl AsyncFn()) {
    for config in ways() {
        if let Some(reactor) = reactor(config) {
            reactor.run(test());
        }
    }
}

/// Each driver; connections that share many buffers, few, or none.
fn ways() -> [Config; 4] {
    let ring = |receive_buffers| Config { driver: DriverChoice::Uring, receive_buffers, ..Config::default() };
    let threads = Config { driver: DriverChoice::Threads, ..Config::default() };
    [ring(Config::default().receive_buffers), ring(2), ring(0), threads]
}

fn run_on(driver: DriverChoice, test: impl AsyncFn()) {
    if let Some(reactor) = reactor(Config { driver, ..Config::default() }) {
        reactor.run(test());
    }
}

/// A reactor; none where `config` asks for a driver that is forbidden here.
fn reactor(config: Config) -> Option<Reactor> {
    match Reactor::new(config) {
        Ok(reactor) => Some(reactor),
        Err(error) if config.driver == DriverChoice::Uring => {
            eprintln!("not tested on io_uring, forbidden: {error}");
            None
        }
        Err(error) => panic!("no reactor with {config:?}: {error}"),
    }
}
