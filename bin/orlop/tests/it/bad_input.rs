//! Bad input of every kind that a user, a disk or a network can give: one line that names the object, the cause and
//! what to do, an exit code, and nothing changed.

use crate::cluster::Dev;
use crate::program::{orlop, refused, run};
use nvmf::{Association, ConnectOptions};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where each metadata page of a pool begins, and what of it is overwritten to spoil it.
const SUPERBLOCKS: [usize; 2] = [0, 512 << 10];
const MAP_PAGE: &[u8] = b"ORLOPMAP";
const PAGE: usize = 4096;

/// Every file below a folder with its bytes, but for the logs and the lock, which name who has tried.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("lock") && path.extension().is_none_or(|kind| kind != "log") {
                found.insert(path.clone(), std::fs::read(path).expect("it can be read"));
            }
        }
    }
    found
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder has a name of text")
}

#[test]
fn a_command_that_is_refused_changes_no_wish() {
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start(temp.path());
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "64MiB"]).code, 0);
    assert_eq!(dev.run(&["volume", "create", "used", "--size", "16MiB"]).code, 0);
    assert_eq!(dev.run(&["volume", "attach", "used", "--node", "node-2"]).code, 0);
    let target = dev.json(&["volume", "get", "used"])["status"]["target"].as_str().unwrap().to_owned();
    let (nowhere, unknown, other_namespace) =
        (target.replace("127.0.0.1", "256.0.0.1"), format!("{target}-not"), format!("{target}?nsid=7"));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("nvme+tcp://{free}/nqn.2026-11.io.orlop:nobody");

    let before = dev.wishes();
    let refusals: &[(&[&str], i32, &[&str])] = &[
        // Names that nothing has, or that nothing can have.
        (&["volume", "get", "missing"], 4, &["volume \"missing\"", "`orlop volume list`"]),
        (&["volume", "attach", "missing"], 4, &["volume \"missing\"", "`orlop volume list`"]),
        (&["volume", "detach", "missing"], 4, &["volume \"missing\"", "`orlop volume list`"]),
        (&["volume", "delete", "missing"], 4, &["volume \"missing\"", "`orlop volume list`"]),
        (&["volume", "resize", "missing", "--size", "1GiB"], 4, &["volume \"missing\"", "; "]),
        (&["volume", "recover", "missing"], 4, &["volume \"missing\"", "`orlop volume list`"]),
        (&["volume", "recover", "missing", "--yes"], 4, &["volume \"missing\"", "`orlop volume list`"]),
        (&["volume", "recover", "data"], 2, &["volume \"data\"", "nothing was changed", "--yes"]),
        (
            &["volume", "recover", "data", "--yes"],
            5,
            &["volume \"data\"", "is not from a copy", "orlop volume get"],
        ),
        (&["volume", "attach", "data", "--node", "node-9"], 4, &["node \"node-9\"", "`orlop node list`"]),
        (&["volume", "create", "UPPER", "--size", "1MiB"], 1, &["\"UPPER\"", "; "]),
        (
            &["volume", "create", "data", "--size", "1MiB"],
            5,
            &["volume \"data\" exists already", "another name"],
        ),
        (&["bench", "missing", "--seconds", "1"], 4, &["volume \"missing\"", "; "]),
        // Too few nodes, too little space.
        (
            &["volume", "create", "a", "--size", "1MiB", "--copies", "5"],
            5,
            &["\"a\"", "5 copies", "start more"],
        ),
        (
            &["volume", "create", "a", "--size", "1MiB", "--spread", "zone"],
            5,
            &[
                "\"a\"",
                "3 copies need as many zones",
                "0 have",
                "without the label: node-1",
                "label the nodes",
            ],
        ),
        (&["volume", "create", "a", "--size", "1TiB"], 5, &["\"a\"", "room for 1 TiB", "add disks"]),
        (&["volume", "resize", "data", "--size", "1TiB"], 5, &["\"data\"", "room for", "add disks"]),
        // Sizes that are none, or that cannot be.
        (&["volume", "resize", "data", "--size", "lots"], 2, &["lots", "is not a size"]),
        (&["volume", "resize", "data", "--size", "1MB"], 2, &["1MB", "is not a size"]),
        (&["volume", "resize", "data", "--size", "0"], 1, &["volume \"data\"", "multiple of 1 MiB", "; "]),
        (&["volume", "resize", "data", "--size", "5000"], 1, &["volume \"data\"", "multiple of 1 MiB", "; "]),
        (&["volume", "resize", "data", "--size", "65TiB"], 1, &["volume \"data\"", "exceeds 64 TiB", "; "]),
        (&["volume", "resize", "data", "--size", "1MiB"], 5, &["\"data\" cannot shrink from 64 MiB", "copy"]),
        // In use, or not in use.
        (
            &["volume", "delete", "used"],
            5,
            &["\"used\" is attached on node node-2", "`orlop volume detach used`"],
        ),
        (&["volume", "attach", "used", "--node", "node-1"], 5, &["\"used\"", "node-2", "; "]),
        (&["bench", "data", "--seconds", "1"], 1, &["\"data\" has no device", "`orlop volume attach data`"]),
        // Targets that are not there, or do not have what is asked for.
        (&["bench", &nobody], 1, &["nqn.2026-11.io.orlop:nobody", "is the target running"]),
        (&["bench", &nowhere], 1, &["256.0.0.1"]),
        (&["bench", &unknown], 1, &["-not"]),
        (&["bench", &other_namespace], 1, &["nsid=7", "no namespace 7", "; "]),
        // Beyond the end.
        (&["bench", &target, "--block-size", "32MiB"], 2, &["32 MiB is too large", "16 MiB"]),
        (&["bench", &target, "--block-size", "100"], 2, &["not a multiple of 4096", "; "]),
    ];
    for (arguments, code, parts) in refusals {
        dev.refused(arguments, *code, &[&["orlop: "], *parts].concat());
        assert_eq!(dev.wishes(), before, "{arguments:?} changed something");
    }
    dev.stop();
}

#[test]
fn a_folder_and_a_port_in_use_are_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let (mine, new) = (temp.path().join("mine"), temp.path().join("new"));
    let dev = Dev::start_with(&mine, &["--nodes", "1", "--disk-size", "64MiB"]);
    let (pids, wishes) = (dev.pids(), dev.wishes());
    let cluster = std::fs::read(mine.join("cluster.json")).unwrap();
    let address = dev.api.trim_start_matches("http://").to_owned();

    for listen in ["127.0.0.1:0", &address] {
        let second = ["dev", "--data", text(&mine), "--listen", listen];
        refused(
            &second,
            5,
            &["orlop: the data folder", "mine is in use by another orlop (pid ", "; end that one"],
        );
    }
    let same_port = ["dev", "--data", text(&new), "--listen", &address];
    refused(&same_port, 5, &[&format!("cannot listen on {address}: the port is in use"), "; choose another"]);
    refused(&["dev", "--data", text(&new), "--disk-size", "1MiB"], 1, &["1 MiB is not possible", "64 MiB"]);
    for address in ["consul://127.0.0.1:8500", "http://127.0.0.1:7070", "etcd://"] {
        let named = format!("{address:?} is not the address of a store");
        refused(&["dev", "--data", text(&new), "--store", address], 2, &[&named, "etcd://HOST:PORT"]);
    }
    assert!(!new.exists(), "a cluster that cannot be has made its folder");
    let running = format!("file://{}/node-1/disk", text(&mine));
    refused(&["check", &running], 1, &["node-1/disk is in use by another process", "stop that one"]);
    let file = temp.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    refused(&["dev", "--data", text(&file)], 1, &["cannot make the data folder", "--data"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");

    assert_eq!((dev.pids(), dev.wishes()), (pids, wishes));
    assert_eq!(std::fs::read(mine.join("cluster.json")).unwrap(), cluster);
    dev.stop();
    let before = contents(&mine);
    refused(&["dev", "--data", text(&mine), "--nodes", "4"], 1, &["mine has 1 nodes", "leave --nodes out"]);
    refused(
        &["dev", "--data", text(&mine), "--disk-size", "1GiB"],
        1,
        &["disks of 64 MiB", "leave --disk-size"],
    );
    refused(
        &["dev", "--data", text(&mine), "--store", "etcd://127.0.0.1:2379"],
        1,
        &["mine has its records in the folder itself", "leave --store out"],
    );
    assert!(contents(&mine) == before, "a refused start changed its folder");
}

/// A cluster whose first start fails is not there the next time: what was wrong with it would stay.
#[test]
fn a_cluster_that_never_ran_leaves_its_log_only() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    // Larger than a file may be on ext4, and than a pool may be anywhere.
    let huge = [
        "dev",
        "--nodes",
        "1",
        "--data",
        text(&data),
        "--disk-size",
        "4000000TiB",
        "--listen",
        "127.0.0.1:0",
    ];
    refused(&huge, 1, &["orlop: node-1 ended", "/node-1/disk", "; see "]);
    assert_eq!(contents(&data), BTreeMap::new());
    Dev::start_with(&data, &["--nodes", "1", "--disk-size", "64MiB"]).stop();
}

/// Overwrites every metadata page that begins with `magic`.
fn spoil(disk: &mut [u8], magic: &[u8]) -> usize {
    let mut spoiled = 0;
    for page in disk.chunks_exact_mut(PAGE).filter(|page| page.starts_with(magic)) {
        page[100] ^= 1;
        spoiled += 1;
    }
    spoiled
}

/// A way to spoil a good disk, and what is then said of it.
struct Damage {
    what: &'static str,
    /// From the good disk and one of another cluster.
    make: fn(&[u8], &[u8]) -> Vec<u8>,
    check_says: Option<&'static [&'static str]>,
    /// None where a node may use the disk: a file without a byte is as good as one that is not there.
    dev_says: Option<&'static [&'static str]>,
}

const DAMAGES: &[Damage] = &[
    Damage {
        what: "a pool of another cluster",
        make: |_, other| other.to_vec(),
        check_says: None,
        dev_says: Some(&["belongs to cluster", "give this node another disk"]),
    },
    Damage {
        what: "not a pool",
        make: |good, _| vec![0x5a; good.len()],
        check_says: Some(&["is not an Orlop pool", ": name one"]),
        dev_says: Some(&["carries data of an unknown kind", "choose another one"]),
    },
    Damage {
        what: "cut short",
        make: |good, _| good[..good.len() / 2].to_vec(),
        check_says: Some(&["has been cut short", "rebuild"]),
        dev_says: Some(&["has 32 MiB", "not the 64 MiB"]),
    },
    Damage {
        what: "empty",
        make: |_, _| Vec::new(),
        check_says: Some(&["with 0 bytes cannot be a device", "must be"]),
        dev_says: None,
    },
    Damage {
        what: "both superblocks torn",
        make: |good, _| {
            let mut disk = good.to_vec();
            for offset in SUPERBLOCKS {
                disk[offset + PAGE / 2..offset + PAGE].fill(0);
                disk[offset + 200] ^= 0x10;
            }
            disk
        },
        check_says: Some(&["both superblocks are damaged", "offset 524288", "rebuild"]),
        dev_says: Some(&["both superblocks are damaged", "rebuild"]),
    },
    Damage {
        what: "a rotten page of the map",
        make: |good, _| {
            let mut disk = good.to_vec();
            assert!(spoil(&mut disk, MAP_PAGE) > 0, "the pool has a map");
            disk
        },
        check_says: Some(&["problem", "keep a copy", "rebuild"]),
        dev_says: Some(&["is damaged: map page of chunk 0", "offset", "rebuild"]),
    },
];

#[test]
fn a_disk_that_is_not_sound_is_named_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let small = ["--nodes", "1", "--disk-size", "64MiB"];
    let (mine, other) = (temp.path().join("mine"), temp.path().join("other"));
    let dev = Dev::start_with(&mine, &small);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB", "--copies", "1"]).code, 0);
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    let target = dev.json(&["volume", "get", "data"])["status"]["target"].as_str().unwrap().to_owned();
    let written = run(&["bench", &target, "--rw", "write", "--block-size", "1MiB", "--seconds", "1"]);
    assert_eq!(written.code, 0, "{written:?}");
    assert_eq!(dev.run(&["volume", "detach", "data"]).code, 0);
    let wishes = dev.wishes();
    dev.stop();
    Dev::start_with(&other, &small).stop();

    let disk = mine.join("node-1/disk");
    let (good, strange) = (std::fs::read(&disk).unwrap(), std::fs::read(other.join("node-1/disk")).unwrap());
    let uri = format!("file://{}", text(&disk));
    for Damage { what, make, check_says, dev_says } in DAMAGES {
        println!("{what}");
        let bad = make(&good, &strange);
        std::fs::write(&disk, &bad).unwrap();
        if let Some(parts) = check_says {
            let checked = run(&["check", &uri]);
            assert_eq!((checked.code, checked.stderr.lines().count()), (1, 1), "{what}: {checked:?}");
            for part in [&["orlop: ", text(&disk)], *parts].concat() {
                assert!(checked.stderr.contains(part), "{what}: {part:?} is not in {checked:?}");
            }
        }
        if let Some(parts) = dev_says {
            let start = ["dev", "--data", text(&mine), "--listen", "127.0.0.1:0"];
            let parts = [&["orlop: node-1 ended", text(&disk)], *parts, &["; see ", "node-1.log"]].concat();
            refused(&start, 1, &parts);
        }
        assert!(std::fs::read(&disk).unwrap() == bad, "{what}: somebody wrote to the disk");
    }

    // One torn superblock is what a power cut leaves: said, and repaired by the next opening.
    let mut torn = good.clone();
    torn[PAGE / 2..PAGE].fill(0x55);
    std::fs::write(&disk, &torn).unwrap();
    let checked = run(&["check", &uri]);
    assert!(checked.code == 0 && checked.stdout.contains("superblock at offset 0"), "{checked:?}");
    assert!(std::fs::read(&disk).unwrap() == torn, "check wrote to the disk");
    let dev = Dev::start_with(&mine, &small);
    assert_eq!(dev.wishes(), wishes);
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    let target = dev.json(&["volume", "get", "data"])["status"]["target"].as_str().unwrap().to_owned();
    let read = run(&["bench", &target, "--rw", "read", "--block-size", "1MiB", "--seconds", "1"]);
    assert_eq!(read.code, 0, "the volume is as it was: {read:?}");
    dev.stop();
    let checked = run(&["check", &uri, "-o", "json"]);
    assert!(checked.stdout.contains("\"problems\": []"), "{checked:?}");
}

#[test]
fn a_check_makes_no_file() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    refused(
        &["check", &format!("file://{}?size=64MiB", text(&file))],
        1,
        &[text(&file), "does not exist", "path"],
    );
    assert!(!file.exists());
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    refused(&["check", &format!("file://{}", text(&file))], 1, &[text(&file), "not an Orlop pool"]);
    assert!(std::fs::read(&file).unwrap() == vec![7; 1 << 20]);
    refused(&["check", &format!("file://{}", text(temp.path()))], 1, &["is a folder", "name a file"]);
    refused(&["check", "nonsense"], 2, &["nonsense"]);
}

/// What a target answers to bytes that are no NVMe/TCP, until it closes.
fn said_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("not zero");
    stream.write_all(bytes).expect("it takes bytes");
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _reset = stream.read_to_end(&mut answer);
    answer
}

/// A PDU of zeroes behind its header: type, flags, header length, data offset, length of the whole (NVMe/TCP 1.0,
/// section 3.6).
fn pdu(kind: u8, header_len: u8, pdu_len: u32) -> Vec<u8> {
    let mut pdu = [&[kind, 0, header_len, 0], pdu_len.to_le_bytes().as_slice()].concat();
    pdu.resize(128, 0);
    pdu
}

#[test]
fn a_target_survives_lies_and_reads_beyond_the_end() {
    const IC_REQ: u8 = 0;
    const IC_RESP: u8 = 1;
    const TERMINATE: u8 = 3;
    const COMMAND: u8 = 4;
    let temp = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(temp.path(), &["--nodes", "1", "--disk-size", "64MiB"]);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB", "--copies", "1"]).code, 0);
    assert_eq!(dev.run(&["volume", "attach", "data"]).code, 0);
    let (pids, wishes) = (dev.pids(), dev.wishes());
    let target = dev.json(&["volume", "get", "data"])["status"]["target"].as_str().unwrap().to_owned();
    let (address, nqn) = target.trim_start_matches("nvme+tcp://").split_once('/').unwrap();
    let address: SocketAddr = address.parse().unwrap();

    let greeting = pdu(IC_REQ, 128, 128);
    for (lie, bytes) in [
        ("a first PDU of 4 GiB", pdu(IC_REQ, 128, u32::MAX)),
        ("a first PDU of nothing", pdu(IC_REQ, 128, 0)),
        ("a command before the greeting", pdu(COMMAND, 72, 72)),
        ("a command of 4 GiB", [greeting.clone(), pdu(COMMAND, 72, u32::MAX)].concat()),
        ("a command shorter than its header", [greeting.clone(), pdu(COMMAND, 72, 71)].concat()),
        ("a command with a header of another length", [greeting.clone(), pdu(COMMAND, 24, 72)].concat()),
        ("HTTP", b"GET / HTTP/1.1\r\n".repeat(8)),
    ] {
        let answer = said_to(address, &bytes);
        let greeted = if bytes.starts_with(&greeting) { 128 } else { 0 };
        assert_eq!(
            answer.first().copied().filter(|_| greeted > 0),
            (greeted > 0).then_some(IC_RESP),
            "{lie}"
        );
        assert_eq!(answer.get(greeted), Some(&TERMINATE), "{lie}: the target says why it ends: {answer:?}");
    }

    let nqn = nqn.to_owned();
    let reactor = rt::os::Reactor::new(rt::os::Config::default()).unwrap();
    reactor.run(async move {
        use device::{Device, Lba, Status};
        let options =
            ConnectOptions::new(address, nqn.as_str(), "nqn.2026-11.io.orlop:test", rt::random_uuid());
        let association = Association::connect(options).await.unwrap();
        let namespace = association.namespace(1);
        let blocks = namespace.geometry().blocks.0;
        assert_eq!(blocks, (16 << 20) / 4096);
        namespace.read(Lba(blocks - 1), rt::DmaBuf::zeroed(4096)).await.unwrap();
        for lba in [blocks, u64::MAX - 1, u64::MAX] {
            let refused = namespace.read(Lba(lba), rt::DmaBuf::zeroed(4096)).await.unwrap_err();
            assert_eq!(refused, Status::OutOfRange, "block {lba}");
        }
        let across = namespace.read(Lba(blocks - 1), rt::DmaBuf::zeroed(8192)).await.unwrap_err();
        assert_eq!(across, Status::OutOfRange);
        association.close().await;
    });
    assert_eq!((dev.pids(), dev.wishes()), (pids, wishes), "nobody died of it");
    dev.stop();
}

#[test]
fn a_demo_without_room_says_what_it_needs() {
    let temp = tempfile::tempdir().unwrap();
    let missing = temp.path().join("missing");
    std::fs::write(&missing, "").unwrap();
    let refused = crate::program::finish(orlop(&["demo"]).env("TMPDIR", &missing));
    assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{refused:?}");
    assert!(refused.stderr.contains(text(&missing)), "{refused:?}");
}
