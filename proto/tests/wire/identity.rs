//! The files of the folder `pki`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use dormouse_proto::endpoint::{CORE_NAME, Identity};
use dormouse_proto::identity::{Authority, IdentityError, Role};
use rcgen::ExtendedKeyUsagePurpose;

use crate::pair::certificate;

const ROLES: [Role; 3] = [Role::Core, Role::Environment, Role::Administrator];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn a_first_start_makes_owner_only_files_and_a_second_one_reads_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pki = folder.path().join("data/pki");
    let first = Authority::open_or_create(&pki).expect("an authority");
    let made = ROLES.map(|role| first.identity(role).expect("a certificate").certificate_pem);

    assert_eq!(mode(&pki), 0o700);
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(&pki).expect("the folder") {
        let entry = entry.expect("a file");
        assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
        names.push(entry.file_name().into_string().expect("ASCII"));
    }
    names.sort();
    let expected = ["administrator", "authority", "core", "environment"];
    let expected: Vec<String> =
        expected.iter().flat_map(|name| [format!("{name}.key"), format!("{name}.pem")]).collect();
    assert_eq!(names, expected);

    let second = Authority::open_or_create(&pki).expect("the same authority");
    assert_eq!(second.certificate_pem(), first.certificate_pem());
    assert_eq!(ROLES.map(|role| second.identity(role).expect("a certificate").certificate_pem), made);
    let loaded = Identity::load(&pki.join("core.pem"), &pki.join("core.key")).expect("both files");
    assert_eq!(loaded.certificate_pem, made[0]);
}

#[test]
fn two_first_starts_at_once_make_one_authority() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = Barrier::new(8);
    let made: Vec<(String, String)> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let authority = Authority::open_or_create(folder.path()).expect("an authority");
                    let identity = authority.identity(Role::Core).expect("a certificate");
                    (authority.certificate_pem().to_owned(), identity.certificate_pem)
                })
            })
            .collect();
        starts.into_iter().map(|start| start.join().expect("no panic")).collect()
    });
    assert!(made.iter().all(|other| *other == made[0]), "there are several authorities");
}

#[test]
fn what_a_cut_off_start_left_behind_does_not_matter() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = tempfile::tempdir().expect("a temporary folder");
    Authority::open_or_create(other.path())
        .expect("an authority")
        .identity(Role::Core)
        .expect("a certificate");
    // The authority's key without its certificate, a half-written file, a leaf's key newer than its certificate.
    fs::copy(other.path().join("authority.key"), folder.path().join("authority.key")).expect("copied");
    fs::write(folder.path().join(".authority.pem.new"), "half").expect("written");
    let authority = Authority::open_or_create(folder.path()).expect("an authority");
    let before = authority.identity(Role::Core).expect("a certificate");
    fs::copy(other.path().join("core.key"), folder.path().join("core.key")).expect("copied");
    let after = authority.identity(Role::Core).expect("a certificate");
    assert_ne!(before.certificate_pem, after.certificate_pem);
    assert_ne!(fs::read(other.path().join("core.key")).expect("a key"), after.key_pem.as_bytes());
}

#[test]
fn a_certificate_of_another_authority_is_made_anew() {
    let (ours, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    Authority::open_or_create(other.path())
        .expect("an authority")
        .identity(Role::Core)
        .expect("a certificate");
    let authority = Authority::open_or_create(ours.path()).expect("an authority");
    for name in ["core.pem", "core.key"] {
        fs::copy(other.path().join(name), ours.path().join(name)).expect("copied");
    }
    let identity = authority.identity(Role::Core).expect("a certificate");
    assert_ne!(identity.certificate_pem.as_bytes(), fs::read(other.path().join("core.pem")).expect("a file"));
}

#[test]
fn without_the_authoritys_key_certificates_are_read_and_not_made() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(folder.path()).expect("an authority");
    let issued = authority.identity(Role::Core).expect("a certificate");
    fs::remove_file(folder.path().join("authority.key")).expect("removed");
    let elsewhere = Authority::open_or_create(folder.path()).expect("the authority's certificate");
    assert_eq!(
        elsewhere.identity(Role::Core).expect("the issued one").certificate_pem,
        issued.certificate_pem
    );
    let missing = elsewhere.identity(Role::Environment);
    assert!(matches!(missing, Err(IdentityError::KeyElsewhere { role: "environment", .. })), "{missing:?}");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Authority::open_or_create(folder.path()).expect("an authority");
    let key = folder.path().join("authority.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("changed");
    let refused = Authority::open_or_create(folder.path());
    assert!(matches!(&refused, Err(IdentityError::Exposed { mode: 0o640, .. })), "{refused:?}");
}

#[test]
fn damaged_files_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(folder.path()).expect("an authority");
    authority.identity(Role::Core).expect("a certificate");
    fs::write(folder.path().join("core.pem"), "nonsense").expect("written");
    let refused = authority.identity(Role::Core).expect_err("damaged");
    assert!(refused.to_string().contains("core.pem"), "{refused}");
}

#[expect(clippy::disallowed_methods, reason = "certificates expire by the machine's clock")]
#[test]
fn certificates_last_a_year_and_the_authority_ten() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(folder.path()).expect("an authority");
    assert_eq!(authority.expiry(Role::Core).expect("readable"), None);
    authority.identity(Role::Core).expect("a certificate");
    let left = |expiry: SystemTime| expiry.duration_since(SystemTime::now()).expect("in the future");
    let days = |days: u64| Duration::from_hours(24 * days);
    let leaf = left(authority.expiry(Role::Core).expect("readable").expect("there"));
    assert!(leaf > days(364) && leaf <= days(365), "{leaf:?}");
    let root = left(authority.authority_expiry().expect("readable"));
    assert!(root > days(3649) && root <= days(3650), "{root:?}");
}

#[test]
fn a_certificate_is_made_anew_before_it_expires() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::open_or_create(folder.path()).expect("an authority");
    for (days_left, kept) in [(200, true), (100, false), (-1, false)] {
        let written = issue(folder.path(), days_left);
        let identity = authority.identity(Role::Core).expect("a certificate");
        assert_eq!(identity.certificate_pem == written, kept, "{days_left} days were left");
    }
    // Where the authority's key is not, a certificate serves to its last day.
    let short = issue(folder.path(), 1);
    let expired = |days_left| {
        issue(folder.path(), days_left);
        let key = folder.path().join("authority.key");
        let aside = folder.path().join("aside");
        fs::rename(&key, &aside).expect("moved");
        let found = Authority::open_or_create(folder.path()).expect("an authority").identity(Role::Core);
        fs::rename(&aside, &key).expect("moved back");
        found
    };
    assert_ne!(expired(1).expect("still valid").certificate_pem, short, "another one was issued since");
    assert!(matches!(expired(-1), Err(IdentityError::KeyElsewhere { role: "core", .. })));
}

/// Writes a certificate for core, by the folder's authority, that is valid for so many more days.
fn issue(folder: &Path, days_left: i64) -> String {
    let made = certificate(folder, CORE_NAME, ExtendedKeyUsagePurpose::ServerAuth, days_left);
    for (name, text) in [("core.key", &made.key_pem), ("core.pem", &made.certificate_pem)] {
        fs::write(folder.join(name), text).expect("written");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).expect("changed");
    }
    made.certificate_pem
}
