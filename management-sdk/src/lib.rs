//! Control Dormouse from other programs: a typed, asynchronous client of the management
//! protocol.
//!
//! ```no_run
//! use dormouse_management_sdk::{Client, StartInstance, Target, WaitOutcome};
//!
//! # async fn controller() -> Result<(), dormouse_management_sdk::Error> {
//! let client = Client::connect(Target::from_environment()?).await?;
//! let started = client
//!     .start(StartInstance::of("billing").workflow("invoice").input(&serde_json::json!({"order": 7}))?)
//!     .await?;
//! if let WaitOutcome::Ended(instance) = client.wait(&started.instance.id, None).await? {
//!     println!("{} {}", instance.id, instance.status);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What it does for its caller:
//! - **Reconnects.** A lost connection is opened again, with backoff, and what was asked is
//!   repeated, for as long as [`Options::patience`] allows.
//! - **Repeats only what is safe to repeat.** Ids of instances and of signals are chosen here,
//!   before anything is sent, so that the services recognise a repeat; a repeat of `stop`,
//!   `cancel` or `delete` that finds its work done is a success.
//! - **Waits without holding anything.** [`Client::wait`], [`Client::watch`] and
//!   [`Client::follow_log`] are long polls: a lost connection costs nothing but a repeat.
//!
//! What it never does: it never sees the store, it never retries what was refused, and it
//! prints nothing. Dropping any of its futures forgets the answer only; what was sent may
//! still be done.

mod client;
mod cores;
mod credentials;
mod error;
mod history;
mod id;
mod images;
mod instance;
mod instances;
mod logs;
mod nodes;
mod payload;
mod retention;
mod target;
mod tenants;
mod time;
mod token;
mod upload;
mod watch;

pub use client::{Client, Options};
pub use cores::Core;
pub use dormouse_proto::code::Code;
pub use dormouse_proto::trust::Fingerprint;
pub use error::Error;
pub use history::{Attempt, Checkpoint, CheckpointPage, Event, EventPage};
pub use id::new_instance_id;
pub use images::{Image, ImageOptions, ImageRef};
pub use instance::{Failure, Instance, Progress, Status};
pub use instances::{InstancePage, ListInstances, StartInstance, Started};
pub use logs::{LogChunk, LogFollower, LogRead, Stream};
pub use nodes::{Certificate, Drain, Health, Node};
pub use payload::{Encoding, Payload};
pub use retention::Pruned;
pub use target::{Authority, Target, default_data_dir};
pub use tenants::{CreatedToken, NewToken, Quotas, Role, Tenant, TokenInfo};
pub use time::Timestamp;
pub use token::{Secret, Token};
pub use upload::{UploadProgress, Uploaded};
pub use watch::{WaitOutcome, Watch};
