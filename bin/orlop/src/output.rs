//! Printing: tables for people, JSON or YAML for programs.

use crate::failure::{Failure, OrFail, Outcome};
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// Prints `value` as asked; `table` is called for people only.
pub(crate) fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> Outcome {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value).or_fail(|| "cannot print as JSON".into())?,
        Format::Yaml => serde_saphyr::to_string(value).or_fail(|| "cannot print as YAML".into())?,
    };
    line(text.trim_end())
}

/// Prints one line (or several) on standard output. A reader that went away, as in `| head`, is not an error.
pub(crate) fn line(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A table without lines, as `kubectl` prints it; `empty` is said where there is no row.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_columns() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["longer".into(), "2".into()]];
        assert_eq!(table(&["NAME", "N"], rows, "none"), "NAME     N\na        1\nlonger   2");
        assert_eq!(table(&["NAME"], Vec::new(), "no volumes"), "no volumes");
    }
}
