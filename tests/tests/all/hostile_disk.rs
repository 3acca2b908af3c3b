//! Disks that are full or do not flush: what was acknowledged stays, what was refused had no effect,
//! and work goes on as soon as the disk does.

use std::{fs, os::unix::fs::PermissionsExt};

use dormouse_management_sdk::{Code, ImageRef, StartInstance, Status};
use dormouse_proto::instance::StoredCheckpoint;
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database, Layout, Part},
    fault::{self, Disk},
    postgres::Server,
    probe::Probe,
    raw,
};
use prost::Message as _;

/// Services whose disk fails when the test says so.
async fn on_a_faulty_disk() -> (Cluster, Disk) {
    let mut cluster = Cluster::up(Database::Sqlite).await;
    let disk = Disk::in_dir(cluster.scratch());
    cluster.kill_services();
    for (name, value) in disk.variables() {
        cluster.set_variable(name, &value);
    }
    cluster.start_services().await;
    (cluster, disk)
}

async fn assert_served(cluster: &Cluster, id: &str) {
    let input = serde_json::json!({ "sleeps": 1, "pause_ms": 1 });
    cluster.start(StartInstance::of("sleeper").id(id).input(&input).expect("JSON")).await;
    cluster.until_ended(id, Status::Completed).await;
}

#[tokio::test]
async fn a_disk_that_is_full_during_an_upload_leaves_nothing_half_done() {
    let (cluster, disk) = on_a_faulty_disk().await;
    cluster.push("sleeper").await;
    disk.fill("/images/");
    let image: ImageRef = "probe".parse().expect("a name");
    let refused = cluster.client().upload_image(&binary("probe"), &image, |_| {}).await;
    let error = refused.expect_err("there is no space");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    // Who needs no space for an image is served meanwhile.
    assert_served(&cluster, "meanwhile").await;
    let images = cluster.client().images(None).await.expect("a list");
    assert_eq!(images.len(), 1, "a refused image has a name");
    let files = fs::read_dir(cluster.data_dir().join("images")).expect("the folder").count();
    assert_eq!(files, 1, "a refused image left its bytes");
    disk.heal();
    cluster.push("probe").await;
}

#[tokio::test]
async fn a_disk_that_is_full_during_a_checkpoint_delays_it() {
    let (cluster, disk) = on_a_faulty_disk().await;
    cluster.push("sleeper").await;
    let probe = Probe::start(&cluster, "probe").await;
    let (client, _) = probe.register(1).await;
    client.ask(raw::save("before", b"kept")).await.expect("there is space");
    disk.fill("/dormouse.db");
    let refusal = client.ask(raw::save("during", &vec![7; 100_000])).await.expect_err("there is no space");
    assert_eq!((refusal.code.as_str(), refusal.retryable), ("UNAVAILABLE", true), "{}", refusal.message);
    assert!(refusal.message.contains("the disk of the database is full"), "{}", refusal.message);
    // What is there is read all the same.
    assert_eq!(cluster.checkpoints(&probe.id).await.len(), 1);
    // A workflow that wants to store something waits for space, and fails nothing.
    disk.heal();
    let input = serde_json::json!({ "sleeps": 3, "pause_ms": 1 });
    cluster.start(StartInstance::of("sleeper").id("waits").input(&input).expect("JSON")).await;
    disk.fill("/dormouse.db");
    client.ask(raw::save("during", b"still full")).await.expect_err("there is no space");
    disk.heal();
    cluster.until_ended("waits", Status::Completed).await;
    client.ask(raw::save("during", b"now")).await.expect("there is space again");
    let names: Vec<String> = cluster.checkpoints(&probe.id).await.into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["before", "during"], "a refused checkpoint was stored, or an accepted one was not");
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn a_server_whose_disk_is_full_delays_a_checkpoint() {
    // The server's user has to read it.
    let dir = tempfile::Builder::new().prefix("dormouse-disk.").tempdir_in("/tmp").expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
    let disk = Disk::in_dir(dir.path());
    let server = Server::start_with(&disk.variables());
    let cluster = Cluster::up_on(Layout::Together, &server).await;
    cluster.push("sleeper").await;
    let probe = Probe::start(&cluster, "probe").await;
    let (client, _) = probe.register(1).await;
    client.ask(raw::save("before", b"kept")).await.expect("there is space");
    disk.fill("/base/");
    // So large that its table must grow, and not to be compressed.
    let mut large = vec![0; 1 << 20];
    fault::random().fill(&mut large);
    let refusal = client.ask(raw::save("during", &large)).await.expect_err("there is no space");
    assert_eq!((refusal.code.as_str(), refusal.retryable), ("UNAVAILABLE", true), "{}", refusal.message);
    assert!(refusal.message.contains("the disk of the database is full"), "{}", refusal.message);
    assert_eq!(cluster.checkpoints(&probe.id).await.len(), 1, "what is there is read all the same");
    disk.heal();
    client.ask(raw::save("during", &large)).await.expect("there is space again");
    let names: Vec<String> = cluster.checkpoints(&probe.id).await.into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["before", "during"]);
    assert_served(&cluster, "after").await;
}

#[tokio::test]
async fn invariant_1_a_disk_that_does_not_flush_ends_the_service_and_loses_nothing_acknowledged() {
    let (mut cluster, disk) = on_a_faulty_disk().await;
    cluster.push("sleeper").await;
    let probe = Probe::start(&cluster, "probe").await;
    let (client, _) = probe.register(1).await;
    client.ask(raw::save("acknowledged", b"kept")).await.expect("it is flushed");
    disk.stop_flushing("/dormouse.db");
    let refusal = client.ask(raw::save("unknown", b"maybe")).await.expect_err("it is not flushed");
    assert!(refusal.code == "UNAVAILABLE" || refusal.code == raw::LOST, "{refusal:?}");
    let service = cluster.service(Part::Both);
    let status = service.until_ended().await;
    assert!(!status.success(), "a service manager must see that: {status}");
    let log = service.log_tail();
    assert!(log.contains("the disk did not flush the database"), "{log}");
    disk.heal();
    cluster.start_services().await;
    let (client, registered) = probe.register(1).await;
    let mut names: Vec<String> = registered
        .checkpoints
        .iter()
        .map(|bytes| StoredCheckpoint::decode(bytes.clone()).expect("a checkpoint"))
        .map(|checkpoint| checkpoint.operation.expect("a name").name)
        .collect();
    names.retain(|name| name != "unknown");
    assert_eq!(names, ["acknowledged"]);
    client.ask(raw::save("unknown", b"now")).await.expect("its session goes on");
    assert_served(&cluster, "after").await;
}
