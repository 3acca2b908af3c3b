//! The world of the model: one instance's row, two environment nodes, and the processes
//! that were ever launched for it. Nothing here decides.

use std::hash::{Hash, Hasher as _};

use dormouse_core::domain::{
    id::{Attempt, NodeId, Session},
    instance::{Life, State, Status},
    time::Micros,
    wake::Waits,
};

use crate::mix::Mix;

/// The only two moments: what has passed is as good as now, and all that is to come is
/// equally far away. `actions::Action` moves them one by one, so every order is explored.
pub(crate) const NOW: Micros = Micros::seconds(1000);
pub(crate) const FUTURE: Micros = Micros::seconds(1001);

/// From here on positions belong to the clean-up that follows a cancel.
pub(crate) const CLEAN_UP: u8 = 10;

/// One line of the workflow's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Op {
    Step,
    Sleep,
    Signal,
    SignalOrTime,
}

impl Op {
    /// Whether it waits for a due time, which is a checkpoint before it is waited for.
    pub(crate) fn is_timed(self) -> bool {
        matches!(self, Self::Sleep | Self::SignalOrTime)
    }

    pub(crate) fn takes_signal(self) -> bool {
        matches!(self, Self::Signal | Self::SignalOrTime)
    }
}

/// What a process asks of core. Positions of the script stand for names of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Request {
    Save {
        pos: u8,
        consumes: Option<u8>,
    },
    /// Only in the variant in which acknowledging a signal is a request of its own.
    Ack {
        id: u8,
    },
    SaveDue {
        pos: u8,
    },
    /// Waits for `op`, for the end of a pause, or for both.
    Suspend {
        pos: u8,
        op: Option<Op>,
        resume: bool,
    },
    FeelCancel,
    End,
}

/// The instance's row, and its durable companions (checkpoints, signals) as counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) life: Life,
    /// Results saved = position of the workflow.
    pub(crate) saved: u8,
    /// The due time that is saved for the operation at `saved`.
    pub(crate) due_at: Option<Micros>,
    /// The attempt of the newest checkpoint; none if no living attempt wrote it.
    pub(crate) newest_checkpoint: Attempt,
    pub(crate) sent: u8,
    pub(crate) acked: u8,
    /// Signals whose result is a checkpoint, a bit for each.
    pub(crate) taken: u8,
}

impl Row {
    fn start(crashes: u32) -> Self {
        Self {
            life: Life { crashes, ..Life::start(NOW, None) },
            saved: 0,
            due_at: None,
            newest_checkpoint: Attempt::NONE,
            sent: 0,
            acked: 0,
            taken: 0,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.life.outcome().is_some()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.life.status() == Status::Running
    }

    /// What it waits for without being launched.
    pub(crate) fn asleep(&self) -> Option<&Waits> {
        match &self.life.state {
            State::Suspended { waits, .. } => Some(waits),
            State::Pending { .. } | State::Launching { .. } | State::Running { .. } | State::Ended { .. } => {
                None
            }
        }
    }

    /// Whether its wake has come, also while a pause holds it.
    pub(crate) fn wake_has_come(&self) -> bool {
        self.life.wake_at().is_some_and(|wake_at| wake_at <= NOW)
    }

    pub(crate) fn due_has_come(&self) -> bool {
        self.due_at == Some(NOW)
    }

    pub(crate) fn unread(&self) -> bool {
        self.acked < self.sent
    }

    /// Claimed or run by this node.
    pub(crate) fn held_by(&self, node: usize) -> bool {
        self.life.node().is_some_and(|id| id.as_str() == NODES[node])
    }
}

const NODES: [&str; 2] = ["a", "b"];

pub(crate) fn node_id(node: usize) -> NodeId {
    NodeId::parse(NODES[node]).expect("a letter is a node id")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Starting,
    Up,
    Gone,
}

/// One operating-system process with its SDK.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Proc {
    pub(crate) attempt: Attempt,
    pub(crate) node: usize,
    pub(crate) phase: Phase,
    /// The environment has written down which process this is.
    pub(crate) known: bool,
    /// `NONE`: no connection.
    pub(crate) session: Session,
    pub(crate) pos: u8,
    /// Sent and not answered; repeated after a reconnect.
    pub(crate) ask: Option<Request>,
    /// Copies under way to some core, with the session they were sent in.
    pub(crate) wire: Vec<(Session, Request)>,
    /// The signal between its two requests, where acknowledging is a request of its own.
    pub(crate) holds: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Power {
    Up,
    /// Frozen: its memory survives.
    Stopped,
    Down,
    /// Down, and never seen again. Only the properties assume this.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) power: Power,
    pub(crate) leased: bool,
    /// Another node has begun to watch this lease stay unrenewed.
    pub(crate) watched: bool,
    /// The node was stopped or down at some moment of that watch.
    pub(crate) watch_saw_fault: bool,
    /// In memory: claimed, not yet spawned.
    pub(crate) launching: Option<Attempt>,
    /// Restarted, or lost its lease: must settle its rows before anything else.
    pub(crate) must_settle: bool,
    /// Variant in which a claim reads first: saw a due row, has not yet written.
    pub(crate) saw_due: bool,
}

impl Node {
    pub(crate) fn fresh() -> Self {
        Self {
            power: Power::Up,
            leased: true,
            watched: false,
            watch_saw_fault: false,
            launching: None,
            must_settle: false,
            saw_due: false,
        }
    }
}

/// How often each kind of trouble may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) faults: u8,
    pub(crate) signals: u8,
    pub(crate) cancels: u8,
    pub(crate) pauses: u8,
    /// Stops, time limits, graces: what ends an instance from outside.
    pub(crate) endings: u8,
}

/// What can only be seen while it happens. Each belongs to a property.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Breaches {
    pub(crate) zombie_acknowledged: bool,
    pub(crate) claimed_twice: bool,
    pub(crate) ending_changed: bool,
    pub(crate) old_exit_touched_row: bool,
    pub(crate) signal_taken_twice: bool,
    pub(crate) signal_lost: bool,
    pub(crate) outage_cost_a_lease: bool,
    pub(crate) unstored_acknowledged: bool,
    pub(crate) own_record_overwritten: bool,
    pub(crate) not_the_writer_acknowledged: bool,
    pub(crate) repeat_refused: bool,
    pub(crate) failed_too_early: bool,
    pub(crate) woken_for_nothing: bool,
    pub(crate) reason_is_wrong: bool,
    pub(crate) grace_cut: bool,
    pub(crate) open_wake_moved: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) row: Row,
    pub(crate) nodes: [Node; 2],
    pub(crate) procs: Vec<Proc>,
    pub(crate) db_up: bool,
    /// Newest attempt that ever registered (history, for the properties).
    pub(crate) registered: Attempt,
    /// Noticed in a transition (history, for the properties).
    pub(crate) breaches: Breaches,
    /// The deadline of the open launch has passed (history, for the properties).
    pub(crate) launch_is_late: bool,
    /// Crashes since the last progress (history, for the properties).
    pub(crate) crashes_in_a_row: u32,
    pub(crate) budget: Budget,
}

impl World {
    /// A fresh instance, but for crashes that came before.
    pub(crate) fn start(budget: Budget, crashes: u32) -> Self {
        Self {
            row: Row::start(crashes),
            nodes: [Node::fresh(), Node::fresh()],
            procs: vec![],
            db_up: true,
            registered: Attempt::NONE,
            breaches: Breaches::default(),
            launch_is_late: false,
            crashes_in_a_row: crashes,
            budget,
        }
    }

    /// Equal for equal worlds.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = Mix::default();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Forgets what can never matter again and names the nodes in a fixed order, so that
    /// worlds that behave alike are equal.
    pub(crate) fn tidy(&mut self) {
        let nodes = &self.nodes;
        self.procs.retain(|p| {
            p.phase != Phase::Gone
                || p.known
                || !p.wire.is_empty()
                || nodes[p.node].launching == Some(p.attempt)
        });
        if self.row.newest_checkpoint != self.row.life.attempt {
            self.row.newest_checkpoint = Attempt::NONE; // progress of an older attempt never counts again
        }
        self.launch_is_late &= self.row.life.is_open();
        if self.row.has_ended() {
            // Who has ended takes no requests: `controller_actions` offers none.
            (self.budget.signals, self.budget.cancels, self.budget.pauses) = (0, 0, 0);
            self.crashes_in_a_row = 0;
        }
        if self.is_before(0, 1) {
            self.swap_nodes();
        }
        self.procs.sort();
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        let attempts = |node| self.procs.iter().filter(move |p| p.node == node).map(|p| p.attempt);
        let held = |node| self.row.held_by(node);
        let order = held(a).cmp(&held(b)).then_with(|| self.nodes[a].cmp(&self.nodes[b]));
        order.then_with(|| attempts(a).cmp(attempts(b))).is_lt()
    }

    fn swap_nodes(&mut self) {
        self.nodes.swap(0, 1);
        for p in &mut self.procs {
            p.node = 1 - p.node;
        }
        if let State::Launching { node, .. } | State::Running { node } = &mut self.row.life.state {
            *node = node_id(usize::from(node.as_str() == NODES[0]));
        }
    }
}

/// One line of a counterexample. The two nodes are alike: a step may exchange their names.
pub(crate) fn summary(world: &World) -> String {
    let row = &world.row;
    let life = &row.life;
    let mut text = format!(
        "{} attempt {} session {} wake {} node {} saved {} sent {} read {}",
        life.status().as_str(),
        life.attempt,
        life.session.0,
        life.wake_at().map_or("none", |at| if at <= NOW { "now" } else { "later" }),
        life.node().map_or("none", NodeId::as_str),
        row.saved,
        row.sent,
        row.acked,
    );
    let mut add = |part: String| {
        text.push_str("; ");
        text.push_str(&part);
    };
    if let Some(waits) = life.waits() {
        let signals = waits.signals().count();
        let due = waits.earliest_due().is_some();
        add(format!(
            "waits{}{}{}{}",
            if signals > 0 { " signal" } else { "" },
            if due { " due" } else { "" },
            if waits.for_resume() { " resume" } else { "" },
            if waits.for_retry() { " retry" } else { "" },
        ));
    }
    if life.is_open() {
        add("open".to_owned());
    }
    if life.paused {
        add("paused".to_owned());
    }
    add(format!("cancel {:?}", life.cancel));
    for p in &world.procs {
        add(format!("#{}@{} {:?} session {} pos {}", p.attempt, NODES[p.node], p.phase, p.session.0, p.pos));
        for (session, request) in &p.wire {
            add(format!("under way in session {}: {request:?}", session.0));
        }
    }
    for (node, name) in world.nodes.iter().zip(NODES) {
        if node.power != Power::Up || !node.leased {
            add(format!("node {name} {:?}{}", node.power, if node.leased { "" } else { ", lease lost" }));
        }
    }
    if !world.db_up {
        add("database down".to_owned());
    }
    text
}
