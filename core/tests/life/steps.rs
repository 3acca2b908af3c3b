//! What an action does to the world, and what can only be noticed while it happens.

use dormouse_core::domain::{
    id::{Attempt, Session},
    instance::{Cancel, Life, State, Writer},
    wake::{Waits, WakeReason},
};

use crate::{
    actions::{Action, Rules},
    bugs::{self, Bug},
    row::Answer,
    state::{CLEAN_UP, Node, Phase, Power, Proc, Request, Row, World, node_id},
};

impl World {
    pub(crate) fn apply(&self, action: Action, rules: &Rules) -> Self {
        let mut next = self.clone();
        next.step(action, rules);
        if self.row.has_ended() && next.row.life != self.row.life {
            next.breaches.ending_changed = true;
        }
        let same_launch = |life: &Life| life.is_open() && life.attempt == self.row.life.attempt;
        let moved = next.row.life.wake_at() != self.row.life.wake_at();
        if same_launch(&self.row.life) && same_launch(&next.row.life) && moved {
            next.breaches.open_wake_moved |= action != Action::LaunchDeadlinePasses;
        }
        next.tidy();
        next
    }

    fn step(&mut self, action: Action, rules: &Rules) {
        let bug = rules.bug;
        if costs_a_fault(action) || (action == Action::LaunchDeadlinePasses && self.launch_is_alive()) {
            self.budget.faults -= 1;
        }
        match action {
            Action::Signal
            | Action::Cancel
            | Action::Pause
            | Action::Resume
            | Action::Stop
            | Action::LimitPasses
            | Action::GracePasses { .. } => self.control(action, bug),
            Action::SeeDue { node } => self.nodes[node].saw_due = true,
            Action::Claim { node, reply_lost } => self.claim(node, reply_lost, bug),
            Action::Spawn { node } => self.spawn(node),
            Action::SpawnFails { node } => {
                let attempt = self.launched(node);
                self.crashed(attempt, node, rules);
            }
            Action::GiveBack { node } => {
                let attempt = self.launched(node);
                self.row.given_back(attempt, node, rules);
            }
            Action::Record { node } => self.record(node, bug),
            Action::ReportExit { attempt, node } => self.report_exit(attempt, node, rules),
            Action::Settle { node } => self.settle(node, bug),
            Action::Watch { node } => self.watch(node),
            Action::Renew { node } => self.nodes[node].watched = false,
            Action::LoseLease { node } => self.lose_lease(node, rules),
            Action::TakeOver { node } => self.row.settle(node, bug),
            Action::LearnLost { node } => self.learn_lost(node, bug),
            Action::NodeCrashes { node } => self.node_crashes(node),
            Action::NodeStops { node } => self.nodes[node].power = Power::Stopped,
            Action::NodeBack { node } => self.node_back(node, bug),
            Action::Register { proc, reply_lost } => self.register(proc, reply_lost, bug),
            Action::Send { proc, request } => self.send(proc, request),
            Action::Repeat { proc } => self.send(proc, self.procs[proc].ask.expect("guarded")),
            Action::ConnectionBreaks { proc } => self.procs[proc].session = Session::NONE,
            Action::ProcessDies { proc } => self.gone(proc),
            Action::Deliver { proc, message, reply_lost } => self.deliver(proc, message, reply_lost, bug),
            Action::DuePasses => self.row.due_passes(),
            Action::RetryPasses => self.row.wake_passes(),
            Action::LaunchDeadlinePasses => {
                self.launch_is_late = true;
                self.row.wake_passes();
            }
            Action::DatabaseDown => self.database_down(bug),
            Action::DatabaseUp => self.db_up = true,
        }
    }

    fn control(&mut self, action: Action, bug: Bug) {
        let budget = &mut self.budget;
        match action {
            Action::Signal => {
                budget.signals -= 1;
                let before = self.row.life.clone();
                self.row.signal(bug);
                let waits = before.waits().is_some_and(|waits| waits.signals().next().is_some());
                self.breaches.woken_for_nothing |= !waits && self.row.life != before;
            }
            Action::Cancel => {
                budget.cancels -= 1;
                let before = self.row.life.clone();
                self.row.cancel(bug);
                self.breaches.woken_for_nothing |= before.cancel == Cancel::Felt && self.row.life != before;
            }
            Action::Pause => {
                budget.pauses -= 1;
                self.row.pause(bug);
            }
            Action::Stop => {
                budget.endings -= 1;
                self.row.stop(bug);
            }
            Action::LimitPasses => {
                budget.endings -= 1;
                self.row.limit_passes();
            }
            Action::GracePasses { proc } => {
                budget.endings -= 1;
                self.grace_passes(self.procs[proc].attempt, bug);
            }
            _ => self.row.resume(bug),
        }
    }

    fn grace_passes(&mut self, of: Attempt, bug: Bug) {
        let before = self.row.life.clone();
        self.row.grace_passes(of, bug);
        let wrongly = before.cancel == Cancel::Felt || before.attempt != of;
        self.breaches.grace_cut |= self.row.life != before && wrongly;
    }

    fn claim(&mut self, n: usize, reply_lost: bool, bug: Bug) {
        let life = &self.row.life;
        let under_way = self.row.is_running() || (life.is_open() && !self.launch_is_late);
        if !self.row.wake_has_come() || under_way || life.paused {
            self.breaches.claimed_twice = true;
        }
        self.breaches.reason_is_wrong |= !self.is_true(bugs::wake_reason(bug, life));
        self.row.claim(n, bug);
        self.launch_is_late = false;
        self.nodes[n].saw_due = false;
        if !reply_lost {
            self.nodes[n].launching = Some(self.row.life.attempt);
        }
    }

    /// Whether the process that is launched for this reason will find it so.
    fn is_true(&self, reason: WakeReason) -> bool {
        let life = &self.row.life;
        match reason {
            WakeReason::Start => life.attempt == Attempt::NONE,
            WakeReason::Due => self.row.due_has_come(),
            WakeReason::Signal => self.row.unread(),
            WakeReason::Resume => life.waits().is_some_and(Waits::for_resume),
            WakeReason::Cancel => matches!(life.cancel, Cancel::Asked { .. }),
            WakeReason::Retry => life.attempt != Attempt::NONE,
            WakeReason::LaunchMissed => self.launch_is_late,
        }
    }

    fn spawn(&mut self, node: usize) {
        self.procs.push(Proc {
            attempt: self.nodes[node].launching.expect("guarded"),
            node,
            phase: Phase::Starting,
            known: false,
            session: Session::NONE,
            pos: 0,
            ask: None,
            wire: vec![],
            holds: None,
        });
    }

    fn launched(&mut self, node: usize) -> Attempt {
        self.nodes[node].launching.take().expect("guarded")
    }

    fn record(&mut self, node: usize, bug: Bug) {
        let attempt = self.launched(node);
        for p in self.procs.iter_mut().filter(|p| p.attempt == attempt && p.node == node) {
            p.known = true;
        }
        if bug == Bug::EnvWritesRunning && self.row.life.attempt == attempt {
            self.breaches.own_record_overwritten |= self.row.has_ended() || self.row.asleep().is_some();
            self.row.life.state = State::Running { node: node_id(node) };
        }
    }

    fn report_exit(&mut self, attempt: Attempt, node: usize, rules: &Rules) {
        let before = self.row.clone();
        self.crashed(attempt, node, rules);
        if self.row != before {
            self.breaches.old_exit_touched_row |= before.life.attempt > attempt;
            self.breaches.own_record_overwritten |= before.asleep().is_some();
        }
        let reported = |p: &&mut Proc| p.attempt == attempt && p.node == node && p.phase == Phase::Gone;
        for p in self.procs.iter_mut().filter(reported) {
            p.known = false;
        }
    }

    fn crashed(&mut self, attempt: Attempt, node: usize, rules: &Rules) {
        let before = self.row.life.clone();
        self.row.exited(attempt, node, rules);
        if self.row.life != before {
            self.crashes_in_a_row += 1;
            let too_early = self.row.has_ended() && self.crashes_in_a_row <= rules.crash_limit;
            self.breaches.failed_too_early |= too_early;
        }
    }

    /// A node that starts again, or that got a new lease, answers for each row that names
    /// it and for which it knows no process: such a row goes back to the wake queue, and
    /// an open claim is closed, so that a process it knows nothing of cannot register.
    fn settle(&mut self, n: usize, bug: Bug) {
        self.nodes[n].must_settle = false;
        let newest = self.row.life.attempt;
        let known = self.procs.iter().any(|p| p.node == n && p.known && p.attempt == newest);
        let left = bug == Bug::SettleRunningOnly && !self.row.is_running();
        if !known && !left {
            self.row.settle(n, bug);
        }
    }

    fn watch(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.watched = true;
        node.watch_saw_fault = node.power != Power::Up;
    }

    fn lose_lease(&mut self, node: usize, rules: &Rules) {
        let lost = &mut self.nodes[node];
        self.breaches.outage_cost_a_lease |= !lost.watch_saw_fault;
        (lost.leased, lost.watched) = (false, false);
        let left = rules.bug == Bug::TakeoverRunningOnly && self.row.life.is_open();
        if rules.takes_over_at_the_loss_only() && !left {
            self.row.settle(node, rules.bug);
        }
    }

    fn learn_lost(&mut self, node: usize, bug: Bug) {
        let launching = self.nodes[node].launching.take();
        for proc in 0..self.procs.len() {
            let p = &self.procs[proc];
            if p.node == node && (p.known || Some(p.attempt) == launching) {
                self.gone(proc);
            }
        }
        self.nodes[node].leased = true;
        self.nodes[node].must_settle = bug != Bug::NoSettle;
    }

    fn node_crashes(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let (leased, watched, watch_saw_fault) = (node.leased, node.watched, node.watch_saw_fault);
        *node = Node { power: Power::Down, leased, watched, watch_saw_fault, ..Node::fresh() };
    }

    fn node_back(&mut self, node: usize, bug: Bug) {
        let node = &mut self.nodes[node];
        node.must_settle |= node.power == Power::Down && bug != Bug::NoSettle;
        node.power = Power::Up;
    }

    /// A watch counts only while the database answers.
    fn database_down(&mut self, bug: Bug) {
        self.db_up = false;
        if bug != Bug::OutageLosesLease {
            for node in &mut self.nodes {
                node.watched = false;
            }
        }
    }

    fn register(&mut self, proc: usize, reply_lost: bool, bug: Bug) {
        let p = &mut self.procs[proc];
        let answer = self.row.register(p.attempt, bug);
        if answer.is_some() {
            self.registered = self.registered.max(p.attempt);
        }
        match answer {
            _ if reply_lost => {}
            None => self.gone(proc),
            Some(session) => {
                p.session = session;
                if p.phase == Phase::Starting {
                    p.pos = self.row.saved;
                }
                p.phase = Phase::Up;
            }
        }
    }

    fn send(&mut self, proc: usize, request: Request) {
        let p = &mut self.procs[proc];
        p.ask = Some(request);
        p.wire.push((p.session, request));
    }

    fn deliver(&mut self, proc: usize, message: usize, reply_lost: bool, bug: Bug) {
        let (session, request) = self.procs[proc].wire.remove(message);
        let by = Writer { attempt: self.procs[proc].attempt, session };
        let before = self.row.clone();
        let answer = self.row.write(by, request, bug);
        self.notice(&before, by, request, answer);
        let p = &mut self.procs[proc];
        if p.phase == Phase::Gone || p.session != session {
            return;
        }
        if reply_lost {
            p.session = Session::NONE;
        } else {
            self.answered(proc, request, answer, bug);
        }
    }

    fn notice(&mut self, before: &Row, by: Writer, request: Request, answer: Answer) {
        let breaches = &mut self.breaches;
        if answer == Answer::Fenced {
            breaches.repeat_refused |= before.life.attempt == by.attempt && before.says(request);
        } else {
            breaches.zombie_acknowledged |= by.attempt < self.registered;
            breaches.not_the_writer_acknowledged |= before.is_running() && before.life.admit(by).is_err();
        }
        let ended = matches!((request, answer), (Request::End, Answer::Done));
        breaches.unstored_acknowledged |= (ended || answer == Answer::Suspended) && !self.row.says(request);
        if let Request::Save { consumes: Some(id), .. } = request
            && self.row.saved != before.saved
        {
            breaches.signal_taken_twice |= before.taken & (1 << id) != 0;
        }
        if self.row != *before {
            self.crashes_in_a_row = 0; // whatever an instance writes is progress
        }
    }

    fn answered(&mut self, proc: usize, request: Request, answer: Answer, bug: Bug) {
        let p = &mut self.procs[proc];
        p.ask = None;
        match (answer, request) {
            (Answer::Fenced | Answer::Suspended, _) | (Answer::Done, Request::End) => self.gone(proc),
            (Answer::Done, Request::Save { pos, consumes }) => {
                p.pos = pos + 1;
                p.holds = consumes.filter(|_| bug == Bug::SaveBeforeAck);
            }
            (Answer::Done, Request::Ack { id }) => p.holds = (bug == Bug::AckBeforeSave).then_some(id),
            (Answer::Done, Request::FeelCancel) => p.pos = CLEAN_UP.max(p.pos),
            (Answer::Done, Request::SaveDue { .. } | Request::Suspend { .. }) | (Answer::Continue, _) => {}
        }
    }

    fn gone(&mut self, proc: usize) {
        let p = &mut self.procs[proc];
        (p.phase, p.session, p.ask) = (Phase::Gone, Session::NONE, None);
        if let Some(id) = p.holds.take() {
            self.breaches.signal_lost |= self.row.taken & (1 << id) == 0 && p.wire.is_empty();
        }
    }
}

fn costs_a_fault(action: Action) -> bool {
    match action {
        Action::Claim { reply_lost, .. }
        | Action::Register { reply_lost, .. }
        | Action::Deliver { reply_lost, .. } => reply_lost,
        Action::SpawnFails { .. }
        | Action::GiveBack { .. }
        | Action::NodeCrashes { .. }
        | Action::NodeStops { .. }
        | Action::ConnectionBreaks { .. }
        | Action::ProcessDies { .. }
        | Action::DatabaseDown => true,
        _ => false,
    }
}
