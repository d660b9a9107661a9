//! `orlop wipe`: a pool is destroyed when it was meant, and only then.

use crate::cluster::Dev;
use crate::program::{refused, run};

#[test]
fn a_pool_is_wiped_by_its_uuid_only() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let dev = Dev::start_with(&data, &["--disk-size", "64MiB", "--nodes", "1"]);
    assert_eq!(dev.run(&["volume", "create", "data", "--size", "16MiB", "--copies", "1"]).code, 0);
    let pool = dev.json(&["pool", "list"])[0]["uuid"].as_str().unwrap().to_owned();
    let disk = data.join("node-1").join("disk");
    let uri = format!("file://{}", disk.display());
    refused(&["wipe", &uri, "--yes-destroy", &pool], 1, &["node-1/disk is in use by another process"]);
    dev.stop();

    let before = std::fs::read(&disk).unwrap();
    refused(
        &["wipe", &uri],
        2,
        &[&pool, "with copies of volumes data", "nothing was destroyed", "--yes-destroy"],
    );
    let other = "0c7d8d8e-4a4e-4d0a-9a3f-b1f3c2f7a001";
    refused(
        &["wipe", &uri, "--yes-destroy", other],
        2,
        &[&pool, "and not 0c7d8d8e", "nothing was destroyed"],
    );
    refused(&["wipe", &uri, "--yes-destroy", "yes"], 2, &["--yes-destroy"]);
    refused(&["wipe", "mem://?size=64MiB"], 2, &["is no disk of this machine"]);
    let absent = temp.path().join("absent");
    let sized = format!("file://{}?size=64MiB", absent.display());
    refused(&["wipe", &sized], 1, &["does not exist"]);
    assert!(!absent.exists() && std::fs::read(&disk).unwrap() == before, "a refused wipe has written");

    let wiped = run(&["wipe", &uri, "--yes-destroy", &pool]);
    assert_eq!((wiped.code, wiped.stderr.as_str()), (0, ""), "{wiped:?}");
    assert!(wiped.stdout.contains(&pool), "{wiped:?}");
    let after = std::fs::read(&disk).unwrap();
    let end = 1 << 20;
    assert_eq!(after.len(), before.len());
    assert!(after[..end].iter().chain(&after[after.len() - end..]).all(|byte| *byte == 0));
    assert!(after[end..after.len() - end] == before[end..before.len() - end]);
    refused(&["wipe", &uri, "--yes-destroy", &pool], 1, &["is not an Orlop pool"]);
    // What makes pools calls it blank.
    let bench = ["bench", &uri, "--pool", "--rw", "randwrite", "--seconds", "1"];
    assert_eq!(run(&bench).code, 0);
}
