//! `new`: a Cargo project with one workflow, its test, and the settings that launch fastest.
//!
//! The files stand in `new/project`, as they are but for `@NAME@`, `@SDK@` and `@TARGET@`. Nothing
//! that exists is overwritten, and a project that cannot be written whole is removed again.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

use anyhow::Context as _;

use super::Ctx;
use crate::{
    args::{Format, New},
    exit::{Exit, Usage},
    output::{print, print_json, say},
};

/// Path below the project, and what it holds.
const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("new/project/Cargo.toml.in")),
    (".cargo/config.toml", include_str!("new/project/cargo-config.toml.in")),
    (".gitignore", include_str!("new/project/gitignore.in")),
    ("README.md", include_str!("new/project/README.md.in")),
    ("src/main.rs", include_str!("new/project/main.rs.in")),
];

/// Longest name of a crate in a registry.
const NAME_MAX: usize = 64;

/// What Cargo or Rust would refuse, or what would depend on itself.
const TAKEN: [&str; 66] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dormouse-sdk",
    "dormouse_sdk",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "std",
    "static",
    "struct",
    "super",
    "test",
    "tokio",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "artifact",
    "con",
];

pub(crate) fn new(ctx: &Ctx, args: &New) -> anyhow::Result<Exit> {
    check_name(&args.name)?;
    let sdk = sdk(args)?;
    let target = target();
    let folder = Path::new(&args.name);
    make(folder, &args.name, &sdk, &target)?;
    let program = format!("{}/target/{target}/release/{}", args.name, args.name);
    match ctx.screen.format {
        Format::Json => print_json(&serde_json::json!({
            "name": args.name,
            "path": std::path::absolute(folder)?,
            "target": target,
            "program": std::path::absolute(&program)?,
        }))?,
        Format::Ids => print(&format!("{}\n", args.name))?,
        Format::Table => say(&format!(
            "made {0}: a workflow with its test. Next:\n  cd {0}\n  cargo test\n  cargo build --release\n  \
             dormouse run target/{target}/release/{0}",
            args.name
        )),
    }
    Ok(Exit::Done)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let problem = if name.len() > NAME_MAX {
        format!("has {} bytes; a crate's name has at most {NAME_MAX}", name.len())
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(good) {
        "is no name of a crate; it must be letters, digits, - and _, beginning with a letter".to_owned()
    } else if TAKEN.contains(&name.to_ascii_lowercase().as_str()) {
        "means something to Rust or Cargo already; choose another name".to_owned()
    } else {
        return Ok(());
    };
    Err(Usage(format!("NAME {name:?} {problem}")).into())
}

/// Where the project takes the SDK from, as TOML.
fn sdk(args: &New) -> anyhow::Result<String> {
    if let Some(path) = &args.sdk {
        let manifest = path.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap_or_default();
        if !text.lines().any(|line| line.trim() == "name = \"dormouse-sdk\"") {
            let problem = format!("--sdk {} holds no dormouse-sdk; name its folder", path.display());
            return Err(Usage(problem).into());
        }
        let path = path.canonicalize().with_context(|| format!("--sdk {}", path.display()))?;
        return Ok(format!("{{ path = {} }}", quoted(&path.display().to_string())));
    }
    let url = args.git.as_deref().unwrap_or(env!("CARGO_PKG_REPOSITORY"));
    Ok(format!("{{ git = {} }}", quoted(url)))
}

/// A TOML string: JSON's escapes are TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// This machine's architecture: programs run where they are built, until somebody says otherwise.
fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn make(folder: &Path, name: &str, sdk: &str, target: &str) -> anyhow::Result<()> {
    match DirBuilder::new().create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let problem = format!("{} exists already; choose another name, or remove it", folder.display());
            return Err(Usage(problem).into());
        }
        Err(error) => return Err(error).with_context(|| format!("{} cannot be made", folder.display())),
    }
    let written = FILES.iter().try_for_each(|(path, text)| {
        let text = text.replace("@NAME@", name).replace("@SDK@", sdk).replace("@TARGET@", target);
        write(&folder.join(path), &text).with_context(|| format!("{path} cannot be written"))
    });
    if written.is_err()
        && let Err(error) = fs::remove_dir_all(folder)
    {
        say(&format!("{} is incomplete and cannot be removed: {error}", folder.display()));
    }
    written
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for name in ["hello", "a", "order-2", "Order_x"] {
            check_name(name).unwrap_or_else(|error| panic!("{error}"));
        }
        let long = "a".repeat(65);
        for name in ["", "2nd", "-a", "a b", "a/b", "..", "ä", "a.b", "fn", "Test", "dormouse-sdk", &long] {
            let error = check_name(name).expect_err(name);
            assert_eq!(Exit::of_error(&error), Exit::Usage, "{error}");
        }
    }

    #[test]
    fn nothing_that_exists_is_overwritten() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("p");
        make(&folder, "p", "{ git = \"g\" }", "t").expect("made");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("written");
        assert!(manifest.contains("name = \"p\"") && manifest.contains("dormouse-sdk = { git = \"g\" }"));
        for (path, _) in FILES {
            let text = fs::read_to_string(folder.join(path)).expect("written");
            assert!(!["@NAME@", "@SDK@", "@TARGET@"].iter().any(|hole| text.contains(hole)), "{path}");
        }
        let error = make(&folder, "p", "other", "t").expect_err("it exists");
        assert_eq!(Exit::of_error(&error), Exit::Usage);
        assert_eq!(fs::read_to_string(folder.join("Cargo.toml")).expect("kept"), manifest);
    }
}
