//! The death of servers: what I/O sees, and what is possible afterwards.

use crate::Test;
use crate::run::{Run, path, pause, sh, try_sh, wait_for};
use std::time::Duration;

pub(crate) const TESTS: &[Test] =
    &[("death::without_a_holder_io_fails_at_once", without_a_holder_io_fails_at_once)];

/// Starts writing and syncing files into `point` until an error; returns the process.
fn writer(point: &std::path::Path) -> std::process::Child {
    let script = "i=0; while dd if=/dev/zero of=$0/f$((i % 50)) bs=64k count=4 conv=fsync status=none; do i=$((i + 1)); done";
    std::process::Command::new("sh")
        .args(["-c", script, path(point)])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("sh starts")
}

fn without_a_holder_io_fails_at_once() {
    let mut run = Run::new("alone");
    let server = run.serve(&run.disk("256MiB"), &[]);
    let device = server.device.clone();
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    let mut writing = writer(&point);
    pause(Duration::from_millis(500));
    server.kill();
    wait_for("the writer's error", Duration::from_secs(5), || {
        writing.try_wait().expect("our child").is_some()
    });
    let refusal = run.refused(&run.disk("256MiB"), &[]);
    assert!(refusal.contains("is mounted at") && refusal.contains(path(&point)), "{refusal}");
    let waited =
        wait_for("the unmount", Duration::from_secs(5), || try_sh("umount", &[path(&point)]).0 == Some(0));
    assert!(waited < Duration::from_secs(5));
    let mut server = run.serve(&run.disk("256MiB"), &[]);
    let (code, text) = try_sh("e2fsck", &["-p", &server.device]);
    assert!(code.is_some_and(|code| code <= 1), "{text}");
    sh("e2fsck", &["-fn", &server.device]);
    server.tell("detach");
    drop(server);
    run.assert_nothing_left();
}
