//! What the machine can do, measured without Dormouse's code: the floors and ceilings of the workloads.
//!
//! They are as fast as we know how to make them with what Dormouse uses (quinn, rustls with ring, sqlx), for a
//! limit that is slow flatters everything that is held against it.

mod database;
mod echo;
mod fsync;
mod launch;
mod memory;
mod opening;
mod peer;
mod timer;

use std::future::ready;

pub(crate) use opening::time_to_open;

use crate::registry::{Entry, Kind, Run};

pub(crate) fn entries() -> Vec<Entry> {
    vec![
        limit("fsync", Run::Once(|context| Box::pin(fsync::measure(context)))),
        limit("commit", Run::OnEach(|context, store| Box::pin(database::commit(context, store)))),
        limit("batch", Run::OnEach(|context, store| Box::pin(database::batch(context, store)))),
        limit("raw", Run::Once(|context| Box::pin(ready(database::raw(context))))),
        limit("rows", Run::OnEach(|context, store| Box::pin(database::rows(context, store)))),
        limit("echo", Run::Once(|context| Box::pin(ready(echo::measure(context))))),
        limit("spawn", Run::Once(|context| Box::pin(ready(launch::spawn(context))))),
        limit("connect", Run::Once(|context| Box::pin(ready(launch::connect(context))))),
        limit("timer", Run::Once(|context| Box::pin(timer::measure(context)))),
        limit("bare", Run::Once(|context| Box::pin(ready(memory::measure(context))))),
    ]
}

const fn limit(name: &'static str, run: Run) -> Entry {
    Entry { name, kind: Kind::Limit, needs: &[], run }
}
