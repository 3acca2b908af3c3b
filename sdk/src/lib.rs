//! Write durable workflows as ordinary programs.
//!
//! A workflow is a function. What must not be done twice stands in [steps](Context::step), whose results are
//! saved; [sleeps](Context::sleep) and [waits for signals](Context::signal) may last for months, without a
//! process. When the process ends, for whatever reason, the program is launched again and runs from its
//! beginning: what is saved returns at once, and it goes on where it was.
//!
//! ```no_run
//! use dormouse_sdk::{Context, Failure, Result, Retry, days};
//! # mod stock { pub async fn reserve(_: &str) -> std::io::Result<u32> { Ok(1) }
//! #             pub async fn release(_: u32) -> std::io::Result<()> { Ok(()) } }
//! # mod bank { pub async fn charge(_: &str) -> std::io::Result<String> { Ok("paid".into()) } }
//!
//! async fn order(ctx: Context, order: String) -> Result<String> {
//!     let hold = ctx.step("reserve", || stock::reserve(&order)).await?;
//!     let paid = ctx.step("charge", || bank::charge(&order)).retry(Retry::exponential().attempts(5)).await?;
//!     match ctx.signal::<bool>("approval").within(days(3)).await? {
//!         Some(true) => Ok(paid),
//!         _ => {
//!             ctx.step("release", || stock::release(hold)).await?;
//!             Err(Failure::new("REFUSED", "nobody approved the order").permanent())
//!         }
//!     }
//! }
//!
//! dormouse_sdk::main!(order);
//! ```
//!
//! Build it, then `dormouse run target/release/order --input '"a book"'`. The guide on what may be repeated,
//! and how to live with it, is `docs/guide-workflows.md`; workflows are tested with [`testing`].
//!
//! This crate never touches a database and never starts a process; it talks to core, and to nothing else.

pub mod blocking;
mod connection;
mod context;
mod error;
mod fault;
mod ledger;
mod operation;
mod process;
mod retry;
mod standby;
mod step;
mod sys;
pub mod testing;
mod wait;
mod workflow;

use std::time::Duration;

pub use self::{
    context::{Checkpoint, Context, Load, WakeReason},
    error::{Failure, Result, code},
    process::{Image, launched},
    retry::Retry,
    step::{Step, Try},
    wait::{Signal, SignalWithin, Sleep},
    workflow::{Function, Workflow},
};

/// What the macros need.
#[doc(hidden)]
pub mod private {
    pub use crate::{
        step::{Asynchronous, Blocking, Body},
        workflow::{IsAsynchronous, IsBlocking, section},
    };
}

/// So many days of 24 hours.
#[must_use]
pub const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 24 * 60 * 60)
}

/// So many hours.
#[must_use]
pub const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 60 * 60)
}

/// So many minutes.
#[must_use]
pub const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

/// The `main` function of an image that holds these workflows.
///
/// Each is started by the last part of its path, or by the name that follows `as`. Asynchronous and
/// synchronous functions may be mixed, see [`Function`].
///
/// ```no_run
/// # use dormouse_sdk::{Context, Result, blocking};
/// # mod shop { use dormouse_sdk::{Context, Result}; pub async fn order(_: Context, _: ()) -> Result<()> { Ok(()) } }
/// # async fn refund(_: Context, _: ()) -> Result<()> { Ok(()) }
/// # fn report(_: blocking::Context, _: ()) -> Result<()> { Ok(()) }
/// dormouse_sdk::main!(shop::order, refund as "refund-an-order", report);
/// ```
///
/// The asynchronous ones may get a runtime with several worker threads, see [`Image::threads`]:
///
/// ```no_run
/// # use dormouse_sdk::{Context, Result};
/// # async fn order(_: Context, _: ()) -> Result<()> { Ok(()) }
/// dormouse_sdk::main!(order; threads = 4);
/// ```
#[macro_export]
macro_rules! main {
    ($($workflow:path $(as $name:literal)?),+ $(,)? $(; threads = $threads:expr)?) => {
        fn main() {
            $crate::image!($($workflow $(as $name)?),+) $(.threads($threads))? .run()
        }
    };
}

/// The [`Image`] that holds these workflows, as [`main!`] takes them, for programs that are more than an image:
///
/// ```no_run
/// # use dormouse_sdk::{Context, Result};
/// # async fn fixity(_: Context, _: ()) -> Result<()> { Ok(()) }
/// let image = dormouse_sdk::image!(fixity);
/// if dormouse_sdk::launched() {
///     image.run();
/// }
/// // … what the program does otherwise
/// ```
///
/// The executable gets a section `.dormouse` that names its SDK, its protocol and its workflows, so that
/// others can read them without running it. One such section per executable.
#[macro_export]
macro_rules! image {
    ($($workflow:path $(as $name:literal)?),+ $(,)?) => {{
        const NAMES: &[&str] = &[$($crate::workflow_name!($workflow $(, $name)?)),+];
        #[used]
        #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".dormouse"))]
        #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,dormouse"))]
        static SECTION: [u8; $crate::private::section::len(NAMES)] = $crate::private::section::bytes(NAMES);
        $crate::Image::new(&SECTION, ::std::vec![
            $($crate::Workflow::new($crate::workflow_name!($workflow $(, $name)?), $workflow)),+
        ])
    }};
}

/// A workflow's name: the given one, or the last part of its path.
#[doc(hidden)]
#[macro_export]
macro_rules! workflow_name {
    ($workflow:path) => {
        $crate::private::section::last_segment(::std::stringify!($workflow))
    };
    ($workflow:path, $name:literal) => {
        $name
    };
}
