//! Members that are in sync keep the latest record (I12).

use crate::bed::{Place, Store, blocks, ms, open, simulated};
use device::{Device, Lba};
use model::{MemberState, VolumeRecord};
use rt::Durability;

fn copy(place: &Place) -> Option<VolumeRecord> {
    let bytes = place.port.replica().record()?;
    Some(serde_json::from_slice(&bytes).expect("a record"))
}

#[test]
fn who_is_in_sync_has_the_record_that_counts() {
    simulated(12, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 64 << 20).await];
        let store = Store::new(&places);
        assert_eq!(copy(&places[0]), None);
        let nexus = open(&store, &places).await;
        assert_eq!(places.iter().map(|place| copy(place)).collect::<Vec<_>>(), vec![Some(store.record()); 2]);

        let host = nexus.attach().await.expect("attached");
        assert_eq!(store.record().attachment, 1);
        assert_eq!(places.iter().map(|place| copy(place)).collect::<Vec<_>>(), vec![Some(store.record()); 2]);

        // A write that one has missed is acknowledged when the other one knows that.
        let before = store.record();
        places[1].cut();
        host.write(Lba(3), blocks(5, 1), Durability::Durable).await.expect("written");
        assert!(matches!(store.state(&places[1]), MemberState::Stale { .. }));
        assert_eq!(copy(&places[0]), Some(store.record()));
        assert_eq!(copy(&places[1]), Some(before), "it could not be told");

        places[1].back();
        while store.state(&places[1]) != MemberState::InSync {
            rt::sleep(ms(10)).await;
        }
        rt::sleep(ms(100)).await;
        assert_eq!(places.iter().map(|place| copy(place)).collect::<Vec<_>>(), vec![Some(store.record()); 2]);
    });
}

#[test]
fn who_was_away_for_a_moment_catches_up() {
    simulated(13, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 64 << 20).await];
        let store = Store::new(&places);
        let nexus = open(&store, &places).await;
        // Nothing is written meanwhile, so it stays in sync.
        places[1].cut();
        rt::sleep(ms(1)).await;
        let _host = nexus.attach().await.expect("attached");
        places[1].back();
        let began = rt::now();
        while copy(&places[1]) != Some(store.record()) {
            assert!(rt::now() - began < ms(20_000), "{:?} is not {:?}", copy(&places[1]), store.record());
            rt::sleep(ms(10)).await;
        }
        assert_eq!(copy(&places[0]), Some(store.record()));
    });
}
