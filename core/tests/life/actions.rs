//! What may happen next. Faults cost from a small budget; healing (power, database, deadlines
//! of dead launches) is free.

use dormouse_core::domain::{
    id::{Attempt, Session},
    instance::{Cancel, Writer},
};

use crate::{
    bugs::Bug,
    state::{CLEAN_UP, FUTURE, NOW, Op, Phase, Power, Proc, Request, World},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    // Controllers, and what ends an instance from outside.
    Signal,
    Cancel,
    Pause,
    Resume,
    Stop,
    LimitPasses,
    GracePasses { proc: usize },
    // Environment nodes.
    Claim { node: usize, reply_lost: bool },
    SeeDue { node: usize },
    Spawn { node: usize },
    SpawnFails { node: usize },
    GiveBack { node: usize },
    Record { node: usize },
    ReportExit { attempt: Attempt, node: usize },
    Settle { node: usize },
    Watch { node: usize },
    Renew { node: usize },
    LoseLease { node: usize },
    TakeOver { node: usize },
    LearnLost { node: usize },
    NodeCrashes { node: usize },
    NodeStops { node: usize },
    NodeBack { node: usize },
    // Processes.
    Register { proc: usize, reply_lost: bool },
    Send { proc: usize, request: Request },
    Repeat { proc: usize },
    ConnectionBreaks { proc: usize },
    ProcessDies { proc: usize },
    // Core.
    Deliver { proc: usize, message: usize, reply_lost: bool },
    // Time and the database.
    DuePasses,
    RetryPasses,
    LaunchDeadlinePasses,
    DatabaseDown,
    DatabaseUp,
}

/// What stays the same in one search.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) script: &'static [Op],
    pub(crate) clean_up: &'static [Op],
    pub(crate) bug: Bug,
    /// Takeover only at the moment of the loss: no mistake while claims ask for the lease.
    pub(crate) takes_over_once: bool,
    pub(crate) max_attempts: Attempt,
    /// Crashes in a row that are forgiven.
    pub(crate) crash_limit: u32,
}

impl Rules {
    fn op(&self, pos: u8) -> Option<Op> {
        let (part, at) = match pos.checked_sub(CLEAN_UP) {
            Some(at) => (self.clean_up, at),
            None => (self.script, pos),
        };
        part.get(usize::from(at)).copied()
    }

    /// Left out by these: whoever looks takes over what is left.
    pub(crate) fn takes_over_at_the_loss_only(&self) -> bool {
        self.takes_over_once || matches!(self.bug, Bug::ClaimWithoutLease | Bug::TakeoverRunningOnly)
    }
}

impl World {
    pub(crate) fn actions(&self, rules: &Rules, out: &mut Vec<Action>) {
        if self.db_up {
            self.controller_actions(out);
            self.core_actions(out);
            self.time_actions(out);
        } else {
            out.push(Action::DatabaseUp);
        }
        for node in 0..self.nodes.len() {
            self.node_actions(node, rules, out);
        }
        for proc in 0..self.procs.len() {
            self.process_actions(proc, rules, out);
        }
    }

    fn has_faults(&self) -> bool {
        self.budget.faults > 0
    }

    fn controller_actions(&self, out: &mut Vec<Action>) {
        if self.budget.endings > 0 {
            out.extend([Action::Stop, Action::LimitPasses]);
            if self.row.life.cancel != Cancel::No {
                let known = (0..self.procs.len()).filter(|proc| self.is_watched_over(&self.procs[*proc]));
                out.extend(known.map(|proc| Action::GracePasses { proc }));
            }
        }
        if self.row.has_ended() {
            return;
        }
        if self.budget.signals > 0 {
            out.push(Action::Signal);
        }
        if self.budget.cancels > 0 {
            out.push(Action::Cancel);
        }
        if self.row.life.paused {
            out.push(Action::Resume);
        } else if self.budget.pauses > 0 {
            out.push(Action::Pause);
        }
    }

    /// Known to a node that can act on it.
    fn is_watched_over(&self, p: &Proc) -> bool {
        p.known && p.phase != Phase::Gone && self.nodes[p.node].power == Power::Up
    }

    fn core_actions(&self, out: &mut Vec<Action>) {
        for (proc, p) in self.procs.iter().enumerate() {
            for message in 0..p.wire.len() {
                out.push(Action::Deliver { proc, message, reply_lost: false });
                if self.has_faults() {
                    out.push(Action::Deliver { proc, message, reply_lost: true });
                }
            }
        }
        if self.has_faults() {
            out.push(Action::DatabaseDown);
        }
    }

    /// Time goes on while the database is down, but only what a transaction sees matters.
    fn time_actions(&self, out: &mut Vec<Action>) {
        if self.row.due_at == Some(FUTURE) {
            out.push(Action::DuePasses);
        }
        if !self.row.pending_wake() {
            return;
        }
        if !self.row.life.is_open() {
            out.push(Action::RetryPasses);
        } else if self.has_faults() || !self.launch_is_alive() {
            out.push(Action::LaunchDeadlinePasses);
        }
    }

    pub(crate) fn launch_is_alive(&self) -> bool {
        let newest = self.row.life.attempt;
        self.nodes.iter().any(|n| n.launching == Some(newest))
            || self.procs.iter().any(|p| p.attempt == newest && p.phase != Phase::Gone)
    }

    fn node_actions(&self, node: usize, rules: &Rules, out: &mut Vec<Action>) {
        match self.nodes[node].power {
            Power::Lost => return,
            Power::Stopped | Power::Down => return out.push(Action::NodeBack { node }),
            Power::Up => {}
        }
        if self.has_faults() {
            out.extend([Action::NodeCrashes { node }, Action::NodeStops { node }]);
        }
        self.launch_actions(node, rules, out);
        self.lease_actions(node, rules, out);
        if self.db_up {
            let gone = |p: &&Proc| p.node == node && p.phase == Phase::Gone && p.known;
            let reports = self.procs.iter().filter(gone);
            out.extend(reports.map(|p| Action::ReportExit { attempt: p.attempt, node }));
        }
    }

    fn launch_actions(&self, n: usize, rules: &Rules, out: &mut Vec<Action>) {
        let node = &self.nodes[n];
        let Some(attempt) = node.launching else { return self.claim_actions(n, rules, out) };
        if self.procs.iter().any(|p| p.attempt == attempt && p.node == n) {
            out.push(Action::Record { node: n });
            return;
        }
        out.push(Action::Spawn { node: n });
        if self.has_faults() && self.db_up {
            out.extend([Action::SpawnFails { node: n }, Action::GiveBack { node: n }]);
        }
    }

    fn claim_actions(&self, n: usize, rules: &Rules, out: &mut Vec<Action>) {
        let (node, row) = (&self.nodes[n], &self.row);
        let leased = node.leased || rules.bug == Bug::ClaimWithoutLease;
        if !self.db_up || !leased || node.must_settle || row.life.attempt >= rules.max_attempts {
            return;
        }
        let two_steps = rules.bug == Bug::ClaimTwoSteps;
        let due = row.life.is_due(NOW);
        if due && two_steps && !node.saw_due {
            out.push(Action::SeeDue { node: n });
        }
        if (due && !two_steps) || (node.saw_due && !row.has_ended()) {
            out.push(Action::Claim { node: n, reply_lost: false });
            if self.has_faults() {
                out.push(Action::Claim { node: n, reply_lost: true });
            }
        }
    }

    /// What node `n` does for its own lease, and about the other's.
    fn lease_actions(&self, n: usize, rules: &Rules, out: &mut Vec<Action>) {
        let (own, other) = (&self.nodes[n], &self.nodes[1 - n]);
        if self.db_up {
            if own.must_settle && own.leased {
                out.push(Action::Settle { node: n });
            }
            if !own.leased {
                out.push(Action::LearnLost { node: n });
            }
            if own.watched && own.leased {
                out.push(Action::Renew { node: n });
            }
            if !other.leased && !rules.takes_over_at_the_loss_only() && self.row.held_by(1 - n) {
                out.push(Action::TakeOver { node: 1 - n });
            }
            if other.leased && other.watched {
                out.push(Action::LoseLease { node: 1 - n });
            }
        }
        let unrenewed = if self.db_up {
            other.power != Power::Up
        } else {
            rules.bug == Bug::OutageLosesLease // nobody can renew, and nobody may count that
        };
        if other.leased && !other.watched && unrenewed {
            out.push(Action::Watch { node: 1 - n });
        }
    }

    fn process_actions(&self, proc: usize, rules: &Rules, out: &mut Vec<Action>) {
        let p = &self.procs[proc];
        if p.phase == Phase::Gone {
            return;
        }
        if self.has_faults() {
            out.push(Action::ProcessDies { proc });
        }
        if p.session == Session::NONE {
            if self.db_up {
                out.push(Action::Register { proc, reply_lost: false });
                if self.has_faults() {
                    out.push(Action::Register { proc, reply_lost: true });
                }
            }
            return;
        }
        if self.has_faults() {
            out.push(Action::ConnectionBreaks { proc });
        }
        match p.ask {
            Some(_) if p.wire.iter().any(|(session, _)| *session == p.session) => {}
            Some(_) => out.push(Action::Repeat { proc }),
            None => self.requests(p, rules, |request| out.push(Action::Send { proc, request })),
        }
    }

    /// What the workflow and its SDK may ask for next. What was pushed to the session is
    /// read off the row; a zombie, which nobody pushes to, may try anything its script says.
    fn requests(&self, p: &Proc, rules: &Rules, mut send: impl FnMut(Request)) {
        let row = &self.row;
        let writer = Writer { attempt: p.attempt, session: p.session };
        let current = row.life.admit(writer).is_ok();
        let (pos, op) = (p.pos, rules.op(p.pos));
        if current && matches!(row.life.cancel, Cancel::Asked { .. }) {
            send(Request::FeelCancel);
        }
        if current && row.life.paused {
            // A wait whose due time is not saved yet has not begun.
            let begun = op.filter(|op| *op != Op::Step && (!op.is_timed() || row.due_at.is_some()));
            send(Request::Suspend { pos, op: begun, resume: true });
        }
        if rules.bug == Bug::SaveBeforeAck
            && let Some(id) = p.holds
        {
            return send(Request::Ack { id });
        }
        let Some(op) = op else { return send(Request::End) };
        if op == Op::Step || (op.is_timed() && (!current || row.due_has_come())) {
            send(Request::Save { pos, consumes: None });
        }
        if op.takes_signal() {
            let unread = (current && row.unread()).then_some(row.acked);
            match (rules.bug, p.holds, unread) {
                (Bug::AckBeforeSave, Some(id), _) => return send(Request::Save { pos, consumes: Some(id) }),
                (Bug::AckBeforeSave, None, Some(id)) => send(Request::Ack { id }),
                (_, _, Some(id)) => send(Request::Save { pos, consumes: Some(id) }),
                (_, _, None) => {}
            }
        }
        if op.is_timed() && current && row.due_at.is_none() {
            send(Request::SaveDue { pos });
        } else if op != Op::Step {
            send(Request::Suspend { pos, op: Some(op), resume: false });
        }
    }
}
