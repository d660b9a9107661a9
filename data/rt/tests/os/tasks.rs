//! Tasks, wakes and timers.

use super::{run, run_on};
use rt::os::DriverChoice;
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
