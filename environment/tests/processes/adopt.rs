//! What is found after a restart. The "restart" forgets its children by leaving them to a helper
//! that ends; see `launch::kill_at` for services that are killed.

use std::fs;

use dormouse_core::domain::outcome::ExitReason;
use dormouse_environment::supervisor::{Found, adopt};

use crate::bench::{Bench, id, runs};

#[tokio::test]
async fn a_living_process_is_watched_again_and_its_end_is_seen() {
    let bench = Bench::new();
    let first = bench.launch("lives", "sleep").await;
    bench.said("lives", "waiting").await;
    let mut found = adopt(&bench.attempts).expect("adopted");
    assert_eq!(found.len(), 1);
    let Some(Found::Living { id: adopted, process, .. }) = found.pop() else { panic!("not living") };
    assert_eq!((adopted, process.id()), (id("lives"), first.id()));
    process.kill().await.expect("killed");
    // Still our own child here, so the status is known.
    assert_eq!(process.collect().await.expect("collected").report.reason, ExitReason::Signal(9));
}

#[tokio::test]
async fn a_process_that_ended_meanwhile_is_told_as_unknown_with_its_last_words() {
    let bench = Bench::new();
    let process = bench.launch("gone", "exit:3").await;
    process.ended().await.expect("watched");
    // Collected or not makes no difference.
    let found = adopt(&bench.attempts).expect("adopted");
    assert!(matches!(found[..], [Found::Ended { .. }]), "{found:?}");
    process.collect().await.expect("collected");
    let mut found = adopt(&bench.attempts).expect("adopted");
    let Some(Found::Ended { id: ended, report, .. }) = found.pop() else { panic!("not ended") };
    assert_eq!((ended, report.reason), (id("gone"), ExitReason::Unknown));
    assert_eq!(report.stderr_tail, "leaving with 3\n");
}

#[tokio::test]
async fn a_stranger_with_the_same_number_is_left_alone() {
    let bench = Bench::new();
    let stranger = bench.launch("stranger", "sleep").await;
    bench.said("stranger", "waiting").await;
    let directory = bench.attempts.create(&id("ours")).expect("made");
    let mut record = bench.directory("stranger").load_record().expect("readable").expect("written");
    record.instance = "ours".to_owned();
    record.start_time -= 1;
    directory.write_record(&record).expect("written");
    let ended = adopt(&bench.attempts).expect("adopted").into_iter().any(|found| match found {
        Found::Ended { id: ended, .. } => ended == id("ours"),
        Found::Living { .. } => false,
    });
    assert!(ended);
    assert!(runs(stranger.id().pid), "a stranger was hit");

    record.start_time += 1;
    record.boot_id = "another boot".to_owned();
    directory.write_record(&record).expect("written");
    let n_living =
        adopt(&bench.attempts).expect("adopted").iter().filter(|f| matches!(f, Found::Living { .. })).count();
    assert_eq!(n_living, 1, "only the stranger's own directory");
    assert!(runs(stranger.id().pid), "a stranger was hit");
    stranger.kill().await.expect("killed");
    stranger.collect().await.expect("collected");
}

#[tokio::test]
async fn a_record_that_is_no_record_holds_nobody_up() {
    let bench = Bench::new();
    let directory = bench.attempts.create(&id("odd")).expect("made");
    fs::write(directory.record(), "not JSON").expect("written");
    bench.attempts.create(&id("cut-off")).expect("made");
    // As after a power cut, or a kill between making and writing it.
    fs::write(bench.attempts.create(&id("empty")).expect("made").record(), "").expect("written");
    assert!(adopt(&bench.attempts).expect("adopted").is_empty());
    assert!(directory.path.exists(), "what is not understood is not removed");
    assert!(!bench.directory("cut-off").path.exists(), "a launch that was cut off is removed");
    assert!(!bench.directory("empty").path.exists(), "an empty record is none");
}
