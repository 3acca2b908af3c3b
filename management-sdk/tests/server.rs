//! The client against a real management server on SQLite, in this process. Processes are not
//! launched here: what a node would do is done to the store.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dormouse_core::store::{Database, NewNode, NodeReport, Options as StoreOptions, Store};
use dormouse_environment::{
    attempts::{Attempts, Retention},
    eager::Desk,
    images::{DEFAULT_MAX_BYTES, Images},
    management::{Options as ServerOptions, Parts, Server, ThisNode},
};
use dormouse_management_sdk::{
    Authority as Trusted, Client, Code, Error, ImageRef, ListInstances, LogRead, Options, Payload,
    StartInstance, Status, Stream, Target, Token, UploadProgress, WaitOutcome,
};
use dormouse_proto::identity::Authority;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Services on a folder of their own.
struct Services {
    folder: TempDir,
    store: Store,
    attempts: Attempts,
    server: Option<Running>,
}

struct Running {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Services {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::Sqlite(folder.path().join("dormouse.db"));
        let store = Store::open(StoreOptions::new(database)).await.expect("a store");
        let attempts = Attempts::open(folder.path(), Retention::default()).expect("folders");
        let mut services = Self { folder, store, attempts, server: None };
        services.serve();
        services
    }

    /// On the port of the last time.
    fn serve(&mut self) {
        let data = self.folder.path();
        let authority = Arc::new(Authority::open_or_create(&data.join("pki")).expect("an authority"));
        let any = ([127, 0, 0, 1], 0).into();
        let options = ServerOptions::new(any, data.join("environment.address"), authority);
        let parts = Parts {
            store: self.store.clone(),
            images: Images::open(data, DEFAULT_MAX_BYTES).expect("a folder"),
            attempts: self.attempts.clone(),
            desk: Desk::default(),
            this_node: Arc::new(|| ThisNode {
                id: "hazel".to_owned(),
                slots: 2,
                report: NodeReport::default(),
                core_address: "127.0.0.1:1".to_owned(),
                silent_cores: std::collections::BTreeSet::new(),
                problems: Vec::new(),
                without_spares: Arc::default(),
            }),
        };
        let server = Server::bind(options).expect("bound");
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(parts, stop.clone()));
        self.server = Some(Running { stop, tasks });
    }

    async fn stop(&mut self) {
        if let Some(mut running) = self.server.take() {
            running.stop.cancel();
            while let Some(ended) = running.tasks.join_next().await {
                ended.expect("the server does not panic");
            }
        }
    }

    fn data(&self) -> &Path {
        self.folder.path()
    }

    async fn client(&self) -> Client {
        Client::connect(Target::data_dir(self.data())).await.expect("connected")
    }

    /// An image of so many bytes, which this machine would execute.
    fn image_file(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.data().join(name);
        std::fs::write(&path, image(bytes)).expect("written");
        path
    }

    async fn with_image(&self, client: &Client) {
        let path = self.image_file("small", 1_000);
        client.upload_image(&path, &reference("shop:1"), |_| ()).await.expect("pushed");
    }
}

fn reference(text: &str) -> ImageRef {
    text.parse().expect("a reference")
}

/// The smallest ELF file that holds a list of workflows.
fn image(bytes: usize) -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let list = b"dormouse-sdk 0.1.0 protocol 1\norder\nrefund\n";
    let names = b"\0.dormouse\0.shstrtab\0";
    let (list_at, names_at) = (64, 64 + list.len());
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = vec![0; sections_at];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes());
    put(18, &machine.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(40, &(sections_at as u64).to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(58, &64_u16.to_le_bytes());
    put(60, &3_u16.to_le_bytes());
    put(62, &2_u16.to_le_bytes());
    put(list_at, list);
    put(names_at, names);
    let section = |name: u32, kind: u32, at: usize, len: usize| {
        let mut header = [0_u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        header
    };
    file.extend([0; 64]);
    file.extend(section(1, 1, list_at, list.len()));
    file.extend(section(11, 3, names_at, names.len()));
    file.resize(file.len().max(bytes), 7);
    file
}

fn code(error: &Error) -> Code {
    assert!(matches!(error, Error::Refused { .. }), "not refused: {error}");
    error.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_sent_once_and_a_version_means_the_same_bytes_for_ever() {
    let services = Services::start().await;
    let client = services.client().await;
    let path = services.image_file("large", 9 * 1024 * 1024 + 5);

    let mut last = None;
    let pushed = client.upload_image(&path, &reference("shop"), |progress| last = Some(progress)).await;
    let pushed = pushed.expect("pushed");
    assert!(!pushed.existed);
    assert_eq!((pushed.image.version.as_str(), pushed.image.size), ("1", 9 * 1024 * 1024 + 5));
    assert_eq!(pushed.image.workflows, ["order", "refund"]);
    assert!(
        matches!(last, Some(UploadProgress::Sending { done, total }) if done == total && total == pushed.image.size)
    );

    let mut sent = false;
    let again = client
        .upload_image(&path, &reference("shop"), |progress| {
            sent |= matches!(progress, UploadProgress::Sending { .. });
        })
        .await
        .expect("pushed again");
    assert!(again.existed && !sent, "bytes travelled twice");
    assert_eq!(again.image, pushed.image);

    let other = services.image_file("other", 2_000);
    let refused = client.upload_image(&other, &reference("shop:1"), |_| ()).await.expect_err("other bytes");
    assert_eq!(code(&refused), Code::AlreadyExists);
    let next = client.upload_image(&other, &reference("shop"), |_| ()).await.expect("pushed");
    assert_eq!(next.image.version, "2");

    let script = services.data().join("script");
    std::fs::write(&script, "#!/bin/sh\n").expect("written");
    let refused = client.upload_image(&script, &reference("shop"), |_| ()).await.expect_err("a script");
    assert_eq!(code(&refused), Code::InvalidArgument);
    assert!(refused.to_string().contains("script"), "{refused}");

    assert_eq!(client.images(Some("shop")).await.expect("listed").len(), 2);
    assert_eq!(client.image(&reference("shop")).await.expect("found").version, "2");
    assert_eq!(client.delete_image(&reference("shop:2")).await.expect("deleted"), 1);
    let refused = client.image(&reference("shop:2")).await.expect_err("gone");
    assert_eq!(code(&refused), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_start_is_the_same_instance_and_another_one_is_refused() {
    let services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    let start = || {
        StartInstance::of("shop")
            .workflow("order")
            .id("order-1")
            .input(&serde_json::json!({"n": 1}))
            .expect("JSON")
    };

    let first = client.start(start()).await.expect("started");
    let again = client.start(start()).await.expect("started again");
    assert!(!first.existed && again.existed);
    assert_eq!(first.instance, again.instance);
    assert_eq!(first.instance.status, Status::Pending);
    assert_eq!(first.instance.image, "shop:1");
    assert_eq!(first.instance.input_json(), Some(serde_json::json!({"n": 1})));

    let other = start().input(&serde_json::json!({"n": 2})).expect("JSON");
    let refused = client.start(other).await.expect_err("another input");
    assert_eq!(code(&refused), Code::AlreadyExists);
    assert!(refused.to_string().contains("input"), "{refused}");
    for (start, expected) in [
        (StartInstance::of("shop"), Code::InvalidArgument),
        (StartInstance::of("shop").workflow("nothing"), Code::InvalidArgument),
        (StartInstance::of("nothing"), Code::NotFound),
        (StartInstance::of("shop").workflow("order").id("a b"), Code::InvalidArgument),
        (StartInstance::of("shop").workflow("order").priority(10), Code::InvalidArgument),
        (StartInstance::of("shop").workflow("order").env("A=B", "c"), Code::InvalidArgument),
    ] {
        let refused = client.start(start.clone()).await.expect_err("wrong");
        assert_eq!(code(&refused), expected, "{start:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_found_by_prefix_listed_in_pages_and_counted() {
    let services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    for id in ["apple", "apricot", "banana", "banana-2", "cherry"] {
        client.start(StartInstance::of("shop").workflow("order").id(id)).await.expect("started");
    }
    assert_eq!(client.instance("c").await.expect("unique").id, "cherry");
    assert_eq!(client.instance("banana").await.expect("whole ids win").id, "banana");
    let refused = client.instance("ap").await.expect_err("two begin so");
    assert_eq!(code(&refused), Code::InvalidArgument);
    assert!(refused.to_string().contains("apple, apricot"), "{refused}");
    assert_eq!(code(&client.instance("x").await.expect_err("none")), Code::NotFound);

    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = ListInstances { limit: Some(2), cursor, ..ListInstances::default() };
        let page = client.instances(page).await.expect("a page");
        seen.extend(page.instances.into_iter().map(|instance| instance.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["cherry", "banana-2", "banana", "apricot", "apple"]);

    client.cancel("cherry").await.expect("cancelled");
    let pending = ListInstances { status: Some(Status::Pending), ..ListInstances::default() };
    assert_eq!(client.instances(pending).await.expect("a page").instances.len(), 4);
    let counts = client.count(None).await.expect("counted");
    assert!(counts.contains(&(Status::Pending, 4)) && counts.contains(&(Status::Cancelled, 1)), "{counts:?}");
    let none = client.count(Some("other")).await.expect("counted");
    assert!(none.iter().all(|(_, n)| *n == 0), "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_says_what_it_waits_for() {
    let services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    let instance =
        client.start(StartInstance::of("shop").workflow("order").id("a")).await.expect("started").instance;
    let sentence = instance.waiting_for.expect("it has not ended");
    // The service that answers is a node with room itself; of others it reads in the table.
    assert!(sentence.ends_with("about to be launched"), "{sentence}");

    let node = NewNode {
        id: dormouse_core::domain::id::NodeId::parse("hazel").expect("a name"),
        name: "hazel".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        version: "0".to_owned(),
        slots: 2,
        lease: Duration::from_secs(15),
    };
    let lease = services.store.lease_node(node).await.expect("a lease");
    let nodes = client.nodes().await.expect("listed");
    assert_eq!((nodes[0].name.as_str(), nodes[0].slots), ("hazel", 2));

    client.pause("a").await.expect("paused");
    let sentence = client.instance("a").await.expect("found").waiting_for.expect("it has not ended");
    assert!(sentence.starts_with("paused since"), "{sentence}");
    client.resume("a").await.expect("resumed");

    let claims = services.store.claim_due(&lease, 1, Duration::from_secs(30)).await.expect("claimed");
    assert_eq!(claims.claims.len(), 1);
    let claimed = client.instance("a").await.expect("found");
    assert!(claimed.launching && claimed.wake_at.is_none());
    let sentence = claimed.waiting_for.expect("it has not ended");
    assert!(sentence.starts_with("being launched on node hazel"), "{sentence}");
    assert_eq!(client.attempts("a").await.expect("listed").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_survives_a_restart_of_the_services_and_ends_with_the_instance() {
    let mut services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    client.start(StartInstance::of("shop").workflow("order").id("a")).await.expect("started");
    let outcome = client.wait("a", Some(Duration::ZERO)).await.expect("looked");
    assert!(matches!(outcome, WaitOutcome::TimedOut(instance) if instance.status == Status::Pending));

    let mut tasks = JoinSet::new();
    let waiting = client.clone();
    tasks.spawn(async move { waiting.wait("a", None).await });
    let mut watch = client.watch("a");
    assert_eq!(watch.next().await.expect("seen").expect("not ended").status, Status::Pending);
    services.stop().await;
    services.serve();

    client.stop("a").await.expect("stopped");
    let outcome = tasks.join_next().await.expect("one task").expect("no panic").expect("waited");
    assert!(matches!(outcome, WaitOutcome::Ended(instance) if instance.status == Status::Cancelled));
    assert_eq!(watch.next().await.expect("seen").expect("the ending").status, Status::Cancelled);
    assert!(watch.next().await.expect("over").is_none());

    assert_eq!(code(&client.stop("a").await.expect_err("ended")), Code::FailedPrecondition);
    client.delete_instance("a").await.expect("deleted");
    assert_eq!(code(&client.instance("a").await.expect_err("gone")), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_with_the_same_key_is_the_same_signal() {
    let services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    client.start(StartInstance::of("shop").workflow("order").id("a")).await.expect("started");
    let payload = || Some(Payload::json(&serde_json::json!({"granted": true})).expect("JSON"));
    let first = client.signal_once("a", "approval", payload(), "key").await.expect("sent");
    assert_eq!(client.signal_once("a", "approval", payload(), "key").await.expect("sent"), first);
    assert_ne!(client.signal("a", "approval", payload()).await.expect("sent"), first);
    assert_eq!(client.instance("a").await.expect("found").unread_signals, 2);
    let events = client.events("a", 0, 0, Duration::ZERO).await.expect("listed");
    assert_eq!(events.events.iter().filter(|event| event.kind == "signal").count(), 2);
    let page = client.checkpoints("a", None, 10, true).await.expect("listed");
    assert!(page.checkpoints.is_empty() && page.next_cursor.is_none());
    let refused = client.signal("a", "", None).await.expect_err("no name");
    assert_eq!(code(&refused), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_followed_across_attempts_until_the_ending() {
    let services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    client.start(StartInstance::of("shop").workflow("order").id("a")).await.expect("started");
    let living = services.data().join("attempts/a.1");
    std::fs::create_dir(&living).expect("made");
    std::fs::write(living.join("stdout"), "one\ntwo\nthree\n").expect("written");
    let last = client.read_log("a", &LogRead::tail(Stream::Stdout, 2)).await.expect("read");
    assert_eq!((last.attempt, last.data.as_slice(), last.attempt_ended), (1, &b"two\nthree\n"[..], false));

    let mut follower = client.follow_log("a", 1, Stream::Stdout);
    assert_eq!(follower.next().await.expect("read").expect("output").data, b"one\ntwo\nthree\n");
    // The first attempt ends and the second one prints.
    let outputs = services.data().join("outputs/a");
    std::fs::create_dir(&outputs).expect("made");
    std::fs::rename(living.join("stdout"), outputs.join("1.stdout")).expect("moved");
    std::fs::remove_dir(&living).expect("removed");
    std::fs::write(outputs.join("2.stdout"), "four\n").expect("written");
    let next = follower.next().await.expect("read").expect("output");
    assert_eq!((next.attempt, next.data.as_slice()), (2, &b"four\n"[..]));
    client.stop("a").await.expect("stopped");
    assert!(follower.next().await.expect("read").is_none(), "nothing was added");
    assert!(
        client.read_log("a", &LogRead::from_start(1, Stream::Stderr)).await.expect("read").data.is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_reached_or_trusted_is_told_apart() {
    let mut services = Services::start().await;
    let health = services.client().await.health().await.expect("healthy");
    assert_eq!((health.database.as_str(), health.node.as_str(), health.slots), ("sqlite", "hazel", 2));
    assert!(health.problems.is_empty());

    // Another cluster's certificates.
    let stranger = tempfile::tempdir().expect("a folder");
    let authority = Authority::open_or_create(&stranger.path().join("pki")).expect("an authority");
    authority.identity(dormouse_proto::identity::Role::Administrator).expect("a certificate");
    let address = std::fs::read_to_string(services.data().join("environment.address")).expect("an address");
    let error = Client::connect(Target::data_dir(stranger.path()).with_server(address.trim())).await;
    assert!(matches!(error, Err(Error::Untrusted { .. })), "{error:?}");
    // The right authority, but nobody vouches for the client.
    let pem = services.data().join("pki/authority.pem");
    std::fs::copy(pem, stranger.path().join("pki/authority.pem")).expect("copied");
    let options = Options { patience: Duration::from_secs(5), ..Options::default() };
    let target = Target::data_dir(stranger.path()).with_server(address.trim());
    let error = match Client::connect_with(target, options).await {
        Ok(client) => client.health().await.expect_err("not let in"),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");

    only_what_is_named_is_trusted(&services, address.trim()).await;

    services.stop().await;
    // The kernel closes the socket a moment after the server has ended; until then it refuses.
    let nobody = async {
        loop {
            let error =
                Client::connect(Target::data_dir(services.data())).await.expect_err("nobody is there");
            assert!(error.unreachable(), "{error}");
            if matches!(error, Error::NobodyListens { .. }) {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(20), nobody).await.expect("noticed");
    assert!(error.to_string().contains("dormouse up"), "{error}");
}

/// From elsewhere: an address, an authority by its file or fingerprint, and a credential.
async fn only_what_is_named_is_trusted(services: &Services, address: &str) {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let at = |dir: &std::path::Path| Target::data_dir(dir).with_server(address);
    let pem = services.data().join("pki/authority.pem");
    let text = std::fs::read_to_string(&pem).expect("the authority");
    let fingerprint = dormouse_management_sdk::Fingerprint::of_pem(&text).expect("a certificate");
    let token = || Token::text("dmt_NOBODYGAVETHIS").expect("looks like one");

    let error = Client::connect(at(elsewhere.path())).await.expect_err("nobody");
    assert!(matches!(error, Error::NoCredential { .. }), "{error}");
    let error = Client::connect(at(elsewhere.path()).with_token(token())).await.expect_err("whom to trust?");
    assert!(matches!(error, Error::NoAuthority(_)) && error.to_string().contains("--ca"), "{error}");

    for authority in [Trusted::File(pem), Trusted::Fingerprint(fingerprint)] {
        // The administrator of this machine, who looks twice.
        let target = at(services.data()).with_authority(authority.clone());
        Client::connect(target.clone()).await.expect("trusted").health().await.expect("answered");
        for target in
            [at(elsewhere.path()).with_authority(authority).with_token(token()), target.with_token(token())]
        {
            let error = match Client::connect(target).await {
                Ok(client) => client.health().await.expect_err("not let in"),
                Err(error) => error,
            };
            assert!(error.refused_with(Code::Unauthenticated), "{error:?}");
            assert!(error.to_string().contains("token"), "{error}");
        }
    }
    let wrong = Trusted::parse(&format!("sha256:{}", "00".repeat(32))).expect("a fingerprint");
    let error = Client::connect(at(services.data()).with_authority(wrong)).await.expect_err("another one");
    assert!(matches!(error, Error::Untrusted { .. }) && error.to_string().contains("sha256:000"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_payloads_come_through_and_larger_ones_are_refused() {
    const MOST: usize = 4 * 1024 * 1024;
    let services = Services::start().await;
    let client = services.client().await;
    services.with_image(&client).await;
    let start =
        |bytes| StartInstance::of("shop").workflow("order").id("a").payload(Payload::raw(vec![7; bytes]));
    let refused = client.start(start(MOST + 1)).await.expect_err("one byte too many");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.to_string().contains("start.input"), "{refused}");
    let far = client.start(start(MOST + 100_000)).await.expect_err("larger than any frame");
    assert_eq!(far.code(), Code::InvalidArgument, "{far}");
    let started = client.start(start(MOST)).await.expect("started").instance;
    assert_eq!(started.input.expect("it fits").data.len(), MOST);

    // Signals of that size, several at once: more than one answer could hold.
    let mut sending = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        sending.spawn(async move { client.signal("a", "blob", Some(Payload::raw(vec![1; MOST]))).await });
    }
    while let Some(sent) = sending.join_next().await {
        sent.expect("no panic").expect("stored");
    }
    assert_eq!(client.instance("a").await.expect("found").unread_signals, 5);
    let mut seen = 0;
    let mut after = 0;
    loop {
        let page = client.events("a", after, 0, Duration::ZERO).await.expect("a page");
        if page.events.is_empty() {
            break;
        }
        seen += page.events.iter().filter(|event| event.kind == "signal").count();
        after = page.next;
    }
    assert_eq!(seen, 5);
    assert_eq!(client.instances(ListInstances::default()).await.expect("a page").instances.len(), 1);
}
