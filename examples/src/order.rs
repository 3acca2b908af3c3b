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
    let services = Services { ledger: order.ledger.clone(), attempt: ctx.attempt() };
    let hold = ctx.step("reserve", || services.reserve(&ctx, &order)).await?;

    let charged = ctx
        .step_with("charge", |this| services.charge(&ctx, &order, this.number() > order.bank_outages))
        .retry(Retry::exponential().attempts(5))
        .await;
    let payment = match charged {
        Ok(payment) => payment,
        Err(failure) => {
            services.undo(&ctx, &hold, None).await?;
            return Err(failure);
        }
    };

    let within = Duration::from_secs(order.approval_within_seconds);
    let approval = ctx.signal::<Approval>("approval").within(within).await;
    let status = match approval {
        Ok(Some(Approval { granted: true })) => "shipped",
        Ok(Some(Approval { granted: false })) => "refused",
        Ok(None) => "timed_out",
        Err(failure) => {
            // Cancelled: clean up like a refusal, then say so.
            services.undo(&ctx, &hold, Some(&payment)).await?;
            return Err(failure);
        }
    };
    let mut receipt = Receipt {
        number: order.number.clone(),
        status: status.to_owned(),
        tracking: None,
        charged_cents: order.amount_cents,
    };
    if status == "shipped" {
        receipt.tracking = Some(ctx.step("ship", || services.ship(&ctx, &hold)).await?);
    } else {
        services.undo(&ctx, &hold, Some(&payment)).await?;
        receipt.charged_cents = 0;
    }
    Ok(receipt)
}

/// The three services behind the order.
struct Services {
    ledger: Option<PathBuf>,
    attempt: u32,
}

#[expect(clippy::unused_async, reason = "real services are asked over a network")]
impl Services {
    async fn reserve(&self, ctx: &Context, order: &Order) -> Result<String> {
        if order.quantity == 0 {
            return Err(Failure::new("NOTHING_ORDERED", "quantity is 0; order at least 1").permanent());
        }
        self.effect(ctx, "reserve", &format!("{} x {}", order.quantity, order.item))
    }

    async fn charge(&self, ctx: &Context, order: &Order, reachable: bool) -> Result<String> {
        if !reachable {
            return Err(Failure::new("BANK_UNREACHABLE", "the bank does not answer; it is tried again"));
        }
        self.effect(ctx, "charge", &format!("{} cents", order.amount_cents))
    }

    async fn ship(&self, ctx: &Context, hold: &str) -> Result<String> {
        self.effect(ctx, "ship", hold)
    }

    /// Gives the money back, then the goods; each is a step, so an undo that is killed goes on.
    async fn undo(&self, ctx: &Context, hold: &str, payment: Option<&str>) -> Result<()> {
        if let Some(payment) = payment {
            ctx.step("refund", async || self.effect(ctx, "refund", payment)).await?;
        }
        ctx.step("release", async || self.effect(ctx, "release", hold)).await?;
        Ok(())
    }

    /// Does something outside, once for each idempotency key, and answers its reference.
    fn effect(&self, ctx: &Context, step: &str, what: &str) -> Result<String> {
        let reference = ctx.idempotency_key(step, "");
        if let Some(ledger) = &self.ledger {
            book(ledger, step, &reference, what)
                .map_err(|error| Failure::new("LEDGER", format!("{}: {error}", ledger.display())))?;
        }
        side_file::ran(self.attempt, step)?;
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
