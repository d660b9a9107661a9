//! Attachments and their numbers (I10).

use crate::bed::{Place, Store, open, simulated};
use device::Status;
use futures_util::future::join_all;
use model::limits::HOSTS_MAX;
use std::collections::BTreeSet;
use uuid::Uuid;

#[test]
fn attachments_made_at_the_same_time_have_numbers_of_their_own() {
    simulated(2, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await];
        let store = Store::new(&places);
        let nexus = open(&store, &places).await;
        let attached = join_all((0..5).map(|_| nexus.attach())).await;
        let numbers: BTreeSet<u64> = attached.into_iter().map(|a| a.expect("attached").number()).collect();
        assert_eq!(numbers.len(), 5, "{numbers:?}");
        assert_eq!(store.record().attachment, *numbers.last().expect("five"));
    });
}

#[test]
fn a_host_keeps_its_number_until_it_detaches_and_hosts_are_bounded() {
    simulated(5, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await];
        let store = Store::new(&places);
        let nexus = open(&store, &places).await;
        let attach = |id: u128, connected: bool| {
            let nexus = nexus.clone();
            async move { nexus.attach_host(Uuid::from_u128(id), |_| connected).await.map(|a| a.number()) }
        };
        let first = attach(1, true).await.expect("attached");
        assert_eq!(attach(1, true).await, Ok(first));
        nexus.abandon().await;
        let nexus = open(&store, &places).await;
        let attach = |id: u128, connected: bool| {
            let nexus = nexus.clone();
            async move { nexus.attach_host(Uuid::from_u128(id), |_| connected).await.map(|a| a.number()) }
        };
        assert_eq!(attach(1, true).await, Ok(first), "also with another nexus");
        nexus.detach_host(Uuid::from_u128(1), || false).await.expect("written");
        assert_eq!(attach(1, true).await, Ok(first), "it was not gone");
        nexus.detach_host(Uuid::from_u128(1), || true).await.expect("written");
        assert_eq!(attach(1, true).await, Ok(first + 1));

        for id in 2..=HOSTS_MAX as u128 {
            attach(id, true).await.expect("attached");
        }
        assert_eq!(attach(1000, true).await, Err(Status::Aborted), "all others are connected");
        attach(1000, false).await.expect("the oldest that is gone makes room");
        let hosts = store.record().hosts;
        assert_eq!(hosts.len(), HOSTS_MAX);
        assert!(hosts.iter().all(|h| h.host != Uuid::from_u128(1)));
    });
}
