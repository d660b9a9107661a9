//! One program, both drivers: what the simulator promises, the kernel keeps, and the other way round.

use futures_util::future::join;
use rt::net::{TcpListener, TcpStream};
use rt::os::{Config, Reactor};
use rt::sim::World;
use rt::{Access, DmaBuf, DmaBytes, Durability, Errno, File, OpenOptions, Part};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// Runs `program` on a reactor and in the worlds of some seeds; it gets the path of a file that does not exist.
fn on_both(program: impl AsyncFn(&Path) + Copy) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    Reactor::new(Config::default()).unwrap().run(program(&folder.path().join("disk0")));
    for seed in 0..20 {
        World::new(seed).run(program(Path::new("/disk0")));
    }
}

const CREATE: OpenOptions =
    OpenOptions { access: Access::Write, create_len_bytes: Some(1 << 20), direct: true };

fn filled(len: usize, byte: u8) -> DmaBytes {
    let mut buf = DmaBuf::new(len);
    buf.fill(byte);
    buf.freeze()
}

#[test]
fn files_open_lock_and_end_alike() {
    on_both(async |path| {
        let existing = OpenOptions { create_len_bytes: None, ..CREATE };
        let reading = OpenOptions { access: Access::Read, ..existing };
        assert_eq!(File::open(path, existing).await.unwrap_err().kind(), ErrorKind::NotFound);
        let create_for_reading = OpenOptions { access: Access::Read, ..CREATE };
        assert_eq!(File::open(path, create_for_reading).await.unwrap_err().kind(), ErrorKind::NotFound);
        let file = File::open(path, CREATE).await.unwrap();
        assert_eq!(file.len_bytes(), 1 << 20);
        assert_eq!(File::open(path, CREATE).await.unwrap_err().kind(), ErrorKind::WouldBlock);
        let reader = File::open(path, reading).await.unwrap();
        assert!(reader.write_at(0, filled(4096, 1), Durability::Cached).await.is_err());
        assert_eq!(file.read_at(1 << 20, DmaBuf::new(4096)).await.unwrap_err(), Errno::IO);
        assert_eq!(file.read_at((1 << 20) - 4096, DmaBuf::new(8192)).await.unwrap_err(), Errno::IO);
        drop(file);
        assert_eq!(File::open(path, existing).await.unwrap().len_bytes(), 1 << 20);
    });
}

#[test]
fn files_hold_what_was_written_and_zeroed_alike() {
    on_both(async |path| {
        let file = File::open(path, CREATE).await.unwrap();
        file.write_at(4096, filled(16384, 7), Durability::Cached).await.unwrap();
        file.write_at(8192, filled(4096, 8), Durability::Durable).await.unwrap();
        file.zero_range(12288, 4096, true).await.unwrap();
        file.zero_range(16384, 4096, false).await.unwrap();
        file.sync().await.unwrap();
        let read = file.read_at(0, DmaBuf::new(24576)).await.unwrap();
        let tags: Vec<u8> = read.chunks(4096).map(|block| block[0]).collect();
        assert_eq!(tags, [0, 7, 8, 0, 0, 0]);
        assert!(read.chunks(4096).all(|block| block.iter().all(|byte| *byte == block[0])));
    });
}

#[test]
fn files_keep_the_buffers_of_dropped_operations_alike() {
    on_both(async |path| {
        let file = File::open(path, CREATE).await.unwrap();
        file.write_at(0, filled(4096, 1), Durability::Cached).await.unwrap();
        for round in 2..20 {
            // Polled once, then dropped.
            let write = async { file.write_at(0, filled(4096, round), Durability::Cached).await.unwrap() };
            rt::race(write, async {}).await;
            rt::race(async { drop(file.read_at(0, DmaBuf::new(4096)).await) }, async {}).await;
            let mut own = DmaBuf::new(4096);
            own.fill(round);
            rt::sleep(Duration::from_millis(1)).await;
            assert!(own.iter().all(|byte| *byte == round));
        }
        let read = file.read_at(0, DmaBuf::new(4096)).await.unwrap();
        assert!((1..20).contains(&read[0]) && read.iter().all(|byte| *byte == read[0]));
    });
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (accepted, connected) = join(listener.accept(), TcpStream::connect(listener.local_address())).await;
    (accepted.unwrap(), connected.unwrap())
}

#[test]
fn streams_carry_bytes_alike() {
    on_both(async |_| {
        let (mut server, mut client) = pair().await;
        let data: Vec<u8> = (0..300_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let sending = async {
            let parts = vec![Part::Bytes(data[..7].to_vec()), Part::Data(DmaBytes::copy_of(&data[7..]))];
            client.send.send(parts).await.unwrap();
        };
        let receiving = async {
            let mut head = [0; 7];
            server.receive.read_exact(&mut head).await.unwrap();
            let rest = server.receive.read_exact_dma(DmaBuf::new(data.len() - 7)).await.unwrap();
            assert!(head == data[..7] && rest[..] == data[7..]);
        };
        join(sending, receiving).await;
        // A fill that is dropped loses nothing; bytes stay until they are consumed.
        assert!(rt::timeout(Duration::from_millis(1), server.receive.fill()).await.is_err());
        client.send.send(vec![Part::Bytes(vec![5])]).await.unwrap();
        assert_eq!(server.receive.fill().await.unwrap(), [5]);
        assert_eq!(server.receive.fill().await.unwrap(), [5]);
        server.receive.consume(1);
        client.send.send(Vec::new()).await.unwrap();
    });
}

#[test]
fn streams_end_alike() {
    on_both(async |_| {
        let (mut server, client) = pair().await;
        let TcpStream { mut receive, send, .. } = client;
        drop(send);
        assert_eq!(receive.fill().await, Ok(&[][..]));
        assert_eq!(server.receive.fill().await, Ok(&[][..]));
        assert_eq!(server.receive.fill().await, Ok(&[][..]));
        assert_eq!(server.receive.read_exact(&mut [0]).await, Err(Errno::CONNRESET));
        let failed = loop {
            if let Err(error) = server.send.send(vec![Part::Bytes(vec![1])]).await {
                break error;
            }
            rt::sleep(Duration::from_millis(1)).await;
        };
        assert!(failed == Errno::PIPE || failed == Errno::CONNRESET, "{failed}");

        let (server, client) = pair().await;
        let TcpStream { receive, mut send, .. } = client;
        drop(receive);
        assert_eq!(send.send(vec![Part::Bytes(vec![1])]).await, Err(Errno::PIPE));
        drop(server);
    });
}

#[test]
fn listeners_refuse_and_free_their_ports_alike() {
    on_both(async |_| {
        let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_address();
        assert_ne!(address.port(), 0);
        assert_eq!(TcpListener::bind(address).await.unwrap_err().kind(), ErrorKind::AddrInUse);
        let (accepted, connected) = join(listener.accept(), TcpStream::connect(address)).await;
        assert_eq!(connected.unwrap().peer, address);
        assert_eq!(accepted.unwrap().peer.ip(), address.ip());
        drop(listener);
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let far = TcpListener::bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
        assert_eq!(far.kind(), ErrorKind::AddrNotAvailable);
    });
}

#[test]
fn tasks_end_and_are_cancelled_alike() {
    on_both(async |_| {
        let start = rt::now();
        let doubled = rt::spawn(async {
            rt::sleep(Duration::from_millis(2)).await;
            rt::blocking(|| 21 * 2).await
        });
        assert_eq!(doubled.await, 42);
        assert!(start.elapsed() >= Duration::from_millis(2));
        let endless = rt::spawn(std::future::pending::<()>());
        assert_eq!(endless.cancel().await, None);
        let (sender, receiver) = rt::mailbox::bounded(1);
        drop(rt::spawn(async move { sender.send(1).await }));
        assert!(receiver.recv().await.is_err(), "the dropped task and its sender are gone");
        assert_ne!(rt::random_uuid(), rt::random_uuid());
    });
}
