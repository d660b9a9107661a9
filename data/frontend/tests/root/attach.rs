//! Attaching, using, growing and detaching, while everything is well.

use crate::Test;
use crate::run::{Run, path, sh, try_sh};
use std::os::unix::fs::FileExt;

pub(crate) const TESTS: &[Test] = &[
    ("attach::ext4_lives_on_a_volume", ext4_lives_on_a_volume),
    ("attach::what_is_written_is_on_the_disk", what_is_written_is_on_the_disk),
    ("attach::fio_verifies", fio_verifies),
    ("attach::discard_gives_space_back", discard_gives_space_back),
    ("attach::a_flush_reaches_the_device", a_flush_reaches_the_device),
    ("attach::a_volume_grows_while_it_is_mounted", a_volume_grows_while_it_is_mounted),
    ("attach::a_used_device_is_not_detached", a_used_device_is_not_detached),
    ("attach::read_only_volumes_refuse_writes", read_only_volumes_refuse_writes),
    ("attach::small_blocks", small_blocks),
    ("attach::errors_of_the_device_are_errors_of_the_disk", errors_of_the_device_are_errors_of_the_disk),
    ("attach::what_is_not_ours_is_not_opened", what_is_not_ours_is_not_opened),
    ("attach::the_guard_removes_everything", the_guard_removes_everything),
];

fn sysfs(device: &str, attribute: &str) -> String {
    let name = device.strip_prefix("/dev/").expect("a device");
    std::fs::read_to_string(format!("/sys/block/{name}/{attribute}")).expect(attribute).trim().to_string()
}

fn ext4_lives_on_a_volume() {
    let mut run = Run::new("ext4");
    let mut server = run.serve("mem://?size=256MiB", &[]);
    let device = server.device.clone();
    assert_eq!(sysfs(&device, "loop/dio"), "1");
    assert_eq!(sysfs(&device, "queue/logical_block_size"), "4096");
    assert_eq!(frontend::fuse::attached_loops(&run.id).len(), 1);
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    sh("cp", &["-r", "/usr/share/doc/bash", "/usr/include/linux", path(&point)]);
    sh("sync", &["-f", path(&point)]);
    sh("umount", &[path(&point)]);
    let point = run.mount(&device);
    sh("diff", &["-r", "/usr/include/linux", path(&point.join("linux"))]);
    sh("umount", &[path(&point)]);
    sh("e2fsck", &["-fn", &device]);
    assert!(server.counter("writes") > 0 && server.counter("reads") > 0);
    assert_eq!(server.counter("errors"), 0);
    server.tell("detach");
    server.tell("detach");
    run.assert_servers_only();
    drop(server);
    run.assert_nothing_left();
}

fn what_is_written_is_on_the_disk() {
    let run = Run::new("disk");
    let mut server = run.serve(&run.disk("64MiB"), &[]);
    let pattern: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(run.path("pattern"), &pattern).expect("written");
    let source = format!("if={}", path(&run.path("pattern")));
    let target = format!("of={}", server.device);
    sh("dd", &[&source, &target, "bs=1M", "seek=3", "oflag=direct", "conv=fsync", "status=none"]);
    server.tell("detach");
    let disk = std::fs::read(run.path("disk")).expect("readable");
    assert!(disk[3 << 20..4 << 20] == pattern[..]);
    assert!(disk[..3 << 20].iter().all(|byte| *byte == 0));
    drop(server);
    run.assert_nothing_left();
}

/// Arguments of fio for a verified random write of `size` to `device`.
pub(crate) fn fio_verify(device: &str, size: &str, more: &[&str]) -> Vec<String> {
    let fixed = [
        "--name=verify",
        "--ioengine=libaio",
        "--direct=1",
        "--rw=randwrite",
        "--bsrange=4k-256k",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randrepeat=0",
        "--verify_state_save=0",
    ];
    let mut arguments: Vec<String> =
        fixed.into_iter().chain(more.iter().copied()).map(String::from).collect();
    arguments.push(format!("--filename={device}"));
    arguments.push(format!("--size={size}"));
    arguments
}

fn fio_verifies() {
    let run = Run::new("fio");
    let mut server = run.serve(&run.disk("128MiB"), &[]);
    let arguments = fio_verify(&server.device, "128M", &[]);
    sh("fio", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(server.counter("errors"), 0);
    server.tell("detach");
    drop(server);
    run.assert_nothing_left();
}

fn discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let run = Run::new("discard");
    let mut server = run.serve(&run.disk("64MiB"), &[]);
    let target = format!("of={}", server.device);
    sh("dd", &["if=/dev/urandom", &target, "bs=1M", "count=64", "oflag=direct", "status=none"]);
    let used = || std::fs::metadata(run.path("disk")).expect("there").blocks() * 512;
    assert!(used() >= 64 << 20);
    sh("blkdiscard", &["--offset", "1MiB", "--length", "32MiB", &server.device]);
    assert!(used() <= 33 << 20, "{} bytes are still in use", used());
    sh("blkdiscard", &["--zeroout", "--offset", "40MiB", "--length", "1MiB", &server.device]);
    let disk = std::fs::OpenOptions::new().read(true).open(&server.device).expect("readable");
    for (offset, is_zero) in [(1 << 20, true), ((33 << 20) - 4096, true), (33 << 20, false), (40 << 20, true)]
    {
        let mut block = [1; 4096];
        disk.read_exact_at(&mut block, offset).expect("readable");
        assert_eq!(block.iter().all(|byte| *byte == 0), is_zero, "at {offset}");
    }
    drop(disk);
    assert!(server.counter("unmaps") >= 2);
    server.tell("detach");
}

fn a_flush_reaches_the_device() {
    let run = Run::new("flush");
    let mut server = run.serve("mem://?size=64MiB", &[]);
    let target = format!("of={}", server.device);
    let before = server.counter("flushes");
    sh("dd", &["if=/dev/zero", &target, "bs=4096", "count=8", "oflag=direct", "status=none"]);
    let without = server.counter("flushes");
    sh("dd", &["if=/dev/zero", &target, "bs=4096", "count=8", "oflag=direct,dsync", "status=none"]);
    let with = server.counter("flushes");
    assert!(with - without >= 8, "{} flushes for 8 durable writes", with - without);
    assert!(without - before <= 1);
    server.tell("detach");
}

fn a_volume_grows_while_it_is_mounted() {
    let mut run = Run::new("grow");
    let shown = format!("shown={}", 64 << 20);
    let mut server = run.serve("mem://?size=1GiB", &[&shown]);
    let device = server.device.clone();
    assert_eq!(sysfs(&device, "size"), (64 << 11).to_string());
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    assert_eq!(server.tell(&format!("grow {}", 256 << 20)), (256 << 20).to_string());
    std::fs::write(point.join("small"), vec![7; 1 << 20]).expect("the mounted file system goes on");
    // Not online: that takes a capability (SYS_RESOURCE) that not every root has.
    sh("umount", &[path(&point)]);
    sh("e2fsck", &["-fn", &device]);
    sh("resize2fs", &[&device]);
    let point = run.mount(&device);
    std::fs::write(point.join("large"), vec![7; 150 << 20]).expect("there is room now");
    sh("umount", &[path(&point)]);
    sh("e2fsck", &["-fn", &device]);
    assert_eq!(server.tell(&format!("grow {}", 1 << 30)), (1 << 30).to_string());
    server.tell("detach");
}

fn a_used_device_is_not_detached() {
    let mut run = Run::new("used");
    let mut server = run.serve("mem://?size=64MiB", &[]);
    let device = server.device.clone();
    sh("mkfs.ext4", &["-q", &device]);
    let point = run.mount(&device);
    let answer = server.ask("detach");
    assert!(answer.starts_with("error InUse") && answer.contains(path(&point)), "{answer}");
    std::fs::write(point.join("file"), "still works").expect("the volume goes on");
    sh("umount", &[path(&point)]);
    let open = std::fs::OpenOptions::new().read(true).open(&device).expect("readable");
    let answer = server.ask("detach");
    let own = format!("({})", std::process::id());
    assert!(answer.starts_with("error InUse") && answer.contains(&own), "{answer}");
    let mut block = [0; 4096];
    open.read_exact_at(&mut block, 0).expect("the volume goes on");
    drop(open);
    server.tell("detach");
    drop(server);
    run.assert_nothing_left();
}

fn read_only_volumes_refuse_writes() {
    let run = Run::new("ro");
    let mut server = run.serve("mem://?size=64MiB", &["read_only=1"]);
    assert_eq!(sysfs(&server.device, "ro"), "1");
    let target = format!("of={}", server.device);
    let (code, _) =
        try_sh("dd", &["if=/dev/zero", &target, "bs=4096", "count=1", "oflag=direct", "conv=notrunc"]);
    assert_ne!(code, Some(0));
    assert_eq!(server.counter("writes"), 0);
    server.tell("detach");
}

fn small_blocks() {
    let run = Run::new("small");
    let mut server = run.serve("mem://?size=16MiB&block_size=512", &["block=512"]);
    assert_eq!(sysfs(&server.device, "queue/logical_block_size"), "512");
    let target = format!("of={}", server.device);
    sh("dd", &["if=/dev/urandom", &target, "bs=512", "count=3", "seek=5", "oflag=direct", "status=none"]);
    assert_eq!(server.counter("errors"), 0);
    server.tell("detach");
    drop(server);
    let refusal = run.refused("mem://?size=16MiB", &["block=512"]);
    assert!(refusal.contains("blocks of 4096 bytes cannot be attached with blocks of 512"), "{refusal}");
    run.assert_nothing_left();
}

fn errors_of_the_device_are_errors_of_the_disk() {
    let run = Run::new("errors");
    let mut server =
        run.serve("fault://?of=mem://?size%3D16MiB&rule=fail:media-write,on:write,lba:100-200", &[]);
    let target = format!("of={}", server.device);
    let write =
        |block: &str| try_sh("dd", &["if=/dev/zero", &target, "bs=4096", "count=1", block, "oflag=direct"]).0;
    assert_eq!(write("seek=99"), Some(0));
    assert_ne!(write("seek=100"), Some(0));
    assert_eq!(write("seek=201"), Some(0));
    assert!(server.counter("errors") >= 1);
    server.tell("detach");
}

fn what_is_not_ours_is_not_opened() {
    use rustix::fs::inotify;
    let run = Run::new("foreign");
    let image = run.path("image");
    std::fs::write(&image, vec![0; 1 << 20]).expect("an image");
    let foreign = sh("losetup", &["--find", "--show", path(&image)]).trim().to_owned();
    let watch =
        inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).expect("inotify");
    inotify::add_watch(&watch, foreign.as_str(), inotify::WatchFlags::OPEN).expect("it can be watched");
    let mut server = run.serve(&run.disk("16MiB"), &[]);
    assert_eq!(frontend::fuse::attached_loops(&run.id).len(), 1, "ours is found");
    let opened = rustix::io::read(&watch, &mut [0; 4096]);
    server.tell("detach");
    sh("losetup", &["--detach", &foreign]);
    assert_eq!(opened, Err(rustix::io::Errno::AGAIN), "{foreign} was opened");
}

fn the_guard_removes_everything() {
    let mut run = Run::new("guard");
    let server = run.serve("mem://?size=64MiB", &[]);
    sh("mkfs.ext4", &["-q", &server.device]);
    let point = run.mount(&server.device);
    std::fs::write(point.join("file"), "unsaved").expect("written");
    server.kill();
    let removed = frontend::fuse::cleanup(&run.id).expect("removed");
    assert!(removed.len() >= 2, "{removed:?}");
    run.assert_nothing_left();
}
