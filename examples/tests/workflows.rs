//! The examples without any server: undisturbed, and crashed around each of their checkpoints.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, path::Path, process::Command, time::Duration};

use dormouse_examples::{Approval, Audit, Batch, Longest, Order, Receipt, Report, batch, fixity, order};
use dormouse_sdk::{
    Context,
    testing::{Done, Run, Status},
};

fn wanted(approval_within_seconds: u64, ledger: Option<&Path>) -> Order {
    Order {
        number: "A-17".to_owned(),
        item: "hazelnut".to_owned(),
        quantity: 12,
        amount_cents: 4200,
        approval_within_seconds,
        bank_outages: 2,
        ledger: ledger.map(Path::to_owned),
    }
}

fn receipt(done: &Done) -> Receipt {
    done.output().expect("a receipt")
}

/// How often each effect was booked.
fn booked(ledger: &Path, step: &str) -> usize {
    let entries = fs::read_dir(ledger).expect("a ledger");
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(step)).count()
}

#[tokio::test]
async fn an_approved_order_is_shipped_days_later_in_no_time() {
    let ledger = tempfile::tempdir().expect("a folder");
    let run = Run::new(order).input(wanted(3 * 24 * 3600, Some(ledger.path()))).signal_after(
        Duration::from_hours(48),
        "approval",
        Approval { granted: true },
    );

    let done = run.survives_crashes().await;

    let receipt = receipt(&done);
    assert_eq!((receipt.status.as_str(), receipt.charged_cents), ("shipped", 4200));
    assert!(done.elapsed() >= Duration::from_hours(48));
    assert_eq!(["reserve", "charge", "ship"].map(|step| booked(ledger.path(), step)), [1, 1, 1]);
    assert_eq!(["refund", "release"].map(|step| booked(ledger.path(), step)), [0, 0]);
}

#[tokio::test]
async fn an_order_nobody_approves_is_undone() {
    for approval in [None, Some(Approval { granted: false })] {
        let ledger = tempfile::tempdir().expect("a folder");
        let mut run = Run::new(order).input(wanted(3600, Some(ledger.path())));
        let expected = if approval.is_some() { "refused" } else { "timed_out" };
        if let Some(approval) = approval {
            run = run.signal_after(Duration::from_mins(1), "approval", approval);
        }

        let receipt = receipt(&run.run().await);

        assert_eq!((receipt.status.as_str(), receipt.charged_cents), (expected, 0));
        assert_eq!(["ship", "refund", "release"].map(|step| booked(ledger.path(), step)), [0, 1, 1]);
    }
}

#[tokio::test]
async fn a_cancelled_order_is_undone_and_ends_cancelled() {
    let ledger = tempfile::tempdir().expect("a folder");
    let run = Run::new(order).input(wanted(3600, Some(ledger.path()))).cancel_after(Duration::from_mins(1));

    let done = run.run().await;

    assert_eq!(done.status(), Status::Cancelled);
    assert_eq!(["refund", "release"].map(|step| booked(ledger.path(), step)), [1, 1]);
}

#[tokio::test]
async fn a_bank_that_stays_away_fails_the_order_and_frees_the_goods() {
    let ledger = tempfile::tempdir().expect("a folder");
    let mut wanted = wanted(3600, Some(ledger.path()));
    wanted.bank_outages = 100;

    let done = Run::new(order).input(wanted).run().await;

    let failure = done.output::<Receipt>().expect_err("no payment");
    assert_eq!((done.status(), failure.code()), (Status::Failed, "BANK_UNREACHABLE"));
    assert_eq!(["charge", "release"].map(|step| booked(ledger.path(), step)), [0, 1]);
}

#[tokio::test]
async fn a_batch_finds_the_same_with_a_crash_around_each_block() {
    let done = Run::new(batch).input(Batch { below: 1000, block: 200 }).survives_crashes().await;
    assert_eq!(done.output::<Longest>().expect("found"), Longest { start: 871, steps: 178 });
    assert_eq!(done.checkpoints().count(), 5);

    let refused = Run::new(batch).input(Batch { below: 1, block: 1 }).run().await;
    assert_eq!(refused.output::<Longest>().expect_err("refused").code(), "INVALID_INPUT");
}

fn tree(root: &Path) {
    let names: [&[u8]; 6] = [b"plain", b"with space", b"new\nline", b"back\\slash", b"not\xfftext", b"-dash"];
    for (n, name) in names.iter().enumerate() {
        let folder = root.join(format!("folder {n}"));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(OsStr::from_bytes(name)), vec![u8::try_from(n).expect("few"); n * 70_000])
            .expect("a file");
    }
    std::os::unix::fs::symlink("nowhere", root.join("link")).expect("a link");
}

fn audit(root: &Path, manifest: &Path) -> Audit {
    serde_json::from_value(serde_json::json!({"root": root, "manifest": manifest})).expect("an audit")
}

#[tokio::test]
async fn a_manifest_is_accepted_by_sha256sum_odd_names_included() {
    let stage = tempfile::tempdir().expect("a folder");
    let (root, manifest) = (stage.path().join("tree"), stage.path().join("manifest"));
    tree(&root);

    let done = Run::new(fixity).input(audit(&root, &manifest)).survives_crashes().await;

    let report: Report = done.output().expect("a report");
    assert_eq!((report.files, report.skipped), (6, 1));
    #[expect(clippy::disallowed_methods, reason = "the judge of manifests")]
    let judge = Command::new("sha256sum").arg("-c").arg(&manifest).output().expect("coreutils");
    assert!(judge.status.success(), "{judge:?}");
    assert_eq!(judge.stdout.split(|byte| *byte == b'\n').count(), 6 + 1);
}

#[tokio::test]
async fn a_tree_that_does_not_stand_still_has_no_manifest() {
    let stage = tempfile::tempdir().expect("a folder");
    let (root, manifest) = (stage.path().join("tree"), stage.path().join("manifest"));
    tree(&root);
    let mut audit = audit(&root, &manifest);
    audit.settle_seconds = 60;
    let touched = root.join("folder 0/plain");
    // The same audit, beside something that writes into the tree during the settling time.
    let disturbed = move |ctx: Context, audit: Audit| {
        let (touched, other) = (touched.clone(), ctx.clone());
        async move {
            let disturb = async {
                other.sleep("a while", Duration::from_secs(30)).await?;
                other.step("disturb", async || fs::write(&touched, "more")).await
            };
            let (report, disturbed) = tokio::join!(fixity(ctx, audit), disturb);
            disturbed.and(report)
        }
    };

    let done = Run::new(disturbed).input(audit).run().await;

    assert_eq!(done.output::<Report>().expect_err("changed").code(), "FILE_CHANGED");
    assert!(!manifest.exists());
}

#[tokio::test]
async fn what_cannot_be_audited_says_what_to_do() {
    let stage = tempfile::tempdir().expect("a folder");
    let manifest = stage.path().join("manifest");
    let missing = Run::new(fixity).input(audit(&stage.path().join("missing"), &manifest)).run().await;
    assert_eq!(missing.output::<Report>().expect_err("missing").code(), "FILE_VANISHED");
    let relative = Run::new(fixity).input(audit(Path::new("tree"), &manifest)).run().await;
    let failure = relative.output::<Report>().expect_err("relative");
    assert!(failure.message().contains("absolute path"), "{failure}");
}

#[test]
fn the_sample_inputs_are_inputs() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(name);
        fs::read_to_string(path).expect("a sample")
    };
    serde_json::from_str::<Audit>(&read("fixity.json")).expect("fixity");
    serde_json::from_str::<Order>(&read("order.json")).expect("order");
    serde_json::from_str::<Batch>(&read("batch.json")).expect("batch");
}

#[tokio::test]
async fn files_that_come_or_go_between_two_launches_fail_the_audit() {
    for (case, expected) in [("gone", "TREE_CHANGED"), ("new", "TREE_CHANGED"), ("other", "FILE_CHANGED")] {
        let stage = tempfile::tempdir().expect("a folder");
        let (root, manifest) = (stage.path().join("tree"), stage.path().join("manifest"));
        tree(&root);
        let input = audit(&root, &manifest);
        let between = move |ctx: Context, audit: Audit| {
            if ctx.attempt() == 2 {
                let file = root.join("folder 1/with space");
                let changed = match case {
                    "gone" => fs::remove_file(file),
                    "new" => fs::write(root.join("another"), "new"),
                    _ => fs::write(file, "other"),
                };
                changed.expect("the tree can be changed");
            }
            fixity(ctx, audit)
        };

        // The list and all six files are saved.
        let done = Run::new(between).input(input).crash_after_checkpoint(7).run().await;

        assert_eq!(done.output::<Report>().expect_err("changed").code(), expected);
        assert!(!manifest.exists());
    }
}

#[tokio::test]
async fn an_order_that_is_cancelled_anywhere_leaves_nothing_behind() {
    // Its second launch waits for the cancel before it goes on: so each operation in turn feels it, after
    // its own effect was lost (before) and after the one before it was saved (after).
    async fn cancelled(ctx: Context, wanted: Order) -> dormouse_sdk::Result<Receipt> {
        if ctx.attempt() == 2 {
            ctx.cancelled().await;
        }
        order(ctx, wanted).await
    }
    for checkpoint in 1..=5 {
        for before in [true, false] {
            let ledger = tempfile::tempdir().expect("a folder");
            let wanted = Order { bank_outages: 0, ..wanted(3600, Some(ledger.path())) };
            let run = Run::new(cancelled).input(wanted).signal("approval", Approval { granted: true });
            let run = if before {
                run.crash_before_checkpoint(checkpoint)
            } else {
                run.crash_after_checkpoint(checkpoint)
            };

            let done = run.cancel_after(Duration::from_millis(200)).run().await;

            // On a busy machine the cancel may come even before the crash.
            let shipped = done.output::<Receipt>().is_ok_and(|receipt| receipt.status == "shipped");
            for (effect, undo) in [("reserve", "release"), ("charge", "refund"), ("ship", "recall")] {
                let (done, undone) = (booked(ledger.path(), effect), booked(ledger.path(), undo));
                assert_eq!(
                    undone,
                    if shipped { 0 } else { done },
                    "{undo}, checkpoint {checkpoint}, before: {before}"
                );
            }
            let status = if shipped { Status::Completed } else { Status::Cancelled };
            assert_eq!(done.status(), status, "checkpoint {checkpoint}, before: {before}");
        }
    }
}
