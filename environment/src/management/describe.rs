//! What the store says, as messages of the wire. Decides nothing; the one sentence for people is
//! made by [`sentence`](super::sentence).

use dormouse_core::{
    domain::{
        checkpoint::{StoredCheckpoint, Value},
        event::Event,
        instance::{Cancel, Life, State},
        payload::Payload,
        time::Micros,
    },
    store::{AttemptRecord, Image, Instance, InstanceDetail, Node, NodeReport},
};
use dormouse_proto::{limits::PAYLOAD_MAX_BYTES, management as wire};

use super::server::ThisNode;

pub(super) fn payload(payload: &Payload) -> wire::Payload {
    wire::Payload {
        data: payload.data.clone(),
        encoding: payload.encoding.as_str().to_owned(),
        type_name: payload.type_name.clone(),
    }
}

/// 0 stands for none.
fn moment(at: Option<Micros>) -> i64 {
    at.map_or(0, |at| at.0)
}

/// An instance for a list: without input, output and the failure's details, each of which may have 4 MiB.
pub(super) fn instance(instance: &Instance, waiting_for: Option<String>) -> wire::Instance {
    let life = &instance.life;
    wire::Instance {
        id: instance.id.to_string(),
        workflow: instance.workflow.to_string(),
        image: format!("{}:{}", instance.image, instance.version),
        digest: instance.digest.to_string(),
        status: life.status().as_str().to_owned(),
        attempt: life.attempt.0,
        node: life.node().map(ToString::to_string).unwrap_or_default(),
        input: None,
        output: None,
        failure: instance.failure.as_ref().map(|failure| wire::Failure {
            code: failure.code.clone(),
            message: failure.message.clone(),
            retryable: failure.retryable,
            details: Vec::new(),
        }),
        waiting_for: waiting_for.unwrap_or_default(),
        wake_at: moment(wake_at(life)),
        created_at: instance.created_at.0,
        started_at: moment(instance.started_at),
        ended_at: moment(ended_at(life)),
        paused: life.paused,
        cancel_asked: life.cancel != Cancel::No,
        launching: life.is_open(),
        progress: instance.progress.as_ref().map(|(progress, at)| wire::Progress {
            done: progress.done,
            total: progress.total,
            message: progress.message.clone(),
            at: at.0,
        }),
        crashes: life.crashes,
        deadline_at: moment(life.deadline_at),
        checkpoints: 0,
        unread_signals: 0,
        version: instance.revision,
        retry_of: String::new(),
    }
}

/// While it is being launched the row's wake is the launch deadline, which is none of the wakes
/// that people mean.
fn wake_at(life: &Life) -> Option<Micros> {
    if life.is_open() { None } else { life.wake_at() }
}

fn ended_at(life: &Life) -> Option<Micros> {
    match &life.state {
        State::Ended { at, .. } => Some(*at),
        State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Suspended { .. } => {
            None
        }
    }
}

/// An instance as a whole. The input is left out where it and what the ending says are too large
/// for one answer together.
pub(super) fn detail(detail: &InstanceDetail, waiting_for: Option<String>) -> wire::Instance {
    let output_bytes = detail.output.as_ref().map_or(0, |output| output.data.len());
    let details = detail.instance.failure.as_ref().map(|failure| failure.details.clone()).unwrap_or_default();
    let both_fit = detail.input.data.len() + output_bytes + details.len() <= PAYLOAD_MAX_BYTES;
    let listed = self::instance(&detail.instance, waiting_for);
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    wire::Instance {
        input: both_fit.then(|| payload(&detail.input)),
        output: detail.output.as_ref().map(payload),
        checkpoints: narrow(detail.checkpoints),
        unread_signals: narrow(detail.unread_signals),
        retry_of: detail.retry_of.as_ref().map(ToString::to_string).unwrap_or_default(),
        failure: listed.failure.map(|failure| wire::Failure { details, ..failure }),
        ..listed
    }
}

pub(super) fn image(image: &Image) -> wire::Image {
    wire::Image {
        name: image.name.to_string(),
        version: image.version.to_string(),
        digest: image.digest.to_string(),
        size: image.size,
        workflows: image.workflows.iter().map(ToString::to_string).collect(),
        sdk_version: image.sdk_version.clone(),
        architecture: image.architecture.clone(),
        created_at: image.created_at.0,
        spares: image.spares,
        reuse: image.reuse,
    }
}

pub(super) fn checkpoint(stored: &StoredCheckpoint) -> wire::StoredCheckpoint {
    let (value, due_at) = match &stored.value {
        Value::Payload(value) => (Some(payload(value)), None),
        Value::Due(at) => (None, Some(*at)),
        Value::Cancelled => (None, None),
    };
    wire::StoredCheckpoint {
        name: stored.operation.name.to_string(),
        key: stored.operation.key.as_str().to_owned(),
        slot: stored.operation.slot,
        kind: stored.kind.as_str().to_owned(),
        attempt: stored.attempt.0,
        stored_at: stored.stored_at.0,
        payload: value,
        due_at: moment(due_at),
        note: stored.note.clone(),
    }
}

pub(super) fn event(event: &Event) -> wire::Event {
    wire::Event {
        number: event.number,
        at: event.at.0,
        attempt: event.attempt.0,
        kind: event.kind.as_str().to_owned(),
        message: event.message.clone(),
        payload: event.payload.as_ref().map(payload),
    }
}

pub(super) fn attempt(record: &AttemptRecord) -> wire::Attempt {
    wire::Attempt {
        attempt: record.attempt.0,
        node: record.node.to_string(),
        claimed_at: record.claimed_at.0,
        registered_at: moment(record.registered_at),
        ended_at: moment(record.ended_at),
        exit: record.exit.clone().unwrap_or_default(),
        wake_reason: record.wake_reason.as_str().to_owned(),
        pid: if record.ended_at.is_some() { 0 } else { record.pid.unwrap_or(0) },
    }
}

/// What a node says of itself; of this one the newest is known without the database.
pub(super) fn report<'a>(node: &'a Node, this: &'a ThisNode) -> &'a NodeReport {
    if node.lease.node.as_str() == this.id { &this.report } else { &node.report }
}

/// Why a node claims nothing; `None`: it claims, as far as it has free slots.
pub(super) fn not_claiming(node: &Node, this: &ThisNode) -> Option<String> {
    let report = report(node, this);
    if !report.not_claiming.is_empty() {
        return Some(report.not_claiming.clone());
    }
    if node.lost {
        return Some(
            "its lease is lost: it gave no sign for as long as it lasts, and others took over".to_owned(),
        );
    }
    report.draining.then(|| "draining".to_owned())
}

/// A node, as its own newest report says.
pub(super) fn node(node: &Node, this: &ThisNode) -> wire::Node {
    let report = report(node, this);
    let full = report.running >= node.slots;
    let not_claiming = not_claiming(node, this)
        .or_else(|| full.then(|| format!("all its {} slots are taken", node.slots)))
        .unwrap_or_default();
    wire::Node {
        id: node.lease.node.to_string(),
        name: node.name.clone(),
        address: node.address.clone(),
        slots: node.slots,
        running: report.running,
        started_at: node.started_at.0,
        last_sign_at: node.renewed_at.0,
        draining: report.draining,
        version: node.version.clone(),
        not_claiming,
        lost: node.lost,
        drain: node.drain.as_str().to_owned(),
        load_milli: report.load_milli,
        memory_free_bytes: report.memory_free_bytes,
        in_force: report.in_force.clone(),
    }
}
