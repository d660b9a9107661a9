//! Attachments and their numbers (I10).

use crate::bed::{Place, Store, open, simulated};
use futures_util::future::join_all;
use std::collections::BTreeSet;

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
