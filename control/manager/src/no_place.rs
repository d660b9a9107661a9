//! Why copies have no place, and what to do about it: for people.

use model::{DiskClass, SizeText, topology::domains_text};
use std::fmt;

/// As many names as somebody reads.
const NAMES_MAX: usize = 5;

/// Why there is no place. Display is the cause and what to do, without the volume's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// There are not enough nodes, whatever their space.
    TooFewNodes {
        /// Copies to place.
        wanted: usize,
        /// The class of disks that they need.
        class: Option<DiskClass>,
        /// Nodes that are ready, have a pool that is online, and have no copy of the volume yet.
        usable: usize,
        /// Who cannot take one for another reason.
        others: Box<Others>,
    },
    /// There are not enough failure domains, whatever their space.
    TooFewDomains {
        /// Copies to place.
        wanted: usize,
        /// The label that keeps them apart.
        spread: String,
        /// The class of disks that they need.
        class: Option<DiskClass>,
        /// Values of the label on nodes that can take one.
        usable: Vec<String>,
        /// Values where the volume has a copy that stays.
        taken: Vec<String>,
        /// Who cannot take one for another reason.
        others: Box<Others>,
    },
    /// There are enough nodes, and not enough of them have the space.
    TooLittleSpace {
        /// Copies to place.
        wanted: usize,
        /// The size of each.
        size_bytes: u64,
        /// The label that keeps them apart, if not only nodes do.
        spread: Option<String>,
        /// The class of disks that they need.
        class: Option<DiskClass>,
        /// Nodes, or values of the label, that have that much.
        with_room: usize,
        /// The most that any other one has to give.
        largest_bytes: u64,
    },
    /// There is a place, but none on a node that has to have a copy.
    NotThere {
        /// These nodes, and why each of them cannot take one.
        nodes: Vec<(String, String)>,
    },
}

/// Nodes that could take a copy if they were different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that are not ready.
    pub not_ready: Vec<String>,
    /// Those that are ready and have no copy of the volume, and on which nothing new is to be placed.
    pub cordoned: Vec<String>,
    /// Those that are otherwise fit, and lack the label that keeps copies apart.
    pub unlabelled: Vec<String>,
}

impl NoPlace {
    /// The cause.
    pub fn cause(&self) -> String {
        match self {
            Self::TooFewNodes { wanted, class, usable, others } => format!(
                "{} as many nodes{}, {usable} can take one{}",
                copies_need(*wanted),
                with_disks(*class),
                others.named(&[])
            ),
            Self::TooFewDomains { wanted, spread, class, usable, taken, others } => {
                let count = usable.len();
                let have = if count == 1 { "has" } else { "have" };
                let usable = if usable.is_empty() { String::new() } else { format!(": {}", names(usable)) };
                format!(
                    "{} as many {}{}, {count} {have} a node that can take one{usable}{}",
                    copies_need(*wanted),
                    domains_text(spread),
                    with_disks(*class),
                    others.named(taken)
                )
            }
            Self::TooLittleSpace { wanted, size_bytes, spread, class, with_room, largest_bytes } => {
                let where_ = spread.as_ref().map_or_else(
                    || "nodes with".to_owned(),
                    |key| format!("{} with a node with", domains_text(key)),
                );
                format!(
                    "{} as many {where_} room for {}{}, {with_room} {} that; the most {} another is {}",
                    copies_need(*wanted),
                    SizeText(*size_bytes),
                    class.map_or_else(String::new, |class| format!(" on disks of class {class}")),
                    if *with_room == 1 { "has" } else { "have" },
                    if spread.is_some() { "in" } else { "on" },
                    SizeText(*largest_bytes)
                )
            }
            Self::NotThere { nodes } => {
                let told = |(node, why): &(String, String)| format!("{node} ({why})");
                let mut told: Vec<String> = nodes.iter().take(NAMES_MAX).map(told).collect();
                if nodes.len() > NAMES_MAX {
                    told.push(format!("{} more", nodes.len() - NAMES_MAX));
                }
                format!("a copy has to be on {}", told.join(" or "))
            }
        }
    }

    /// What to do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::TooFewNodes { class: Some(_), others, .. } if !others.cordoned.is_empty() => {
                "add such disks, uncordon a node, or ask for fewer copies or another class"
            }
            Self::TooFewNodes { class: Some(_), .. } => {
                "add such disks, or ask for fewer copies or another class"
            }
            Self::TooFewNodes { others, .. } if !others.cordoned.is_empty() => {
                "start more nodes, uncordon one, or ask for fewer copies"
            }
            Self::TooFewNodes { .. } => "start more nodes, or ask for fewer copies",
            Self::TooFewDomains { class: Some(_), .. } => {
                "add such disks elsewhere, or ask for fewer copies or another class"
            }
            Self::TooFewDomains { others, .. } if !others.unlabelled.is_empty() => {
                "label the nodes that are not, start some elsewhere, or ask for fewer copies"
            }
            Self::TooFewDomains { others, .. } if !others.cordoned.is_empty() => {
                "uncordon a node, start some elsewhere, or ask for fewer copies"
            }
            Self::TooFewDomains { .. } => "start nodes elsewhere, or ask for fewer copies",
            Self::TooLittleSpace { .. } => "add disks, delete volumes, or ask for less",
            Self::NotThere { .. } => "choose another node, or make it fit",
        }
    }
}

impl Others {
    /// In brackets; nothing where there is nobody. `taken` are values that have a copy.
    fn named(&self, taken: &[String]) -> String {
        let all = [
            ("a copy is in", taken),
            ("NotReady", &self.not_ready),
            ("cordoned", &self.cordoned),
            ("without the label", &self.unlabelled),
        ];
        let all = all.iter().filter(|(_, nodes)| !nodes.is_empty());
        let all: Vec<String> = all.map(|(what, nodes)| format!("{what}: {}", names(nodes))).collect();
        if all.is_empty() { String::new() } else { format!(" ({})", all.join("; ")) }
    }
}

fn names(all: &[String]) -> String {
    let shown = &all[..all.len().min(NAMES_MAX)];
    let more = all.len() - shown.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", shown.join(", "))
}

fn copies_need(copies: usize) -> String {
    if copies == 1 { "1 copy needs".into() } else { format!("{copies} copies need") }
}

fn with_disks(class: Option<DiskClass>) -> String {
    class.map_or_else(String::new, |class| format!(" with disks of class {class}"))
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause(), self.hint())
    }
}

impl std::error::Error for NoPlace {}
