//! `dormouse metrics`: each stage of a request and of a launch is recorded once, in the service where it happens.

use std::process::Command;

use dormouse_management_sdk::Status;
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database, Layout, Part},
    wait,
    workload::{Amount, Example, Run},
};
use serde_json::Value;

on_both!(every_stage_is_recorded_once);

#[expect(clippy::disallowed_methods, reason = "runs the command as a person does")]
fn dormouse(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("dormouse"));
    command.arg("--data-dir").arg(cluster.data_dir()).args(arguments);
    command
}

/// What a service says of itself.
struct Figures(Value);

impl Figures {
    fn read(cluster: &Cluster, arguments: &[&str]) -> Self {
        let output = dormouse(cluster, arguments).args(["-o", "json"]).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// How many durations a series has.
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let all = self.0["histograms"].as_array().expect("an array");
        let of = all.iter().find(|histogram| {
            histogram["name"] == name
                && labels.iter().all(|(label, word)| histogram["labels"][*label] == **word)
        });
        of.map_or(0, |histogram| histogram["count"].as_u64().expect("a number"))
    }

    fn launches(&self, stage: &str) -> u64 {
        self.count("dormouse_launch_seconds", &[("stage", stage)])
    }

    fn requests(&self, request: &str) -> [u64; 5] {
        ["decode", "queue", "commit", "answer", "reply"]
            .map(|stage| self.count("dormouse_request_seconds", &[("request", request), ("stage", stage)]))
    }
}

/// Everything that is expected, or what is missing still: some is recorded just after the answer.
fn expected(pairs: &[(&str, u64, u64)]) -> Result<(), String> {
    let wrong: Vec<_> = pairs.iter().filter(|(_, counted, expected)| counted != expected).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("(what, counted, expected): {wrong:?}")) }
}

async fn every_stage_is_recorded_once(database: Database) {
    let mut cluster = Cluster::up_as(Layout::Apart, database).await;
    cluster.push(Example::Order.program()).await;
    let mut order = Run::start(&cluster, Example::Order, "order", &Amount::default(), &[]).await;
    cluster.until_suspended("order").await;
    order.approve(&cluster).await;
    cluster.until_ended("order", Status::Completed).await;
    let launches = u64::from(cluster.attempts("order").await);
    assert!(launches > 1, "it has slept");

    wait::until("the environment counted every launch", async || {
        let environment = Figures::read(&cluster, &["metrics"]);
        let stages = ["claim", "queue", "verify", "files", "exec", "hand_over", "exit"];
        expected(&stages.map(|stage| (stage, environment.launches(stage), launches)))?;
        let start = environment.requests("start");
        expected(&[("start committed", start[2], 1), ("start decoded", start[0], 0)])
    })
    .await;
    wait::until("core counted every request", async || {
        let core = Figures::read(&cluster, &["metrics", "--core"]);
        for (request, n) in [("register", launches), ("suspend", launches - 1), ("ending", 1)] {
            expected(&core.requests(request).map(|counted| (request, counted, n)))?;
        }
        // The process's half, as it has told it.
        let told = ["start", "endpoint", "handshake", "register", "first_step"];
        expected(&told.map(|stage| (stage, core.launches(stage), launches)))?;
        let checkpoints = core.requests("checkpoint");
        let stored = cluster.checkpoints("order").await.len() as u64;
        assert!(checkpoints[0] >= stored, "{checkpoints:?} requests stored {stored} checkpoints");
        expected(&checkpoints.map(|counted| ("checkpoint", counted, checkpoints[0])))
    })
    .await;

    let text = dormouse(&cluster, &["metrics", "--core"]).output().expect("it starts").stdout;
    let text = String::from_utf8(text).expect("UTF-8");
    let line = "dormouse_request_seconds_count{request=\"ending\",stage=\"commit\"} 1";
    assert!(text.lines().any(|written| written == line), "{text}");
    assert!(!text.contains("order"), "an instance's id is no label:\n{text}");

    // A socket that a killed core has left says so, and the next core takes its place.
    cluster.kill(Part::Core);
    let nobody = dormouse(&cluster, &["metrics", "--core"]).output().expect("it starts");
    assert_eq!(nobody.status.code(), Some(4), "{}", String::from_utf8_lossy(&nobody.stderr));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no core serves"), "{nobody:?}");
    cluster.start_services().await;
    wait::until("the next core counts from 0", async || {
        let output = dormouse(&cluster, &["metrics", "--core"]).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && !text.contains("ending") { Ok(()) } else { Err(text) }
    })
    .await;
}
