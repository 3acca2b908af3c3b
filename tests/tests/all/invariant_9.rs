//! Invariant 9: what is refused is refused with a code and a sentence, and has no effect.

use std::{fs, path::Path};

use dormouse_management_sdk::{Client, Code, Error, ImageRef, ListInstances, Payload, StartInstance};
use dormouse_proto::instance::{Checkpoint, OperationName, client_frame::Operation};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
    raw::{self, RawClient},
};

on_both! {
    invariant_9_a_refused_request_of_a_controller_has_no_effect,
    invariant_9_a_refused_request_of_an_instance_has_no_effect,
    invariant_9_what_is_no_image_is_refused,
}

/// A sentence that a person can act on.
fn is_a_sentence(message: &str) -> bool {
    message.split_whitespace().count() >= 4
}

async fn invariant_9_a_refused_request_of_a_controller_has_no_effect(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let client = cluster.client();
    let start = |id: &str| StartInstance::of("probe").id(id);
    let large = "x".repeat(4 << 20);
    let refusals: Vec<(&str, Code, Result<(), Error>)> = vec![
        ("no such image", Code::NotFound, client.start(StartInstance::of("nobody").id("a")).await.map(drop)),
        ("no such version", Code::NotFound, client.start(start("a").version("99")).await.map(drop)),
        (
            "no such workflow",
            Code::InvalidArgument,
            client.start(start("a").workflow("nobody")).await.map(drop),
        ),
        ("an id with a slash", Code::InvalidArgument, client.start(start("a/b")).await.map(drop)),
        (
            "an id that is too long",
            Code::InvalidArgument,
            client.start(start(&"a".repeat(129))).await.map(drop),
        ),
        ("a taken id", Code::AlreadyExists, client.start(start("probe")).await.map(drop)),
        (
            "a reserved variable",
            Code::InvalidArgument,
            client.start(start("a").env("DORMOUSE_LAUNCH_FD", "9")).await.map(drop),
        ),
        ("a priority of 10", Code::InvalidArgument, client.start(start("a").priority(10)).await.map(drop)),
        (
            "an input that is too large",
            Code::InvalidArgument,
            client.start(start("a").input(&large).expect("JSON")).await.map(drop),
        ),
        ("no such instance", Code::NotFound, client.instance("nobody").await.map(drop)),
        ("a signal to nobody", Code::NotFound, client.signal("nobody", "x", None).await.map(drop)),
        ("a signal without a name", Code::InvalidArgument, client.signal("probe", "", None).await.map(drop)),
        (
            "a signal with a line break",
            Code::InvalidArgument,
            client.signal("probe", "a\nb", None).await.map(drop),
        ),
        ("a signal that is too large", Code::InvalidArgument, too_large(client, &large).await),
        (
            "deleting what has not ended",
            Code::FailedPrecondition,
            client.delete_instance("probe").await.map(drop),
        ),
        (
            "deleting an image in use",
            Code::FailedPrecondition,
            client.delete_image(&image("probe")).await.map(drop),
        ),
        ("no such image to delete", Code::NotFound, client.delete_image(&image("nobody")).await.map(drop)),
    ];
    for (what, code, answer) in refusals {
        let error = answer.expect_err(what);
        // Too much may be said in either way.
        let same = error.code() == code
            || (code == Code::InvalidArgument && error.code() == Code::ResourceExhausted);
        assert!(same, "{what}: {} instead of {code}: {error}", error.code());
        assert!(is_a_sentence(&error.to_string()), "{what}: {error}");
        assert!(!error.retryable(), "{what}: a repeat cannot help");
    }

    let page = client.instances(ListInstances::default()).await.expect("a list");
    let ids: Vec<&str> = page.instances.iter().map(|instance| instance.id.as_str()).collect();
    assert_eq!(ids, ["probe"], "a refused start left something");
    assert_eq!(cluster.get(&probe.id).await.unread_signals, 0, "a refused signal left something");
    assert_eq!(client.images(None).await.expect("a list").len(), 1);
}

fn image(name: &str) -> ImageRef {
    name.parse().expect("a name")
}

async fn too_large(client: &Client, text: &str) -> Result<(), Error> {
    client.signal("probe", "large", Some(Payload::json(text).expect("JSON"))).await.map(drop)
}

async fn invariant_9_a_refused_request_of_an_instance_has_no_effect(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "probe").await;
    let document = probe.document(1).await;

    let early = RawClient::connect(&document).await;
    let refusal = early.ask(raw::save("early", b"x")).await.expect_err("a write before the registration");
    assert!(is_a_sentence(&refusal.message), "{refusal:?}");

    let (client, _) = probe.register(1).await;
    let nothing = Checkpoint { operation: Some(OperationName::default()), ..Checkpoint::default() };
    let nameless = Checkpoint { operation: None, ..nothing.clone() };
    for (what, operation) in [
        ("a checkpoint without a name", raw::save("", b"x")),
        ("a checkpoint with a line break in its name", raw::save("a\nb", b"x")),
        ("a checkpoint with a name that is too long", raw::save(&"n".repeat(201), b"x")),
        ("a checkpoint that is too large", raw::save("large", &vec![0; (4 << 20) + 1])),
        ("a checkpoint without a value", Operation::Checkpoint(nothing)),
        ("a checkpoint without an operation", Operation::Checkpoint(nameless)),
        ("a wait for nothing", raw::suspend_for("")),
        ("an event without a name", raw::custom("")),
    ] {
        let refusal = client.ask(operation).await.expect_err(what);
        assert!(["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"].contains(&&*refusal.code), "{what}: {refusal:?}");
        assert!(is_a_sentence(&refusal.message), "{what}: {refusal:?}");
    }
    assert!(cluster.checkpoints(&probe.id).await.is_empty(), "a refused checkpoint was stored");
    client.ask(raw::save("after", b"x")).await.expect("the session is as it was");
}

async fn invariant_9_what_is_no_image_is_refused(database: Database) {
    let cluster = Cluster::up(database).await;
    let folder = cluster.scratch().to_path_buf();
    let own = fs::read(dormouse_tests::binaries::binary("probe")).expect("built");
    let mut foreign = own.clone();
    // e_machine: a number that nobody builds for.
    foreign[18..20].copy_from_slice(&[0xfe, 0xca]);
    for (name, bytes) in [
        ("script", b"#!/bin/sh\necho hello\n".to_vec()),
        ("empty", Vec::new()),
        ("half", own[..own.len() / 2].to_vec()),
        ("foreign", foreign),
        ("no-workflow", fs::read("/bin/true").expect("every system has it")),
    ] {
        let path = folder.join(name);
        fs::write(&path, bytes).expect("own directory");
        let error = upload(cluster.client(), &path, name).await.expect_err(name);
        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error}");
        assert!(is_a_sentence(&error.to_string()), "{name}: {error}");
    }
    assert!(cluster.client().images(None).await.expect("a list").is_empty(), "a refused image got its name");
    let left = fs::read_dir(cluster.data_dir().join("images")).expect("the folder").count();
    assert_eq!(left, 0, "a refused image left its bytes");
}

async fn upload(client: &Client, path: &Path, name: &str) -> Result<(), Error> {
    client.upload_image(path, &image(name), |_| {}).await.map(drop)
}
