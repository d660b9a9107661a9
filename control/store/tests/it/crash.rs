//! The embedded store and the death of its process: nothing that was answered is lost, and nobody else opens the file.

use crate::{node, open};
use model::Node;
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};
use store::{Embedded, ErrorKind};

const FOLDER: &str = "ORLOP_TEST_STORE";

/// Not a test of its own: the process that `kill_nine_loses_nothing` kills. It prints each write that was answered.
#[tokio::test(flavor = "multi_thread")]
async fn child_writes_for_ever() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let client = open(folder.as_ref());
    let mut revision = client.create(&node("n1", 0)).await.unwrap();
    for heartbeat in 1.. {
        revision = client.replace(&node("n1", heartbeat), revision).await.unwrap();
        println!("answered {heartbeat}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_writes_for_ever", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut answered = 0_u64;
    for line in &mut lines {
        if let Some((_, number)) = line.unwrap().split_once("answered ") {
            answered = number.parse().unwrap();
        }
        if answered == 20 {
            let error = Embedded::open(&folder.path().join("store.redb")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse);
            assert!(error.to_string().contains("in use by another process"), "{error}");
            child.kill().unwrap();
            break;
        }
    }
    for line in lines {
        if let Some((_, number)) = line.unwrap().split_once("answered ") {
            answered = number.parse().unwrap();
        }
    }
    child.wait().unwrap();

    let client = open(folder.path());
    let found = client.get::<Node>("n1").await.unwrap().unwrap();
    assert!(found.value.heartbeat >= answered, "found {}, answered {answered}", found.value.heartbeat);
    let next = client.replace(&node("n1", 0), found.revision).await.unwrap();
    assert!(next > found.revision, "revisions go on where they were");
}

#[test]
fn a_file_that_is_not_a_store_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let contents = vec![b'x'; 70_000];
    std::fs::write(&path, &contents).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), contents);
}
