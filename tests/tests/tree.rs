//! Rules about the source tree itself that no compiler checks: sizes and names of files, pages that
//! must exist, invariants that must have a test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use dormouse_proto::code::Code;
use sha2::{Digest, Sha256};

const MOST_LINES: usize = 1000;
/// A file of such a name collects what has no place; find the place.
const NAMES_WITHOUT_MEANING: [&str; 4] = ["util.rs", "common.rs", "types.rs", "helpers.rs"];
const INVARIANTS: usize = 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below the workspace with this ending, but for build output and hidden folders.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder of the workspace is readable").path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy();
            if path.is_symlink() || name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                walk(&path, ending, found);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    assert!(!found.is_empty(), "no {ending} below {}", root().display());
    found
}

/// Our own Rust files: generated code has no reader.
fn sources() -> Vec<PathBuf> {
    files(".rs").into_iter().filter(|path| !path.iter().any(|part| part == "generated")).collect()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

#[test]
fn no_file_has_more_than_1000_lines() {
    let long: Vec<String> = sources()
        .iter()
        .map(|path| (path, read(path).lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{} has {lines} lines", relative(path)))
        .collect();
    assert!(long.is_empty(), "split by request, table or subject: {long:#?}");
}

#[test]
fn no_file_has_a_name_without_meaning() {
    let nameless: Vec<String> = sources()
        .iter()
        .filter(|path| NAMES_WITHOUT_MEANING.iter().any(|name| path.ends_with(name)))
        .map(|path| relative(path))
        .collect();
    assert!(nameless.is_empty(), "name it after what it holds: {nameless:?}");
}

#[test]
fn each_error_code_has_a_page_and_each_page_a_code() {
    let codes: BTreeSet<String> = Code::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    let folder = root().join("docs/errors");
    let pages: BTreeSet<String> = files(".md")
        .iter()
        .filter(|path| path.starts_with(&folder))
        .map(|path| path.file_stem().expect("a page has a name").to_string_lossy().into_owned())
        .collect();
    assert_eq!(pages, codes, "docs/errors (left) and the codes in proto/src/code.rs (right)");
    for code in &codes {
        let page = read(&folder.join(format!("{code}.md")));
        assert_eq!(page.lines().next(), Some(format!("# {code}").as_str()), "the title of {code}.md");
        for part in ["**Causes.**", "**Remedy.**", "**May a repeat help?**"] {
            assert!(page.contains(part), "docs/errors/{code}.md has no part {part}");
        }
    }
}

#[test]
fn both_databases_have_migrations_of_the_same_numbers_and_names() {
    let names = |database: &str| -> BTreeSet<String> {
        let folder = root().join("migrations").join(database);
        let of_folder = files(".sql").into_iter().filter(|path| path.starts_with(&folder));
        of_folder.map(|path| path.file_name().expect("a file").to_string_lossy().into_owned()).collect()
    };
    let sqlite = names("sqlite");
    assert!(!sqlite.is_empty(), "no migration was found");
    assert_eq!(sqlite, names("postgres"), "migrations/sqlite (left) and migrations/postgres (right)");
    for (at, name) in sqlite.iter().enumerate() {
        let number = name.split('_').next().and_then(|number| number.parse().ok());
        assert_eq!(number, Some(at + 1), "{name}: numbers begin at 0001 and have no gaps");
    }
}

/// A step that was released is applied somewhere, and an edit would never get there.
#[test]
fn a_released_migration_is_never_edited() {
    let folder = root().join("migrations");
    let released = read(&folder.join("released.sha256"));
    assert!(released.lines().count() >= 2, "the list of released migrations is empty");
    for line in released.lines() {
        let (digest, name) = line.split_once("  ").expect("a line as of sha256sum");
        let text = fs::read(folder.join(name)).unwrap_or_else(|error| panic!("migrations/{name}: {error}"));
        assert_eq!(
            format!("{:x}", Sha256::digest(text)),
            digest,
            "migrations/{name} was released and is edited; take it back and add the next number"
        );
    }
}

#[test]
fn each_invariant_has_a_test_named_after_it() {
    let texts: Vec<String> = sources().iter().map(|path| read(path)).collect();
    let missing: Vec<usize> = (1..=INVARIANTS)
        .filter(|number| !texts.iter().any(|text| text.contains(&format!("fn invariant_{number}_"))))
        .collect();
    assert!(missing.is_empty(), "no test is named invariant_N_… for N in {missing:?}");
}

/// ARCHITECTURE.md, CONTRIBUTING.md, README.md and docs name files in backticks and links.
#[test]
fn each_path_that_a_document_names_exists() {
    let mut missing = Vec::new();
    for document in files(".md") {
        let folder = document.parent().expect("a file is in a folder").to_path_buf();
        for named in paths_in(&read(&document)) {
            if !folder.join(&named).exists() && !root().join(&named).exists() {
                missing.push(format!("{} names {named}", relative(&document)));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// What looks like a path of this tree: the target of a link, or `folder/…` in backticks.
fn paths_in(text: &str) -> Vec<String> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://")).map(|link| link.split('#').next().unwrap_or(""));
    let top: BTreeSet<String> = fs::read_dir(root())
        .expect("the root is readable")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    let quoted = text.split('`').skip(1).step_by(2);
    let quoted = quoted.filter(|word| {
        let is_path = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        is_path && word.split_once('/').is_some_and(|(first, _)| top.contains(first) && first != "target")
    });
    links.chain(quoted).filter(|path| !path.is_empty()).map(str::to_owned).collect()
}
