//! The death of servers and holders: what I/O sees, and what is possible afterwards.

use crate::Test;
use crate::attach::fio_verify;
use crate::run::{Run, Server, kill, now, path, pause, processes_of, sh, try_sh, wait_for};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("death::without_a_holder_io_fails_at_once", without_a_holder_io_fails_at_once),
    ("death::a_restarted_server_takes_over_under_load", a_restarted_server_takes_over_under_load),
    ("death::raw_io_goes_on_after_a_takeover", raw_io_goes_on_after_a_takeover),
    ("death::a_holder_that_dies_alone_is_replaced", a_holder_that_dies_alone_is_replaced),
    ("death::nobody_takes_over_in_time", nobody_takes_over_in_time),
    ("death::all_holders_die", all_holders_die),
    ("death::a_dead_device_is_removed_by_hand", a_dead_device_is_removed_by_hand),
    ("death::a_server_that_waits_for_itself_dies", a_server_that_waits_for_itself_dies),
    ("death::another_engine_does_not_wait_for_a_dead_one", another_engine_does_not_wait_for_a_dead_one),
    (
        "death::a_volume_that_others_have_had_is_not_gone_on_with",
        a_volume_that_others_have_had_is_not_gone_on_with,
    ),
    ("death::a_device_that_is_given_up_fails", a_device_that_is_given_up_fails),
    ("death::a_holder_keeps_nothing_but_its_descriptors", a_holder_keeps_nothing_but_its_descriptors),
];

const HOLDING: &str = "limit_ms=20000";
const SECOND: Duration = Duration::from_secs(1);

/// Starts writing and syncing files into `point` until an error; returns the process.
fn writer(point: &Path) -> Child {
    let script = "i=0; while dd if=/dev/zero of=$0/f$((i % 50)) bs=64k count=4 conv=fsync status=none; do i=$((i + 1)); done";
    Command::new("sh").args(["-c", script, path(point)]).stderr(Stdio::null()).spawn().expect("sh starts")
}

fn wait_for_end(child: &mut Child, limit: Duration) {
    wait_for("the end of the writer", limit, || child.try_wait().expect("our child").is_some());
}

/// After a death that ended the connection: everything can be removed at once, and the file system is consistent.
fn assert_clean_next_time(run: &Run, point: &Path, more: &[&str]) {
    let refusal = run.refused(&run.disk("256MiB"), more);
    assert!(refusal.contains("is mounted at") && refusal.contains(path(point)), "{refusal}");
    wait_for("the unmount", 5 * SECOND, || try_sh("umount", &[path(point)]).0 == Some(0));
    // Begins by detaching the dead device.
    let began = now();
    let mut server = run.serve(&run.disk("256MiB"), more);
    let took = Duration::from_nanos(now() - began);
    assert!(took < 5 * SECOND, "detaching the dead device and attaching anew took {took:?}");
    let (code, text) = try_sh("e2fsck", &["-p", &server.device]);
    assert!(code.is_some_and(|code| code <= 1), "{text}");
    sh("e2fsck", &["-fn", &server.device]);
    server.tell("detach");
    drop(server);
    wait_for("the end of the holder", 5 * SECOND, || processes_of(&run.id).is_empty());
    run.assert_nothing_left();
}

/// Reads past every cache from a device that nobody serves: `EIO`, and at once.
fn assert_dead(device: &str) {
    let source = format!("if={device}");
    let mut reading = Command::new("dd")
        .args([&source, "of=/dev/null", "bs=4096", "count=1", "skip=1000", "iflag=direct"])
        .env("LC_ALL", "C")
        .stderr(Stdio::piped())
        .spawn()
        .expect("dd starts");
    wait_for("the error", SECOND, || reading.try_wait().expect("our child").is_some());
    let output = reading.wait_with_output().expect("it has ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Input/output error"), "{said}");
    nothing_waits_for(device);
}

/// No thread of the kernel that names the device (its journal, its loop worker) waits in state D.
fn nothing_waits_for(device: &str) {
    let name = device.strip_prefix("/dev/").expect("a device");
    let waits = |stat: &str| {
        let Some((comm, rest)) = stat.rsplit_once(") ") else { return false };
        let after = comm.split(name).nth(1);
        rest.starts_with('D') && after.is_some_and(|after| !after.starts_with(|c: char| c.is_ascii_digit()))
    };
    wait_for("the end of all waiting", SECOND, || {
        let processes = std::fs::read_dir("/proc").expect("readable").flatten();
        let mut stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        !stats.any(|stat| waits(&stat))
    });
}

/// A loop device as `losetup -d` takes it away: the file under it is gone within 5 s.
fn detach_by_hand(device: &str) {
    sh("losetup", &["-d", device]);
    let bound = format!("/sys/block/{}/loop", device.strip_prefix("/dev/").expect("a device"));
    wait_for("the detach", 5 * SECOND, || !Path::new(&bound).exists());
}

fn no_process_waits_without_end(pids: &[u32]) {
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(!stat.contains(") D "), "{stat}");
    }
}

fn without_a_holder_io_fails_at_once() {
    let mut run = Run::new("alone");
    let server = run.serve(&run.disk("256MiB"), &[]);
    sh("mkfs.ext4", &["-q", &server.device]);
    let point = run.mount(&server.device);
    let mut writing = writer(&point);
    pause(SECOND / 2);
    let device = server.device.clone();
    server.kill();
    wait_for_end(&mut writing, 5 * SECOND);
    assert_dead(&device);
    assert_clean_next_time(&run, &point, &[]);
}

/// The file system that is mounted remembers blocks that are others by now: it must not write any more.
fn a_volume_that_others_have_had_is_not_gone_on_with() {
    let mut run = Run::new("passed");
    let server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    sh("mkfs.ext4", &["-q", &server.device]);
    let point = run.mount(&server.device);
    let mut writing = writer(&point);
    pause(SECOND / 2);
    let device = server.device.clone();
    server.kill();
    let since = [HOLDING, "fresh=1"];
    let refusal = run.refused(&run.disk("256MiB"), &since);
    assert!(refusal.contains("is mounted at"), "{refusal}");
    wait_for_end(&mut writing, 5 * SECOND);
    assert_dead(&device);
    assert_clean_next_time(&run, &point, &since);
}

fn a_device_that_is_given_up_fails() {
    let mut run = Run::new("given-up");
    let mut server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    sh("mkfs.ext4", &["-q", &server.device]);
    let point = run.mount(&server.device);
    let mut writing = writer(&point);
    pause(SECOND / 2);
    server.tell("abort");
    wait_for_end(&mut writing, 5 * SECOND);
    assert_dead(&server.device);
    assert!(server.ask("detach").contains("is mounted at"), "it is in use");
    wait_for("the unmount", 5 * SECOND, || try_sh("umount", &[path(&point)]).0 == Some(0));
    server.tell("detach");
    drop(server);
    wait_for("the end of the holder", 5 * SECOND, || processes_of(&run.id).is_empty());
    run.assert_nothing_left();
}

fn a_restarted_server_takes_over_under_load() {
    let mut run = Run::new("takeover");
    let mut server = run.serve(&run.slow_disk("512MiB"), &[HOLDING]);
    let device = server.device.clone();
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    let file = point.join("file");
    let arguments = fio_verify(path(&file), "256M", &["--rate=24m", "--fsync=32"]);
    let mut fio = Command::new("fio").args(arguments).stdout(Stdio::null()).spawn().expect("fio starts");
    let mut resent = 0;
    for _ in 0..3 {
        pause(2 * SECOND);
        server.kill();
        pause(SECOND);
        assert!(fio.try_wait().expect("our child").is_none(), "fio waits for the next server");
        server = run.serve(&run.slow_disk("512MiB"), &[HOLDING]);
        assert_eq!(server.device, device, "the same device goes on");
        pause(SECOND / 2);
        resent += server.counter("resent");
    }
    wait_for("the end of fio", 90 * SECOND, || fio.try_wait().expect("our child").is_some());
    assert!(fio.wait().expect("our child").success(), "fio saw an error");
    assert!(resent > 0, "requests were under way at the kills");
    assert_eq!(server.counter("errors"), 0);
    sh("umount", &[path(&point)]);
    sh("e2fsck", &["-fn", &device]);
    end(server, &run);
}

fn raw_io_goes_on_after_a_takeover() {
    let run = Run::new("raw");
    let mut server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    let device = server.device.clone();
    let arguments = fio_verify(&device, "256M", &["--rate=40m"]);
    let mut fio = Command::new("fio").args(arguments).stdout(Stdio::null()).spawn().expect("fio starts");
    for _ in 0..3 {
        pause(SECOND);
        server.kill();
        server = run.serve(&run.disk("256MiB"), &[HOLDING]);
        assert_eq!(server.device, device);
    }
    wait_for("the end of fio", 90 * SECOND, || fio.try_wait().expect("our child").is_some());
    assert!(fio.wait().expect("our child").success(), "fio saw an error");
    end(server, &run);
}

fn end(mut server: Server, run: &Run) {
    server.tell("detach");
    wait_for("the end of the holder", 5 * SECOND, || processes_of(&run.id).len() == 1);
    drop(server);
    run.assert_nothing_left();
}

fn holder_of(run: &Run, server: &Server) -> Option<u32> {
    processes_of(&run.id).into_iter().find(|pid| *pid != server.pid())
}

fn a_holder_that_dies_alone_is_replaced() {
    let mut run = Run::new("replaced");
    let server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    let device = server.device.clone();
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    let first = holder_of(&run, &server).expect("a holder");
    kill(first);
    wait_for("another holder", 5 * SECOND, || holder_of(&run, &server).is_some_and(|pid| pid != first));
    std::fs::write(point.join("file"), "it goes on").expect("written");
    // The new one has everything: a takeover works.
    pause(SECOND);
    server.kill();
    let server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    assert_eq!(server.device, device);
    assert_eq!(std::fs::read(point.join("file")).expect("readable"), b"it goes on");
    sh("umount", &[path(&point)]);
    sh("e2fsck", &["-fn", &device]);
    end(server, &run);
}

fn nobody_takes_over_in_time() {
    let mut run = Run::new("late");
    let limit = "limit_ms=2000";
    let server = run.serve(&run.disk("256MiB"), &[limit]);
    sh("mkfs.ext4", &["-q", &server.device]);
    let point = run.mount(&server.device);
    let mut writing = writer(&point);
    pause(SECOND / 2);
    server.kill();
    pause(SECOND);
    assert!(writing.try_wait().expect("our child").is_none(), "I/O waits for a server");
    wait_for_end(&mut writing, 5 * SECOND);
    no_process_waits_without_end(&[writing.id()]);
    wait_for("the end of the holder", 5 * SECOND, || processes_of(&run.id).is_empty());
    assert_clean_next_time(&run, &point, &[limit]);
}

fn all_holders_die() {
    let mut run = Run::new("all");
    let server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    sh("mkfs.ext4", &["-q", &server.device]);
    let point = run.mount(&server.device);
    let mut writing = writer(&point);
    pause(SECOND / 2);
    let holder = holder_of(&run, &server).expect("a holder");
    let pids = [writing.id(), holder, server.pid()];
    let device = server.device.clone();
    server.kill();
    kill(holder);
    wait_for_end(&mut writing, 5 * SECOND);
    assert_dead(&device);
    no_process_waits_without_end(&pids);
    assert_clean_next_time(&run, &point, &[HOLDING]);
}

/// As a user does it who has nothing of Orlop left: unmount, take the loop device away, and attach another time.
fn a_dead_device_is_removed_by_hand() {
    let mut run = Run::new("hand");
    let server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    let device = server.device.clone();
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    let holder = holder_of(&run, &server).expect("a holder");
    server.kill();
    kill(holder);
    wait_for("the end of the holder", SECOND, || processes_of(&run.id).is_empty());
    assert_dead(&device);
    wait_for("the unmount", 5 * SECOND, || try_sh("umount", &[path(&point)]).0 == Some(0));
    detach_by_hand(&device);
    let server = run.serve(&run.disk("256MiB"), &[HOLDING]);
    let (code, text) = try_sh("e2fsck", &["-p", &server.device]);
    assert!(code.is_some_and(|code| code <= 1), "{text}");
    sh("e2fsck", &["-fn", &server.device]);
    end(server, &run);
}

/// A thread of the server that does I/O on the served device must not keep `/dev/fuse` open when the process is killed:
/// it would wait for an answer that only this process could give, and the connection would never end.
fn a_server_that_waits_for_itself_dies() {
    let run = Run::new("itself");
    let disk = run.disk("64MiB").replace('?', "%3F");
    // Making the loop device flushes the file under it.
    let server = run.start(&format!("fault://?of={disk}&rule=hang,on:flush"), &[]);
    let tasks = format!("/proc/{}/task", server.pid());
    let waits = || {
        std::fs::read_dir(&tasks).expect("it lives").flatten().any(|task| {
            let stack = std::fs::read_to_string(task.path().join("stack")).unwrap_or_default();
            stack.contains("fuse_fsync")
        })
    };
    wait_for("a thread that waits for the flush", 5 * SECOND, waits);
    server.kill_within(5 * SECOND);
    let mut server = run.serve(&run.disk("64MiB"), &[]);
    server.tell("detach");
    drop(server);
    run.assert_nothing_left();
}

/// Two engines on one machine, as in `dev`: the volume moves to the other one while the device of the first, which was
/// killed, still waits for it to come back.
fn another_engine_does_not_wait_for_a_dead_one() {
    let run = Run::new("other");
    let first = run.serve(&run.disk("64MiB"), &[HOLDING]);
    let kept = first.device.clone();
    first.kill();
    let (disk, state) = (run.path("disk2"), format!("state={}", path(&run.path("other"))));
    let began = now();
    let mut second = run.serve(&format!("file://{}?size=64MiB", path(&disk)), &[&state]);
    let took = Duration::from_nanos(now() - began);
    assert!(took < 5 * SECOND, "{took:?}");
    assert_ne!(second.device, kept);
    second.tell("detach");
    drop(second);
    let back = run.serve(&run.disk("64MiB"), &[HOLDING]);
    assert_eq!(back.device, kept, "nobody touched it");
    end(back, &run);
}

fn a_holder_keeps_nothing_but_its_descriptors() {
    let run = Run::new("keeps");
    let server = run.serve("mem://?size=64MiB", &[HOLDING]);
    let holder = holder_of(&run, &server).expect("a holder");
    // It leaves the folder and the session of its parent a moment after it starts.
    let process = format!("/proc/{holder}");
    wait_for("its own folder", SECOND, || {
        std::fs::read_link(format!("{process}/cwd")).is_ok_and(|cwd| cwd == Path::new("/"))
    });
    let stat = std::fs::read_to_string(format!("{process}/stat")).expect("it lives");
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)).expect("a session");
    assert_eq!(session, holder.to_string());
    let mut descriptors: Vec<String> = std::fs::read_dir(format!("{process}/fd"))
        .expect("readable")
        .flatten()
        .map(|entry| std::fs::read_link(entry.path()).expect("a link").display().to_string())
        .collect();
    descriptors.sort();
    let count = |prefix: &str| descriptors.iter().filter(|target| target.starts_with(prefix)).count();
    assert_eq!(count("/dev/fuse"), 1, "{descriptors:?}");
    assert_eq!(count("/dev/null"), 2, "{descriptors:?}");
    assert_eq!(count("socket:"), descriptors.len() - 3, "{descriptors:?}");
    end(server, &run);
}
