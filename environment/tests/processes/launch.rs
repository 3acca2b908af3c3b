//! What a launched process finds, and what is left when a launch fails or is cut off.

use std::{fs, os::unix::process::ExitStatusExt, path::Path, process::Command};

use dormouse_core::{domain::outcome::ExitReason, fault};
use dormouse_environment::{launcher::LaunchError, process::boot_id, supervisor::adopt};

use crate::bench::{Bench, id, runs, until};

async fn look(bench: &Bench) -> Vec<String> {
    let process = bench.launch("look", "look").await;
    process.ended().await.expect("watched");
    let exit = process.collect().await.expect("collected");
    assert_eq!(exit.report.reason, ExitReason::Code(0), "{}", exit.report.stderr_tail);
    bench.stdout("look").lines().map(ToOwned::to_owned).collect()
}

fn with<'a>(lines: &'a [String], prefix: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(prefix)).collect()
}

#[tokio::test]
async fn a_process_finds_its_own_surroundings_and_nothing_of_the_service() {
    let bench = Bench::new();
    // What a careless library would leak: a descriptor without close-on-exec.
    let leak = fs::File::open("/proc/self/status").expect("readable");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("set");
    let lines = look(&bench).await;
    let directory = bench.directory("look").path;
    let here = |name: &str| directory.join(name).display().to_string();

    let descriptors: Vec<_> = with(&lines, "fd ").into_iter().map(ToOwned::to_owned).collect();
    let pid = with(&lines, "group ")[0].rsplit(' ').next().expect("a pid").to_owned();
    let mut expected = vec![
        "0 /dev/null".to_owned(),
        format!("1 {}", here("stdout")),
        format!("2 {}", here("stderr")),
        // 3 was the launch document: the fixture has closed it and reads the folder itself there.
        format!("3 /proc/{pid}/fd"),
        format!("4 {}", bench.data.join("replicas").display()),
    ];
    let mut found = descriptors;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);

    let environment: Vec<_> =
        with(&lines, "env ").into_iter().filter(|text| !text.starts_with("PATH=")).collect();
    let (home, tmp) = (format!("HOME={}", here("work")), format!("TMPDIR={}", here("tmp")));
    assert_eq!(environment, ["DORMOUSE_LAUNCH_FD=3", "FIXTURE=look", &home, "LANG=C.UTF-8", &tmp, "TZ=UTC"]);

    assert_eq!(with(&lines, "cwd "), [here("work")]);
    let image = bench.data.join("images").join(bench.image.to_string());
    assert_eq!(with(&lines, "exe "), [image.display().to_string()], "current_exe() is a real file");
    assert_eq!(with(&lines, "args "), [r#"["fixture", "look", "1"]"#]);
    assert_eq!(with(&lines, "oom "), ["1000"]);
    assert_eq!(with(&lines, "group "), [format!("{pid} session {pid} pid {pid}")]);
    assert_eq!(with(&lines, "limit "), ["Max core file size 0 0 bytes", "Max open files 512 512 files"]);
    assert_eq!(with(&lines, "addresses "), ["127.0.0.1:1"]);
    assert_eq!(with(&lines, "status Umask:"), ["\t0022"]);
    assert_eq!(with(&lines, "status SigBlk:"), ["\t0000000000000000"]);
}

#[tokio::test]
async fn a_process_reads_addresses_that_change_while_it_runs_but_cannot_write_them() {
    let bench = Bench::new();
    bench.launcher.replicas().write(&["10.0.0.1:8001".to_owned()]).expect("written");
    let lines = look(&bench).await;
    assert_eq!(with(&lines, "addresses "), ["10.0.0.1:8001"]);
    // Root may open the file again by its path in /proc; the descriptor itself is read-only.
    assert_eq!(fs::read_to_string(bench.data.join("replicas")).expect("readable").lines().count(), 1);
}

/// The child puts its own descriptors at 0 to 5: whatever numbers the service's happen to have,
/// none may be overwritten before it is used.
#[tokio::test]
async fn a_launch_works_whatever_low_numbers_are_free() {
    let bench = Bench::new();
    let mut held = Vec::new();
    for n in 0..12 {
        // One more low number is taken each time, so each descriptor of a launch gets each.
        let process = bench.launch(&format!("numbers-{n}"), "exit:7").await;
        process.ended().await.expect("watched");
        assert_eq!(process.collect().await.expect("collected").report.reason, ExitReason::Code(7));
        held.push(fs::File::open("/dev/null").expect("opened"));
    }
}

#[tokio::test]
async fn the_record_names_the_process_before_it_gets_its_document() {
    let bench = Bench::new();
    let process = bench.launch("known", "sleep").await;
    bench.said("known", "waiting").await;
    let record = bench.directory("known").load_record().expect("readable").expect("written");
    assert_eq!((record.pid, record.start_time), (process.id().pid, process.id().start_time));
    assert_eq!(record.boot_id, boot_id().expect("readable"));
    assert_eq!((record.instance.as_str(), record.attempt), ("known", 1));
    assert_eq!(record.image, bench.image.to_string());
    process.kill().await.expect("killed");
    process.collect().await.expect("collected");
}

#[tokio::test]
async fn a_launch_that_cannot_be_leaves_nothing() {
    let bench = Bench::new();
    let mut request = bench.request("broken", "sleep");
    request.env.insert("TMPDIR".to_owned(), "/".to_owned());
    let refused = bench.launcher.launch(request).await.expect_err("TMPDIR is the launcher's");
    assert!(matches!(refused, LaunchError::Spec(_)), "{refused}");

    let mut request = bench.request("broken", "sleep");
    request.env.insert("LARGE".to_owned(), "x".repeat(200_000));
    let refused = bench.launcher.launch(request).await.expect_err("no exec takes that");
    assert!(matches!(refused, LaunchError::Spawn(_)), "{refused}");

    bench.images.remove(&bench.image).expect("removed");
    let refused = bench.try_launch("broken", "sleep").await.expect_err("no such image");
    assert!(matches!(refused, LaunchError::Image(_)), "{refused}");
    assert_eq!(bench.attempts.living().expect("readable"), []);
}

#[tokio::test]
async fn the_same_attempt_is_not_launched_beside_itself() {
    let bench = Bench::new();
    let first = bench.launch("twice", "sleep").await;
    let refused = bench.try_launch("twice", "sleep").await.expect_err("it runs");
    assert!(matches!(refused, LaunchError::Files { .. }), "{refused}");
    assert!(runs(first.id().pid), "the first one was not touched");
    first.kill().await.expect("killed");
    first.collect().await.expect("collected");
}

#[tokio::test]
async fn many_launches_at_once_of_an_image_that_is_stored_again_and_again_all_succeed() {
    let bench = std::sync::Arc::new(Bench::new());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let bench = std::sync::Arc::clone(&bench);
        tasks.spawn(async move {
            if n % 4 == 0 {
                let images = bench.images.clone();
                let stored =
                    tokio::task::spawn_blocking(move || images.store_file(&crate::bench::fixture())).await;
                stored.expect("no panic").expect("stored");
            }
            let process = bench.launch(&format!("many-{n}"), "exit:7").await;
            process.ended().await.expect("watched");
            process.collect().await.expect("collected").report.reason
        });
    }
    while let Some(reason) = tasks.join_next().await {
        assert_eq!(reason.expect("no panic"), ExitReason::Code(7));
    }
}

/// Not a test of its own: what [`kill_at`] runs as another process, which stands for the service.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test's own process tells its helper by a variable")]
async fn helper_launches_one() {
    let Some(data) = std::env::var_os("HELPER_DATA") else { return };
    let bench = Bench::open(Path::new(&data));
    let process = bench.launch("cut", "sleep").await;
    bench.said("cut", "waiting").await;
    // Alive on purpose: the helper is gone, the process stays.
    drop(process);
}

#[expect(clippy::disallowed_methods, reason = "tests start processes")]
async fn kill_at(point: &str) -> (tempfile::TempDir, Option<i32>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut helper = Command::new(std::env::current_exe().expect("a path"));
    helper.args(["--exact", "launch::helper_launches_one"]).env("HELPER_DATA", folder.path());
    let mut helper = helper.env(fault::VARIABLE, point).spawn().expect("started");
    let status = until("the helper's end", || helper.try_wait().expect("a child")).await;
    assert_eq!(status.signal(), (point != "nowhere").then_some(9), "killed at {point}");
    let record = fs::read(folder.path().join("attempts/cut.1/process.json")).ok();
    let pid = record
        .map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).expect("JSON")["pid"].as_i64());
    (folder, pid.flatten().and_then(|pid| i32::try_from(pid).ok()))
}

/// Processes that work in a folder below `data`.
pub(crate) fn at_home_in(data: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(data)))
        .collect()
}

#[tokio::test]
async fn killed_before_the_record_is_written_a_launch_leaves_no_process_and_no_trace() {
    for point in ["launch.directory_made", "launch.spawned"] {
        let (folder, pid) = kill_at(point).await;
        assert_eq!(pid, None, "nobody was made known");
        until("the process leaves", || at_home_in(folder.path()).is_empty().then_some(())).await;
        assert!(!folder.path().join("attempts/cut.1/work/acted").exists(), "it touched something");
        let bench = Bench::open(folder.path());
        assert!(adopt(&bench.attempts).expect("adopted").is_empty());
        assert_eq!(bench.attempts.living().expect("readable"), []);
        let again = bench.launch("cut", "exit:0").await;
        again.ended().await.expect("watched");
        again.collect().await.expect("collected");
    }
}

#[tokio::test]
async fn killed_before_the_document_is_written_the_known_process_leaves_without_acting() {
    let (folder, pid) = kill_at("launch.recorded").await;
    let pid = pid.expect("it was made known");
    until("the process leaves", || (!runs(pid)).then_some(())).await;
    assert!(!folder.path().join("attempts/cut.1/work/acted").exists(), "it touched something");
    let bench = Bench::open(folder.path());
    let found = adopt(&bench.attempts).expect("adopted");
    assert_eq!(found.len(), 1, "it is told to whoever settles");
}

#[tokio::test]
async fn killed_after_the_document_was_written_the_process_lives_on_and_is_adopted() {
    let (folder, pid) = kill_at("launch.document_written").await;
    let pid = pid.expect("it was made known");
    let bench = Bench::open(folder.path());
    bench.said("cut", "waiting").await;
    assert!(folder.path().join("attempts/cut.1/work/acted").exists());
    let mut found = adopt(&bench.attempts).expect("adopted");
    let Some(dormouse_environment::supervisor::Found::Living { id: adopted, process, .. }) = found.pop()
    else {
        panic!("not living: {found:?}");
    };
    assert_eq!((adopted, process.id().pid), (id("cut"), pid));
    process.kill().await.expect("killed");
    // Its parent is gone, so how it ended is known only from Linux 6.15 on.
    let exit = process.collect().await.expect("collected");
    assert!(matches!(exit.report.reason, ExitReason::Signal(9) | ExitReason::Unknown), "{exit:?}");
    assert_eq!(exit.usage, None);
}
