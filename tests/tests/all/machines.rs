//! Several core replicas and nodes on one database.

use std::fs;

use dormouse_management_sdk::{Core, StartInstance, Status};
use dormouse_tests::{
    machines::{Machine, Machines},
    tally::{self, Tally},
    wait,
    workload::{Amount, Example, Run},
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};

/// Each sleep is longer than twice the idle time, so it suspends.
fn sleeper(id: &str, sleeps: u32, tally: &Tally) -> StartInstance {
    let start = StartInstance::of("sleeper").id(id).input(&json!({"sleeps": sleeps, "pause_ms": 5_000}));
    start.expect("JSON").env(tally::VARIABLE, tally.value())
}

/// The harness itself: machines are killed, stopped and started again, each alone.
#[tokio::test]
async fn machines_of_one_cluster_are_disturbed_one_by_one() {
    let mut machines = Machines::up(2, 2).await;
    machines.push("sleeper").await;
    let tally = Tally::in_dir(machines.scratch());
    for number in 0..4 {
        machines.controller(number % 2).start(sleeper(&format!("nap-{number}"), 2, &tally)).await;
    }
    machines.controller(0).until_suspended("nap-0").await;

    machines.freeze(Machine::Node(0));
    machines.thaw(Machine::Node(0));
    machines.kill(Machine::Core(0));
    machines.start(Machine::Core(0)).await;
    machines.terminate(Machine::Node(1));
    assert!(machines.until_ended(Machine::Node(1)).await.success());
    machines.start(Machine::Node(1)).await;

    for number in 0..4 {
        let id = format!("nap-{number}");
        machines.controller(1).until_ended(&id, Status::Completed).await;
        let attempts = machines.controller(0).attempts(&id).await;
        assert_eq!(tally.attempts()[&id].len(), usize::try_from(attempts).expect("few"), "{id}");
    }
}

/// Looks at the list of core replicas, as node 0 sees it, until it is as wanted.
async fn until_cores(machines: &Machines, what: &str, wanted: impl Fn(&[Core]) -> bool) -> Vec<Core> {
    wait::until(what, async || {
        let cores = machines.client(0).cores().await.map_err(|error| error.to_string())?;
        if wanted(&cores) { Ok(cores) } else { Err(format!("{cores:?}")) }
    })
    .await
}

/// What the node's processes read.
fn told(machines: &Machines) -> Vec<String> {
    let text = fs::read_to_string(machines.data_dir(Machine::Node(0)).join("replicas")).expect("its list");
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_killed_core_is_silent_until_it_comes_back() {
    let mut machines = Machines::none().await;
    machines.add(2, 1);
    for machine in [Machine::Core(0), Machine::Core(1), Machine::Node(0)] {
        machines.set_arguments(machine, &["--lease", "3s"]);
    }
    machines.start_all().await;
    let both = until_cores(&machines, "two cores in the list", |cores| cores.len() == 2).await;
    assert!(both.iter().all(|core| !core.silent && !core.draining && core.version == both[0].version));

    let address = machines.core_address(Machine::Core(0));
    machines.kill(Machine::Core(0));
    let silent = |cores: &[Core]| cores.iter().any(|core| core.silent && core.address == address);
    until_cores(&machines, "the killed core is silent", silent).await;
    let left = vec![machines.core_address(Machine::Core(1))];
    wait::until("processes are sent to the other", async || match told(&machines) {
        told if told == left => Ok(()),
        told => Err(format!("{told:?}")),
    })
    .await;

    machines.start(Machine::Core(0)).await;
    until_cores(&machines, "none is silent", |cores| cores.len() == 2 && cores.iter().all(|c| !c.silent))
        .await;
    wait::until("processes are sent to both", async || match told(&machines) {
        told if told.len() == 2 => Ok(()),
        told => Err(format!("{told:?}")),
    })
    .await;
    // One that ends in order leaves nothing to be watched.
    machines.terminate(Machine::Core(0));
    assert!(machines.until_ended(Machine::Core(0)).await.success());
    until_cores(&machines, "one core in the list", |cores| cores.len() == 1).await;
}

/// A rolling restart of the cores, orderly and not, under a workflow that saves a step every few
/// milliseconds: its process stays, and nothing that was saved runs again.
#[tokio::test]
async fn a_session_moves_between_cores_and_the_workflow_notices_nothing() {
    let mut machines = Machines::up(2, 1).await;
    let controller = machines.controller(0).clone();
    controller.push(Example::Fixity.program()).await;
    let amount = Amount { files: 600, pace_ms: 40, ..Amount::default() };
    let run = Run::start(&controller, Example::Fixity, "audit", &amount, &[]).await;
    let process = controller.until_process(&run.id).await;
    let mut disturbed = 0;
    for (at, killed) in [(0, false), (1, true), (0, true), (1, false)] {
        let core = Machine::Core(at);
        until_further(&run).await;
        if run.steps_ran().len() > amount.files / 2 {
            // A busy machine starts services slowly; what is left may be done before the next one is back.
            break;
        }
        disturbed += 1;
        if killed {
            machines.kill(core);
        } else {
            machines.terminate(core);
            assert!(machines.until_ended(core).await.success());
        }
        until_further(&run).await;
        machines.start(core).await;
    }
    assert!(disturbed >= 2, "the audit was over before both cores were disturbed");
    let processes = controller.processes_of(&run.id);
    assert!(processes.iter().all(|known| *known == (1, process)), "another process: {processes:?}");
    run.check(&controller).await;
    assert_eq!(controller.attempts(&run.id).await, 1, "a core's end costs no attempt");
}

/// Some more steps have run.
async fn until_further(run: &Run) {
    let before = run.steps_ran().len();
    wait::until("the audit goes on", async || match run.steps_ran().len() {
        now if now >= before + 5 => Ok(()),
        now => Err(format!("{now} steps")),
    })
    .await;
}

/// Every notice between the services is lost: polls find what they would have told.
#[tokio::test]
async fn invariant_5_signals_arrive_though_every_notification_is_lost() {
    let mut machines = Machines::none().await;
    machines.add(2, 2);
    lose_notifications(machines.database_url()).await;
    machines.start_all().await;
    machines.push(Example::Order.program()).await;
    let mut runs = Vec::new();
    for number in 0..4 {
        let controller = machines.controller(number % 2);
        let id = format!("order-{number}");
        runs.push(Run::start(controller, Example::Order, &id, &Amount::default(), &[]).await);
    }
    for (number, run) in runs.iter_mut().enumerate() {
        // Told to the other node than the one it was started at.
        run.approve(machines.controller((number + 1) % 2)).await;
    }
    for run in &runs {
        run.check(machines.controller(0)).await;
    }
}

/// Puts a function that tells nobody before the database's own.
async fn lose_notifications(url: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the database answers");
    let database = url.rsplit('/').next().expect("a URL names its database");
    let statements = format!(
        "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT';
         ALTER DATABASE {database} SET search_path = public, pg_catalog"
    );
    // Made of our own names: nothing to escape.
    let lost = sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut connection).await;
    lost.expect("a superuser may");
    connection.close().await.expect("closed");
}
