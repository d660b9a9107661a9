//! Runs seeds: `cargo run -p orlop-sim --release --example seeds -- FIRST COUNT [BUG]`.
use sim::{Bug, Totals, run_seed};
use std::time::Instant;

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .init();
    let mut args = std::env::args().skip(1);
    let first: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let bug = args.next().map_or(Bug::None, |name| Bug::named(&name).expect("a known bug"));
    let mut totals = Totals::default();
    let mut failed = 0;
    for seed in first..first + count {
        let began = Instant::now();
        let outcome = run_seed(seed, bug);
        totals += &outcome.totals;
        println!("{:6.2} s, virtual {:?}: {outcome}", began.elapsed().as_secs_f64(), outcome.elapsed);
        failed += u64::from(outcome.violation.is_some());
    }
    println!("{count} seeds, {failed} failed; {totals}; never: {:?}", totals.missing());
}
