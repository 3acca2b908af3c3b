//! Other systems on the same machine, disk and databases, at the same durability: `benches/peers`, a package of its own.
//!
//! It is built on demand, for it is no member of the workspace: it would bring other versions of our database driver.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tokio::{process::Command, time::timeout};

use crate::{
    context::{Context, Database, Store},
    figure::{Figure, Limit, Target, Unit},
    machine::WORKSPACE,
    registry::{Entry, Findings, Kind, Measured, Run},
};

/// A peer, as `dormouse-peers` calls it, and on which database it runs.
const PEERS: [(&str, Store); 3] =
    [("duroxide", Store::Sqlite), ("duroxide-own", Store::Sqlite), ("durable-rust", Store::Postgres)];

/// Peers that flush as we do: of them, ours must do as many durable steps per second.
const FLUSHING: [&str; 2] = ["duroxide", "durable-rust"];
/// Some rounds of one of them take a minute; none takes so long.
const PATIENCE: Duration = Duration::from_mins(6);

/// What the report says beside their figures.
const ABOUT: &str = "\
## The peers

Each runs on this machine in this run, a workflow being a task inside one process: they isolate nothing and launch
nothing. W1 and W2 are their steps with a result of 1 KiB, W3 is their start to their ending, W4a a durable sleep. A
step of theirs also tells that it begins, a checkpoint of ours is one write; steps of ours are a write each too.

Those that flush each commit, as Dormouse does, are judged: a step of theirs must take as long as ours at least, and 64
workflows of theirs must do as many steps per second as ours at most. The limit in their rows is our own figure.

| | version | licence | what it is | not there |
|---|---|---|---|---|
| `duroxide` | 0.1.32 | MIT | SQLite; `synchronous=FULL` set on each of its connections, polling each 5 ms, 2 dispatchers of each kind | isolation, launches |
| `duroxide-own` | 0.1.32 | MIT | the same as it sets SQLite itself: NORMAL, no commit is flushed | isolation, launches, surviving a power cut |
| `durable-rust` | 0.11.3 | MIT | PostgreSQL, 64 connections, `synchronous_commit=on` | isolation, launches, durable sleeps (no W4a) |
";

pub(crate) fn entries() -> [Entry; 1] {
    [Entry { name: "peers", kind: Kind::Peer, needs: &["W1", "W2"], run: Run::Once(peers) }]
}

/// One figure, as `dormouse-peers` writes it.
#[derive(Deserialize)]
struct Told {
    id: String,
    unit: String,
    what: String,
    rounds: Vec<f64>,
}

fn peers(context: &Context) -> Measured<'_> {
    Box::pin(async move {
        let program = built(context).await?;
        let mut findings = Findings { sections: vec![ABOUT.to_owned()], ..Findings::default() };
        for (peer, store) in PEERS {
            if context.stores().contains(&store) {
                match one(context, &program, peer, store).await {
                    Ok(figures) => findings.figures.extend(figures),
                    // It takes none of the others with it, nor what we have measured.
                    Err(error) => {
                        findings.sections.push(format!("**Not measured**: the peer {peer}: {error:#}"));
                    }
                }
            }
        }
        Ok(findings)
    })
}

/// Builds it, unless it is wanted as it is.
async fn built(context: &Context) -> anyhow::Result<PathBuf> {
    let target = context.programs().target().join("peers");
    let program = target.join("release/dormouse-peers");
    if context.programs().are_built() || !program.is_file() {
        eprintln!(
            "building the peers: some 300 crates the first time, which takes minutes and needs OpenSSL's headers"
        );
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = Path::new(WORKSPACE).join("benches/peers/Cargo.toml");
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]).arg(manifest);
        let status = command.arg("--target-dir").arg(&target).status().await.context("cargo")?;
        ensure!(status.success(), "the peers cannot be built, {status}; mend what it says above");
    }
    Ok(program)
}

async fn one(context: &Context, program: &Path, peer: &str, store: Store) -> anyhow::Result<Vec<Figure>> {
    let database = context.database(store).await?;
    let place = match &database {
        Database::Sqlite(path) => {
            path.parent().context("it is in a folder of its own")?.as_os_str().to_owned()
        }
        Database::Postgres { url } => url.into(),
    };
    let mut command = Command::new(program);
    command.arg(peer).arg(place).arg(context.rounds().to_string());
    command.arg(if context.is_quick() { "quick" } else { "full" });
    let output = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output())
        .await
        .with_context(|| format!("it has not ended within {PATIENCE:?}"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "it ended, {}: {}",
        output.status,
        said.lines().next().unwrap_or_default()
    );
    context.remove(&database).await?;
    let text = String::from_utf8(output.stdout).context("its figures")?;
    let figures = text.lines().filter(|line| line.starts_with('{')).map(|line| figure(line, store));
    figures.map(|figure| Ok(held(figure?, peer))).collect()
}

/// From their side: it is we who are the limit.
fn held(figure: Figure, peer: &str) -> Figure {
    if !FLUSHING.contains(&peer) {
        return figure;
    }
    match figure.id.strip_prefix(peer) {
        Some(".W1") => figure.held(Limit::Sum(&[(1.0, "W1")]), Target::AtLeastTimes(1.0)),
        Some(".W2") => figure.held(Limit::Rate(&[(1.0, "W2")]), Target::AtMostTimes(1.0)),
        _ => figure,
    }
}

fn figure(line: &str, store: Store) -> anyhow::Result<Figure> {
    let Told { id, unit, what, rounds } = serde_json::from_str(line).with_context(|| line.to_owned())?;
    let unit = match unit.as_str() {
        "seconds" => Unit::Seconds,
        "per_second" => Unit::PerSecond,
        other => bail!("the unit {other} of {id} is unknown"),
    };
    Ok(Figure { store: Some(store), ..Figure::of(unit, id, what, rounds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_figure() {
        let line = r#"{"id":"duroxide.W2","unit":"per_second","what":"steps","rounds":[1.0,3.0,2.0]}"#;
        let figure = figure(line, Store::Sqlite).expect("a figure");
        assert_eq!(
            (figure.id.as_str(), figure.unit, figure.store),
            ("duroxide.W2", Unit::PerSecond, Some(Store::Sqlite))
        );
        assert!((figure.median() - 2.0).abs() < f64::EPSILON);
        assert!(super::figure(&line.replace("per_second", "hours"), Store::Sqlite).is_err());
        assert!(super::held(figure.clone(), "duroxide").held.is_some(), "it is judged");
        assert!(super::held(Figure { id: "duroxide.W3a".to_owned(), ..figure }, "duroxide").held.is_none());
    }

    #[test]
    fn who_does_not_flush_is_not_judged() {
        let figure = Figure::rate("duroxide-own.W2", "steps", vec![1.0]);
        assert!(held(figure, "duroxide-own").held.is_none());
    }
}
