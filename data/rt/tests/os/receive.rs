//! Receiving over shared buffers: order, bounds and fairness, whatever the connections do.

use super::sockets::{pair, pattern};
use super::{reactor, run, ways};
use rt::net::{ReceiveHalf, SendHalf, TcpStream};
use rt::os::{Config, DriverChoice};
use rt::{DmaBuf, DmaBytes, Part};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// A small generator: each test makes the same sizes each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}

/// The byte at `place` of stream `number`.
fn byte(number: usize, place: usize) -> u8 {
    ((place / 251 + place + number * 7) % 256).to_le_bytes()[0]
}

fn stretch(number: usize, from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|place| byte(number, place)).collect()
}

async fn send_all(mut send: SendHalf, number: usize, total: usize) -> SendHalf {
    let mut random = Random(number as u64);
    let mut done = 0;
    while done < total {
        let bound = [100, 5000, 100_000][random.below(3)];
        let len = (random.below(bound) + 1).min(total - done);
        send.send(vec![Part::Bytes(stretch(number, done, len))]).await.expect("send");
        done += len;
        if random.below(4) == 0 {
            rt::yield_now().await;
        }
    }
    send
}

/// Receives in all ways by turns, with futures dropped in between.
async fn receive_all(receive: &mut ReceiveHalf, number: usize, total: usize) {
    let mut random = Random(number as u64 + 1000);
    let mut done = 0;
    while done < total {
        let len = match random.below(3) {
            0 => {
                let bound = [200, 20_000, 70_000][random.below(3)];
                let len = (random.below(bound) + 1).min(total - done);
                let buf = receive.read_exact_dma(DmaBuf::new(len)).await.expect("payload");
                assert_eq!(buf[..], stretch(number, done, len)[..]);
                len
            }
            1 => {
                let fill = async { receive.fill().await.expect("bytes").len() };
                rt::race(fill, async {
                    rt::yield_now().await;
                    0
                })
                .await;
                0
            }
            _ => {
                let arrived = receive.fill().await.expect("bytes");
                let len = (random.below(40_000) + 1).min(arrived.len());
                assert_eq!(arrived[..len], stretch(number, done, len)[..]);
                receive.consume(len);
                len
            }
        };
        done += len;
    }
}

#[test]
fn many_connections_carry_their_bytes_in_order() {
    const TOTAL: usize = 300_000;
    run(async || {
        let mut tasks = Vec::new();
        for number in 0..60 {
            let (client, server) = pair().await;
            tasks.push(rt::spawn(async move {
                let TcpStream { mut receive, send: answer, .. } = server;
                let TcpStream { send, receive: held, .. } = client;
                let sender = rt::spawn(send_all(send, number, TOTAL));
                receive_all(&mut receive, number, TOTAL).await;
                drop(sender.await);
                assert!(receive.fill().await.expect("end of the stream").is_empty());
                drop((answer, held));
            }));
        }
        for task in tasks {
            task.await;
        }
    });
}

/// Bytes that the kernel keeps for the two ends of a connection, at most.
fn socket_bytes() -> usize {
    let last = |path| {
        let text = std::fs::read_to_string(path).expect("a sysctl");
        text.split_whitespace().last().expect("three numbers").parse::<usize>().expect("a number")
    };
    last("/proc/sys/net/ipv4/tcp_rmem") + last("/proc/sys/net/ipv4/tcp_wmem")
}

#[test]
fn who_does_not_read_holds_a_bounded_amount() {
    for config in ways() {
        let Some(reactor) = reactor(config) else { continue };
        let bound = socket_bytes() + (4 << 20);
        let total = bound + (32 << 20);
        let sent = Rc::new(Cell::new(0));
        let (mut server, sender) = reactor.run(async {
            let (client, mut server) = pair().await;
            let TcpStream { mut send, receive: held, .. } = client;
            let data = DmaBytes::copy_of(&pattern(1 << 16));
            let counter = Rc::clone(&sent);
            let sender = rt::spawn(async move {
                while counter.get() < total {
                    send.send(vec![Part::Data(data.clone())]).await.expect("send");
                    counter.set(counter.get() + (1 << 16));
                }
                (send, held)
            });
            assert!(!server.receive.fill().await.expect("bytes").is_empty());
            let mut before = usize::MAX;
            while before != sent.get() {
                before = sent.get();
                rt::sleep(Duration::from_millis(100)).await;
            }
            (server, sender)
        });
        assert!(sent.get() <= bound, "{} bytes were taken from the sender with {config:?}", sent.get());
        let held = reactor.receive_buffers_held();
        assert!(held <= 17, "{held} buffers are held with {config:?}");
        if config.driver == DriverChoice::Uring && config.receive_buffers > 0 {
            let findings = rt::preflight::check();
            let works = findings.iter().any(|finding| finding.feature == "multishot receive" && finding.ok);
            assert_eq!(held > 0, works, "with {config:?}: {findings:?}");
        }
        reactor.run(async {
            let expected = pattern(1 << 16);
            let mut done = 0;
            while done < total.next_multiple_of(1 << 16) {
                let arrived = server.receive.fill().await.expect("bytes");
                let at = done % (1 << 16);
                let count = arrived.len().min((1 << 16) - at);
                assert!(arrived[..count] == expected[at..at + count], "at {done}");
                server.receive.consume(count);
                done += count;
            }
            drop(sender.await);
        });
        assert_eq!(reactor.receive_buffers_held(), 0);
    }
}

#[test]
fn who_does_not_read_starves_nobody() {
    run(async || {
        let mut silent = Vec::new();
        for _ in 0..40 {
            let (mut client, mut server) = pair().await;
            let sender = rt::spawn(async move {
                client.send.send(vec![Part::Bytes(pattern(200_000))]).await.expect("send");
                client
            });
            assert!(!server.receive.fill().await.expect("bytes").is_empty());
            silent.push((sender, server));
        }
        let (mut client, mut server) = pair().await;
        for round in 0..500_usize {
            let message = round.to_le_bytes();
            client.send.send(vec![Part::Bytes(message.to_vec())]).await.expect("send");
            let mut received = [0; 8];
            server.receive.read_exact(&mut received).await.expect("bytes");
            assert_eq!(received, message);
            server.send.send(vec![Part::Bytes(message.to_vec())]).await.expect("send");
            client.receive.read_exact(&mut received).await.expect("bytes");
            assert_eq!(received, message);
        }
        for (sender, mut server) in silent {
            let data = server.receive.read_exact_dma(DmaBuf::new(200_000)).await.expect("payload");
            assert!(data[..] == pattern(200_000)[..]);
            drop(sender.await);
        }
    });
}

#[test]
fn a_connection_that_goes_gives_its_buffers_back() {
    for config in ways() {
        let Some(reactor) = reactor(Config { receive_buffers: config.receive_buffers.min(8), ..config })
        else {
            continue;
        };
        reactor.run(async {
            for round in 0..300 {
                let (mut client, mut server) = pair().await;
                client.send.send(vec![Part::Bytes(pattern(60_000))]).await.expect("send");
                assert!(!server.receive.fill().await.expect("bytes").is_empty());
                if round % 2 == 0 {
                    // More arrives, and is on its way through the ring while the connection goes.
                    let sending = client.send.send(vec![Part::Bytes(pattern(60_000))]);
                    rt::race(
                        async { assert_eq!(sending.await, Ok(())) },
                        rt::sleep(Duration::from_micros(round)),
                    )
                    .await;
                }
                drop(server);
                drop(client);
            }
            rt::sleep(Duration::from_millis(2)).await;
        });
        assert_eq!(reactor.receive_buffers_held(), 0, "with {config:?}");
        reactor.run(async {
            let (client, mut server) = pair().await;
            let sender = rt::spawn(send_all(client.send, 3, 500_000));
            receive_all(&mut server.receive, 3, 500_000).await;
            drop(sender.await);
            drop(client.receive);
        });
    }
}

#[test]
fn headers_and_payloads_of_changing_sizes_come_in_order() {
    run(async || {
        let (mut client, mut server) = pair().await;
        // Runs of large payloads, runs of small ones, and both by turns: connections change their way of receiving.
        let len_of = |round: usize| match round / 20 % 3 {
            0 => 100_000 + round,
            1 => 100 + round,
            _ => [50, 17_000][round % 2],
        };
        let sender = rt::spawn(async move {
            for round in 0..240_usize {
                let data = DmaBytes::copy_of(&pattern(len_of(round)));
                let parts = vec![Part::Bytes(round.to_le_bytes().to_vec()), Part::Data(data)];
                client.send.send(parts).await.expect("send");
                if round % 7 == 0 {
                    rt::sleep(Duration::from_micros(200)).await;
                }
            }
            client
        });
        for round in 0..240_usize {
            let mut head = [0; 8];
            server.receive.read_exact(&mut head).await.expect("head");
            assert_eq!(usize::from_le_bytes(head), round);
            let data = server.receive.read_exact_dma(DmaBuf::new(len_of(round))).await.expect("payload");
            assert!(data[..] == pattern(len_of(round))[..], "payload {round}");
        }
        drop(sender.await);
    });
}
