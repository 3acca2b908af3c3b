//! An order: reserve the goods, charge the customer, wait days for an approval, ship. What was
//! done is undone when the approval is refused, does not come in time, or the order is
//! cancelled.
//!
//! Stock, bank and carrier are simulated; with `ledger` they leave a file for each effect, named
//! by the step's idempotency key, so that one can see that an effect that was asked for twice
//! happened once.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use dormouse_sdk::{Context, Failure, Result, Retry};
use serde::{Deserialize, Serialize};

use crate::side_file;

/// What a customer wants.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Order {
    /// The shop's number of it.
    pub number: String,
    /// What is bought.
    pub item: String,
    /// How many.
    pub quantity: u32,
    /// What it costs in all.
    pub amount_cents: u64,
    /// How long an approval is waited for.
    #[serde(default = "three_days")]
    pub approval_within_seconds: u64,
    /// The bank is out of reach so many times before it answers.
    #[serde(default)]
    pub bank_outages: u32,
    /// A folder in which the simulated services keep what they did.
    #[serde(default)]
    pub ledger: Option<PathBuf>,
}

fn three_days() -> u64 {
    3 * 24 * 3600
}

/// The signal `approval`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Approval {
    /// Whether the order may be shipped.
    pub granted: bool,
}

/// How the order ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Receipt {
    /// The shop's number of it.
    pub number: String,
    /// `shipped`, `refused` or `timed_out`.
    pub status: String,
    /// The carrier's number, once shipped.
    pub tracking: Option<String>,
    /// What was charged and not given back.
    pub charged_cents: u64,
}

/// Takes an order from its reservation to its receipt.
pub async fn order(ctx: Context, order: Order) -> Result<Receipt> {
    let services = Services { ctx: &ctx, order: &order };
    let status = services.deliver().await;
    let tracking = match &status {
        Ok(Status::Shipped { tracking }) => Some(tracking.clone()),
        // Refused, too late, cancelled or failed: nothing of it may stay.
        Ok(Status::Refused | Status::TimedOut) | Err(_) => {
            services.undo().await?;
            None
        }
    };
    let status = match status? {
        Status::Shipped { .. } => "shipped",
        Status::Refused => "refused",
        Status::TimedOut => "timed_out",
    };
    let charged_cents = if tracking.is_some() { order.amount_cents } else { 0 };
    Ok(Receipt { number: order.number.clone(), status: status.to_owned(), tracking, charged_cents })
}

enum Status {
    Shipped { tracking: String },
    Refused,
    TimedOut,
}

/// The three services behind the order.
struct Services<'a> {
    ctx: &'a Context,
    order: &'a Order,
}

impl Services<'_> {
    async fn deliver(&self) -> Result<Status> {
        let (ctx, order) = (self.ctx, self.order);
        let hold = ctx.step("reserve", || self.reserve()).await?;
        let payment = ctx
            .step_with("charge", |this| self.charge(this.number()))
            .retry(Retry::exponential().attempts(5))
            .await?;
        let within = Duration::from_secs(order.approval_within_seconds);
        match ctx.signal::<Approval>("approval").within(within).await? {
            Some(Approval { granted: true }) => {}
            Some(Approval { granted: false }) => return Ok(Status::Refused),
            None => return Ok(Status::TimedOut),
        }
        let tracking = ctx.step("ship", || self.ship(&hold, &payment)).await?;
        Ok(Status::Shipped { tracking })
    }

    /// Undoes whatever was done, the newest first. Each service is asked, and knows by the
    /// idempotency key: a step whose result was lost has had its effect all the same.
    async fn undo(&self) -> Result<()> {
        for (undo, effect) in [("recall", "ship"), ("refund", "charge"), ("release", "reserve")] {
            self.ctx.step(undo, || self.revoke(undo, effect)).retry(Retry::exponential()).await?;
        }
        Ok(())
    }
}

#[expect(clippy::unused_async, reason = "real services are asked over a network")]
impl Services<'_> {
    async fn reserve(&self) -> Result<String> {
        let Order { quantity, item, .. } = self.order;
        if *quantity == 0 {
            return Err(Failure::new("NOTHING_ORDERED", "quantity is 0; order at least 1").permanent());
        }
        self.effect("reserve", &format!("{quantity} x {item}"))
    }

    async fn charge(&self, number: u32) -> Result<String> {
        if number <= self.order.bank_outages {
            return Err(Failure::new("BANK_UNREACHABLE", "the bank does not answer; it is tried again"));
        }
        self.effect("charge", &format!("{} cents", self.order.amount_cents))
    }

    async fn ship(&self, hold: &str, payment: &str) -> Result<String> {
        self.effect("ship", &format!("{hold} for {payment}"))
    }

    /// Undoes an effect, if there was one.
    async fn revoke(&self, undo: &str, effect: &str) -> Result<Option<String>> {
        let key = self.ctx.idempotency_key(effect, "");
        let done =
            self.order.ledger.as_ref().is_none_or(|ledger| ledger.join(format!("{effect}-{key}")).exists());
        if done {
            return self.effect(undo, &format!("{effect}-{key}")).map(Some);
        }
        side_file::ran(self.ctx.attempt(), undo)?;
        Ok(None)
    }

    /// Does something outside, once for each idempotency key, and answers its reference.
    fn effect(&self, step: &str, what: &str) -> Result<String> {
        let reference = self.ctx.idempotency_key(step, "");
        if let Some(ledger) = &self.order.ledger {
            book(ledger, step, &reference, what)
                .map_err(|error| Failure::new("LEDGER", format!("{}: {error}", ledger.display())))?;
        }
        side_file::ran(self.ctx.attempt(), step)?;
        Ok(format!("{step}-{reference}"))
    }
}

/// Books an effect unless it is booked already: what a service does with an idempotency key.
fn book(ledger: &Path, step: &str, reference: &str, what: &str) -> io::Result<()> {
    fs::create_dir_all(ledger)?;
    let entry = ledger.join(format!("{step}-{reference}"));
    match OpenOptions::new().write(true).create_new(true).open(entry) {
        Ok(mut file) => writeln!(file, "{what}"),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
