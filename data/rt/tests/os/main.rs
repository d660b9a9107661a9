//! The reactor on a real kernel, through the crate's public API.

mod files;
mod sockets;
mod tasks;

use rt::os::{Config, DriverChoice, Reactor};

/// Runs `test` on a fresh reactor with each driver that this machine has.
fn run(test: impl AsyncFn()) {
    for driver in [DriverChoice::Uring, DriverChoice::Threads] {
        run_on(driver, &test);
    }
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
