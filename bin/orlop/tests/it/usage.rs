//! Wrong arguments, names and addresses: exit code 2 or 3, and nothing happens.

use crate::program::{finish, orlop, refused, run};
use std::net::TcpListener;

#[test]
fn wrong_arguments_are_refused_with_what_would_be_right() {
    for (arguments, says) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["volum"], "a similar subcommand exists: 'volume'"),
        (&["volume", "create", "data"], "--size"),
        (&["volume", "create", "data", "--size", "lots"], "is not a size: write a whole number and a unit"),
        (&["volume", "create", "data", "--size", "1GB"], "is not a size"),
        (&["volume", "create", "data", "--size", "-1"], "unexpected argument"),
        (&["volume", "create", "data", "--size", "99999999999999999999"], "is not a size"),
        (
            &["volume", "create", "data", "--size", "1GiB", "--class", "tape"],
            "[possible values: any, nvme, ssd, hdd]",
        ),
        (&["volume", "get"], "<NAME>"),
        (&["node", "list", "-o", "xml"], "[possible values: table, json, yaml]"),
        (&["dev", "--nodes", "0"], "0 is not in 1..=64"),
        (&["dev", "--nodes", "many"], "invalid digit"),
        (&["dev", "--listen", "7070"], "invalid socket address"),
        (&["dev", "--listen", "0.0.0.0:7070"], "0.0.0.0:7070 can be reached from elsewhere"),
        (&["dev", "--listen", "[::]:7070"], "use one such as 127.0.0.1:7070, and reach it by `ssh -L`"),
        (&["dev", "--disks-allow", "sda"], "\"sda\" matches no device: begin it with /dev/"),
        (&["node", "get", ".."], "\"..\" is not the name of a node"),
        (&["node", "get", "n1./x"], "\"n1./x\" is not the name of a node"),
        (&["disk", "get", "../nodes"], "\"../nodes\" is not the name of a disk"),
        (&["bench", "mem://?size=1MiB", "--depth", "0"], "0 is not in 1..=1024"),
        (&["bench", "mem://?size=1MiB", "--rw", "sideways"], "[possible values: randread"),
        (&["bench", "mem://?size=1MiB", "--seconds", "0"], "0 is not in 1..="),
        (&["completion", "tcsh"], "[possible values:"),
        (&["disk", "partition"], "<DEVICE>"),
        (&["disk", "partition", "/dev/sda", "--yes", "--dry-run"], "cannot be used with"),
        (&["disk", "partition", "/dev/sda", "--size", "all"], "is not a size"),
        (&["disk", "partition", "/dev/null", "--yes"], "/dev/null is no block device"),
    ] {
        refused(arguments, 2, &["orlop: ", says]);
    }
    refused(&["disk", "partition", "/dev/there-is-none"], 4, &["cannot find /dev/there-is-none"]);
    let bare = run(&[]);
    assert_eq!(bare.code, 2);
    assert!(bare.stderr.contains("Usage: orlop"), "{bare:?}");
}

#[test]
fn a_volume_that_cannot_be_is_refused_before_anybody_is_asked() {
    for (arguments, parts) in [
        (&["--size", "4097"][..], &["orlop: volume \"data\": ", "not a multiple of 1 MiB"][..]),
        (&["--size", "0"], &["not a multiple of 1 MiB"]),
        (&["--size", "65TiB"], &["exceeds 64 TiB"]),
        (&["--size", "1GiB", "--copies", "0"], &["0 copies", "use 1 to 5"]),
        (&["--size", "1GiB", "--copies", "6"], &["6 copies"]),
        (&["--size", "1GiB", "--stripes", "2"], &["2 stripes are not supported yet"]),
        (&["--size", "1GiB", "--block-size", "1024"], &["block size 1024"]),
        (&["--size", "1GiB", "--spread", "no label"], &["\"no label\" is no label", "use one such as"]),
    ] {
        refused(&[&["volume", "create", "data"], arguments].concat(), 2, parts);
    }
    refused(&["volume", "get", "../nodes"], 2, &["\"../nodes\" is not the name of a volume", "letters"]);
    refused(&["volume", "create", "a/b", "--size", "1GiB"], 2, &["\"a/b\" is not the name of a volume"]);
}

#[test]
fn an_api_that_is_not_there_is_named_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let api = format!("http://{free}");
    for arguments in [
        &["node", "list"][..],
        &["pool", "list"],
        &["disk", "list"],
        &["disk", "get", "wwn-0x1"],
        &["volume", "list"],
        &["volume", "get", "data"],
        &["volume", "create", "data", "--size", "1GiB"],
        &["volume", "delete", "data"],
        &["volume", "attach", "data"],
        &["volume", "detach", "data"],
        &["volume", "resize", "data", "--size", "2GiB"],
        &["volume", "recover", "data"],
        &["volume", "recover", "data", "--yes"],
    ] {
        let with_api = [arguments, &["--api", &api]].concat();
        refused(&with_api, 3, &["orlop: the API at", &api, "refused", "start one with `orlop dev`"]);
    }
    let run = finish(orlop(&["node", "list"]).env("ORLOP_API", &api));
    assert!(run.code == 3 && run.stderr.contains(&api), "ORLOP_API counts: {run:?}");
    refused(
        &["node", "list", "--api", "localhost"],
        2,
        &["\"localhost\" is not the address of an API", "http://"],
    );
}

#[test]
fn something_else_that_answers_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n<html></>").unwrap();
    });
    refused(&["volume", "list", "--api", &api], 1, &["gave an answer that is not understood"]);
    server.join().unwrap();
}
