//! Images by digest, names and versions.

use std::time::Duration;

use dormouse_core::{
    domain::id::{Digest, Tenant},
    store::{IMAGE_CHUNK_BYTES, ImageOptions, NewImage, Notice, image_chunks},
};
use dormouse_proto::standby::SpareKey;

use crate::db::{self, TestDb, code, name};

contract! {
    a_version_points_at_one_digest_for_ever,
    an_image_in_use_is_not_deleted,
    bytes_stay_while_another_version_needs_them,
    images_are_the_tenants_own,
    versions_are_listed_newest_first,
    a_name_points_at_whole_bytes_only,
    bytes_that_came_to_nothing_are_swept,
    the_last_name_takes_its_bytes_along,
    bytes_that_are_not_in_the_database_are_named,
    how_processes_are_kept_is_the_versions_own,
    the_key_of_spares_is_of_a_lease_that_is_held,
}

fn image(version: &str, digest: u8) -> NewImage {
    NewImage {
        tenant: db::tenant(),
        name: name("app"),
        version: name(version),
        digest: Digest([digest; 32]),
        size: 10,
        workflows: vec![name("x"), name("y")],
        sdk_version: "0.1.0".to_owned(),
        architecture: "x86_64".to_owned(),
        chunks: 0,
    }
}

async fn a_version_points_at_one_digest_for_ever(db: TestDb) {
    let (stored, existed) = db.store.put_image(image("1", 1)).await.expect("stored");
    assert!(!existed);
    assert_eq!(stored.workflows, [name("x"), name("y")]);
    let (again, existed) = db.store.put_image(image("1", 1)).await.expect("the same");
    assert!(existed);
    assert_eq!(again, stored);
    assert_eq!(code(db.store.put_image(image("1", 2)).await), "ALREADY_EXISTS");
    let found = db.store.image(&db::tenant(), &name("app"), None).await.expect("found");
    assert_eq!(found, stored);
}

async fn an_image_in_use_is_not_deleted(db: TestDb) {
    let id = db.start("a").await;
    let (tenant, img) = (db::tenant(), name("img"));
    let error = db.store.delete_image(&tenant, &img, None).await.expect_err("in use");
    assert!(error.to_string().contains("1 instances"), "{error}");
    assert_eq!(code::<()>(Err(error)), "FAILED_PRECONDITION");
    db.store.cancel(&tenant, &id).await.expect("ends");
    let deleted = db.store.delete_image(&tenant, &img, Some(&name("1"))).await.expect("deleted");
    assert_eq!((deleted.versions, deleted.unused.len()), (1, 1));
    assert_eq!(code(db.store.delete_image(&tenant, &img, None).await), "NOT_FOUND");
    assert_eq!(db.instance(&id).await.version, name("1"), "what has ended still says what it ran");
}

async fn bytes_stay_while_another_version_needs_them(db: TestDb) {
    db.store.put_image(image("1", 1)).await.expect("stored");
    db.store.put_image(image("2", 1)).await.expect("stored");
    db.store.put_image(image("3", 3)).await.expect("stored");
    let tenant = db::tenant();
    let deleted = db.store.delete_image(&tenant, &name("app"), Some(&name("1"))).await.expect("deleted");
    assert_eq!((deleted.versions, deleted.unused.as_slice()), (1, [].as_slice()));
    let deleted = db.store.delete_image(&tenant, &name("app"), None).await.expect("deleted");
    assert_eq!((deleted.versions, deleted.unused), (2, vec![Digest([1; 32]), Digest([3; 32])]));
}

async fn images_are_the_tenants_own(db: TestDb) {
    let stranger = Tenant::parse("stranger").expect("a tenant");
    assert!(db.store.images(&stranger, None).await.expect("a list").is_empty());
    assert_eq!(code(db.store.image(&stranger, &name("img"), None).await), "NOT_FOUND");
    assert_eq!(code(db.store.delete_image(&stranger, &name("img"), None).await), "NOT_FOUND");
    let own = NewImage { tenant: stranger.clone(), name: name("img"), ..image("1", 9) };
    db.store.put_image(own).await.expect("names are the tenant's");
    assert_eq!(db.store.images(&stranger, None).await.expect("a list").len(), 1);
}

async fn versions_are_listed_newest_first(db: TestDb) {
    for (version, digest) in [("10", 1), ("9", 2), ("2", 3)] {
        db.store.put_image(image(version, digest)).await.expect("stored");
    }
    let of = |images: Vec<dormouse_core::store::Image>| -> Vec<String> {
        images.iter().map(|image| format!("{}:{}", image.name, image.version)).collect()
    };
    let app = db.store.images(&db::tenant(), Some(&name("app"))).await.expect("a list");
    assert_eq!(of(app), ["app:2", "app:9", "app:10"]);
    let all = db.store.images(&db::tenant(), None).await.expect("a list");
    assert_eq!(of(all), ["app:2", "app:9", "app:10", "img:1"]);
}

/// Two chunks and a bit.
const SIZE: u64 = 2 * IMAGE_CHUNK_BYTES as u64 + 5;

fn large(version: &str, digest: u8) -> NewImage {
    NewImage { size: SIZE, chunks: image_chunks(SIZE), ..image(version, digest) }
}

fn chunk_of(number: u32) -> Vec<u8> {
    let len = if number == 3 { 5 } else { IMAGE_CHUNK_BYTES };
    vec![number.to_le_bytes()[0]; len]
}

async fn upload(db: &TestDb, image: &NewImage) {
    assert!(!db.store.begin_image_bytes(image).await.expect("begun"), "nothing is there yet");
    for number in 1..=3 {
        db.store.put_image_chunk(image.digest, number, chunk_of(number)).await.expect("stored");
    }
}

async fn chunks(db: &TestDb, digest: Digest) -> Option<u32> {
    db.store.image_bytes(digest).await.expect("a look").map(|bytes| bytes.chunks)
}

async fn a_name_points_at_whole_bytes_only(db: TestDb) {
    let image = large("1", 7);
    let incomplete = "UNAVAILABLE";
    assert_eq!(code(db.store.put_image(image.clone()).await), incomplete, "nothing came");
    assert!(!db.store.begin_image_bytes(&image).await.expect("begun"));
    for number in [1, 3] {
        db.store.put_image_chunk(image.digest, number, chunk_of(number)).await.expect("stored");
    }
    assert_eq!(code(db.store.put_image(image.clone()).await), incomplete, "one is missing");
    db.store.put_image_chunk(image.digest, 2, vec![1]).await.expect("stored");
    assert_eq!(code(db.store.put_image(image.clone()).await), incomplete, "one is too short");
    assert_eq!(chunks(&db, image.digest).await, Some(0));
    assert!(db.store.images(&db::tenant(), Some(&image.name)).await.expect("a list").is_empty());

    db.store.put_image_chunk(image.digest, 2, chunk_of(2)).await.expect("the right one");
    db.store.put_image(image.clone()).await.expect("whole");
    assert_eq!(chunks(&db, image.digest).await, Some(3));
    assert!(db.store.begin_image_bytes(&image).await.expect("again"), "everything is there");
    for number in 1..=3 {
        let chunk = db.store.image_chunk(image.digest, number).await.expect("read");
        assert_eq!(chunk, Some(chunk_of(number)));
    }
    assert_eq!(db.store.image_chunk(image.digest, 4).await.expect("read"), None);
}

async fn bytes_that_came_to_nothing_are_swept(db: TestDb) {
    let image = large("1", 7);
    upload(&db, &image).await;
    assert!(!db.store.sweep_images().await.expect("a sweep"), "an upload has an hour");
    db.advance(Duration::from_hours(1));
    assert!(!db.store.begin_image_bytes(&image).await.expect("begun anew"));
    assert!(!db.store.sweep_images().await.expect("a sweep"), "and another from its new begin");
    db.advance(Duration::from_hours(1));
    while db.store.sweep_images().await.expect("a sweep") {}
    assert_eq!(chunks(&db, image.digest).await, None);
    assert_eq!(db.store.image_chunk(image.digest, 1).await.expect("read"), None);
    assert_eq!(code(db.store.put_image(image).await), "UNAVAILABLE", "too late: it is sent again");
}

async fn the_last_name_takes_its_bytes_along(db: TestDb) {
    let image = large("1", 7);
    upload(&db, &image).await;
    db.store.put_image(image.clone()).await.expect("stored");
    assert_eq!(db.store.unneeded_images(vec![image.digest]).await.expect("asked"), []);
    let deleted = db.store.delete_image(&db::tenant(), &image.name, None).await.expect("deleted");
    assert_eq!(deleted.unused, [image.digest]);
    assert_eq!(chunks(&db, image.digest).await, Some(0), "nobody fetches them from now on");

    // A push that comes before the sweep keeps what is there.
    upload(&db, &image).await;
    db.store.put_image(image.clone()).await.expect("stored again");
    assert!(!db.store.sweep_images().await.expect("a sweep"));
    db.store.delete_image(&db::tenant(), &image.name, None).await.expect("deleted");
    while db.store.sweep_images().await.expect("a sweep") {}
    assert_eq!(chunks(&db, image.digest).await, None);
    let unneeded = db.store.unneeded_images(vec![image.digest]).await.expect("asked");
    assert_eq!(unneeded, [image.digest], "every node may remove its file");
}

async fn bytes_that_are_not_in_the_database_are_named(db: TestDb) {
    db.store.put_image(image("1", 7)).await.expect("as release 0.1.0 does");
    let without = db.store.images_without_bytes(None, 10).await.expect("a list");
    assert!(without.contains(&Digest([7; 32])));
    upload(&db, &large("1", 7)).await;
    assert_eq!(code(db.store.complete_image_bytes(Digest([7; 32]), 3).await), "UNAVAILABLE", "another size");
    let image = large("2", 8);
    upload(&db, &image).await;
    db.store.put_image(image.clone()).await.expect("stored");
    db.store.doubt_image_bytes(image.digest).await.expect("doubted");
    assert_eq!(chunks(&db, image.digest).await, Some(0), "a node that has the file stores it again");
    upload(&db, &image).await;
    db.store.complete_image_bytes(image.digest, 3).await.expect("whole");
    assert_eq!(chunks(&db, image.digest).await, Some(3));
}

async fn how_processes_are_kept_is_the_versions_own(db: TestDb) {
    for (version, digest) in [("1", 1), ("2", 2)] {
        db.store.put_image(image(version, digest)).await.expect("stored");
    }
    let app = name("app");
    let set = async |version: Option<&str>, spares, reuse| {
        let version = version.map(name);
        db.store
            .set_image_options(&db::tenant(), &app, version.as_ref(), ImageOptions { spares, reuse })
            .await
    };
    assert!(db.store.kept_images().await.expect("a list").is_empty(), "nothing is kept unasked");
    let mut notices = db.store.notices();
    let newest = set(None, Some(3), None).await.expect("set");
    assert_eq!((newest.version.as_str(), newest.spares, newest.reuse), ("2", 3, 1));
    assert_eq!(notices.next().await, Some(Notice::Images));
    set(Some("1"), None, Some(50)).await.expect("set");
    let both = set(Some("2"), None, Some(7)).await.expect("set");
    assert_eq!((both.spares, both.reuse), (3, 7), "what is not named stays");
    let kept = db.store.kept_images().await.expect("a list");
    let kept: Vec<_> = kept.iter().map(|kept| (kept.version.as_str(), kept.spares, kept.reuse)).collect();
    assert_eq!(kept, [("1", 0, 50), ("2", 3, 7)]);
    // The same image again is the same version.
    let again = db.store.put_image(image("2", 2)).await.expect("there").0;
    assert_eq!((again.spares, again.reuse), (3, 7));

    assert_eq!(code(set(None, Some(65), None).await), "INVALID_ARGUMENT");
    assert_eq!(code(set(None, None, Some(10_001)).await), "INVALID_ARGUMENT");
    assert_eq!(code(set(Some("9"), Some(1), None).await), "NOT_FOUND");
    assert_eq!(set(Some("1"), None, Some(0)).await.expect("set").reuse, 1, "a process serves one at least");
    db.store.delete_image(&db::tenant(), &app, None).await.expect("deleted");
    assert!(db.store.kept_images().await.expect("a list").is_empty());
}

async fn the_key_of_spares_is_of_a_lease_that_is_held(db: TestDb) {
    let first = db.node("n").await;
    assert_eq!(db.store.spare_key(&first.node).await.expect("a look"), None);
    let key = SpareKey([3; 32]);
    db.store.give_spare_key(&first, key).await.expect("given");
    assert_eq!(db.store.spare_key(&first.node).await.expect("a look"), Some((first.epoch, key)));
    let second = db.node("n").await;
    assert!(db.store.give_spare_key(&first, SpareKey([4; 32])).await.is_err(), "its lease was taken");
    // The key stays, and what it signed under the lease before counts no more.
    assert_eq!(db.store.spare_key(&first.node).await.expect("a look"), Some((second.epoch, key)));
    assert!(db.store.lose_lease(&second, 0).await.expect("a look"));
    assert_eq!(db.store.spare_key(&first.node).await.expect("a look"), None, "nobody holds the lease");
}
