//! Connections over the simulated network.

use rt::net::{TcpListener, TcpStream};
use rt::sim::{Latency, NetworkBehaviour, NodeId, World};
use rt::{DmaBytes, Errno, Part};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

async fn listen() -> TcpListener {
    TcpListener::bind("0.0.0.0:4420".parse().unwrap()).await.unwrap()
}

async fn echo() {
    let listener = listen().await;
    loop {
        let mut stream = listener.accept().await.unwrap();
        let serve = async move {
            loop {
                let bytes = stream.receive.fill().await?.to_vec();
                if bytes.is_empty() {
                    return Ok::<_, Errno>(());
                }
                stream.receive.consume(bytes.len());
                stream.send.send(vec![Part::Bytes(bytes)]).await?;
            }
        };
        rt::spawn(serve).detach();
    }
}

/// A world with an echo server, and its address.
fn with_echo(seed: u64) -> (World, NodeId, SocketAddr) {
    let world = World::new(seed);
    let server = world.add_node("server");
    world.spawn_on(server, echo()).detach();
    let address = SocketAddr::new(world.address(server), 4420);
    (world, server, address)
}

async fn ask(stream: &mut TcpStream, byte: u8) -> Result<(), Errno> {
    stream.send.send(vec![Part::Bytes(vec![byte])]).await?;
    let mut answer = [0];
    stream.receive.read_exact(&mut answer).await?;
    assert_eq!(answer, [byte]);
    Ok(())
}

/// Connects, repeatedly while the server is not there yet.
async fn connect(address: SocketAddr) -> TcpStream {
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => return stream,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
        }
    }
}

#[test]
fn bytes_arrive_in_order_in_both_directions_in_chunks_of_any_length() {
    for seed in 0..20 {
        let (world, _, address) = with_echo(seed);
        world.run(async {
            let TcpStream { mut receive, mut send, peer } = connect(address).await;
            assert_eq!(peer, address);
            let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
            let sent = data.clone();
            let sender = rt::spawn(async move {
                let parts =
                    vec![Part::Bytes(sent[..10].to_vec()), Part::Data(DmaBytes::copy_of(&sent[10..]))];
                send.send(parts).await.unwrap();
                send
            });
            let (mut received, mut lengths) = (Vec::new(), BTreeSet::new());
            while received.len() < data.len() {
                let bytes = receive.fill().await.unwrap();
                let take = bytes.len().div_ceil(2);
                lengths.insert(take);
                received.extend_from_slice(&bytes[..take]);
                receive.consume(take);
            }
            assert!(received == data);
            assert!(lengths.len() > 3);
            drop(sender.await);
        });
    }
}

#[test]
fn a_node_reaches_itself_by_any_of_its_addresses_and_ports_are_given_out_once() {
    let world = World::new(1);
    let node = world.add_node("n1");
    let own = world.address(node);
    let program = async move {
        let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_address();
        assert_ne!(address.port(), 0);
        let taken = TcpListener::bind(SocketAddr::new(own, address.port())).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let other = TcpListener::bind("10.0.0.77:1".parse().unwrap()).await.unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::AddrNotAvailable);
        for target in [address, SocketAddr::new(own, address.port())] {
            let (accepted, connected) =
                futures_util::future::join(listener.accept(), TcpStream::connect(target)).await;
            assert_eq!((connected.unwrap().peer, accepted.unwrap().peer.ip()), (target, target.ip()));
        }
        drop(listener);
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let port = address.port();
        assert_eq!(TcpListener::bind(address).await.unwrap().local_address().port(), port);
    };
    world.run(async { world.spawn_on(node, program).await });
}

#[test]
fn a_sender_waits_while_nobody_reads_and_goes_on_when_somebody_does() {
    for seed in 0..20 {
        let world = World::new(seed);
        let server = world.add_node("server");
        let address = SocketAddr::new(world.address(server), 4420);
        world.run(async {
            let task = world.spawn_on(server, async {
                let mut stream = listen().await.accept().await.unwrap();
                rt::sleep(10 * SECOND).await;
                let mut count = 0;
                loop {
                    let arrived = stream.receive.fill().await.unwrap().len();
                    if arrived == 0 {
                        return count;
                    }
                    stream.receive.consume(arrived);
                    count += arrived;
                }
            });
            let mut stream = connect(address).await;
            let start = rt::now();
            stream.send.send(vec![Part::Bytes(vec![1; 4 << 20])]).await.unwrap();
            assert!(start.elapsed() > 9 * SECOND, "4 MiB do not fit into any window");
            drop(stream);
            assert_eq!(task.await, 4 << 20);
        });
    }
}

#[test]
fn closing_one_half_ends_both_directions() {
    for seed in 0..50 {
        let world = World::new(seed);
        let server = world.add_node("server");
        let address = SocketAddr::new(world.address(server), 4420);
        world.run(async {
            let task = world.spawn_on(server, async {
                let mut stream = listen().await.accept().await.unwrap();
                let mut bytes = [0; 5];
                stream.receive.read_exact(&mut bytes).await.unwrap();
                assert_eq!(&bytes, b"hello");
                assert!(stream.receive.fill().await.unwrap().is_empty());
                // The other end does not read any more: sending fails once its answer is here.
                while stream.send.send(vec![Part::Bytes(vec![0; 100])]).await.is_ok() {
                    rt::sleep(MILLISECOND).await;
                }
            });
            let TcpStream { mut receive, mut send, .. } = connect(address).await;
            send.send(vec![Part::Bytes(b"hello".to_vec())]).await.unwrap();
            drop(send);
            assert!(receive.fill().await.unwrap().is_empty());
            task.await;
        });
    }
}

#[test]
fn connecting_to_nobody_is_refused_and_to_a_dead_node_times_out() {
    let world = World::new(1);
    let node = world.add_node("n1");
    let address = SocketAddr::new(world.address(node), 4420);
    world.run(async {
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        world.power_cut(node);
        let start = rt::now();
        let timed_out = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(timed_out.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= 20 * SECOND);
        assert!(TcpStream::connect("192.168.0.1:1".parse().unwrap()).await.is_err());
        assert_eq!(world.counters().connects_failed, 2);
    });
}

#[test]
fn a_crash_ends_the_connections_of_the_process() {
    let (mut ended, mut reset) = (0, 0);
    for seed in 0..100 {
        let (world, server, address) = with_echo(seed);
        world.run(async {
            let mut stream = connect(address).await;
            ask(&mut stream, 1).await.unwrap();
            world.crash(server);
            match stream.receive.fill().await {
                Ok(bytes) => {
                    assert!(bytes.is_empty());
                    ended += 1;
                }
                Err(error) => {
                    assert_eq!(error, Errno::CONNRESET);
                    reset += 1;
                }
            }
            let refused = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            world.spawn_on(server, echo()).detach();
            ask(&mut connect(address).await, 2).await.unwrap();
        });
    }
    assert!(ended > 20 && reset > 20, "{ended} {reset}");
}

#[test]
fn a_power_cut_is_silent_and_the_rebooted_node_answers_by_a_reset() {
    for seed in 0..50 {
        let (world, server, address) = with_echo(seed);
        world.run(async {
            let mut stream = connect(address).await;
            ask(&mut stream, 1).await.unwrap();
            world.power_cut(server);
            assert!(rt::timeout(60 * SECOND, stream.receive.fill()).await.is_err(), "nobody tells");
            stream.send.send(vec![Part::Bytes(vec![2])]).await.unwrap();
            assert!(rt::timeout(60 * SECOND, stream.receive.fill()).await.is_err(), "nobody is there");
            world.spawn_on(server, echo()).detach();
            let told = rt::timeout(60 * SECOND, stream.receive.fill()).await.unwrap();
            assert_eq!(told.unwrap_err(), Errno::CONNRESET);
        });
    }
}

#[test]
fn a_partition_holds_data_back_until_it_heals() {
    let (mut went_on, mut reset) = (0, 0);
    for seed in 0..100 {
        let (world, server, address) = with_echo(seed);
        world.run(async {
            let mut stream = connect(address).await;
            ask(&mut stream, 1).await.unwrap();
            world.partition(world.client(), server);
            assert!(rt::timeout(60 * SECOND, ask(&mut stream, 2)).await.is_err());
            let timed_out = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(timed_out.kind(), io::ErrorKind::TimedOut);
            world.heal();
            let mut answer = [0];
            match stream.receive.read_exact(&mut answer).await {
                Ok(()) => {
                    assert_eq!(answer, [2]);
                    ask(&mut stream, 3).await.unwrap();
                    went_on += 1;
                }
                Err(error) => {
                    assert_eq!(error, Errno::CONNRESET);
                    reset += 1;
                }
            }
        });
        assert!(world.counters().stalls > 0);
    }
    assert!(went_on > 20 && reset > 5, "{went_on} {reset}");
}

#[test]
fn a_one_way_partition_stops_one_direction() {
    for seed in 0..50 {
        let world = World::new(seed);
        let server = world.add_node("server");
        let address = SocketAddr::new(world.address(server), 4420);
        world.run(async {
            let task = world.spawn_on(server, async {
                let mut stream = listen().await.accept().await.unwrap();
                let mut byte = [0];
                stream.receive.read_exact(&mut byte).await.unwrap();
                stream.send.send(vec![Part::Bytes(vec![7])]).await.unwrap();
                rt::sleep(100 * SECOND).await;
            });
            let mut stream = connect(address).await;
            world.partition_one_way(server, world.client());
            stream.send.send(vec![Part::Bytes(vec![1])]).await.unwrap();
            assert!(rt::timeout(30 * SECOND, stream.receive.fill()).await.is_err());
            let behaviour = NetworkBehaviour { reset_at_heal_permille: 0, ..Default::default() };
            world.set_network(behaviour);
            world.heal_between(world.client(), server);
            assert_eq!(stream.receive.fill().await.unwrap(), [7]);
            task.await;
        });
    }
}

#[test]
fn a_reset_that_a_partition_holds_back_arrives_after_it() {
    for seed in 0..50 {
        let (world, server, address) = with_echo(seed);
        world.run(async {
            let mut stream = connect(address).await;
            ask(&mut stream, 1).await.unwrap();
            world.isolate(server);
            world.crash(server);
            assert!(rt::timeout(60 * SECOND, stream.receive.fill()).await.is_err());
            world.heal();
            let told = rt::timeout(10 * SECOND, stream.receive.fill()).await.unwrap();
            assert!(told.is_err() || told.unwrap().is_empty());
        });
    }
}

#[test]
fn connections_are_reset_at_random_by_rule_and_all_at_once_by_hand() {
    let (world, server, address) = with_echo(1);
    let behaviour = NetworkBehaviour { reset_per_million: 50_000, ..Default::default() };
    world.set_network(behaviour);
    world.run(async {
        let mut resets = 0;
        let mut stream = connect(address).await;
        for _ in 0..1000 {
            if ask(&mut stream, 1).await.is_err() {
                resets += 1;
                stream = connect(address).await;
            }
        }
        assert!((50..150).contains(&resets), "{resets} of 1000 round trips of two chunks");
        world.set_network(NetworkBehaviour::default());
        let mut streams = [connect(address).await, connect(address).await];
        world.reset_connections(server, world.client());
        for stream in &mut streams {
            assert_eq!(stream.receive.fill().await.unwrap_err(), Errno::CONNRESET);
            assert_eq!(stream.send.send(vec![Part::Bytes(vec![1])]).await, Err(Errno::CONNRESET));
        }
    });
}

#[test]
fn latency_is_what_the_behaviour_says() {
    let (world, _, address) = with_echo(1);
    let behaviour = NetworkBehaviour {
        latency: Latency {
            low: 5 * MILLISECOND,
            high: 6 * MILLISECOND,
            slow_permille: 0,
            slow: 6 * MILLISECOND,
        },
        ..Default::default()
    };
    world.set_network(behaviour);
    world.run(async {
        let mut stream = connect(address).await;
        let start = rt::now();
        ask(&mut stream, 1).await.unwrap();
        assert!((10 * MILLISECOND..13 * MILLISECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    });
}

#[test]
fn chunks_are_corrupted_by_rule_only() {
    for (per_million, expected) in [(0, 0..1), (100_000, 50..200)] {
        let (world, _, address) = with_echo(1);
        world.set_network(NetworkBehaviour { corrupt_per_million: per_million, ..Default::default() });
        world.run(async {
            let mut stream = connect(address).await;
            let mut corrupted = 0;
            for _ in 0..500 {
                stream.send.send(vec![Part::Bytes(vec![0])]).await.unwrap();
                let mut answer = [0];
                stream.receive.read_exact(&mut answer).await.unwrap();
                corrupted += answer[0].count_ones();
            }
            assert!(expected.contains(&corrupted), "{corrupted} of 1000 chunks");
        });
    }
}
