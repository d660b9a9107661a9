//! Tasks, time, crashes, replay.

use rt::sim::World;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn sleeping_takes_virtual_time_and_timeouts_cut_it_short() {
    let world = World::new(1);
    world.run(async {
        let start = rt::now();
        rt::sleep(3 * SECOND).await;
        assert!(start.elapsed() >= 3 * SECOND && start.elapsed() < 4 * SECOND);
        assert_eq!(rt::timeout(SECOND, rt::sleep(5 * SECOND)).await, Err(rt::Elapsed));
        assert_eq!(rt::timeout(5 * SECOND, async { 7 }).await, Ok(7));
    });
}

#[test]
fn a_crash_drops_the_tasks_of_the_node_and_no_others() {
    struct Flag(Rc<Cell<bool>>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.set(true);
            // What destructors do in a dying process has no effect.
            rt::spawn(async { panic!("a dead process runs nothing") }).detach();
        }
    }
    let world = World::new(2);
    let (a, b) = (world.add_node("a"), world.add_node("b"));
    let (a_gone, b_gone) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    world.run(async {
        for (node, gone) in [(a, &a_gone), (b, &b_gone)] {
            let flag = Flag(Rc::clone(gone));
            world
                .spawn_on(node, async move {
                    let inner = rt::spawn(async move {
                        let _flag = flag;
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
        world.power_cut(b);
        assert!(b_gone.get());
        assert_eq!(world.spawn_on(a, async { 5 }).await, 5);
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
