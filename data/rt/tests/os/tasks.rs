//! Tasks, wakes and timers.

use super::{reactor, run, run_on};
use rt::net::{TcpListener, TcpStream};
use rt::os::{Config, DriverChoice};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

#[test]
fn tasks_run_beside_each_other_and_are_joined() {
    run(async || {
        let tasks: Vec<_> = (0..1000_u64)
            .map(|i| {
                rt::spawn(async move {
                    rt::sleep(Duration::from_micros(i % 7)).await;
                    i
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        assert_eq!(sum, 499_500);
    });
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines() {
    run(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = rt::now();
        let tasks: Vec<_> = [3_u64, 1, 2]
            .into_iter()
            .map(|i| {
                let order = Rc::clone(&order);
                rt::spawn(async move {
                    rt::sleep_until(start + Duration::from_millis(i)).await;
                    assert!(rt::now() >= start + Duration::from_millis(i));
                    order.borrow_mut().push(i);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(order.take(), [1, 2, 3]);
    });
}

#[test]
fn a_dropped_sleep_leaves_no_timer() {
    run(async || {
        let won = rt::timeout(Duration::from_secs(3600), async { 7 }).await;
        assert_eq!(won, Ok(7));
        assert_eq!(
            rt::timeout(Duration::from_micros(10), std::future::pending::<()>()).await,
            Err(rt::Elapsed)
        );
    });
}

#[test]
fn wakes_from_other_threads_arrive() {
    run(async || {
        let (to_thread, from_reactor) = rt::mailbox::bounded::<u64>(4);
        let (to_reactor, from_thread) = rt::mailbox::bounded::<u64>(4);
        let echo = std::thread::spawn(move || {
            while let Ok(value) = from_reactor.recv_blocking() {
                to_reactor.send_blocking(value + 1).expect("the reactor listens");
            }
        });
        for i in 0..2000 {
            to_thread.send(i).await.expect("the thread listens");
            assert_eq!(from_thread.recv().await, Ok(i + 1));
        }
        drop(to_thread);
        rt::blocking(move || echo.join().expect("no panic")).await;
    });
}

#[test]
fn a_mailbox_joins_two_reactors() {
    run(async || {
        let (sender, receiver) = rt::mailbox::bounded::<u64>(8);
        let other = std::thread::spawn(move || {
            run_on(DriverChoice::Auto, async || {
                for i in 0..5000 {
                    sender.send(i).await.expect("the other reactor listens");
                }
                sender.close();
            });
        });
        let mut sum = 0;
        while let Ok(value) = receiver.recv().await {
            sum += value;
        }
        assert_eq!(sum, 4999 * 5000 / 2);
        rt::blocking(move || other.join().expect("no panic")).await;
    });
}

#[test]
fn dropping_the_reactor_drops_every_task() {
    struct Count(Rc<Cell<u32>>);
    impl Drop for Count {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    for driver in [DriverChoice::Auto, DriverChoice::Threads] {
        let dropped = Rc::new(Cell::new(0));
        run_on(driver, async || {
            for i in 0..10_u64 {
                let count = Count(Rc::clone(&dropped));
                rt::spawn(async move {
                    let _count = count;
                    rt::sleep(Duration::from_secs(1000 + i)).await;
                })
                .detach();
            }
            rt::sleep(Duration::ZERO).await;
        });
        assert_eq!(dropped.get(), 10);
    }
}

#[test]
fn a_cancelled_task_ends() {
    run(async || {
        let task = rt::spawn(std::future::pending::<()>());
        assert_eq!(task.cancel().await, None);
    });
}

#[test]
fn random_bytes_differ() {
    run(async || {
        assert_ne!(rt::random_uuid(), rt::random_uuid());
        assert_ne!(rt::random_u64(), rt::random_u64());
    });
}

/// Counted in turns of the loop, not in CPU time: a busy machine changes nothing about them.
#[test]
fn an_idle_reactor_stands_still() {
    for driver in [DriverChoice::Uring, DriverChoice::Threads] {
        let Some(reactor) = reactor(Config { driver, ..Config::default() }) else { continue };
        let _held = reactor.run(async {
            let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bind");
            let address = listener.local_address();
            let client = rt::spawn(async move { TcpStream::connect(address).await.expect("connect") });
            let mut server = listener.accept().await.expect("accept");
            rt::spawn(async move { server.receive.fill().await.map(<[u8]>::len) }).detach();
            rt::spawn(async move { listener.accept().await }).detach();
            rt::spawn(rt::sleep(Duration::from_secs(3600))).detach();
            rt::sleep(Duration::from_millis(1)).await;
            client.await
        });
        let before = reactor.turns();
        reactor.run(rt::sleep(Duration::from_millis(300)));
        let turns = reactor.turns() - before;
        assert!(turns <= 10, "{turns} turns on {driver:?}");
    }
}

#[test]
fn two_reactors_of_one_thread_do_not_mix() {
    let (first, second) = (reactor(Config::default()), reactor(Config::default()));
    let (first, second) = (first.expect("a reactor"), second.expect("a reactor"));
    let (sender, receiver) = rt::mailbox::bounded::<u32>(1);
    let (task,) = first.run(async move { (rt::spawn(async move { receiver.recv().await }),) });
    // Wakes a task of the first reactor while the second one runs.
    second.run(async move { sender.send(7).await.expect("the other reactor's task listens") });
    assert_eq!(first.run(task), Ok(7));
}
