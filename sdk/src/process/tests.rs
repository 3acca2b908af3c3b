//! Real processes: this test binary launches itself as an image.
//!
//! A child runs the one test [`image`], which hands it over to the SDK. The launch document comes through
//! a shell's redirection, as descriptor 3.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use dormouse_proto::{
    instance::{Checkpoint, OperationName, checkpoint, client_frame::Operation},
    launch::LaunchDocument,
};
use prost::Message as _;

use crate::{
    Context, Failure, Result, blocking,
    connection::tests::server::Instance,
    days, launched, operation,
    testing::core::{Action, Ended},
};

/// Names the file into which steps of children write a line each time they run.
const SIDE_FILE: &str = "DORMOUSE_TEST_SIDE_FILE";

#[expect(clippy::disallowed_methods, reason = "how a test's child learns of its file")]
fn note(line: &str) {
    let path = std::env::var(SIDE_FILE).expect("a child knows its side file");
    let mut file =
        std::fs::OpenOptions::new().append(true).create(true).open(path).expect("it can be written");
    file.write_all(format!("{line}\n").as_bytes()).expect("it can be written");
}

async fn steps(ctx: Context, n: u64) -> Result<u64> {
    let mut sum = 0;
    for i in 0..n {
        let step = ctx.step("step", move || async move {
            note(&format!("step {i}"));
            Ok::<_, Failure>(i)
        });
        sum += step.key(i).await?;
    }
    Ok(sum)
}

async fn sleeper(ctx: Context, n: u64) -> Result<u64> {
    let sum = steps(ctx.clone(), n).await?;
    match ctx.signal::<u64>("word").within(days(1)).await? {
        Some(word) => Ok(sum + word),
        None => Ok(sum),
    }
}

/// Goes through what is stored, and says how much memory it took at most.
async fn resumes(ctx: Context, n: u64) -> Result<u64> {
    for i in 0..n {
        ctx.step("step", || async { Err::<String, _>(Failure::new("RAN", "it was saved")) }).key(i).await?;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
    peak.ok_or_else(|| Failure::new("STATUS", status))
}

async fn chatty(_: Context, (): ()) -> Result<u64> {
    // Holds stdout for ever, on a thread that nobody joins.
    print!("half a line");
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    Ok(1)
}

#[expect(clippy::unnecessary_wraps, reason = "what a workflow returns")]
fn stubborn(_: blocking::Context, (): ()) -> Result<u64> {
    std::thread::spawn(|| {
        let _held = std::io::stdout().lock();
        loop {
            std::thread::park();
        }
    });
    Ok(2)
}

async fn panics(ctx: Context, (): ()) -> Result<u64> {
    ctx.step_blocking("bad", || -> Result<u64> { panic!("the author's own words") }).await
}

/// What a child runs; in the test run itself it shows that nothing happens without a launch.
#[test]
#[expect(unsafe_code, reason = "the macro names a section; in other crates the lint does not look into it")]
fn image() {
    let image = crate::image!(steps, sleeper, resumes, chatty, stubborn, panics as "panic-at-once");
    if launched() || std::env::args().any(|argument| argument == "by-hand") {
        image.run();
    }
}

/// Runs this binary as a child with `document` as descriptor 3.
#[expect(clippy::disallowed_methods, reason = "a test of processes starts processes")]
async fn run(document: Vec<u8>, folder: &Path, kill_at: &str) -> Output {
    let (file, program) = (folder.join("document"), std::env::current_exe().unwrap());
    std::fs::write(&file, document).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" --exact process::tests::image --nocapture 3<\"$1\""])
        .args([program.as_os_str(), file.as_os_str()])
        .env("DORMOUSE_LAUNCH_FD", "3")
        .env(SIDE_FILE, folder.join("side"))
        .stdin(Stdio::null());
    if !kill_at.is_empty() {
        command.env("DORMOUSE_SDK_KILL_AT", kill_at);
    }
    tokio::process::Command::from(command).output().await.unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[expect(clippy::needless_pass_by_value, reason = "each launch has its own document")]
fn document(document: LaunchDocument) -> Vec<u8> {
    document.encode_to_vec()
}

fn output(instance: &Instance) -> u64 {
    match instance.core(|core| core.ended.clone()) {
        Some(Ended::Completed(output)) => operation::decode(&output).unwrap(),
        other => panic!("not completed: {other:?}"),
    }
}

#[tokio::test]
async fn an_empty_document_means_that_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(Vec::new(), folder.path(), "").await;
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert!(!folder.path().join("side").exists());
}

#[tokio::test]
async fn a_document_that_does_not_read_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(b"\xff\xff\xff".to_vec(), folder.path(), "").await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let newer = LaunchDocument { format: 99, ..LaunchDocument::default() };
    let output = run(document(newer), folder.path(), "").await;
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("format is 99"), "{}", stderr(&output));
}

#[expect(clippy::disallowed_methods, reason = "a test of processes starts processes")]
#[test]
fn a_process_that_is_started_by_hand_says_how_it_is_meant() {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", "process::tests::image", "--nocapture", "by-hand"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("dormouse run") && text.contains("sleeper"), "{text}");
}

#[tokio::test]
async fn killed_at_each_point_it_ends_right_and_runs_no_saved_step_again() {
    let points = [
        "after-register",
        "before-step:2",
        "step-ran:2",
        "before-checkpoint:2",
        "after-checkpoint:2",
        "before-complete",
        "after-complete",
    ];
    for point in points {
        let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("steps", 4));
        let server = instance.serve();
        let killed = run(document(server.launch()), folder.path(), point).await;
        assert_eq!(killed.status.code(), None, "{point}: a signal ended it: {}", stderr(&killed));
        if point != "after-complete" {
            let ended = run(document(server.launch()), folder.path(), "").await;
            assert_eq!(ended.status.code(), Some(0), "{point}: {}", stderr(&ended));
        }
        assert_eq!(output(&instance), 6, "{point}");
        let side = std::fs::read_to_string(folder.path().join("side")).unwrap();
        // What was done and not saved is done again, nothing else.
        let expected = if matches!(point, "step-ran:2" | "before-checkpoint:2") { 5 } else { 4 };
        assert_eq!(side.lines().count(), expected, "{point}: {side}");
    }
}

#[tokio::test]
async fn a_suspension_ends_the_process_and_a_relaunch_goes_on() {
    let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("sleeper", 2));
    let server = instance.serve();
    for point in ["before-suspend", "after-suspend", ""] {
        let gone = run(document(server.launch()), folder.path(), point).await;
        assert_eq!(gone.status.code(), if point.is_empty() { Some(0) } else { None }, "{point}");
    }
    let payload = operation::encode("signal", &40).unwrap();
    instance.act(Action::Signal { name: "word".to_owned(), payload }).await;
    let ended = run(document(server.launch()), folder.path(), "").await;
    assert_eq!((ended.status.code(), output(&instance)), (Some(0), 41));
    let side = std::fs::read_to_string(folder.path().join("side")).unwrap();
    assert_eq!(side, "step 0\nstep 1\n");
}

/// What a launch that resumes holds of its checkpoints is what came, once, and little beside.
#[tokio::test]
async fn very_many_checkpoints_are_held_once() {
    const BYTES: usize = 500;
    let mut peaks = Vec::new();
    for n in [1_u64, 100_000] {
        let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("resumes", n));
        let instance = instance.pages_of(1000).streaming();
        for i in 0..n {
            let name = OperationName { name: "step".to_owned(), key: i.to_string(), slot: 0 };
            let payload = operation::encode("a result", &"x".repeat(BYTES)).unwrap();
            let checkpoint = Checkpoint {
                operation: Some(name),
                kind: "step".to_owned(),
                value: Some(checkpoint::Value::Payload(payload)),
                note: String::new(),
            };
            instance.core(|core| drop(core.handle(&Operation::Checkpoint(checkpoint))));
        }
        let server = instance.serve();
        let pages = usize::try_from(n.div_ceil(1000) - 1).unwrap();
        let launch = document(server.launch());
        let (ended, ()) = tokio::join!(run(launch, folder.path(), ""), instance.stream(pages));
        assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
        peaks.push(output(&instance) << 10);
    }
    let (held, came) = (peaks[1] - peaks[0], 100_000 * BYTES as u64);
    // Names on the wire, an entry that finds it, and the name that this launch has used.
    let beside = 100_000 * 380;
    assert!(held < came + beside, "{held} bytes for {came}");
}

#[tokio::test]
async fn output_is_flushed_and_other_threads_hold_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (workflow, said) in [("chatty", "half a line"), ("stubborn", "")] {
        let instance = Instance::new(workflow, ());
        let server = instance.serve();
        let ended = run(document(server.launch()), folder.path(), "").await;
        assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
        assert!(String::from_utf8_lossy(&ended.stdout).ends_with(said), "{ended:?}");
    }
}

#[tokio::test]
async fn a_panic_is_a_crash_with_its_message_and_no_ending() {
    let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("panic-at-once", ()));
    let server = instance.serve();
    let crashed = run(document(server.launch()), folder.path(), "").await;
    assert_eq!(crashed.status.code(), Some(101));
    assert!(stderr(&crashed).contains("the author's own words"), "{}", stderr(&crashed));
    assert!(instance.core(|core| core.ended.is_none()));
}

#[tokio::test]
async fn an_older_attempt_is_fenced() {
    let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("steps", 1));
    let server = instance.serve();
    let old = document(server.launch());
    let new = document(server.launch());
    assert_eq!(run(old, folder.path(), "").await.status.code(), Some(4));
    assert_eq!(run(new, folder.path(), "").await.status.code(), Some(0));
}

#[tokio::test]
async fn an_unknown_workflow_fails_at_once_and_names_the_known() {
    let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("nobody", ()));
    let server = instance.serve();
    assert_eq!(run(document(server.launch()), folder.path(), "").await.status.code(), Some(0));
    let ended = instance.core(|core| core.ended.clone());
    let Some(Ended::Failed(failure)) = ended else { panic!("{ended:?}") };
    assert_eq!(failure.code, "UNKNOWN_WORKFLOW");
    assert!(failure.message.contains("panic-at-once"), "{}", failure.message);
}

#[tokio::test]
async fn an_attempt_that_core_refuses_ends_with_the_reason() {
    let (folder, instance) = (tempfile::tempdir().unwrap(), Instance::new("steps", 1));
    let server = instance.serve();
    let unknown = LaunchDocument { token: vec![1; 32], ..server.launch() };
    let refused = run(document(unknown), folder.path(), "").await;
    assert_eq!(refused.status.code(), Some(5));
    assert!(stderr(&refused).contains("UNAUTHENTICATED"), "{}", stderr(&refused));
}

#[test]
fn the_binary_names_its_workflows() {
    let binary = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let file = object::File::parse(binary.as_slice()).unwrap();
    let section = object::Object::section_by_name(&file, ".dormouse").expect("the linker kept it");
    let bytes = object::ObjectSection::data(&section).unwrap();
    let text = std::str::from_utf8(bytes).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("dormouse-sdk "), "{text}");
    assert_eq!(
        lines.collect::<Vec<_>>(),
        ["steps", "sleeper", "resumes", "chatty", "stubborn", "panic-at-once"]
    );
}
