//! Rules of the documents: every relative link leads to a file.

use super::{Finding, Source};
use std::path::Path;

/// The relative links of a Markdown file that lead nowhere.
pub(super) fn check_links(root: &Path, source: &Source) -> Vec<Finding> {
    let Source { path, text } = source;
    if Path::new(path).extension().is_none_or(|extension| extension != "md") {
        return Vec::new();
    }
    let folder = root.join(path).parent().map(Path::to_owned).unwrap_or_default();
    let mut findings = Vec::new();
    for (number, target) in relative_links(text) {
        if !folder.join(target).exists() {
            findings.push(Finding(format!("{path}:{number}: the link {target} leads nowhere")));
        }
    }
    findings
}

/// Line number and target of each link without a scheme, outside code blocks and without its anchor.
fn relative_links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', ' ']).next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains(':') {
                links.push((index + 1, file));
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_without_anchors_schemes_and_code() {
        let text = "See [a](docs/a.md#x) and [b](#here).\n```\n[c](c.md)\n```\n[d](https://d) [e](../e.md)\n";
        assert_eq!(relative_links(text), [(1, "docs/a.md"), (5, "../e.md")]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_a_finding() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = |text: &str| Source { path: "a.md".to_owned(), text: text.to_owned() };
        assert!(check_links(root, &source("[x](Cargo.toml)")).is_empty());
        assert_eq!(check_links(root, &source("\n[x](missing.md)")).len(), 1);
    }
}
