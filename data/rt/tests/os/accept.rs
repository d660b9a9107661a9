//! Listeners under many connections.

use super::run;
use rt::net::{TcpListener, TcpStream};
use rt::{Errno, Part};
use std::collections::BTreeSet;
use std::rc::Rc;

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind")
}

/// Connects `count` times at once, and sends the number of each connection.
fn connect_many(to: &TcpListener, count: u32) -> Vec<rt::Task<TcpStream>> {
    let address = to.local_address();
    let connect = |number: u32| async move {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.send.send(vec![Part::Bytes(number.to_le_bytes().to_vec())]).await.expect("send");
        stream
    };
    (0..count).map(|number| rt::spawn(connect(number))).collect()
}

async fn number(stream: &mut TcpStream) -> u32 {
    let mut bytes = [0; 4];
    stream.receive.read_exact(&mut bytes).await.expect("a number");
    u32::from_le_bytes(bytes)
}

#[test]
fn many_connections_at_once_are_all_accepted() {
    run(async || {
        let listener = listener().await;
        let clients = connect_many(&listener, 200);
        let mut found = BTreeSet::new();
        let mut servers = Vec::new();
        for _ in 0..200 {
            let mut server = listener.accept().await.expect("accept");
            found.insert(number(&mut server).await);
            servers.push(server);
        }
        assert_eq!(found, (0..200).collect());
        for client in clients {
            client.await;
        }
    });
}

#[test]
fn several_tasks_accept_from_one_listener() {
    run(async || {
        let listener = Rc::new(listener().await);
        let servers: Vec<_> = (0..20)
            .map(|_| {
                let listener = Rc::clone(&listener);
                rt::spawn(async move {
                    let mut server = listener.accept().await.expect("accept");
                    (number(&mut server).await, server)
                })
            })
            .collect();
        let clients = connect_many(&listener, 20);
        let mut found = BTreeSet::new();
        for server in servers {
            found.insert(server.await.0);
        }
        assert_eq!(found, (0..20).collect());
        for client in clients {
            client.await;
        }
    });
}

#[test]
fn a_listener_that_goes_closes_what_nobody_took() {
    run(async || {
        let listener = listener().await;
        let address = listener.local_address();
        let clients = connect_many(&listener, 40);
        let taken = listener.accept().await.expect("accept");
        let mut streams = Vec::new();
        for client in clients {
            streams.push(client.await);
        }
        drop(listener);
        assert!(TcpStream::connect(address).await.is_err(), "it still listens");
        drop(taken);
        for mut stream in streams {
            match stream.receive.fill().await {
                Ok(bytes) => assert!(bytes.is_empty()),
                Err(error) => assert_eq!(error, Errno::CONNRESET),
            }
        }
    });
}
