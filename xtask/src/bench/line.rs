//! A line of the result: what was measured, beside what, against which budget. Pure arithmetic and text.
//!
//! 1. The ratio is the median of the ratios of the rounds, in each of which both sides were measured one after the other.
//! 2. Whether a budget is met is computed from the rounds, never said by a case.

use serde::Serialize;
use std::fmt;

/// What a figure is compared with.
#[derive(Clone, Debug)]
pub(crate) enum Baseline {
    /// Nothing.
    None,
    /// Measured in the same round.
    Rounds(Vec<f64>),
    /// A figure of another run, that people should know as such: its value and whose it is.
    Recorded(f64, &'static str),
}

/// What the design allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Budget {
    /// At least so many times the baseline.
    RatioAtLeast(f64),
    /// At most so many times the baseline.
    RatioAtMost(f64),
    /// At most so much above the baseline, in the unit of the line.
    ExcessAtMost(f64),
    /// Below this, in the unit of the line.
    Below(f64),
    /// At most this, in the unit of the line.
    AtMost(f64),
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Case, what was done, depth: `local/randread-d32`.
    pub(crate) name: String,
    /// Of value and baseline.
    pub(crate) unit: &'static str,
    /// One figure for each round.
    pub(crate) values: Vec<f64>,
    pub(crate) baseline: Baseline,
    pub(crate) budget: Option<Budget>,
}

/// A line as programs see it.
#[derive(Debug, Serialize)]
struct Shape<'a> {
    name: &'a str,
    value: f64,
    unit: &'a str,
    baseline: Option<f64>,
    ratio: Option<f64>,
    budget: Option<String>,
    met: Option<bool>,
}

impl Line {
    /// A figure beside nothing.
    pub(crate) fn alone(name: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        Self { name: name.into(), unit, values, baseline: Baseline::None, budget: None }
    }

    /// A figure beside another that was measured in the same rounds: pairs of value and baseline.
    pub(crate) fn beside(name: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        let (values, baselines): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
        let baseline = Baseline::Rounds(baselines);
        Self { name: name.into(), unit, values, baseline, budget: None }
    }

    /// The same with a budget.
    #[must_use]
    pub(crate) fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The same beside a recorded figure.
    #[must_use]
    pub(crate) fn recorded(mut self, value: f64, whose: &'static str) -> Self {
        self.baseline = Baseline::Recorded(value, whose);
        self
    }

    /// The median of the rounds.
    pub(crate) fn value(&self) -> f64 {
        median(&self.values).unwrap_or(f64::NAN)
    }

    /// The median of the rounds, or the recorded figure.
    pub(crate) fn baseline(&self) -> Option<f64> {
        match &self.baseline {
            Baseline::None => None,
            Baseline::Rounds(baselines) => median(baselines),
            Baseline::Recorded(value, _) => Some(*value),
        }
    }

    /// Value and baseline of each round.
    fn pairs(&self) -> Vec<(f64, f64)> {
        match &self.baseline {
            Baseline::None => Vec::new(),
            Baseline::Rounds(baselines) => {
                self.values.iter().copied().zip(baselines.iter().copied()).collect()
            }
            Baseline::Recorded(value, _) => self.values.iter().map(|own| (*own, *value)).collect(),
        }
    }

    fn ratios(&self) -> Vec<f64> {
        self.pairs().iter().map(|(value, baseline)| value / baseline).collect()
    }

    /// Invariant 1.
    pub(crate) fn ratio(&self) -> Option<f64> {
        median(&self.ratios())
    }

    /// Invariant 2; `None` without a budget. A figure that is missing meets no budget.
    pub(crate) fn met(&self) -> Option<bool> {
        let excess = || {
            let differences: Vec<f64> = self.pairs().iter().map(|(own, other)| own - other).collect();
            median(&differences)
        };
        let holds = |figure: Option<f64>, holds: &dyn Fn(f64) -> bool| figure.is_some_and(holds);
        Some(match self.budget? {
            Budget::RatioAtLeast(limit) => holds(self.ratio(), &|ratio| ratio >= limit),
            Budget::RatioAtMost(limit) => holds(self.ratio(), &|ratio| ratio <= limit),
            Budget::ExcessAtMost(limit) => holds(excess(), &|excess| excess <= limit),
            Budget::Below(limit) => holds(median(&self.values), &|value| value < limit),
            Budget::AtMost(limit) => holds(median(&self.values), &|value| value <= limit),
        })
    }

    fn budget_text(&self) -> Option<String> {
        let unit = self.unit;
        Some(match self.budget? {
            Budget::RatioAtLeast(limit) => format!(">= {limit} x baseline"),
            Budget::RatioAtMost(limit) => format!("<= {limit} x baseline"),
            Budget::ExcessAtMost(limit) => format!("<= baseline + {limit} {unit}"),
            Budget::Below(limit) => format!("< {limit} {unit}"),
            Budget::AtMost(limit) => format!("<= {limit} {unit}"),
        })
    }

    /// Smallest and largest ratio of the rounds: how far the median can be trusted.
    fn spread(&self) -> Option<(f64, f64)> {
        let ratios = self.ratios();
        let least = ratios.iter().copied().reduce(f64::min)?;
        Some((least, ratios.iter().copied().reduce(f64::max)?))
    }
}

/// The middle of `values`, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, sorted[middle]))
    } else {
        Some(sorted[middle])
    }
}

/// An array with one object for each line.
pub(crate) fn json(lines: &[Line]) -> serde_json::Result<String> {
    let shape = |line: &Line| -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(Shape {
            name: &line.name,
            value: line.value(),
            unit: line.unit,
            baseline: line.baseline(),
            ratio: line.ratio(),
            budget: line.budget_text(),
            met: line.met(),
        })
    };
    let shapes: Vec<_> = lines.iter().map(shape).collect::<Result<_, _>>()?;
    serde_json::to_string_pretty(&shapes)
}

/// A number with as many digits as tell something.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.abs() {
            size if size >= 1000.0 => write!(f, "{:.0}", self.0),
            size if size >= 10.0 => write!(f, "{:.1}", self.0),
            _ => write!(f, "{:.2}", self.0),
        }
    }
}

/// The lines as a Markdown table, its columns aligned for those who read it as text.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut rows =
        vec![["what", "value", "baseline", "ratio", "of the rounds", "budget", "met"].map(String::from)];
    for line in lines {
        let recorded = match line.baseline {
            Baseline::Recorded(_, whose) => format!(" ({whose}, recorded)"),
            Baseline::None | Baseline::Rounds(_) => String::new(),
        };
        let spread = line.spread().filter(|_| line.values.len() > 1);
        rows.push([
            line.name.clone(),
            format!("{} {}", Short(line.value()), line.unit),
            line.baseline().map(|baseline| format!("{}{recorded}", Short(baseline))).unwrap_or_default(),
            line.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            spread.map(|(least, most)| format!("{least:.2} to {most:.2}")).unwrap_or_default(),
            line.budget_text().unwrap_or_default(),
            line.met().map(|met| if met { "yes" } else { "NO" }).unwrap_or_default().to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let joined = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let cells =
        |row: &[String; 7]| row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    let mut table: Vec<String> = rows.iter().map(|row| joined(cells(row))).collect();
    table.insert(1, joined(widths.iter().map(|width| "-".repeat(*width)).collect()));
    table.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn the_ratio_is_that_of_the_rounds_and_not_of_the_medians() {
        // A machine that slows down in the second half: each round says one half, the medians say something else.
        let line =
            Line::beside("x", "IOPS", &[(50.0, 100.0), (50.0, 100.0), (5.0, 10.0), (5.0, 10.0), (4.0, 8.0)]);
        assert_eq!((line.value(), line.baseline(), line.ratio()), (5.0, Some(10.0), Some(0.5)));
        let one_outlier = Line::beside("x", "IOPS", &[(96.0, 100.0), (1.0, 100.0), (97.0, 100.0)]);
        assert_eq!(one_outlier.budget(Budget::RatioAtLeast(0.95)).met(), Some(true));
    }

    #[test]
    fn each_budget_is_met_at_its_limit_and_missed_beyond() {
        let beside = |value: f64| Line::beside("x", "us", &[(value, 100.0)]);
        let alone = |value: f64| Line::alone("x", "%", vec![value]);
        for (line, budget, met) in [
            (beside(95.0), Budget::RatioAtLeast(0.95), true),
            (beside(94.9), Budget::RatioAtLeast(0.95), false),
            (beside(125.0), Budget::RatioAtMost(1.25), true),
            (beside(125.1), Budget::RatioAtMost(1.25), false),
            (beside(110.0), Budget::ExcessAtMost(10.0), true),
            (beside(110.1), Budget::ExcessAtMost(10.0), false),
            (alone(0.99), Budget::Below(1.0), true),
            (alone(1.0), Budget::Below(1.0), false),
            (alone(5.0), Budget::AtMost(5.0), true),
            (alone(5.1), Budget::AtMost(5.0), false),
        ] {
            assert_eq!(line.budget(budget).met(), Some(met), "{budget:?}");
        }
        assert_eq!(alone(1.0).met(), None, "no budget, no verdict");
        let nothing = Line::alone("x", "%", Vec::new()).budget(Budget::Below(1.0));
        assert_eq!(nothing.met(), Some(false), "what was not measured is not met");
        assert_eq!(alone(1.0).budget(Budget::RatioAtLeast(0.5)).met(), Some(false), "no baseline, no ratio");
    }

    #[test]
    fn programs_get_the_seven_fields_of_every_line() {
        let lines = [
            Line::beside("local/randread-d32", "IOPS", &[(90.0, 100.0)]).budget(Budget::RatioAtLeast(0.95)),
            Line::alone("idle/memory", "MiB", vec![50.0]),
            Line::alone("target/randread-d1", "IOPS", vec![150.0]).recorded(75.0, "SPDK"),
        ];
        let json: serde_json::Value = serde_json::from_str(&json(&lines).unwrap()).unwrap();
        let expected = serde_json::json!([
            {"name": "local/randread-d32", "value": 90.0, "unit": "IOPS", "baseline": 100.0, "ratio": 0.9,
             "budget": ">= 0.95 x baseline", "met": false},
            {"name": "idle/memory", "value": 50.0, "unit": "MiB", "baseline": null, "ratio": null,
             "budget": null, "met": null},
            {"name": "target/randread-d1", "value": 150.0, "unit": "IOPS", "baseline": 75.0, "ratio": 2.0,
             "budget": null, "met": null},
        ]);
        assert_eq!(json, expected);
    }

    #[test]
    fn the_table_says_what_missed_and_what_was_recorded() {
        let lines = [
            Line::beside("a", "IOPS", &[(90.0, 100.0), (80.0, 100.0)]).budget(Budget::RatioAtLeast(0.95)),
            Line::alone("b", "IOPS", vec![80.0]).recorded(75.0, "SPDK"),
        ];
        let table = table(&lines);
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 4, "{table}");
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{table}");
        assert!(rows[2].contains("0.80 to 0.90") && rows[2].ends_with("| NO  |"), "{table}");
        assert!(rows[3].contains("75.0 (SPDK, recorded)"), "{table}");
    }
}
