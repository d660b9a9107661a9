//! Members that were let go and destroyed leave the record; no other one does.

use crate::bed::{Place, Store, blocks, ms, open, room, simulated};
use device::{Device, Lba, Status};
use model::{MemberRecord, MemberState};
use nexus::Nexus;
use rt::Durability;
use rt::sim::World;
use std::rc::Rc;
use uuid::Uuid;

/// An open volume whose second copy was replaced by the third one, and is `Removed`; and the members that are wished.
async fn replaced(world: &World) -> (Vec<Rc<Place>>, Rc<Store>, Nexus, [MemberRecord; 2]) {
    let mut places = Vec::new();
    for number in 1..=3 {
        places.push(Place::new(world, number, 64 << 20).await);
    }
    let store = Store::new(&places[..2]);
    let nexus = open(&store, &places).await;
    let wished = [places[0].entry.clone(), places[2].entry.clone()];
    // It is said to be destroyed too early, which no manager does.
    nexus.adopt(&wished, &[places[1].entry.replica]).await.expect("taken in");
    assert_eq!(store.state(&places[1]), MemberState::InSync, "it is not even let go");
    while store.state(&places[2]) != MemberState::InSync {
        rt::sleep(ms(10)).await;
    }
    nexus.adopt(&wished, &[]).await.expect("let go");
    assert_eq!(store.state(&places[1]), MemberState::Removed);
    (places, store, nexus, wished)
}

fn named(store: &Store) -> Vec<Uuid> {
    store.record().members.iter().map(|member| member.replica).collect()
}

#[test]
fn only_what_was_removed_and_is_not_wished_is_forgotten() {
    simulated(9, |world| async move {
        let (places, store, nexus, wished) = replaced(&world).await;
        let all: Vec<Uuid> = places.iter().map(|place| place.entry.replica).collect();
        assert!(nexus.has_adopted(&wished, &[]) && !nexus.has_adopted(&wished, &all));
        let again: Vec<_> = places.iter().map(|place| place.entry.clone()).collect();
        assert!(nexus.has_adopted(&again, &all), "a replica that is wished");
        nexus.adopt(&again, &all).await.expect("nothing to do");
        assert_eq!(named(&store), all);

        // A wish that says it of copies that are in sync.
        nexus.adopt(&wished, &all).await.expect("forgotten");
        assert_eq!(named(&store), [all[0], all[2]]);
        assert!(store.record().members.iter().all(|member| member.state == MemberState::InSync));
        let version = store.record().version;
        assert!(nexus.has_adopted(&wished, &all));
        nexus.adopt(&wished, &all).await.expect("nothing to do");
        assert_eq!(store.record().version, version);
        let host = nexus.attach().await.expect("attached");
        host.write(Lba(3), blocks(5, 1), Durability::Durable).await.expect("written");
        assert_eq!(host.read(Lba(3), room(1)).await.expect("read")[0], 5);
    });
}

#[test]
fn who_was_fenced_forgets_nothing() {
    simulated(10, |world| async move {
        let (places, store, old, wished) = replaced(&world).await;
        let destroyed = [places[1].entry.replica];
        let next = open(&store, &places).await;
        assert_eq!(old.adopt(&wished, &destroyed).await, Err(Status::Fenced));
        assert_eq!(named(&store).len(), 3);
        next.adopt(&wished, &destroyed).await.expect("forgotten");
        assert_eq!(named(&store), [places[0].entry.replica, places[2].entry.replica]);
    });
}
