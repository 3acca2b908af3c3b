//! Uploads that are wrong, break off or find no room: refused with a code and a sentence, and
//! nothing is left of them: no image, no bytes, no open file.

use std::{fs, path::Path};

use dormouse_management_sdk::{ImageRef, StartInstance, Status};
use dormouse_proto::{
    limits,
    management::{
        BeginUpload, ClientFrame, Error, FinishUpload, ServerFrame, UploadChunk, client_frame::Operation,
        server_frame::Outcome,
    },
};
use dormouse_tests::{
    binaries::binary,
    cluster::{Cluster, Database, Part},
    stranger::{Door, Stranger, framed},
    wait,
};
use prost::Message;
use sha2::{Digest, Sha256};

on_both! {
    what_is_wrong_is_refused_and_nothing_is_left,
    an_upload_that_breaks_off_leaves_nothing,
}

/// A controller that says what no SDK would.
pub(crate) struct Controller {
    stranger: Stranger,
    next: u64,
}

impl Controller {
    pub(crate) async fn connect(cluster: &Cluster) -> Self {
        Self { stranger: Door::Environment.greet(&cluster.data_dir()).await, next: 2 }
    }

    pub(crate) async fn ask(&mut self, operation: Operation) -> Result<Outcome, Error> {
        let id = self.next;
        self.next += 1;
        let frame = ClientFrame { id, operation: Some(operation) }.encode_to_vec();
        if frame.len() <= limits::FRAME_MAX_BYTES {
            self.stranger.write(&framed(&frame)).await;
        } else {
            let mut alone = self.stranger.connection.open_uni().await.expect("it proved itself");
            alone.write_all(&framed(&frame)).await.expect("the service reads");
            alone.finish().expect("it is open");
        }
        let answer: ServerFrame = self.stranger.read().await.expect("an answer");
        assert_eq!(answer.id, id, "{answer:?}");
        match answer.outcome {
            Some(Outcome::Error(error)) => Err(error),
            outcome => Ok(outcome.expect("an outcome")),
        }
    }

    async fn begin(&mut self, size: u64, digest: &[u8]) -> Result<u64, Error> {
        let begin =
            BeginUpload { name: "hostile".to_owned(), version: String::new(), size, digest: digest.to_vec() };
        match self.ask(Operation::BeginUpload(begin)).await? {
            Outcome::UploadBegun(begun) => Ok(begun.upload),
            other => panic!("answered {other:?}"),
        }
    }

    async fn chunk(&mut self, upload: u64, offset: u64, data: &[u8]) -> Result<Outcome, Error> {
        self.ask(Operation::UploadChunk(UploadChunk { upload, offset, data: data.to_vec() })).await
    }

    async fn finish(&mut self, upload: u64) -> Result<Outcome, Error> {
        self.ask(Operation::FinishUpload(FinishUpload { upload })).await
    }
}

fn assert_refused(what: &str, answer: Result<Outcome, Error>, code: &str, says: &[&str]) {
    let error = answer.expect_err(what);
    assert_eq!(error.code, code, "{what}: {}", error.message);
    for part in says {
        assert!(error.message.contains(part), "{what}: {:?} does not say {part:?}", error.message);
    }
}

async fn assert_nothing_is_left(cluster: &mut Cluster, data: &Path) {
    assert!(cluster.client().images(None).await.expect("a list").is_empty(), "a refused image has a name");
    let left = fs::read_dir(data.join("images")).expect("the folder").count();
    assert_eq!(left, 0, "a refused image left its bytes");
    let service = cluster.service(Part::Both).pid();
    let open = wait::until("no file of an upload is open", async || {
        let files = fs::read_dir(format!("/proc/{}/fd", service.number())).expect("it runs");
        let open: Vec<_> = files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect();
        let uploads = open.iter().filter(|path| path.starts_with(data.join("images"))).count();
        if uploads == 0 { Ok(()) } else { Err(format!("{uploads} are open")) }
    });
    open.await;
}

async fn assert_served(cluster: &Cluster) {
    cluster.push("sleeper").await;
    let input = serde_json::json!({ "sleeps": 0, "pause_ms": 0 });
    cluster.start(StartInstance::of("sleeper").id("served").input(&input).expect("JSON")).await;
    cluster.until_ended("served", Status::Completed).await;
}

async fn what_is_wrong_is_refused_and_nothing_is_left(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let data = cluster.data_dir();
    let mut client = Controller::connect(&cluster).await;
    let program = fs::read(binary("probe")).expect("built");
    let digest = Sha256::digest(&program);
    let size = u64::try_from(program.len()).expect("a size");

    let huge = client.begin(u64::MAX, &digest).await.map(|_| unreachable!("it was begun"));
    assert_refused("too large", huge, "INVALID_ARGUMENT", &["image.size", "536870912"]);
    let short = client.begin(size, b"short").await.map(|_| unreachable!("it was begun"));
    assert_refused("a short digest", short, "INVALID_ARGUMENT", &["image.digest", "5 bytes", "32"]);
    assert_refused("no upload", client.chunk(77, 0, b"x").await, "NOT_FOUND", &["upload 77"]);

    let upload = client.begin(size, &[7; 32]).await.expect("it begins");
    for (number, part) in program.chunks(1 << 20).enumerate() {
        let offset = u64::try_from(number << 20).expect("an offset");
        client.chunk(upload, offset, part).await.expect("it is stored");
    }
    assert_refused("another digest", client.finish(upload).await, "INVALID_ARGUMENT", &["image.digest"]);
    assert_refused("finished twice", client.finish(upload).await, "NOT_FOUND", &["upload"]);

    let upload = client.begin(10, &digest).await.expect("it begins");
    assert_refused(
        "beyond its size",
        client.chunk(upload, 0, &[0; 11]).await,
        "INVALID_ARGUMENT",
        &["11 bytes", "10", "image.size"],
    );
    let upload = client.begin(10, &digest).await.expect("it begins");
    client.chunk(upload, 0, &[0; 5]).await.expect("it is stored");
    assert_refused(
        "the same bytes again",
        client.chunk(upload, 0, &[0; 5]).await,
        "INVALID_ARGUMENT",
        &["chunk.offset is 0", "5 is next"],
    );
    let upload = client.begin(10, &digest).await.expect("it begins");
    client.chunk(upload, 0, &[0; 5]).await.expect("it is stored");
    assert_refused("the half of it", client.finish(upload).await, "INVALID_ARGUMENT", &["5 bytes", "10"]);

    drop(client);
    assert_nothing_is_left(&mut cluster, &data).await;
    // More than one connection may have open; those of the same client that are over do not count.
    let mut client = Controller::connect(&cluster).await;
    for _ in 0..dormouse_environment::limits::UPLOADS_OF_CONNECTION {
        client.begin(10, &digest).await.expect("it begins");
    }
    let many = client.begin(10, &digest).await.map(|_| unreachable!("it was begun"));
    assert_refused("one too many", many, "RESOURCE_EXHAUSTED", &["8 uploads", "limit"]);
    drop(client);
    assert_nothing_is_left(&mut cluster, &data).await;
    assert_served(&cluster).await;
}

async fn an_upload_that_breaks_off_leaves_nothing(database: Database) {
    let mut cluster = Cluster::up(database).await;
    let data = cluster.data_dir();
    for number in 0..20 {
        let mut client = Controller::connect(&cluster).await;
        let upload = client.begin(1 << 20, &[number; 32]).await.expect("it begins");
        client.chunk(upload, 0, &vec![number; 100_000]).await.expect("it is stored");
        if number % 2 == 0 {
            client.stranger.connection.close(0_u32.into(), b"");
        }
    }
    assert_nothing_is_left(&mut cluster, &data).await;
    let image: ImageRef = "sleeper".parse().expect("a name");
    assert!(cluster.client().image(&image).await.is_err());
    assert_served(&cluster).await;
}
