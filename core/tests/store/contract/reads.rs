//! What people and controllers read.

use std::time::Duration;

use dormouse_core::{
    domain::{id::Tenant, instance::Status, outcome::Outcome, wake::WaitingFor},
    store::{Error, ListFilter},
};

use crate::db::{self, TestDb, code, name};

contract! {
    lists_page_from_the_newest_down,
    lists_filter_by_status_and_image,
    counts_go_by_status,
    lists_filter_by_what_is_waited_for,
    a_unique_prefix_is_enough,
    a_timeline_is_read_in_pages,
    a_view_has_everything,
    invariant_8_reads_stay_in_their_tenant,
    the_clock_is_the_one_that_was_set,
    a_closed_store_refuses,
}

async fn ids(db: &TestDb, filter: ListFilter) -> Vec<String> {
    let page = db.store.list(&db::tenant(), filter).await.expect("a list");
    page.instances.iter().map(|instance| instance.id.to_string()).collect()
}

async fn lists_page_from_the_newest_down(db: TestDb) {
    for n in 0..7 {
        db.start(&format!("i{n}")).await;
    }
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let filter = ListFilter { before, limit: 3, ..ListFilter::default() };
        let page = db.store.list(&db::tenant(), filter).await.expect("a page");
        assert!(page.instances.len() <= 3);
        seen.extend(page.instances.iter().map(|instance| instance.id.to_string()));
        before = page.next;
        if before.is_none() {
            break;
        }
        db.start(&format!("newer{}", seen.len())).await; // does not disturb the pages behind
    }
    assert_eq!(seen, ["i6", "i5", "i4", "i3", "i2", "i1", "i0"]);
}

async fn lists_filter_by_status_and_image(db: TestDb) {
    db.image("other", "1").await;
    let running = db.running("run").await;
    db.start("wait").await;
    let mut start = db::request("else");
    start.image = name("other");
    db.store.start(start).await.expect("a start");
    let all = ListFilter { limit: 10, ..ListFilter::default() };
    assert_eq!(ids(&db, all.clone()).await, ["else", "wait", "run"]);
    let pending = ListFilter { status: Some(Status::Pending), ..all.clone() };
    assert_eq!(ids(&db, pending.clone()).await, ["else", "wait"]);
    let img = ListFilter { image: Some(name("img")), ..all.clone() };
    assert_eq!(ids(&db, img).await, ["wait", "run"]);
    let both = ListFilter { image: Some(name("other")), ..pending };
    assert_eq!(ids(&db, both).await, ["else"]);
    db.store.end(&running.session, db::completed()).await.expect("ends");
    let ended = ListFilter { status: Some(Status::Ended(Outcome::Completed)), ..all };
    assert_eq!(ids(&db, ended).await, ["run"]);
}

async fn counts_go_by_status(db: TestDb) {
    db.running("a").await;
    db.start("b").await;
    db.start("c").await;
    let count = db.store.count(&db::tenant(), None).await.expect("counts");
    assert_eq!(count.into_iter().collect::<Vec<_>>(), [("PENDING", 2), ("RUNNING", 1)]);
    let none = db.store.count(&db::tenant(), Some(&name("other"))).await.expect("counts");
    assert!(none.is_empty());
}

async fn a_unique_prefix_is_enough(db: TestDb) {
    for id in ["order-1", "order-12", "order-2", "zebra", "order_3", "order:4", "order-5", "order-6"] {
        db.start(id).await;
    }
    let resolve = async |prefix: &str| db.store.resolve(&db::tenant(), &db::id(prefix)).await;
    assert_eq!(resolve("z").await.expect("unique"), db::id("zebra"));
    assert_eq!(resolve("order-1").await.expect("exact wins"), db::id("order-1"));
    assert_eq!(resolve("order_").await.expect("no wildcard"), db::id("order_3"));
    let Err(Error::Ambiguous { candidates, .. }) = resolve("order").await else { panic!("several") };
    assert_eq!(candidates, ["order-1", "order-12", "order-2", "order-5", "…"]);
    let Err(error) = resolve("order-1").await.map(drop).and(resolve("order-").await.map(drop)) else {
        panic!("several")
    };
    assert_eq!(code::<()>(Err(error)), "INVALID_ARGUMENT");
    assert_eq!(code(resolve("x").await), "NOT_FOUND");
}

async fn a_timeline_is_read_in_pages(db: TestDb) {
    let running = db.running("a").await;
    for n in 0..10 {
        let payload = dormouse_core::domain::payload::Payload::json(n.to_string());
        db.store.event(&running.session, name("tick"), payload).await.expect("stored");
    }
    let (mut after, mut numbers) = (0, Vec::new());
    loop {
        let page = db.store.events(&db::tenant(), running.id(), after, 4).await.expect("a page");
        if page.events.is_empty() {
            assert_eq!(page.next, after);
            break;
        }
        numbers.extend(page.events.iter().map(|event| event.number));
        after = page.next;
    }
    assert_eq!(numbers, (1..=13).collect::<Vec<u64>>());
}

async fn a_view_has_everything(db: TestDb) {
    let running = db.running("a").await;
    db::stored(db.store.save(&running.session, db::step("s", "1")).await);
    db.send(running.id(), "go").await;
    db.store.launched(running.attempt(), 4711).await.expect("noted");
    db.advance(Duration::from_secs(9));
    let view = db.store.instance_detail(&db::tenant(), running.id()).await.expect("a view");
    assert_eq!((view.checkpoints, view.unread_signals, view.last_exit), (1, 1, None));
    assert_eq!(view.input.data.as_ref(), b"1");
    assert_eq!(view.instance.started_at, Some(db::START));
    assert_eq!(view.now, db::START + Duration::from_secs(9));
    assert_eq!((view.instance.workflow.as_str(), view.instance.priority), ("main", 5));
    let attempts = db.store.attempts(&db::tenant(), running.id(), 10).await.expect("attempts");
    assert_eq!((attempts[0].pid, attempts[0].registered_at), (Some(4711), Some(db::START)));
}

async fn invariant_8_reads_stay_in_their_tenant(db: TestDb) {
    let running = db.running("a").await;
    let stranger = Tenant::parse("stranger").expect("a tenant");
    let id = running.id();
    assert_eq!(code(db.store.instance_detail(&stranger, id).await), "NOT_FOUND");
    assert_eq!(code(db.store.events(&stranger, id, 0, 10).await), "NOT_FOUND");
    assert_eq!(code(db.store.attempts(&stranger, id, 10).await), "NOT_FOUND");
    assert_eq!(code(db.store.signals(&stranger, id, 0, 10).await), "NOT_FOUND");
    assert_eq!(code(db.store.checkpoints(&stranger, id, 0, 10, false).await), "NOT_FOUND");
    assert_eq!(code(db.store.signal(&stranger, id, db::new_signal("go", "")).await), "NOT_FOUND");
    for control in [db.store.cancel(&stranger, id).await, db.store.delete(&stranger, id).await] {
        assert_eq!(code(control), "NOT_FOUND");
    }
    let filter = ListFilter { limit: 10, ..ListFilter::default() };
    assert!(db.store.list(&stranger, filter).await.expect("a list").instances.is_empty());
    assert!(db.store.count(&stranger, None).await.expect("counts").is_empty());
    let forged = dormouse_core::store::Session { tenant: stranger, ..running.session.clone() };
    assert_eq!(code(db.store.save(&forged, db::step("s", "1")).await), "FENCED");
    assert_eq!(code(db.store.end(&forged, db::completed()).await), "FENCED");
    assert_eq!(code(db.store.inbox(&forged).await), "FENCED");
}

async fn the_clock_is_the_one_that_was_set(db: TestDb) {
    assert_eq!(db.store.now().await.expect("a clock"), db::START);
    db.advance(Duration::from_secs(1));
    assert_eq!(db.store.health().await.expect("healthy"), db::START + Duration::from_secs(1));
}

async fn a_closed_store_refuses(db: TestDb) {
    let last = db.store.start(db::request("a"));
    let (last, ()) = tokio::join!(last, async {
        tokio::task::yield_now().await;
        db.store.close().await;
    });
    assert_eq!(code(db.store.start(db::request("b")).await), "UNAVAILABLE");
    let again = db.another().await;
    let found = again.instance(&db::tenant(), &db::id("a")).await;
    assert_eq!(last.is_ok(), found.is_ok(), "what was queued is done, what was refused is not");
}

async fn lists_filter_by_what_is_waited_for(db: TestDb) {
    let later = db::START + Duration::from_hours(1);
    db.suspended("naps", db::sleep_until(later)).await;
    db.suspended("waits", db::for_signal("approval", None)).await;
    db.suspended("hopes", db::for_signal("rain", Some(later))).await;
    let crashed = db.running("crashed").await;
    db.store.exited(crashed.attempt(), db::exit()).await.expect("told");
    db.running("runs").await;
    let waiting = async |word: &str| {
        let waiting_for = WaitingFor::parse(word);
        assert!(waiting_for.is_some());
        ids(&db, ListFilter { waiting_for, limit: 10, ..ListFilter::default() }).await
    };
    assert_eq!(waiting("sleep").await, ["naps"]);
    assert_eq!(waiting("signal").await, ["hopes", "waits"]);
    assert_eq!(waiting("signal:approval").await, ["waits"]);
    assert_eq!(waiting("resume").await, [""; 0]);
    assert_eq!(waiting("retry").await, ["crashed"]);

    let ask = |status, before, limit| ListFilter {
        waiting_for: Some(WaitingFor::AnySignal),
        status,
        before,
        limit,
        ..ListFilter::default()
    };
    let none = ids(&db, ask(Some(Status::Running), None, 10)).await;
    assert_eq!(none, [""; 0], "only suspended ones wait");
    let first = db.store.list(&db::tenant(), ask(None, None, 1)).await.expect("a page");
    assert_eq!((first.instances.len(), first.next_id), (1, Some(db::id("hopes"))));
    assert_eq!(ids(&db, ask(None, first.next, 1)).await, ["waits"]);
}
