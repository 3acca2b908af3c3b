//! Every text and number that a controller sends, beyond its limit: refused with INVALID_ARGUMENT and a
//! sentence that names the field, what it has and what is allowed; without an effect.

use std::collections::HashMap;

use dormouse_core::{domain::id::InstanceId, limits::Limits};
use dormouse_proto::{
    limits::{NAME_MAX_BYTES, PAYLOAD_MAX_BYTES},
    management::{
        BeginUpload, CountInstances, DeleteImage, GetImage, GetInstance, ListImages, ListInstances, Payload,
        ReadLogs, SetImage, SignalInstance, StartInstance, client_frame::Operation,
    },
};
use dormouse_tests::{
    cluster::{Cluster, Database},
    probe::Probe,
};

use super::hostile_uploads::Controller;

on_both! { fields_beyond_their_limits_are_refused_by_name }

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn payload(bytes: usize) -> Payload {
    Payload { data: vec![b'x'; bytes].into(), encoding: "raw".to_owned(), type_name: String::new() }
}

/// A start that would be accepted.
fn start() -> StartInstance {
    StartInstance {
        id: "refused".to_owned(),
        image: "probe".to_owned(),
        priority: Some(5),
        ..StartInstance::default()
    }
}

fn signal() -> SignalInstance {
    let name = "go".to_owned();
    SignalInstance { id: "probe".to_owned(), name, payload: Some(payload(1)), dedup: String::new() }
}

fn started(change: impl FnOnce(&mut StartInstance)) -> Operation {
    let mut request = start();
    change(&mut request);
    Operation::Start(request)
}

fn signalled(change: impl FnOnce(&mut SignalInstance)) -> Operation {
    let mut request = signal();
    change(&mut request);
    Operation::Signal(request)
}

fn begun(name: &str, version: &str) -> Operation {
    let (name, version) = (name.to_owned(), version.to_owned());
    Operation::BeginUpload(BeginUpload { name, version, size: 1, digest: vec![7; 32] })
}

/// Operations, each with what its refusal must say.
fn cases() -> Vec<(Operation, Vec<String>)> {
    let name = || long(NAME_MAX_BYTES + 1);
    let limits = Limits::default();
    let says = |field: &str, has: usize, max: usize| vec![field.to_owned(), has.to_string(), max.to_string()];
    let too_long = |field| says(field, NAME_MAX_BYTES + 1, NAME_MAX_BYTES);
    let too_large = |field| says(field, PAYLOAD_MAX_BYTES + 1, PAYLOAD_MAX_BYTES);
    let id = || long(InstanceId::MAX + 1);
    let env: HashMap<String, String> =
        (0..=limits.env_variables).map(|number| (format!("V{number}"), String::new())).collect();
    let control = |field: &str| vec![field.to_owned(), "'\\u{7}'".to_owned()];
    vec![
        (started(|start| start.id = id()), says("instance.id", InstanceId::MAX + 1, InstanceId::MAX)),
        (started(|start| start.image = name()), too_long("start.image")),
        (started(|start| start.image = "a\u{7}".to_owned()), control("start.image")),
        (started(|start| start.version = name()), too_long("start.version")),
        (started(|start| start.workflow = name()), too_long("start.workflow")),
        (started(|start| start.input = Some(payload(PAYLOAD_MAX_BYTES + 1))), too_large("start.input")),
        (started(|start| start.priority = Some(10)), vec!["start.priority".to_owned(), "10".to_owned()]),
        (started(|start| start.limit_micros = -1), vec!["start.limit".to_owned(), "-1".to_owned()]),
        (
            started(|start| start.env = env.into_iter().collect()),
            vec!["env".to_owned(), limits.env_variables.to_string()],
        ),
        (
            started(|start| {
                start.env = [("BIG".to_owned(), long(limits.env_bytes + 1))].into_iter().collect()
            }),
            vec!["env".to_owned(), limits.env_bytes.to_string()],
        ),
        (signalled(|signal| signal.name = name()), too_long("signal.name")),
        (signalled(|signal| signal.name = "a\u{7}".to_owned()), control("signal.name")),
        (
            signalled(|signal| signal.payload = Some(payload(PAYLOAD_MAX_BYTES + 1))),
            too_large("signal.payload"),
        ),
        (signalled(|signal| signal.dedup = long(201)), says("signal.dedup", 201, 200)),
        (
            signalled(|signal| {
                let mut payload = payload(1);
                payload.type_name = long(1_001);
                signal.payload = Some(payload);
            }),
            says("signal.payload.type_name", 1_001, 1_000),
        ),
        (
            signalled(|signal| {
                let mut payload = payload(1);
                payload.encoding = "xml".to_owned();
                signal.payload = Some(payload);
            }),
            vec!["signal.payload.encoding".to_owned(), "xml".to_owned(), "json or raw".to_owned()],
        ),
        (Operation::Get(GetInstance { id: id() }), says("instance.id", InstanceId::MAX + 1, InstanceId::MAX)),
        (begun(&name(), ""), too_long("image.name")),
        (begun("a:b", ""), vec!["image.name".to_owned(), "a:b".to_owned()]),
        (begun("a", &name()), too_long("image.version")),
        (Operation::GetImage(GetImage { name: name(), version: String::new() }), too_long("image.name")),
        (Operation::SetImage(SetImage { name: name(), ..SetImage::default() }), too_long("image.name")),
        (
            Operation::DeleteImage(DeleteImage { name: name(), version: String::new() }),
            too_long("image.name"),
        ),
        (Operation::ListImages(ListImages { name: name() }), too_long("image.name")),
        (Operation::Count(CountInstances { image: name() }), too_long("count.image")),
        (
            Operation::List(ListInstances { status: "MAGIC".to_owned(), ..ListInstances::default() }),
            vec!["list.status".to_owned(), "MAGIC".to_owned(), "SUSPENDED".to_owned()],
        ),
        (
            Operation::Logs(ReadLogs {
                id: "probe".to_owned(),
                stream: "all".to_owned(),
                ..ReadLogs::default()
            }),
            vec!["logs.stream".to_owned(), "all".to_owned(), "stdout".to_owned()],
        ),
    ]
}

async fn fields_beyond_their_limits_are_refused_by_name(database: Database) {
    let cluster = Cluster::up(database).await;
    Probe::start(&cluster, "probe").await;
    let mut client = Controller::connect(&cluster).await;
    for (operation, says) in cases() {
        let error = client.ask(operation).await.expect_err(&says[0]);
        assert_eq!(error.code, "INVALID_ARGUMENT", "{says:?}: {}", error.message);
        assert!(!error.retryable, "{}", error.message);
        for part in &says {
            assert!(error.message.contains(part.as_str()), "{:?} does not say {part:?}", error.message);
        }
        // A refusal repeats no payload.
        assert!(error.message.len() < 1_000, "{}", error.message);
    }
    let page = cluster.client().instances(dormouse_management_sdk::ListInstances::default()).await;
    assert_eq!(page.expect("a list").instances.len(), 1, "a refused start left something");
    assert_eq!(cluster.get("probe").await.unread_signals, 0, "a refused signal left something");
    assert_eq!(cluster.client().images(None).await.expect("a list").len(), 1);
    // Beside each of those limits all is well.
    client.ask(signalled(|signal| signal.name = long(NAME_MAX_BYTES))).await.expect("the longest name");
    client
        .ask(signalled(|signal| signal.payload = Some(payload(PAYLOAD_MAX_BYTES))))
        .await
        .expect("the largest");
}
