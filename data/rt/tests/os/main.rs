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
    match Reactor::new(Config { driver, ..Config::default() }) {
        Ok(reactor) => reactor.run(test()),
        Err(error) if driver == DriverChoice::Uring => {
            eprintln!("not tested on io_uring, forbidden: {error}");
        }
        Err(error) => panic!("no reactor on {driver:?}: {error}"),
    }
}
