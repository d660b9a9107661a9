//! TCP and other descriptors.

use super::{reactor, run, ways};
use rt::fd::Fd;
use rt::net::{TcpListener, TcpStream};
use rt::{DmaBuf, DmaBytes, Errno, Part};
use std::io::ErrorKind;
use std::time::Duration;

pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
    let address = listener.local_address();
    let client = rt::spawn(async move { TcpStream::connect(address).await });
    let server = listener.accept().await.expect("accept");
    (client.await.expect("connect"), server)
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..=248).cycle().take(len).collect()
}

#[test]
fn bytes_arrive_in_order_whatever_their_grouping() {
    run(async || {
        let (mut client, mut server) = pair().await;
        let sender = rt::spawn(async move {
            for round in 0..50_usize {
                let data = DmaBytes::copy_of(&pattern(round * 5000));
                let parts = vec![Part::Bytes(round.to_le_bytes().to_vec()), Part::Data(data)];
                client.send.send(parts).await.expect("send");
            }
            client
        });
        for round in 0..50_usize {
            let mut head = [0; 8];
            server.receive.read_exact(&mut head).await.expect("head");
            assert_eq!(usize::from_le_bytes(head), round);
            let data = server.receive.read_exact_dma(DmaBuf::new(round * 5000)).await.expect("payload");
            assert_eq!(data[..], pattern(round * 5000)[..]);
        }
        drop(sender.await);
        assert!(server.receive.fill().await.expect("end of the stream").is_empty());
    });
}

#[test]
fn a_message_of_more_parts_than_one_call_takes_is_sent_whole() {
    run(async || {
        let (mut client, mut server) = pair().await;
        let parts: Vec<Part> = (0..5000_u32).map(|i| Part::Bytes(i.to_le_bytes().to_vec())).collect();
        let sender = rt::spawn(async move {
            client.send.send(parts).await.expect("send");
            client
        });
        for i in 0..5000_u32 {
            let mut bytes = [0; 4];
            server.receive.read_exact(&mut bytes).await.expect("bytes");
            assert_eq!(u32::from_le_bytes(bytes), i);
        }
        drop(sender.await);
    });
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    run(async || {
        let (mut client, mut server) = pair().await;
        let total = 32 << 20;
        let sender = rt::spawn(async move {
            let data = DmaBytes::copy_of(&pattern(1 << 20));
            for _ in 0..total >> 20 {
                client.send.send(vec![Part::Data(data.clone())]).await.expect("send");
            }
            client
        });
        rt::sleep(Duration::from_millis(20)).await;
        let expected = pattern(1 << 20);
        let mut done = 0;
        while done < total {
            let arrived = server.receive.fill().await.expect("bytes");
            let at = done % (1 << 20);
            let count = arrived.len().min((1 << 20) - at).min(9000);
            assert_eq!(arrived[..count], expected[at..at + count]);
            server.receive.consume(count);
            done += count;
        }
        drop(sender.await);
    });
}

#[test]
fn a_dropped_fill_loses_no_bytes() {
    run(async || {
        let (mut client, mut server) = pair().await;
        let sender = rt::spawn(async move {
            for i in 0..200_u8 {
                client.send.send(vec![Part::Bytes(vec![i])]).await.expect("send");
                rt::sleep(Duration::from_micros(30)).await;
            }
            client
        });
        let mut received = Vec::new();
        while received.len() < 200 {
            let limit = Duration::from_micros(20);
            if let Ok(arrived) = rt::timeout(limit, server.receive.fill()).await {
                let arrived = arrived.expect("bytes").to_vec();
                server.receive.consume(arrived.len());
                received.extend(arrived);
            }
        }
        assert_eq!(received, (0..200).collect::<Vec<u8>>());
        drop(sender.await);
    });
}

#[test]
fn dropping_a_half_ends_the_connection_for_both_ends() {
    run(async || {
        let (client, mut server) = pair().await;
        let TcpStream { receive, mut send, .. } = client;
        drop(receive);
        assert!(send.send(vec![Part::Bytes(vec![1])]).await.is_err());
        assert!(server.receive.fill().await.expect("end of the stream").is_empty());
        let mut head = [0; 1];
        assert_eq!(server.receive.read_exact(&mut head).await, Err(Errno::CONNRESET));
        assert_eq!(
            server.receive.read_exact_dma(DmaBuf::new(65536)).await.expect_err("ended"),
            Errno::CONNRESET
        );
    });
}

#[test]
fn a_dropped_half_wakes_a_receive_under_way() {
    run(async || {
        let (client, server) = pair().await;
        let TcpStream { mut receive, send, .. } = client;
        let waiting = rt::spawn(async move { receive.fill().await.map(<[u8]>::to_vec) });
        rt::sleep(Duration::from_millis(1)).await;
        drop(send);
        assert_eq!(waiting.await, Ok(Vec::new()));
        drop(server);
    });
}

#[test]
fn refused_connections_and_taken_ports_are_errors() {
    run(async || {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
        let address = listener.local_address();
        assert_eq!(TcpListener::bind(address).await.expect_err("taken").kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(
            TcpStream::connect(address).await.expect_err("refused").kind(),
            ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn a_dropped_accept_takes_no_connection_with_it() {
    run(async || {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
        let address = listener.local_address();
        for _ in 0..20 {
            assert!(rt::timeout(Duration::from_micros(50), listener.accept()).await.is_err());
        }
        let client = rt::spawn(async move { TcpStream::connect(address).await });
        let server = listener.accept().await.expect("accept");
        assert_eq!(server.peer.ip(), address.ip());
        client.await.expect("connect");
    });
}

#[test]
fn a_descriptor_is_read_into_two_buffers_and_written_from_parts() {
    run(async || {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
        let (reader, writer) = (Fd::new(reader), Fd::new(writer));
        let waiting = rt::spawn(async move {
            let (count, head, data) = reader.read_parts(vec![0; 4], DmaBuf::zeroed(4096)).await;
            (count, head, data[..5].to_vec())
        });
        rt::sleep(Duration::from_millis(1)).await;
        let parts = vec![Part::Bytes(b"head".to_vec()), Part::Data(DmaBytes::copy_of(b"tail!"))];
        assert_eq!(writer.write_parts(&parts).await, Ok(9));
        assert_eq!(waiting.await, (Ok(9), b"head".to_vec(), b"tail!".to_vec()));
    });
}

/// Like `/dev/fuse`, an inotify descriptor answers `EAGAIN` instead of letting the ring wait for it.
#[test]
fn a_non_blocking_descriptor_is_waited_for() {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    run(async || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        add_watch(&inotify, folder.path(), WatchFlags::CREATE).expect("watch");
        let events = Fd::new(inotify);
        let waiting = rt::spawn(async move {
            let (count, head, _) = events.read_parts(vec![0; 4096], DmaBuf::zeroed(4096)).await;
            (count, head[16..20].to_vec())
        });
        rt::sleep(Duration::from_millis(5)).await;
        std::fs::write(folder.path().join("new"), b"").expect("a file");
        let (count, name) = waiting.await;
        assert!(count.is_ok_and(|count| count >= 20), "{count:?}");
        assert_eq!(name, b"new\0");
    });
}

#[test]
fn a_reactor_ends_while_everything_waits() {
    use rustix::fs::inotify::{CreateFlags, init};
    for config in ways() {
        let Some(reactor) = reactor(config) else { continue };
        let (stream, operation_outlives) = reactor.run(async {
            let (client, server) = pair().await;
            let TcpStream { mut receive, send, .. } = server;
            rt::spawn(async move { receive.fill().await.map(<[u8]>::len) }).detach();
            let (mut sender, mut unread) = pair().await;
            rt::spawn(async move {
                sender.send.send(vec![Part::Bytes(pattern(500_000))]).await.expect("send");
                std::future::pending::<()>().await;
            })
            .detach();
            assert!(!unread.receive.fill().await.expect("bytes").is_empty());
            let inotify = Fd::new(init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify"));
            rt::spawn(async move { inotify.read_parts(Vec::new(), DmaBuf::new(4096)).await.0 }).detach();
            let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
            rt::spawn(async move { listener.accept().await.map(|stream| stream.peer) }).detach();
            rt::sleep(Duration::from_millis(2)).await;
            (client, (send, unread))
        });
        drop(reactor);
        drop((stream, operation_outlives));
    }
}
