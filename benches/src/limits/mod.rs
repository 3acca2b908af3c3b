//! What the machine can do, measured without Dormouse's code: the floors and ceilings of the workloads.

mod fsync;

use crate::registry::{Entry, Kind, Run};

pub(crate) fn entries() -> Vec<Entry> {
    vec![limit("fsync", Run::Once(|context| Box::pin(fsync::measure(context))))]
}

const fn limit(name: &'static str, run: Run) -> Entry {
    Entry { name, kind: Kind::Limit, needs: &[], run }
}
