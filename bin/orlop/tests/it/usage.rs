//! Wrong arguments: exit code 2, and nothing happens.

use crate::program::{refused, run};

#[test]
fn wrong_arguments_are_refused_with_what_would_be_right() {
    for (arguments, says) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["benc"], "a similar subcommand exists: 'bench'"),
        (&["bench", "mem://?size=1MiB", "--depth", "0"], "0 is not in 1..=1024"),
        (&["bench", "mem://?size=1MiB", "--rw", "sideways"], "[possible values: randread"),
        (&["bench", "mem://?size=1MiB", "--seconds", "0"], "0 is not in 1..="),
        (&["completion", "tcsh"], "[possible values:"),
    ] {
        refused(arguments, 2, &["orlop: ", says]);
    }
    let bare = run(&[]);
    assert_eq!(bare.code, 2);
    assert!(bare.stderr.contains("Usage: orlop"), "{bare:?}");
}
