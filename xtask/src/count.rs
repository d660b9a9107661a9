//! How many tests ran: read from the output of `cargo test` and of the project's own checkers.

/// Tests that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Count {
    /// Adds what one line of output says; other lines add nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some(rest) = line.trim().strip_prefix("test result:") else { return };
        for part in rest.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo_test_are_counted_and_others_are_not() {
        let mut count = Count::default();
        count.add_line(
            "test result: ok. 14 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; in 0.02s",
        );
        count.add_line("test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out");
        count.add_line("test tests::a_test ... ok");
        count.add_line("running 14 tests");
        assert_eq!(count, Count { passed: 15, failed: 4, ignored: 2 });
    }
}
