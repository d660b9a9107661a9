//! Between reactors of different threads: mailboxes, and connections that move.

use super::{reactor, ways};
use rt::mailbox::{Receiver, Sender, bounded};
use rt::net::{Detached, TcpListener, TcpStream};
use rt::os::Config;
use rt::{DmaBuf, DmaBytes, Errno, Part};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

/// Runs `serve` on a reactor and thread of its own.
fn on_thread<F: Future<Output = ()>>(
    config: Config,
    serve: impl FnOnce() -> F + Send + 'static,
) -> thread::JoinHandle<()> {
    thread::spawn(move || reactor(config).expect("a reactor").run(serve()))
}

/// Every pair of ways to receive that this machine has.
fn pairs() -> impl Iterator<Item = (Config, Config)> {
    let here = || ways().into_iter().filter(|config| reactor(*config).is_some());
    here().flat_map(move |first| here().map(move |second| (first, second)))
}

/// Answers each value until the mailbox closes; then waits for `end`, and tells how many turns that took.
fn exchange(
    requests: Receiver<u64>,
    answers: Sender<u64>,
    end: Receiver<()>,
    turns: Sender<u64>,
) -> impl FnOnce(Config) {
    move |config| {
        let reactor = reactor(config).expect("a reactor");
        reactor.run(async {
            while let Ok(value) = requests.recv().await {
                if answers.send(value + 1).await.is_err() || value > 4000 {
                    return;
                }
            }
        });
        let before = reactor.turns();
        reactor.run(async { end.recv().await.expect_err("closed") });
        turns.send_blocking(reactor.turns() - before).expect("main listens");
    }
}

#[test]
fn two_reactors_talk_through_bounded_mailboxes_and_then_stand_still() {
    for config in ways() {
        if reactor(config).is_none() {
            continue;
        }
        let (to_first, at_first) = bounded(2);
        let (to_second, at_second) = bounded(2);
        let (end, ended) = bounded(1);
        let (turns, counted) = bounded(2);
        to_first.send_blocking(0).expect("room");
        to_first.send_blocking(1).expect("room");
        let first = exchange(at_first, to_second, ended.clone(), turns.clone());
        let second = exchange(at_second, to_first, ended, turns);
        let threads = [thread::spawn(move || first(config)), thread::spawn(move || second(config))];
        thread::sleep(Duration::from_millis(400));
        end.close();
        for _ in 0..2 {
            let turns = counted.recv_blocking().expect("a count");
            assert!(turns <= 10, "{turns} turns with {config:?}");
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
    }
}

/// A reactor that accepts one connection, takes `len` bytes off it, and gives it away.
fn doorman(
    config: Config,
    len: usize,
    wait: Duration,
    give: Sender<Detached>,
) -> (SocketAddr, thread::JoinHandle<()>) {
    let (send, address) = bounded(1);
    let thread = on_thread(config, async move || {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
        send.send(listener.local_address()).await.expect("main listens");
        let mut stream = listener.accept().await.expect("accept");
        let mut head = vec![0; len];
        stream.receive.read_exact(&mut head).await.expect("head");
        assert!(head.iter().all(|byte| *byte == 1));
        rt::sleep(wait).await;
        let detached = stream.detach().await.expect("the connection is whole");
        give.send(detached).await.expect("the owner listens");
    });
    (address.recv_blocking().expect("an address"), thread)
}

#[test]
fn a_connection_moves_to_the_reactor_of_another_thread_and_loses_nothing() {
    for (first, second) in pairs() {
        for wait in [0, 2] {
            let (give, take) = bounded::<Detached>(1);
            let (address, door) = doorman(first, 100, Duration::from_millis(wait), give);
            let owner = on_thread(second, async move || {
                let mut stream = TcpStream::attach(take.recv().await.expect("a connection")).expect("whole");
                let mut sum = 0;
                for round in 0..50_usize {
                    let len = round * 1500 + 1;
                    let buf = stream.receive.read_exact_dma(DmaBuf::new(len)).await.expect("payload");
                    assert!(buf.iter().all(|byte| usize::from(*byte) == round + 2), "message {round}");
                    sum += len;
                }
                stream.send.send(vec![Part::Bytes(sum.to_le_bytes().to_vec())]).await.expect("send");
                assert!(stream.receive.fill().await.expect("end of the stream").is_empty());
            });
            reactor(first).expect("a reactor").run(async {
                let mut stream = TcpStream::connect(address).await.expect("connect");
                stream.send.send(vec![Part::Bytes(vec![1; 100])]).await.expect("send");
                for round in 0..50_u8 {
                    let data = DmaBytes::copy_of(&vec![round + 2; usize::from(round) * 1500 + 1]);
                    stream.send.send(vec![Part::Data(data)]).await.expect("send");
                }
                let mut answer = [0; 8];
                stream.receive.read_exact(&mut answer).await.expect("an answer");
                assert_eq!(usize::from_le_bytes(answer), (0..50).map(|round| round * 1500 + 1).sum());
            });
            door.join().expect("no panic");
            owner.join().expect("no panic");
        }
    }
}

#[test]
fn a_connection_that_ended_moves_with_its_last_bytes() {
    for (first, second) in pairs() {
        let (give, take) = bounded::<Detached>(1);
        let (address, door) = doorman(first, 1, Duration::from_millis(5), give);
        let mut client = std::net::TcpStream::connect(address).expect("connect");
        std::io::Write::write_all(&mut client, &[1, 2, 3]).expect("write");
        client.shutdown(std::net::Shutdown::Write).expect("half closed");
        door.join().expect("no panic");
        reactor(second).expect("a reactor").run(async {
            let mut stream = TcpStream::attach(take.recv().await.expect("a connection")).expect("whole");
            let mut bytes = [0; 2];
            stream.receive.read_exact(&mut bytes).await.expect("bytes");
            assert_eq!(bytes, [2, 3]);
            assert!(stream.receive.fill().await.expect("end of the stream").is_empty());
            assert_eq!(stream.receive.read_exact(&mut bytes).await, Err(Errno::CONNRESET));
        });
        drop(client);
    }
}

#[test]
fn a_connection_given_away_and_dropped_is_closed() {
    for config in ways() {
        let Some(reactor) = reactor(config) else { continue };
        reactor.run(async {
            let (client, mut server) = super::sockets::pair().await;
            drop(client.detach().await.expect("whole"));
            assert!(server.receive.fill().await.expect("end of the stream").is_empty());
        });
    }
}
