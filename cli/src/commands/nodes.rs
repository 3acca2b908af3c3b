//! `node list`, `node drain`, `node undrain`: the environments of a cluster.

use std::time::Duration;

use anyhow::bail;
use dormouse_management_sdk::{Client, Drain, Node};

use super::Ctx;
use crate::{
    args::{self, DrainNode, Format},
    exit::Exit,
    output::{bytes, now, print_json, rfc3339, say, span},
};

/// How often `--wait` looks.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn node(ctx: &Ctx, args: args::Node) -> anyhow::Result<Exit> {
    match args {
        args::Node::List => list(ctx).await,
        args::Node::Drain(args) => drain(ctx, args).await,
        args::Node::Undrain { node } => undrain(ctx, &node).await,
    }
}

async fn list(ctx: &Ctx) -> anyhow::Result<Exit> {
    let nodes = ctx.client().await?.nodes().await?;
    let now = now();
    ctx.screen.list(
        &nodes,
        &["ID", "NAME", "ADDRESS", "RUNNING", "SLOTS", "LOAD", "FREE", "RELEASE", "LAST SIGN", "STATE"],
        |node| {
            vec![
                node.id.clone(),
                node.name.clone(),
                node.address.clone(),
                node.running.to_string(),
                node.slots.to_string(),
                load(node),
                memory(node),
                node.version.clone(),
                node.last_sign_at.map(|at| format!("{} ago", span(now.since(at)))).unwrap_or_default(),
                state(node),
            ]
        },
        |node| node.id.clone(),
        node_json,
        "no nodes",
    )?;
    if ctx.screen.format == Format::Table && ctx.global.verbose > 0 {
        say_in_force(&nodes);
    }
    Ok(Exit::Done)
}

/// Most nodes of a cluster are alike, so each set is said once.
fn say_in_force(nodes: &[Node]) {
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for node in nodes.iter().filter(|node| !node.in_force.is_empty()) {
        let phrases = node.in_force.join("; ");
        match said.iter_mut().find(|(known, _)| *known == phrases) {
            Some((_, names)) => names.push(&node.name),
            None => said.push((phrases, vec![&node.name])),
        }
    }
    for (phrases, names) in said {
        say(&format!("in force on {}: {phrases}", names.join(", ")));
    }
}

fn load(node: &Node) -> String {
    // Rounded to what a person reads; 0 stands for unknown.
    let hundredths = node.load_milli.saturating_add(5) / 10;
    if node.load_milli == 0 {
        "-".to_owned()
    } else {
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

fn memory(node: &Node) -> String {
    if node.memory_free_bytes == 0 { "-".to_owned() } else { bytes(node.memory_free_bytes) }
}

fn state(node: &Node) -> String {
    match (&node.not_claiming, node.drain) {
        (Some(reason), _) => reason.clone(),
        (None, Drain::No) => "takes claims".to_owned(),
        (None, _) => "asked to drain".to_owned(),
    }
}

fn node_json(node: &Node) -> serde_json::Value {
    serde_json::json!({
        "id": node.id,
        "name": node.name,
        "address": node.address,
        "slots": node.slots,
        "running": node.running,
        "load_milli": node.load_milli,
        "memory_free_bytes": node.memory_free_bytes,
        "in_force": node.in_force,
        "started_at": node.started_at.map(rfc3339),
        "last_sign_at": node.last_sign_at.map(rfc3339),
        "lost": node.lost,
        "drain": node.drain.as_str(),
        "draining": node.draining,
        "version": node.version,
        "not_claiming": node.not_claiming,
    })
}

async fn drain(ctx: &Ctx, args: DrainNode) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    let mut node = client.drain_node(&args.node, args.suspend).await?;
    let what = if args.suspend { "hands back what it runs" } else { "waits for what it runs" };
    if ctx.screen.format == Format::Table {
        say(&format!("node {} ({}) claims nothing more and {what}", node.id, node.name));
    }
    if args.wait {
        node = until_empty(&client, &node.id).await?;
    }
    print_node(ctx, &node)
}

/// Waits until the node has heard it and runs nothing. One that lost its lease runs nothing that
/// counts.
async fn until_empty(client: &Client, id: &str) -> anyhow::Result<Node> {
    loop {
        let nodes = client.nodes().await?;
        let Some(node) = nodes.into_iter().find(|node| node.id == id) else {
            bail!("node {id} is not listed any more; look with `dormouse node list`")
        };
        if node.drain == Drain::No {
            bail!("node {id} was told to claim again meanwhile; ask it to drain once more, or leave it");
        }
        if node.lost || (node.draining && node.running == 0) {
            return Ok(node);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn undrain(ctx: &Ctx, node: &str) -> anyhow::Result<Exit> {
    let node = ctx.client().await?.undrain_node(node).await?;
    print_node(ctx, &node)
}

fn print_node(ctx: &Ctx, node: &Node) -> anyhow::Result<Exit> {
    match ctx.screen.format {
        Format::Json => print_json(&node_json(node))?,
        Format::Ids => crate::output::print(&format!("{}\n", node.id))?,
        Format::Table => {
            let (id, name, running) = (&node.id, &node.name, node.running);
            say(&match (node.drain, running) {
                (Drain::No, _) => format!("node {id} ({name}) claims again"),
                (_, 0) if node.draining => format!("node {id} ({name}) is drained: nothing runs there"),
                (_, _) if node.lost => {
                    format!("node {id} ({name}) lost its lease: others go on with what it ran")
                }
                (_, n) => format!("{n} processes run there now; --wait waits for them"),
            });
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node {
            id: "k7".to_owned(),
            name: "mill".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            slots: 2,
            running: 1,
            started_at: None,
            last_sign_at: None,
            draining: false,
            drain: Drain::No,
            lost: false,
            version: "0".to_owned(),
            not_claiming: None,
            load_milli: 1_995,
            memory_free_bytes: 3 << 30,
            in_force: vec!["own process group".to_owned()],
        }
    }

    #[test]
    fn a_node_is_said_in_a_row() {
        assert_eq!((load(&node()), memory(&node())), ("2.00".to_owned(), "3.0 GiB".to_owned()));
        assert_eq!(load(&Node { load_milli: 40, ..node() }), "0.04");
        assert_eq!(load(&Node { load_milli: 0, ..node() }), "-");
        assert_eq!(state(&node()), "takes claims");
        assert_eq!(state(&Node { drain: Drain::Wait, ..node() }), "asked to drain");
        let full = Node { not_claiming: Some("all its 2 slots are taken".to_owned()), ..node() };
        assert_eq!(state(&full), "all its 2 slots are taken");
        assert_eq!(node_json(&full)["drain"], "no");
    }
}
