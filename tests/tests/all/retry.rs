//! An instance that failed late is retried by a version in which the mistake is mended.

use std::{fs, path::Path};

use dormouse_management_sdk::{Code, ImageRef, StartInstance, Status};
use dormouse_tests::{
    binaries,
    cluster::{Cluster, Database},
};

on_both! { a_mended_version_goes_on_from_what_was_done }

fn lines(tally: &Path) -> Vec<String> {
    fs::read_to_string(tally).expect("it was noted").lines().map(str::to_owned).collect()
}

async fn a_mended_version_goes_on_from_what_was_done(database: Database) {
    let cluster = Cluster::up(database).await;
    cluster.push("fixable").await;
    let tally = cluster.scratch().join("tally");
    let start = StartInstance::of("fixable").id("first").input("a book").expect("JSON");
    cluster.start(start.env("DORMOUSE_TALLY_FILE", tally.display().to_string())).await;
    let failed = cluster.until_ended("first", Status::Failed).await;
    assert_eq!(failed.failure.expect("it says why").code, "NO_CARRIER");
    assert_eq!(lines(&tally), ["first reserve", "first charge", "first ship"]);

    // As it was: the same version makes the same mistake again, and nothing else.
    let again = cluster.client().start(StartInstance::retry_of("first").id("again")).await.expect("started");
    assert_eq!(again.instance.retry_of.as_deref(), Some("first"));
    cluster.until_ended("again", Status::Failed).await;
    assert_eq!(lines(&tally)[3..], ["again ship"]);

    let mended = cluster.scratch().join("mended");
    let mut bytes = fs::read(binaries::binary("fixable")).expect("the program");
    bytes.extend_from_slice(b"MENDED");
    fs::write(&mended, bytes).expect("written");
    let image: ImageRef = "fixable:mended".parse().expect("a version");
    cluster.client().upload_image(&mended, &image, |_| {}).await.expect("pushed");
    let retry = || StartInstance::retry_of("again").image("fixable").version("mended").id("mended");
    let started = cluster.client().start(retry()).await.expect("started");
    assert!(!started.existed);
    let ended = cluster.until_ended("mended", Status::Completed).await;
    assert_eq!(lines(&tally)[4..], ["mended ship"], "earlier steps do not run again");
    assert_eq!(ended.output_json(), Some("a book for first from first".into()));

    assert!(cluster.client().start(retry()).await.expect("the same").existed);
    let other = cluster.client().start(retry().from_scratch()).await.expect_err("another");
    assert!(other.refused_with(Code::AlreadyExists), "{other}");
    let events = cluster.events("again").await;
    assert_eq!(events.last().expect("some").message, "retried as mended");
    let scratch = StartInstance::retry_of("mended").from_scratch().id("scratch");
    cluster.client().start(scratch).await.expect("started");
    cluster.until_ended("scratch", Status::Completed).await;
    assert_eq!(lines(&tally)[5..], ["scratch reserve", "scratch charge", "scratch ship"]);
}
