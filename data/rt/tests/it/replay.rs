//! One seed, one history.

use rt::net::{TcpListener, TcpStream};
use rt::sim::{Counters, World};
use rt::{Access, DmaBuf, Durability, File, OpenOptions, Part};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A program with a bit of everything: a server that stores what it is sent, clients that retry, and faults.
fn run(seed: u64, salt: u8) -> (u64, Counters, Vec<String>) {
    let world = World::new(seed);
    world.record();
    let nodes = [world.add_node("a"), world.add_node("b")];
    for node in nodes {
        world.add_disk(node, "/disk0", 1 << 20, 512);
    }
    let serve = async move || {
        let options = OpenOptions { access: Access::Write, create_len_bytes: None, direct: true };
        let file = File::open(Path::new("/disk0"), options).await.unwrap();
        let listener = TcpListener::bind("0.0.0.0:1".parse().unwrap()).await.unwrap();
        while let Ok(mut stream) = listener.accept().await {
            let mut buf = DmaBuf::new(4096);
            while stream.receive.read_exact(&mut buf).await.is_ok() {
                let offset = u64::from(buf[0]) * 4096;
                file.write_at(offset, DmaBuf::copy_of(&buf).freeze(), Durability::Cached).await.unwrap();
                if stream.send.send(vec![Part::Bytes(vec![0; 8])]).await.is_err() {
                    break;
                }
            }
        }
    };
    world.run(async {
        for node in nodes {
            world.spawn_on(node, serve()).detach();
        }
        let addresses = nodes.map(|node| SocketAddr::new(world.address(node), 1));
        let clients = (0..8_u8).map(|client| {
            rt::spawn(async move {
                for round in 0..20 {
                    let address = addresses[usize::from(client % 2)];
                    let attempt = async {
                        let mut stream = TcpStream::connect(address).await?;
                        let mut data = vec![salt; 4096];
                        data[0] = client.wrapping_add(round);
                        stream.send.send(vec![Part::Bytes(data)]).await?;
                        Ok::<_, std::io::Error>(stream.receive.read_exact(&mut [0; 8]).await?)
                    };
                    if !matches!(rt::timeout(Duration::from_millis(50), attempt).await, Ok(Ok(()))) {
                        rt::sleep(Duration::from_millis(rt::random_u64() % 10)).await;
                    }
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        for node in nodes {
            rt::sleep(Duration::from_millis(3)).await;
            world.partition(world.client(), node);
            rt::sleep(Duration::from_millis(3)).await;
            world.heal();
            world.power_cut(node);
            world.spawn_on(node, serve()).detach();
        }
        for client in clients {
            client.await;
        }
    });
    (world.trace_hash(), world.counters(), world.recorded())
}

#[test]
fn two_runs_of_a_seed_are_the_same_and_other_seeds_differ() {
    let mut hashes = BTreeSet::new();
    for seed in 0..30 {
        let (first, second) = (run(seed, 0), run(seed, 0));
        let parting = first.2.iter().zip(&second.2).position(|(a, b)| a != b);
        assert_eq!(parting, None, "the runs of seed {seed} part at this event");
        assert_eq!((first.0, first.1), (second.0, second.1), "seed {seed}");
        hashes.insert(first.0);
    }
    assert_eq!(hashes.len(), 30);
}

#[test]
fn the_hash_covers_what_is_written() {
    assert_ne!(run(1, 0).0, run(1, 1).0);
}

#[test]
fn what_programs_draw_depends_on_the_seed() {
    let drawn = |seed| World::new(seed).run(async { (rt::random_uuid(), rt::random_u64()) });
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}
