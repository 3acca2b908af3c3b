//! Decides when the instance is suspended, and sends what belongs to no operation: suspensions, the
//! ending, progress, and now and then a look for pushes that got lost.
//!
//! A suspension cuts the workflow off wherever it stands. So it is asked for only when no step runs,
//! nothing is unanswered, and either the workflow stands at a durable wait and did nothing for a
//! while, or a pause holds it back.

use std::{sync::Arc, time::Duration};

use dormouse_proto::instance::{self, InstanceEvent, client_frame, instance_event};
use tokio::time::{Instant, timeout_at};

use super::{
    Ending, Ledger, Pace,
    inbox::Cancelled,
    state::{OpenWait, Phase, State},
};
use crate::{
    error::Result,
    fault::{self, Point},
};

/// Progress is sent at most this often; only the newest counts.
const PROGRESS_PACE: Duration = Duration::from_millis(250);
/// After core refused a suspension.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

enum Next {
    LookAt(Instant),
    Poll,
    Progress(instance::Progress),
    Suspend(Vec<instance::Wait>),
    End(Ending),
}

enum Rest {
    /// Not before something changes.
    No,
    At(Instant),
    Now,
}

/// Runs beside the driver that answers the ledger's requests, and is dropped with it. Returns only if
/// core does not accept an ending: then nothing sensible is left to do.
pub(crate) async fn keep(ledger: Arc<Ledger>) -> String {
    loop {
        let next = ledger.lock().decide(ledger.pace, Instant::now());
        match next {
            // A look in vain is cheap; missing one is not possible, because a notification is kept.
            Next::LookAt(at) => drop(timeout_at(at, ledger.watch.notified()).await),
            Next::Poll => {
                let poll = client_frame::Operation::PollSignals(instance::PollSignals {});
                say("asking for the inbox failed", ledger.call(poll, None).await.map(drop));
            }
            Next::Progress(progress) => {
                let sent = ledger.event(instance_event::Event::Progress(progress)).await;
                say("reporting progress failed", sent);
            }
            Next::Suspend(waits) => {
                fault::pass(Point::BeforeSuspend);
                let suspend = client_frame::Operation::Suspend(instance::Suspend { waits });
                if let Err(failure) = ledger.call(suspend, None).await {
                    eprintln!(
                        "dormouse-sdk: core refused to suspend this instance: {failure}; it waits here"
                    );
                    ledger.lock().suspend_after = Some(Instant::now() + REFUSED_PAUSE);
                }
            }
            Next::End(ending) => {
                if let Some(refusal) = end(&ledger, ending).await {
                    return refusal;
                }
            }
        }
    }
}

fn say(what: &str, sent: Result<()>) {
    if let Err(failure) = sent {
        eprintln!("dormouse-sdk: {what}: {failure}");
    }
}

/// Sends the ending. One that core does not take becomes a failure that says why.
async fn end(ledger: &Ledger, ending: Ending) -> Option<String> {
    fault::pass(Point::BeforeComplete);
    let event = match ending {
        Ending::Completed(output) => {
            instance_event::Event::Completed(instance::Completed { output: Some(output) })
        }
        Ending::Failed(failure) => failed(failure),
    };
    // An accepted ending is not answered here: the driver leaves with `Fate::Ended`.
    let refusal = send_ending(ledger, event).await?;
    send_ending(ledger, failed(refusal)).await.map(|refusal| format!("core refused the ending: {refusal}"))
}

fn failed(failure: crate::Failure) -> instance_event::Event {
    instance_event::Event::Failed(instance::Failed { failure: Some(failure.into_wire()) })
}

async fn send_ending(ledger: &Ledger, event: instance_event::Event) -> Option<crate::Failure> {
    let operation = client_frame::Operation::Event(InstanceEvent { event: Some(event) });
    ledger.call(operation, None).await.err()
}

impl State {
    fn decide(&mut self, pace: Pace, now: Instant) -> Next {
        if self.ending.is_some() && self.in_flight == 0 {
            return self.before_leaving().unwrap_or_else(|| self.leave());
        }
        let report_at = match (&self.progress, self.progress_at) {
            (None, _) => None,
            (Some(_), None) => Some(now),
            (Some(_), Some(last)) => Some(last + PROGRESS_PACE),
        };
        if report_at.is_some_and(|at| at <= now)
            && let Some(progress) = self.before_leaving()
        {
            self.progress_at = Some(now);
            return progress;
        }
        let poll_at = self.inbox_at + pace.poll;
        if poll_at <= now {
            // Also if the answer never comes: the next look is a whole pause later.
            self.inbox_at = now;
            return Next::Poll;
        }
        let look_at = report_at.map_or(poll_at, |at| at.min(poll_at));
        match self.rest(pace.idle, now) {
            Rest::Now => self.before_leaving().unwrap_or_else(|| self.freeze()),
            Rest::At(at) => Next::LookAt(at.min(look_at)),
            Rest::No => Next::LookAt(look_at),
        }
    }

    /// What is still to be said.
    fn before_leaving(&mut self) -> Option<Next> {
        self.progress.take().map(Next::Progress)
    }

    fn leave(&mut self) -> Next {
        self.phase = Phase::Closing;
        match self.ending.take() {
            Some(ending) => Next::End(ending),
            None => Next::LookAt(Instant::now()),
        }
    }

    fn freeze(&mut self) -> Next {
        self.phase = Phase::Frozen;
        let mut waits: Vec<_> = self.waits.values().map(OpenWait::wire).collect();
        if self.inbox.paused {
            waits.push(instance::Wait { resume: true, ..instance::Wait::default() });
        }
        Next::Suspend(waits)
    }

    /// When the instance may be suspended.
    fn rest(&self, idle: Duration, now: Instant) -> Rest {
        // An operation may be waiting to hear whether it has a result.
        let resumes = !self.shelf.is_complete();
        let works = resumes || self.busy > 0 || self.in_flight > 0 || self.ending.is_some();
        if self.phase != Phase::Open || works || self.inbox.cancelled == Cancelled::Asked {
            return Rest::No;
        }
        if let Some(at) = self.suspend_after.filter(|at| *at > now) {
            return Rest::At(at);
        }
        if self.inbox.paused {
            let stands = !self.waits.is_empty() || self.held > 0;
            // The end of a poll is a reason to look again, see `Ledger::polling`.
            return if stands && !self.polling { Rest::Now } else { Rest::No };
        }
        if self.waits.is_empty() {
            return Rest::No;
        }
        let taking =
            self.waits.values().any(|wait| wait.signal.as_ref().is_some_and(|name| self.inbox.has(name)));
        if self.polling || taking {
            return Rest::At(now + idle);
        }
        let due_at = self.waits.values().filter_map(|wait| wait.due_at).min();
        if let Some(due_in) = due_at.map(|due_at| self.clock.until(due_at)).filter(|due_in| *due_in < idle) {
            // Not worth a launch: it is waited for here, and acts when it is over.
            return Rest::At(now + due_in.max(Duration::from_millis(1)));
        }
        let quiet_at = self.active_at + idle;
        if quiet_at <= now { Rest::Now } else { Rest::At(quiet_at) }
    }
}

impl OpenWait {
    fn wire(&self) -> instance::Wait {
        instance::Wait {
            name: self.operation.name.to_string(),
            key: self.operation.key.to_string(),
            due_at: self.due_at,
            signal: self.signal.as_deref().map(str::to_owned),
            resume: false,
        }
    }
}
