//! Tasks, time, crashes, pauses.

use rt::sim::World;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn sleeping_takes_virtual_time_and_timeouts_cut_it_short() {
    let world = World::new(1);
    world.run(async {
        let start = rt::now();
        rt::sleep(3 * SECOND).await;
        assert!(start.elapsed() >= 3 * SECOND && start.elapsed() < 3 * SECOND + MILLISECOND);
        assert_eq!(rt::timeout(SECOND, rt::sleep(5 * SECOND)).await, Err(rt::Elapsed));
        assert_eq!(rt::timeout(5 * SECOND, async { 7 }).await, Ok(7));
    });
    assert!(world.elapsed() < 5 * SECOND);
}

#[test]
fn ready_tasks_run_in_any_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..100 {
        let order = Rc::new(RefCell::new(Vec::new()));
        World::new(seed).run(async {
            let tasks: Vec<_> = (0..3)
                .map(|index| {
                    let order = Rc::clone(&order);
                    rt::spawn(async move { order.borrow_mut().push(index) })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
        orders.insert(order.take());
    }
    assert_eq!(orders.len(), 6);
}

#[test]
fn tasks_that_only_yield_or_watch_the_clock_do_not_stop_time() {
    for seed in 0..10 {
        World::new(seed).run(async {
            let yields = rt::spawn(async {
                let deadline = rt::now() + MILLISECOND;
                while rt::now() < deadline {}
                loop {
                    let mut yielded = false;
                    let once = std::future::poll_fn(|cx| {
                        cx.waker().wake_by_ref();
                        if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
                    });
                    once.await;
                }
            });
            rt::sleep(10 * MILLISECOND).await;
            yields.cancel().await;
        });
    }
}

/// Sets its cell when dropped, and does what destructors should not do.
struct Noisy(Rc<Cell<bool>>);

impl Drop for Noisy {
    fn drop(&mut self) {
        self.0.set(true);
        rt::spawn(async { panic!("a dead process runs nothing") }).detach();
        assert!(rt::now().as_nanos() > 0);
        let _ = rt::random_u64();
    }
}

#[test]
fn a_crash_drops_the_tasks_of_the_node_and_no_others() {
    let world = World::new(2);
    let (a, b) = (world.add_node("a"), world.add_node("b"));
    assert_eq!((world.name(a).as_str(), world.node("b")), ("a", Some(b)));
    let (a_gone, b_gone) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    world.run(async {
        for (node, gone) in [(a, &a_gone), (b, &b_gone)] {
            let noisy = Noisy(Rc::clone(gone));
            world
                .spawn_on(node, async move {
                    let inner = rt::spawn(async move {
                        let _noisy = noisy;
                        std::future::pending::<()>().await;
                    });
                    inner.await;
                })
                .detach();
        }
        rt::sleep(SECOND).await;
        let boot_id = world.boot_id(a);
        world.crash(a);
        assert!(a_gone.get() && !b_gone.get());
        assert!(!world.is_running(a) && world.is_running(b));
        assert_eq!(world.boot_id(a), boot_id);
        let boot_id = world.boot_id(b);
        world.power_cut(b);
        assert!(b_gone.get());
        assert_ne!(world.boot_id(b), boot_id);
        assert_eq!(world.spawn_on(a, async { 5 }).await, 5);
        rt::sleep(SECOND).await;
    });
    assert_eq!((world.counters().crashes, world.counters().power_cuts), (1, 1));
}

#[test]
fn the_futures_of_a_dead_process_are_dropped_in_the_order_of_spawning() {
    struct Note(usize, Rc<RefCell<Vec<usize>>>);
    impl Drop for Note {
        fn drop(&mut self) {
            self.1.borrow_mut().push(self.0);
        }
    }
    for seed in 0..20 {
        let world = World::new(seed);
        let node = world.add_node("a");
        let order = Rc::new(RefCell::new(Vec::new()));
        world.run(async {
            for index in 0..10 {
                let mark = Note(index, Rc::clone(&order));
                let sleeper = async move {
                    let _mark = mark;
                    loop {
                        rt::sleep(MILLISECOND).await;
                    }
                };
                world.spawn_on(node, sleeper).detach();
            }
            rt::sleep(SECOND).await;
            world.crash(node);
        });
        assert_eq!(order.take(), (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn a_task_may_kill_its_own_process_and_ends_at_its_next_await() {
    let world = World::new(1);
    let node = world.add_node("a");
    world.add_disk(node, "/disk0", 1 << 20, 4096);
    let survived = Rc::new(Cell::new(false));
    let there = Rc::clone(&survived);
    world.run(async {
        world
            .spawn_on(node, async move {
                let file = crate::disk::open().await.unwrap();
                World::current().crash(World::current().node("a").unwrap());
                there.set(true);
                crate::disk::write(&file, 0, &[1], rt::Durability::Durable).await.unwrap();
                panic!("nothing is written by the dead");
            })
            .detach();
        rt::sleep(SECOND).await;
        assert!(survived.get() && !world.is_running(node));
        let check = async {
            let file = crate::disk::open().await.unwrap();
            assert_eq!(crate::disk::read(&file, 0, 1).await.unwrap(), [0]);
        };
        world.spawn_on(node, check).await;
    });
}

#[test]
fn a_task_that_ended_with_its_node_can_be_asked() {
    let world = World::new(1);
    let node = world.add_node("a");
    world.run(async {
        let task = world.spawn_on(node, std::future::pending::<u8>()).fallible();
        world.crash(node);
        assert_eq!(task.await, None);
    });
}

#[test]
fn the_end_of_the_world_drops_everything() {
    let gone = Rc::new(Cell::new(false));
    let world = World::new(1);
    let node = world.add_node("a");
    world.run(async {
        let noisy = Noisy(Rc::clone(&gone));
        let handle = world.clone();
        let forever = async move {
            let (_noisy, _handle) = (noisy, handle);
            std::future::pending::<()>().await;
        };
        world.spawn_on(node, forever).detach();
        rt::sleep(MILLISECOND).await;
    });
    assert!(!gone.get());
    drop(world);
    assert!(gone.get());
}

#[test]
fn a_paused_node_runs_nothing_while_its_clock_goes_on() {
    let world = World::new(1);
    let node = world.add_node("a");
    let count = Rc::new(Cell::new(0));
    let longest = Rc::new(Cell::new(Duration::ZERO));
    world.run(async {
        let (ticking, gap) = (Rc::clone(&count), Rc::clone(&longest));
        let ticker = async move {
            loop {
                let before = rt::now();
                rt::sleep(MILLISECOND).await;
                gap.set(gap.get().max(before.elapsed()));
                ticking.set(ticking.get() + 1);
            }
        };
        world.spawn_on(node, ticker).detach();
        rt::sleep(SECOND).await;
        world.pause(node);
        let before_pause = count.get();
        assert!(before_pause > 900);
        rt::sleep(10 * SECOND).await;
        assert_eq!(count.get(), before_pause);
        world.resume(node);
        rt::sleep(SECOND).await;
        assert!(count.get() > before_pause && longest.get() > 9 * SECOND);
        // It may also die while it is paused.
        world.pause(node);
        rt::sleep(SECOND).await;
        world.crash(node);
        world.resume(node);
        assert_eq!(Rc::strong_count(&count), 1);
    });
    assert_eq!(world.counters().pauses, 2);
}

#[test]
fn clocks_differ_between_nodes_and_run_at_their_own_rates() {
    let world = World::new(1);
    let (a, b) = (world.add_node("a"), world.add_node("b"));
    world.set_clock_rate(b, 100_000);
    world.run(async {
        let measure = |node| {
            world.spawn_on(node, async {
                let start = rt::now();
                rt::sleep(100 * SECOND).await;
                (start, start.elapsed())
            })
        };
        let started = world.elapsed();
        let ((start_a, slept_a), (start_b, slept_b)) =
            futures_util::future::join(measure(a), measure(b)).await;
        assert_ne!(start_a, start_b);
        assert!(slept_a >= 100 * SECOND && slept_b >= 100 * SECOND);
        let between = world.elapsed();
        measure(b).await;
        assert!((world.elapsed().saturating_sub(between)).as_secs() == 90, "a clock that is 10 % fast");
        assert!(between.saturating_sub(started).as_secs_f64() > 99.9);
        let (before, _) = measure(a).await;
        world.power_cut(a);
        let after = world.spawn_on(a, async { rt::now() }).await;
        assert!(after.as_nanos() < 101_000_000_000, "the boot clock starts again: {before:?} {after:?}");
    });
}

#[test]
fn mailboxes_and_blocking_work_run_inside_a_world() {
    let world = World::new(1);
    let node = world.add_node("a");
    world.run(async {
        let (sender, receiver) = rt::mailbox::bounded(1);
        let task = world.spawn_on(node, async move {
            for item in 0..10 {
                sender.send(rt::blocking(move || item * 2).await).await.unwrap();
            }
        });
        for item in 0..10 {
            assert_eq!(receiver.recv().await, Ok(item * 2));
        }
        task.await;
        assert!(receiver.recv().await.is_err());
    });
}

#[test]
#[should_panic(expected = "seed 3: deadlock")]
fn a_deadlock_names_its_seed() {
    World::new(3).run(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "seed 4: the root future has not ended")]
fn a_world_that_never_ends_names_its_seed() {
    let world = World::new(4);
    world.set_time_limit(60 * SECOND);
    world.run(async {
        loop {
            rt::sleep(SECOND).await;
        }
    });
}

#[test]
#[should_panic(expected = "the task failed")]
fn a_panic_of_a_task_ends_the_run() {
    let world = World::new(5);
    let node = world.add_node("a");
    world.run(async {
        world.spawn_on(node, async { panic!("the task failed") }).detach();
        std::future::pending::<()>().await;
    });
}
