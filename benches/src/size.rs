//! What Dormouse weighs: its stripped programs, the crates behind them, and how long they take to build.
//!
//! Builds are measured only when they are asked for by name: they begin with nothing, in a folder of their own, and take
//! longer than all workloads of a database.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};

use crate::{
    context::Context,
    figure::{Figure, Limit, Target, Unit},
    machine::WORKSPACE,
    registry::{Entry, Findings, Kind, Measured, Run},
};

/// Bytes of the stripped command, which holds both services.
const DORMOUSE: f64 = 30e6;
/// Bytes of a stripped workflow.
const WORKFLOW: f64 = 5e6;
/// Crates of everything, and of what an author links.
const CRATES: [(&str, &[&str], f64); 2] =
    [("size.crates", &["--workspace"], 400.0), ("size.crates.author", &["--package", "dormouse-sdk"], 60.0)];

pub(crate) fn entries() -> [Entry; 2] {
    [
        Entry { name: "size", kind: Kind::Workload, needs: &[], run: Run::Once(size) },
        Entry { name: "build", kind: Kind::Build, needs: &[], run: Run::Once(build) },
    ]
}

fn size(context: &Context) -> Measured<'_> {
    Box::pin(async move {
        let programs = context.programs();
        let mut figures = Vec::new();
        for (id, what, program, most) in [
            ("size.dormouse", "`dormouse`, stripped", programs.service("dormouse")?, DORMOUSE),
            ("size.workflow", "the image of the workloads, stripped", programs.image()?, WORKFLOW),
        ] {
            let bytes = stripped(context, &program)?;
            figures
                .push(Figure::of(Unit::Bytes, id, what, vec![bytes]).held(Limit::None, Target::AtMost(most)));
        }
        for (id, packages, most) in CRATES {
            let what =
                format!("crates of others that are built for {}, without those of tests", packages.join(" "));
            let count = crates(packages)?;
            figures
                .push(Figure::of(Unit::Count, id, what, vec![count]).held(Limit::None, Target::AtMost(most)));
        }
        Ok(Findings::from(figures))
    })
}

/// Bytes of a copy from which `strip` took what the program does not need to run.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn stripped(context: &Context, program: &Path) -> anyhow::Result<f64> {
    let folder = context.folder("strip")?;
    let copy = folder.join("program");
    let status = Command::new("strip").arg("-o").arg(&copy).arg(program).stdin(Stdio::null()).status();
    let status = status.context("strip, which comes with a C compiler's tools")?;
    ensure!(status.success(), "strip of {} failed, {status}", program.display());
    let bytes = fs::metadata(&copy)?.len();
    fs::remove_dir_all(&folder)?;
    Ok(bytes as f64)
}

/// Those of others, counted by name and version, for this machine's target, as they are locked.
#[expect(clippy::cast_precision_loss, reason = "some hundred")]
fn crates(packages: &[&str]) -> anyhow::Result<f64> {
    let mut command = cargo();
    command.args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none"]);
    let output = command.args(["--format", "{p}"]).args(packages).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo tree failed, {}; what it said stands above", output.status);
    let text = String::from_utf8(output.stdout).context("cargo tree")?;
    // `name v1.2.3 (*)`, or with `(proc-macro)`; ours have their folder there.
    let named = text.lines().filter(|line| !line.contains(" (/")).filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?))
    });
    Ok(named.collect::<BTreeSet<_>>().len() as f64)
}

fn build(context: &Context) -> Measured<'_> {
    Box::pin(async move {
        let workflow: &[&str] = &["rustc", "--profile=workflow", "--package", "dormouse-workload", "--bin"];
        let workflow = [workflow, &["dormouse-workload", "--", "-Ctarget-feature=+crt-static"]].concat();
        let services = ["build", "--release", "--package", "dormouse"];
        let (mut figures, all) =
            (Vec::new(), [("build.workflow", workflow.as_slice()), ("build.dormouse", services.as_slice())]);
        for (id, arguments) in all {
            let what = format!("`cargo {}`, from nothing but downloaded sources", arguments[..4].join(" "));
            figures.push(Figure::of(Unit::Seconds, id, what, vec![built(context, arguments)?]));
        }
        Ok(Findings::from(figures))
    })
}

/// Seconds of one build into an empty folder.
fn built(context: &Context, arguments: &[&str]) -> anyhow::Result<f64> {
    let target = context.folder("build")?;
    let mut command = cargo();
    command.args(arguments.first()).args(["--quiet", "--locked", "--offline", "--target-dir"]).arg(&target);
    let began = Instant::now();
    let status = command.args(&arguments[1..]).status()?;
    let took = began.elapsed();
    ensure!(status.success(), "{command:?} failed, {status}; mend what it says above");
    fs::remove_dir_all(&target)?;
    Ok(took.as_secs_f64())
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(WORKSPACE).stdin(Stdio::null());
    command
}
