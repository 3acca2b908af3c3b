//! Storing and opening images, also by several at once and over damage.

use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

use dormouse_core::domain::id::{Digest, Name};
use dormouse_environment::images::{Images, OpenError, StoreError};
use sha2::{Digest as _, Sha256};

use crate::bench::fixture;

const MAX: u64 = 64 << 20;

fn images() -> (tempfile::TempDir, Images) {
    let folder = tempfile::tempdir().expect("a folder");
    let images = Images::open(folder.path(), MAX).expect("made");
    (folder, images)
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("images")).expect("readable");
    entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect()
}

#[test]
fn an_image_is_stored_under_its_digest_complete_and_unwritable() {
    let (folder, images) = images();
    let bytes = fs::read(fixture()).expect("readable");
    let digest = digest_of(&bytes);
    let size = u64::try_from(bytes.len()).expect("small");
    let mut upload = images.begin(size, digest).expect("begun");
    for chunk in bytes.chunks(100_000) {
        assert!(names_in(folder.path()).is_empty(), "a name before the end");
        let offset = upload.received();
        upload.write(offset, chunk).expect("written");
    }
    let stored = upload.finish().expect("an image");
    let names: Vec<_> = stored.inspection.workflows.iter().map(Name::as_str).collect();
    assert_eq!((stored.digest, stored.size, names), (digest, size, vec!["fixture", "another"]));
    assert_eq!(stored.inspection.sdk_version, "0.1.0");
    assert_eq!(names_in(folder.path()), [digest.to_string()]);
    let file = images.open_verified(&digest).expect("there");
    assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o555);
}

#[test]
fn what_does_not_match_its_announcement_is_refused_and_leaves_nothing() {
    let (folder, images) = images();
    let bytes = fs::read(fixture()).expect("readable");
    let size = u64::try_from(bytes.len()).expect("small");
    assert!(matches!(images.begin(MAX + 1, digest_of(b"")), Err(StoreError::TooLarge { .. })));

    let mut upload = images.begin(size, digest_of(b"other bytes")).expect("begun");
    upload.write(0, &bytes).expect("written");
    assert!(matches!(upload.finish(), Err(StoreError::Digest { .. })));

    let mut upload = images.begin(size, digest_of(&bytes)).expect("begun");
    assert!(matches!(upload.write(5, &bytes), Err(StoreError::Offset { expected: 0, .. })));
    upload.write(0, &bytes[1..]).expect("written");
    assert!(matches!(upload.write(size - 1, b"too many"), Err(StoreError::Size { .. })));
    assert!(matches!(upload.finish(), Err(StoreError::Size { .. })));

    let script = b"#!/bin/sh\n";
    let mut upload = images.begin(10, digest_of(script)).expect("begun");
    upload.write(0, script).expect("written");
    let refused = upload.finish().expect_err("a script");
    assert!(refused.to_string().contains("a script, not a compiled Linux program"), "{refused}");
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn a_program_without_the_sdk_is_told_what_it_lacks() {
    let (_folder, images) = images();
    let refused = images.store_file(&std::env::current_exe().expect("a path"));
    let message = match refused {
        // Test programs may be larger than this test's limit.
        Err(StoreError::TooLarge { .. }) => return,
        other => other.expect_err("no workflow").to_string(),
    };
    assert!(message.contains("link dormouse-sdk"), "{message}");
}

#[test]
fn the_same_image_stored_by_many_at_once_is_one_file() {
    let (folder, images) = images();
    let digests: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| images.store_file(&fixture()).expect("stored").digest)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    assert_eq!(names_in(folder.path()), [digests[0].to_string()]);
}

#[test]
fn damage_is_noticed_and_repaired_by_storing_again() {
    let (folder, images) = images();
    let digest = images.store_file(&fixture()).expect("stored").digest;
    images.open_verified(&digest).expect("sound");
    let path = folder.path().join("images").join(digest.to_string());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    fs::OpenOptions::new().append(true).open(&path).expect("opened").write_all(b"!").expect("written");

    assert!(matches!(images.open_verified(&digest), Err(OpenError::Damaged { .. })));
    images.store_file(&fixture()).expect("stored again");
    images.open_verified(&digest).expect("sound again");
    assert_eq!(names_in(folder.path()), [digest.to_string()]);

    assert!(images.remove(&digest).expect("removed"));
    assert!(!images.remove(&digest).expect("twice"));
    assert!(matches!(images.open_verified(&digest), Err(OpenError::Missing { .. })));
}
