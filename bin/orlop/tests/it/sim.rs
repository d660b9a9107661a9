//! `orlop sim`: replay is exact, a planted bug is found and told with its seed, wrong names are refused.

use crate::program::{refused, run};

#[test]
fn a_seed_is_replayed_exactly_and_says_what_happened() {
    let first = run(&["sim", "--seed", "3"]);
    assert_eq!((first.code, first.stderr.as_str()), (0, ""), "{first:?}");
    let line = first.stdout.lines().next().expect("a line");
    assert!(line.starts_with("seed 3: ok, trace "), "{line}");
    assert!(first.stdout.contains("1 of 1 seeds held"), "{first:?}");
}

#[test]
fn a_planted_bug_is_told_with_how_to_replay_it() {
    let found = run(&["sim", "--bug", "I4", "--until-found", "-o", "json"]);
    assert_eq!(found.code, 0, "{found:?}");
    let found: serde_json::Value = serde_json::from_str(&found.stdout).expect("JSON");
    let seed = found[0]["by"]["seed"].as_u64().expect("a seed found it").to_string();
    let replay = format!("orlop sim --seed {seed} --bug I4");
    assert_eq!(found[0]["by"]["replay"], replay.as_str());
    let again = run(&["sim", "--bug", "I4", "--first-seed", &seed, "--seeds", "1"]);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(again.stderr.lines().count(), 2, "{again:?}");
    assert!(again.stderr.lines().all(|line| line.contains(&replay)), "{again:?}");
}

#[test]
fn a_bug_that_nobody_planted_is_refused() {
    refused(&["sim", "--bug", "I99"], 2, &["there is no planted bug \"I99\"", "I1, I2, I3"]);
    refused(&["sim", "--seed", "1", "--until-found"], 2, &["--until-found"]);
}
