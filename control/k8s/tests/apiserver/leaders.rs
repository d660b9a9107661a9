//! Who leads: one at a time, whatever becomes of the one before and of the API server.

use crate::Test;
use crate::server::ControlPlane;
use k8s::Election;
use std::time::Duration;
use tokio::time::{Instant, timeout};

pub(crate) const TESTS: &[Test] = &[
    ("one_leads_until_it_gives_up", || Box::pin(one_leads_until_it_gives_up())),
    ("a_leader_that_cannot_renew_stops_before_another_begins", || {
        Box::pin(a_leader_that_cannot_renew_stops_before_another_begins())
    }),
];

const SECOND: Duration = Duration::from_secs(1);

async fn candidate(plane: &ControlPlane, identity: &str) -> Election {
    plane.store().await.election("default", "test", identity)
}

async fn one_leads_until_it_gives_up() {
    let plane = ControlPlane::start(&[]).await;
    let (a, b) = (candidate(&plane, "a").await, candidate(&plane, "b").await);
    let first = a.lead().await;
    assert!(timeout(20 * SECOND, b.lead()).await.is_err(), "two lead");
    assert!(Instant::now() < *first.until().borrow(), "it is renewed longer than a lease lasts");
    first.release().await;
    let second = timeout(5 * SECOND, b.lead()).await.expect("a lease that was given back is free");

    // Without a word: the lease has to end first.
    let (number, until) = (second.number(), second.until());
    drop(second);
    let third = timeout(60 * SECOND, a.lead()).await.expect("a lease ends");
    assert!(third.number() > number);
    assert!(Instant::now() >= *until.borrow(), "the term of the one before had not ended");
}

async fn a_leader_that_cannot_renew_stops_before_another_begins() {
    let mut plane = ControlPlane::start(&[]).await;
    let (a, b) = (candidate(&plane, "a").await, candidate(&plane, "b").await);
    let first = a.lead().await;
    let next = tokio::spawn(async move { b.lead().await });
    plane.stop();
    timeout(30 * SECOND, first.lost()).await.expect("it finds out by itself");
    assert!(!next.is_finished(), "nobody leads while nobody can know");
    plane.go_on();
    assert!(plane.answers().await);
    let second = timeout(60 * SECOND, next).await.expect("somebody leads again").unwrap();
    assert!(second.number() > first.number());
}
