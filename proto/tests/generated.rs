//! The generated code is checked in, so that nobody needs `protoc` and so that its changes are reviewed. This
//! test generates it again, in a temporary directory, and compares.
//! `DORMOUSE_REGENERATE=1 cargo test -p dormouse-proto --test generated` writes it instead.

use std::path::{Path, PathBuf};
use std::{env, fs};

const PROTOS: [&str; 3] = ["instance.proto", "launch.proto", "management.proto"];

#[expect(clippy::disallowed_methods, reason = "the switch of the person who runs the test")]
#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a temporary directory");
    generate(&root.join("proto"), fresh.path());

    let checked_in = root.join("src/generated");
    if env::var_os("DORMOUSE_REGENERATE").is_some_and(|value| value == "1") {
        for file in files(fresh.path()) {
            fs::copy(fresh.path().join(&file), checked_in.join(&file)).expect("copying generated code");
        }
    }

    assert_eq!(files(fresh.path()), files(&checked_in), "the files of src/generated");
    for file in files(fresh.path()) {
        let (new, old) =
            (fs::read_to_string(fresh.path().join(&file)), fs::read_to_string(checked_in.join(&file)));
        assert!(
            new.expect("generated text") == old.expect("checked-in text"),
            "src/generated/{} is not what the .proto files say; run this test with DORMOUSE_REGENERATE=1",
            file.display()
        );
    }
}

fn generate(protos: &Path, out: &Path) {
    let descriptors = protox::compile(PROTOS, [protos]).expect("the .proto files compile");
    prost_build::Config::new()
        .out_dir(out)
        // Ordered, so that equal messages have equal bytes.
        .btree_map(["."])
        // What is an author's is not copied out of the frame that it came in.
        .bytes([
            ".dormouse.instance.v1.Payload.data",
            ".dormouse.instance.v1.Registered.checkpoints",
            ".dormouse.instance.v1.CheckpointPage.checkpoints",
            ".dormouse.management.v1.Payload.data",
        ])
        // These hold secrets: src/secret.rs writes their Debug.
        .skip_debug([
            ".dormouse.instance.v1.RegisterInstance",
            ".dormouse.instance.v1.Standby",
            ".dormouse.launch.v1.LaunchDocument",
            ".dormouse.launch.v1.SpareDocument",
            ".dormouse.management.v1.Hello",
        ])
        .compile_fds(descriptors)
        .expect("prost generates code");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| PathBuf::from(entry.expect("a readable entry").file_name()))
        .collect();
    names.sort();
    names
}
