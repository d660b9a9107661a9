//! Whatever comes over an association with a replica, in whatever order and however much of it at once: nothing panics,
//! everything is answered, and afterwards a nexus of a higher epoch is obeyed.

use crate::bed::{BLOCK, Place, ms, simulated};
use device::{Device, Lba, Status};
use futures_util::future::join_all;
use nexus::leg::ReplicaSession;
use nvmf::VendorCommand;
use proptest::prelude::*;
use rt::{DmaBuf, DmaBytes};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

const BEAT: u8 = 0xC0;
const ACCEPT_EPOCH: u8 = 0xC2;
/// Associations side by side.
const ASSOCIATIONS: usize = 3;
/// Everything is answered within this time.
const ANSWERED: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
enum Step {
    Vendor { opcode: u8, cdw10_15: [u32; 6], data: Option<Vec<u8>>, data_len: usize },
    Read { lba: u64, blocks: usize },
    Flush,
    Pause(u64),
}

fn accept(epoch: u64, nexus: u64) -> Step {
    let low = u32::try_from(epoch & 0xFFFF_FFFF).expect("masked");
    let high = u32::try_from(epoch >> 32).expect("shifted");
    let nexus = u32::try_from(nexus).expect("small");
    Step::Vendor { opcode: ACCEPT_EPOCH, cdw10_15: [low, high, 0, 0, nexus, 0], data: None, data_len: 4096 }
}

fn beat() -> Step {
    Step::Vendor { opcode: BEAT, cdw10_15: [0; 6], data: None, data_len: 0 }
}

fn vendor(command: (u8, [u32; 6], Option<Vec<u8>>, usize)) -> Step {
    let (opcode, cdw10_15, data, data_len) = command;
    Step::Vendor { opcode, cdw10_15, data, data_len }
}

fn step() -> impl Strategy<Value = Step> {
    let opcodes = [0xC0u8, 0xC1, 0xC2, 0xC4, 0xC5, 0xC6, 0xC8, 0xC9, 0xCA, 0xCC, 0xD0, 0xD4];
    let small = || prop_oneof![4 => 0u32..4, 1 => any::<u32>()];
    let dwords = || [small(), small(), small(), small(), small(), small()];
    let data = || {
        proptest::option::of(prop_oneof![
            (1usize..4).prop_map(|count| vec![7; count * BLOCK]),
            proptest::collection::vec(any::<u8>(), 1..100),
        ])
    };
    prop_oneof![
        4 => (prop_oneof![8 => 1u64..6, 1 => 0u64..1 << 40], 0u64..3).prop_map(|(e, n)| accept(e, n)),
        4 => Just(beat()),
        8 => (prop::sample::select(opcodes.to_vec()), dwords(), data(), 0usize..8192).prop_map(vendor),
        2 => (any::<u8>(), any::<[u32; 6]>(), data(), any::<usize>()).prop_map(vendor),
        1 => (0u64..4096, 1usize..4).prop_map(|(lba, blocks)| Step::Read { lba, blocks }),
        1 => Just(Step::Flush),
        2 => (0u64..3000).prop_map(Step::Pause),
    ]
}

async fn run(session: Rc<ReplicaSession>, step: Step) -> Result<(), Status> {
    match step {
        Step::Vendor { opcode, cdw10_15, data, data_len } => {
            let data = data.map(|data| DmaBytes::copy_of(&data));
            session.vendor(&VendorCommand { opcode, cdw10_15, data, data_len }).await.map(drop)
        }
        Step::Read { lba, blocks } => {
            session.namespace().read(Lba(lba), DmaBuf::new(blocks * BLOCK)).await.map(drop)
        }
        Step::Flush => session.namespace().flush().await,
        Step::Pause(_) => Ok(()),
    }
}

/// Sends all steps without waiting for answers, each on its association; returns the answers in order.
async fn pipeline(sessions: &[Rc<ReplicaSession>], steps: Vec<(usize, Step)>) -> Vec<Result<(), Status>> {
    let mut sent = Vec::new();
    for (association, step) in steps {
        if let Step::Pause(micros) = step {
            rt::sleep(Duration::from_micros(micros)).await;
        }
        sent.push(rt::spawn(run(Rc::clone(&sessions[association]), step)));
    }
    rt::timeout(ANSWERED, join_all(sent)).await.expect("everything is answered")
}

fn obeys(seed: u64, steps: Vec<(usize, Step)>) {
    simulated(seed, move |world| async move {
        let place = Place::new(&world, 1, 64 << 20).await;
        let sessions: Vec<_> = (0..ASSOCIATIONS).map(|_| Rc::new(ReplicaSession::new(&place.port))).collect();
        pipeline(&sessions, steps).await;
        let honest = place.port.open();
        let epoch = place.port.replica().fence().epoch + 1;
        honest.accept_epoch(epoch, Uuid::from_u128(9)).await.expect("a higher epoch is accepted");
        for session in &sessions {
            assert!(session.vendor(&as_command(beat())).await.is_err(), "everybody else is refused");
        }
        honest.beat().await.expect("obeyed");
    });
}

fn as_command(step: Step) -> VendorCommand {
    match step {
        Step::Vendor { opcode, cdw10_15, data_len, .. } => {
            VendorCommand { opcode, cdw10_15, data: None, data_len }
        }
        other => panic!("{other:?} is no vendor command"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_that_a_host_sends_ends_the_process(
        seed in any::<u64>(),
        steps in proptest::collection::vec((0..ASSOCIATIONS, step()), 1..60),
    ) {
        obeys(seed, steps);
    }
}

#[test]
fn an_association_accepts_one_epoch() {
    simulated(1, |world| async move {
        let place = Place::new(&world, 1, 64 << 20).await;
        let session = Rc::new(ReplicaSession::new(&place.port));
        assert_eq!(run(Rc::clone(&session), accept(100, 1)).await, Ok(()));
        let mut steps = vec![(0, accept(101, 1))];
        steps.extend((0..200).map(|_| (0, beat())));
        let answers = pipeline(&[Rc::clone(&session)], steps).await;
        assert_eq!(answers[0], Err(Status::Invalid));
        rt::sleep(ms(50)).await;
        assert_eq!(run(Rc::clone(&session), beat()).await, Ok(()));
        assert_eq!(
            run(Rc::clone(&session), accept(100, 1)).await,
            Ok(()),
            "the same one may be asked for again"
        );
    });
}
