//! `rt::sync`: first come first served, and nothing lost by a dropped waiter.

use rt::sim::World;
use rt::sync::{Event, Mutex, Queue, Semaphore, oneshot};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

const MICROSECOND: Duration = Duration::from_micros(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Runs `test` in the worlds of many seeds.
fn for_seeds(test: impl AsyncFn()) {
    for seed in 0..100 {
        World::new(seed).run(test());
    }
}

#[test]
fn oneshot_gives_the_value_or_tells_that_there_is_none() {
    for_seeds(async || {
        let (sender, receiver) = oneshot();
        let task = rt::spawn(receiver.recv());
        rt::sleep(MICROSECOND).await;
        assert!(!sender.is_abandoned());
        sender.send(5);
        assert_eq!(task.await, Some(5));

        let (sender, receiver) = oneshot::<u8>();
        let task = rt::spawn(receiver.recv());
        rt::sleep(MICROSECOND).await;
        drop(sender);
        assert_eq!(task.await, None);

        let (sender, receiver) = oneshot();
        drop(receiver);
        assert!(sender.is_abandoned());
        sender.send(1);
    });
}

#[test]
fn an_event_wakes_all_who_wait_and_nobody_who_comes_later() {
    for_seeds(async || {
        let event = Rc::new(Event::new());
        let woken = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..5)
            .map(|_| {
                let (event, woken) = (Rc::clone(&event), Rc::clone(&woken));
                rt::spawn(async move {
                    event.wait().await;
                    woken.set(woken.get() + 1);
                })
            })
            .collect();
        let taken_before = event.wait();
        rt::sleep(MILLISECOND).await;
        assert_eq!(woken.get(), 0);
        event.notify();
        let taken_after = event.wait();
        for task in tasks {
            task.await;
        }
        // The future counts from the call, not from its first poll.
        taken_before.await;
        assert_eq!(rt::timeout(MILLISECOND, taken_after).await, Err(rt::Elapsed));
    });
}

#[test]
fn a_semaphore_serves_in_order_of_arrival_also_large_requests() {
    for_seeds(async || {
        let semaphore = Semaphore::new(4);
        let order = Rc::new(RefCell::new(Vec::new()));
        let held = semaphore.acquire(3).await;
        let mut tasks = Vec::new();
        for (index, count) in [4, 1, 2, 1].into_iter().enumerate() {
            let (semaphore, order) = (semaphore.clone(), Rc::clone(&order));
            tasks.push(rt::spawn(async move {
                let permit = semaphore.acquire(count).await;
                order.borrow_mut().push(index);
                rt::sleep(MILLISECOND).await;
                drop(permit);
            }));
            rt::sleep(10 * MICROSECOND).await;
        }
        assert!(semaphore.try_acquire(1).is_none(), "one is free, but others came first");
        assert!(order.borrow().is_empty());
        drop(held);
        for task in tasks {
            task.await;
        }
        assert_eq!(order.borrow()[0], 0);
        assert_eq!(order.borrow().iter().copied().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(semaphore.available(), 4);
    });
}

#[test]
fn a_dropped_waiter_neither_keeps_permits_nor_blocks_the_line() {
    for_seeds(async || {
        let semaphore = Semaphore::new(2);
        let held = semaphore.acquire(1).await;
        // A large request blocks the small one behind it, until it gives up.
        let large = rt::timeout(MILLISECOND, semaphore.acquire(2));
        let small = rt::timeout(10 * MILLISECOND, async {
            rt::sleep(10 * MICROSECOND).await;
            semaphore.acquire(1).await
        });
        let (large, small) = futures_util::future::join(large, small).await;
        assert!(large.is_err());
        drop((small.unwrap(), held));
        assert_eq!(semaphore.available(), 2);
    });
}

#[test]
fn permits_are_never_lost_and_never_too_many() {
    for_seeds(async || {
        let semaphore = Semaphore::new(5);
        let in_use = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (semaphore, in_use) = (semaphore.clone(), Rc::clone(&in_use));
                rt::spawn(async move {
                    for _ in 0..20 {
                        let count = usize::try_from(rt::random_u64() % 5).unwrap() + 1;
                        let patience = MICROSECOND * u32::try_from(rt::random_u64() % 200).unwrap();
                        let Ok(permit) = rt::timeout(patience, semaphore.acquire(count)).await else {
                            continue;
                        };
                        in_use.set(in_use.get() + count);
                        assert!(in_use.get() <= 5);
                        rt::sleep(10 * MICROSECOND).await;
                        in_use.set(in_use.get() - count);
                        drop(permit);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert_eq!(semaphore.available(), 5);
    });
}

#[test]
fn a_mutex_lets_one_in_at_a_time_in_order() {
    for_seeds(async || {
        let mutex = Rc::new(Mutex::new(Vec::new()));
        let held = mutex.lock().await;
        let mut tasks = Vec::new();
        for index in 0..5 {
            let mutex = Rc::clone(&mutex);
            tasks.push(rt::spawn(async move {
                let mut list = mutex.lock().await;
                let before = list.len();
                rt::sleep(MICROSECOND).await;
                list.push(index);
                assert_eq!(list.len(), before + 1);
            }));
            rt::sleep(10 * MICROSECOND).await;
        }
        assert!(mutex.try_lock().is_none());
        tasks.remove(2).cancel().await;
        drop(held);
        for task in tasks {
            task.await;
        }
        assert_eq!(*mutex.try_lock().unwrap(), [0, 1, 3, 4]);
    });
}

#[test]
fn a_queue_keeps_its_order_and_ends_when_closed() {
    for_seeds(async || {
        let queue = Rc::new(Queue::new());
        for item in 0..3 {
            queue.push(item);
        }
        assert_eq!((queue.len(), queue.try_pop()), (3, Some(0)));
        queue.close();
        queue.push(9);
        assert!(queue.is_closed());
        assert_eq!((queue.pop().await, queue.pop().await, queue.pop().await), (Some(1), Some(2), None));

        let queue = Rc::new(Queue::<u8>::new());
        let popping = Rc::clone(&queue);
        let task = rt::spawn(async move { popping.pop().await });
        rt::sleep(MICROSECOND).await;
        queue.close();
        assert_eq!(task.await, None);
        assert!(queue.is_empty());
    });
}

#[test]
fn an_item_handed_to_a_dropped_waiter_keeps_its_place() {
    for_seeds(async || {
        let queue = Rc::new(Queue::new());
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let queue = Rc::clone(&queue);
            waiting.push(rt::spawn(async move { queue.pop().await }));
            rt::sleep(10 * MICROSECOND).await;
        }
        // All are handed out within one poll, so that nobody has taken anything yet when two waiters give up.
        for item in 0..4 {
            queue.push(item);
        }
        let last = waiting.pop().unwrap();
        for task in waiting {
            drop(task);
        }
        assert_eq!(last.await, Some(2));
        rt::sleep(MILLISECOND).await;
        assert_eq!((queue.try_pop(), queue.try_pop(), queue.try_pop()), (Some(0), Some(1), Some(3)));
    });
}

#[test]
fn every_item_is_taken_exactly_once_by_impatient_consumers() {
    for_seeds(async || {
        let queue = Rc::new(Queue::new());
        let taken = Rc::new(RefCell::new(Vec::new()));
        let consumers: Vec<_> = (0..4)
            .map(|_| {
                let (queue, taken) = (Rc::clone(&queue), Rc::clone(&taken));
                rt::spawn(async move {
                    loop {
                        match rt::timeout(3 * MICROSECOND, queue.pop()).await {
                            Ok(Some(item)) => taken.borrow_mut().push(item),
                            Ok(None) => return,
                            Err(rt::Elapsed) => {}
                        }
                    }
                })
            })
            .collect();
        for item in 0..200 {
            queue.push(item);
            if item % 3 == 0 {
                rt::sleep(2 * MICROSECOND).await;
            }
        }
        queue.close();
        for consumer in consumers {
            consumer.await;
        }
        let mut taken = taken.take();
        taken.sort_unstable();
        assert_eq!(taken, (0..200).collect::<Vec<_>>());
    });
}
