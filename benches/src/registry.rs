//! What can be measured, by name, in the order in which it is.

use std::{future::Future, pin::Pin};

use anyhow::bail;

use crate::{
    context::{Context, Store},
    figure::Figure,
    limits, peers, size, workloads,
};

/// What one entry has found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) figures: Vec<Figure>,
    /// Sections of the report below its table, Markdown that begins with a heading of the second level.
    pub(crate) sections: Vec<String>,
    /// Charts of its own: name of the file without ending, and the SVG.
    pub(crate) charts: Vec<(String, String)>,
}

impl From<Vec<Figure>> for Findings {
    fn from(figures: Vec<Figure>) -> Self {
        Self { figures, ..Self::default() }
    }
}

/// What an entry's function gives back.
pub(crate) type Measured<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Findings>> + 'a>>;

/// How an entry is measured.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// It has nothing to do with a database, or asks for all stores itself.
    Once(for<'a> fn(&'a Context) -> Measured<'a>),
    /// Once on each store of the run; its figures get the store's name.
    OnEach(for<'a> fn(&'a Context, Store) -> Measured<'a>),
}

/// One thing that can be measured.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// What it is asked for by: `fsync`, `W3a`, `growth`.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Entries that its figures are held against; they are measured too, and before it.
    pub(crate) needs: &'static [&'static str],
    pub(crate) run: Run,
}

/// What an entry is, to the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Measured before and after everything else.
    Limit,
    Workload,
    /// Other systems.
    Peer,
    /// Of programs, from nothing: measured only when it is asked for by its name.
    Build,
}

/// Every entry; one that another needs stands before it.
pub(crate) fn entries() -> Vec<Entry> {
    let mut all = limits::entries();
    all.extend(workloads::entries());
    all.extend(size::entries());
    all.extend(peers::entries());
    all
}

/// The entries that were asked for, and all that they need, in order.
pub(crate) fn chosen(names: &[String], quick: bool) -> anyhow::Result<Vec<Entry>> {
    let all = entries();
    let mut wanted = vec![false; all.len()];
    for name in names {
        if !all.iter().any(|entry| is_meant(entry, name)) {
            let known: Vec<&str> = all.iter().map(|entry| entry.name).collect();
            bail!("NAME {name} is unknown; say all, limits, or some of {}", known.join(", "));
        }
        for (entry, wanted) in all.iter().zip(&mut wanted) {
            // Other systems are built and run for real figures only.
            *wanted |= is_meant(entry, name) && !(quick && name == "all" && entry.kind == Kind::Peer);
        }
    }
    // Who is needed stands before who needs it: one pass from the end finds all.
    for index in (0..all.len()).rev() {
        if wanted[index] {
            for needed in all[index].needs {
                let found = all[..index].iter().position(|entry| entry.name == *needed);
                let found = found.unwrap_or_else(|| panic!("{} stands before {}", needed, all[index].name));
                wanted[found] = true;
            }
        }
    }
    Ok(all.into_iter().zip(wanted).filter_map(|(entry, wanted)| wanted.then_some(entry)).collect())
}

/// `all`, `limits`, `growth`, the name itself, or what it is a part of: W3 is W3a, W3b and so on.
fn is_meant(entry: &Entry, name: &str) -> bool {
    let part = |rest: &str| rest.chars().all(|letter| letter.is_ascii_lowercase());
    match name {
        "all" => entry.kind != Kind::Build,
        "limits" => entry.kind == Kind::Limit,
        "growth" => entry.name == "W8",
        _ => entry
            .name
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || (entry.kind == Kind::Workload && part(rest))),
    }
}
