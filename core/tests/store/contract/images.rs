//! Images by digest, names and versions.

use dormouse_core::{
    domain::id::{Digest, Tenant},
    store::NewImage,
};

use crate::db::{self, TestDb, code, name};

contract! {
    a_version_points_at_one_digest_for_ever,
    an_image_in_use_is_not_deleted,
    bytes_stay_while_another_version_needs_them,
    images_are_the_tenants_own,
    versions_are_listed_newest_first,
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
