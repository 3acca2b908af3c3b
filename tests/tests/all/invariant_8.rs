//! Invariant 8: an instance touches only itself, whatever it says it is, and nobody acts without a
//! credential of the cluster. What controllers may do is tried in `credentials`.

use dormouse_management_sdk::{Client, Code, Instance, ListInstances, LogRead, Role, Status, Stream, Target};
use dormouse_proto::{
    instance::{Error, client_frame::Operation},
    launch::LaunchDocument,
};
use dormouse_tests::{
    cluster::{Cluster, Database},
    controller::Controller,
    probe::Probe,
    raw::{self, RawClient},
};

on_both! {
    invariant_8_a_token_opens_its_own_attempt_and_nothing_else,
    invariant_8_an_old_token_opens_nothing,
    invariant_8_tenants_do_not_see_each_other,
    invariant_8_another_clusters_administrator_is_nobody,
}

/// Asks for everything there is with what the document says, and is refused each time.
async fn refused_everything(what: &str, document: &LaunchDocument, registration: &[&str]) {
    let mut operations = raw::every_operation(document);
    operations.push(raw::heartbeat());
    for operation in operations {
        // A connection each: a stranger has only so many requests.
        let client = RawClient::connect(document).await;
        let described = format!("{what}: {operation:?}");
        let codes: &[&str] = match operation {
            Operation::Register(_) => registration,
            _ => &["UNAUTHENTICATED", "PERMISSION_DENIED"],
        };
        let Error { code, message, .. } = client.ask(operation).await.expect_err(&described);
        assert!(codes.contains(&&*code), "{described}: {code} {message}");
    }
}

const UNKNOWN: &[&str] = &["UNAUTHENTICATED", "PERMISSION_DENIED"];

async fn invariant_8_a_token_opens_its_own_attempt_and_nothing_else(database: Database) {
    let cluster = Cluster::up(database).await;
    let secret = cluster.token("acme", "ci", Role::Operator).await;
    let acme = cluster.controller_with(&secret, "acme").await;
    let (mine, other) = (Probe::start(&cluster, "mine").await, Probe::start(&cluster, "other").await);
    let stranger = Probe::start(&acme, "stranger").await;
    let (own, theirs) = (mine.document(1).await, other.document(1).await);
    let strangers = stranger.document(1).await;

    let with = |change: &dyn Fn(&mut LaunchDocument)| {
        let mut document = own.clone();
        change(&mut document);
        document
    };
    for (what, document) in [
        ("another instance's id", with(&|d| d.instance_id.clone_from(&theirs.instance_id))),
        ("another tenant's instance's id", with(&|d| d.instance_id.clone_from(&strangers.instance_id))),
        ("another tenant's token", with(&|d| d.token.clone_from(&strangers.token))),
        ("an attempt that is not the token's", with(&|d| d.attempt = 2)),
        ("an invented token", with(&|d| d.token = vec![7; d.token.len()])),
        ("a token that is changed by one bit", with(&|d| d.token[0] ^= 1)),
        ("half a token", with(&|d| d.token.truncate(31))),
        ("no token", with(&|d| d.token.clear())),
    ] {
        refused_everything(what, &document, UNKNOWN).await;
    }

    // Nothing of this has touched any of them.
    for (controller, probe) in [(&*cluster, &mine), (&*cluster, &other), (&acme, &stranger)] {
        let instance = controller.get(&probe.id).await;
        assert_eq!((instance.status, instance.attempt), (Status::Pending, 1), "{}", probe.id);
        assert!(controller.checkpoints(&probe.id).await.is_empty());
        drop(probe.register(1).await);
    }
}

/// Tokens of attempts that are over: of an older attempt, of an instance that has ended, and of one
/// that was deleted.
async fn invariant_8_an_old_token_opens_nothing(database: Database) {
    let cluster = Cluster::up(database).await;
    let probe = Probe::start(&cluster, "old").await;
    let (first, _) = probe.register(1).await;
    first.ask(raw::save("x", b"first")).await.expect("it is the newest attempt");
    probe.crash(&cluster).await;
    let (second, registered) = probe.register(2).await;
    assert_eq!(registered.checkpoints.len(), 1);
    let (old, newest) = (probe.document(1).await, probe.document(2).await);

    // It is known, and fenced: a process that hears this ends itself.
    refused_everything("an older attempt's token", &old, &["FENCED"]).await;
    second.ask(raw::complete(b"done")).await.expect("nobody else has taken its place");
    let ended = cluster.until_ended(&probe.id, Status::Completed).await;
    for (what, document) in [("the ended attempt's token", &newest), ("an older one's", &old)] {
        refused_everything(what, document, &["FENCED"]).await;
    }
    unchanged(&cluster, &ended).await;

    cluster.client().delete_instance(&probe.id).await.expect("it has ended");
    for document in [&newest, &old] {
        refused_everything("a deleted instance's token", document, UNKNOWN).await;
    }
}

/// What was forged shows nowhere.
async fn unchanged(controller: &Controller, was: &Instance) {
    let now = controller.get(&was.id).await;
    assert_eq!((now.status, now.attempt, now.version), (was.status, was.attempt, was.version));
    assert_eq!(now.output.expect("it completed").data, b"done");
    let checkpoints = controller.checkpoints(&was.id).await;
    let stored: Vec<_> = checkpoints.iter().map(|stored| stored.name.as_str()).collect();
    assert_eq!(stored, ["x"]);
    let events = controller.events(&was.id).await;
    assert!(events.iter().all(|event| !event.message.contains("forged")), "{events:?}");
}

/// Two tenants with the same ids and the same image name.
async fn invariant_8_tenants_do_not_see_each_other(database: Database) {
    let cluster = Cluster::up(database).await;
    let mut tenants = Vec::new();
    for name in ["acme", "bolt"] {
        let secret = cluster.token(name, "ci", Role::Operator).await;
        tenants.push((name, cluster.controller_with(&secret, name).await));
    }
    for (name, controller) in &tenants {
        let probe = Probe::start(controller, "same").await;
        Probe::start(controller, &format!("{name}-only")).await;
        let (client, registered) = probe.register(1).await;
        assert_eq!(registered.checkpoints.len(), 0, "{name} sees another's checkpoints");
        client.ask(raw::save("x", name.as_bytes())).await.expect("it is the newest attempt");
        client.ask(raw::custom(&format!("event-of-{name}"))).await.expect("it is the newest attempt");
        client.ask(raw::complete(name.as_bytes())).await.expect("it is the newest attempt");
        controller.until_ended("same", Status::Completed).await;
    }
    let [(_, acme), (_, bolt)] = &tenants[..] else { panic!("two tenants") };
    for ((name, controller), (other, _)) in tenants.iter().zip(tenants.iter().rev()) {
        sees_its_own(name, controller).await;
        sees_nothing_of(other, controller).await;
    }

    // What one does to an id or a name the other does not feel.
    acme.client().delete_instance("same").await.expect("it has ended");
    acme.client().stop("acme-only").await.expect("it runs");
    acme.until_ended("acme-only", Status::Cancelled).await;
    acme.client().delete_image(&"probe".parse().expect("a name")).await.expect("nothing needs it");
    sees_its_own("bolt", bolt).await;
    bolt.client().image(&"probe".parse().expect("a name")).await.expect("it is bolt's own");
    let administrator = cluster.client().instances(ListInstances::default()).await.expect("a list");
    assert!(administrator.instances.is_empty(), "the administrator works in its own tenant");
}

async fn sees_its_own(name: &str, controller: &Controller) {
    let client = controller.client();
    let own = controller.get("same").await;
    assert_eq!(own.output.expect("it completed").data, name.as_bytes());
    let stored = controller.checkpoints("same").await;
    assert_eq!(stored.len(), 1);
    let events = controller.events("same").await;
    assert!(events.iter().any(|event| event.message.contains(&format!("event-of-{name}"))), "{events:?}");
    assert_eq!(controller.attempts("same").await, 1);
    let log = client.read_log("same", &LogRead::from_start(1, Stream::Stdout)).await.expect("a log");
    let log = String::from_utf8(log.data).expect("a path");
    assert!(log.contains(&format!("/{name}/probe-same")), "the log of another tenant: {log}");
    let listed = client.instances(ListInstances::default()).await.expect("a list").instances;
    let ids: Vec<_> = listed.iter().map(|instance| instance.id.clone()).collect();
    assert_eq!(ids, [format!("{name}-only"), "same".to_owned()]);
    let counted: u64 = client.count(None).await.expect("a count").iter().map(|(_, n)| n).sum();
    assert_eq!(counted, 2);
    assert_eq!(client.instance("s").await.expect("a unique prefix").id, "same");
    assert_eq!(client.images(None).await.expect("a list").len(), 1);
    let watched = client.watch("same").next().await.expect("a look").expect("an instance");
    assert_eq!(watched.id, "same");
}

async fn sees_nothing_of(other: &str, controller: &Controller) {
    let client = controller.client();
    for id in [format!("{other}-only"), format!("{other}-"), other[..1].to_owned()] {
        let refused = client.instance(&id).await.expect_err("another tenant's instance");
        assert!(refused.refused_with(Code::NotFound), "{refused}");
        let refused = client.signal(&id, "go", None).await.expect_err("another tenant's instance");
        assert!(refused.refused_with(Code::NotFound), "{refused}");
        let refused = client.stop(&id).await.expect_err("another tenant's instance");
        assert!(refused.refused_with(Code::NotFound), "{refused}");
    }
    let waited = client.wait(&format!("{other}-only"), None).await.expect_err("another tenant's instance");
    assert!(waited.refused_with(Code::NotFound), "{waited}");
    let log = client.read_log(&format!("{other}-only"), &LogRead::tail(Stream::Stdout, 9)).await;
    assert!(log.expect_err("another tenant's output").refused_with(Code::NotFound));
}

/// A certificate of another cluster's authority.
async fn invariant_8_another_clusters_administrator_is_nobody(database: Database) {
    let cluster = Cluster::up(database).await;
    let stranger = Cluster::up(Database::Sqlite).await;
    let address = std::fs::read_to_string(cluster.data_dir().join("environment.address")).expect("it is up");
    let target = Target::data_dir(stranger.data_dir()).with_server(address.trim());
    Client::connect(target).await.expect_err("another cluster's administrator was let in");
    cluster.client().health().await.expect("the administrator is");
}
