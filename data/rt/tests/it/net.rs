//! Connections over the simulated network.

use rt::net::{TcpListener, TcpStream};
use rt::sim::World;
use rt::{DmaBytes, Part};
use std::net::SocketAddr;

#[test]
fn bytes_arrive_in_order_in_both_directions() {
    let world = World::new(1);
    let server = world.add_node("server");
    let address = SocketAddr::new(world.address(server), 4420);
    world.run(async {
        let echo = async {
            let listener = TcpListener::bind("0.0.0.0:4420".parse().unwrap()).await.unwrap();
            let mut stream = listener.accept().await.unwrap();
            loop {
                let bytes = stream.receive.fill().await.unwrap().to_vec();
                if bytes.is_empty() {
                    return;
                }
                stream.receive.consume(bytes.len());
                stream.send.send(vec![Part::Bytes(bytes)]).await.unwrap();
            }
        };
        let server_task = world.spawn_on(server, echo);
        rt::sleep(std::time::Duration::from_millis(1)).await;
        let TcpStream { mut receive, mut send, peer } = TcpStream::connect(address).await.unwrap();
        assert_eq!(peer, address);
        let data: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = data.clone();
        let sender = rt::spawn(async move {
            send.send(vec![Part::Bytes(sent[..10].to_vec()), Part::Data(DmaBytes::copy_of(&sent[10..]))])
                .await
                .unwrap();
            send
        });
        let mut received = vec![0; data.len()];
        receive.read_exact(&mut received).await.unwrap();
        assert!(received == data);
        drop((receive, sender.await));
        server_task.await;
    });
}
