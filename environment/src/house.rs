//! What is removed after its time, and where images are kept: a pass every ten minutes.
//!
//! A pass deletes ended instances whose retention is over, removes the outputs of instances that
//! are gone (deleted here or through another node, or pruned by one), and holds all outputs to
//! the node's limit. On PostgreSQL it also stores images in the database that are only here,
//! sweeps bytes that no name points at, and removes files of images that nobody needs.
//!
//! Everything goes in small steps, each a short transaction that skips what another node is
//! about to do, so a pass may take long and is felt by nobody. What a pass does not finish the
//! next one does; it keeps nothing that matters in memory.

use std::{collections::HashSet, io, time::Duration};

use dormouse_core::{
    domain::id::Digest,
    store::{Kind, Store},
};
use dormouse_proto::code::{Coded, Retry};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    attempts::Attempts,
    environment::Error,
    images::{
        Images,
        cluster::{PublishError, publish_missing},
    },
    supervisor::chain,
};

/// Between two passes. One looks at every file of the outputs.
const PASS: Duration = Duration::from_mins(10);
/// Instances deleted by one request.
const PRUNE: u32 = 100;
/// Folders or files that one question to the store names.
const ASK: usize = 100;

/// Keeps one node's house.
pub(crate) struct House {
    store: Store,
    images: Images,
    attempts: Attempts,
    /// Files that nobody needed at the last pass. Who still needs none of them at this one has
    /// not just been uploading it.
    unneeded: HashSet<Digest>,
}

impl House {
    pub(crate) fn new(store: Store, images: Images, attempts: Attempts) -> Self {
        Self { store, images, attempts, unneeded: HashSet::new() }
    }

    /// Until `shutdown`; fails only if trying again cannot help.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut pass = interval(PASS);
        pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = pass.tick() => {}
            }
            // Between any two of its steps nothing is half done.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                kept = self.keep() => kept?,
            }
        }
    }

    async fn keep(&mut self) -> Result<(), Error> {
        unless_final(self.prune().await, "ended instances are not deleted now")?;
        unless_final(self.remove_outputs().await, "outputs of deleted instances are not removed now")?;
        self.hold_outputs().await?;
        if self.store.kind() == Kind::Postgres {
            unless_final(self.publish().await, "images are not stored in the database now")?;
            unless_final(self.sweep().await, "the bytes of deleted images are not removed now")?;
            unless_final(self.remove_images().await, "files of deleted images are not removed now")?;
        }
        Ok(())
    }

    async fn prune(&self) -> Result<(), Error> {
        let mut pruned = 0;
        loop {
            let round = self.store.prune(PRUNE).await?;
            pruned += round.instances;
            if !round.more {
                break;
            }
        }
        if pruned > 0 {
            info!(instances = pruned, "ended instances were deleted after their retention");
        }
        Ok(())
    }

    /// Of instances that exist no more. Those of this node's own deletions are gone already.
    async fn remove_outputs(&self) -> Result<(), Error> {
        let attempts = self.attempts.clone();
        let kept = match spawn_blocking(move || attempts.kept_instances()).await? {
            Ok(kept) => kept,
            Err(error) => {
                warn!(%error, "outputs cannot be looked through");
                return Ok(());
            }
        };
        for some in kept.chunks(ASK) {
            for (tenant, instance) in self.store.missing_instances(some.to_vec()).await? {
                let attempts = self.attempts.clone();
                let removed = spawn_blocking(move || attempts.remove_instance(&tenant, &instance)).await?;
                if let Err(error) = removed {
                    warn!(%error, "the outputs of a deleted instance cannot be removed");
                }
            }
        }
        Ok(())
    }

    async fn hold_outputs(&self) -> Result<(), Error> {
        let attempts = self.attempts.clone();
        match spawn_blocking(move || attempts.hold_node_limit()).await? {
            Ok(0) => {}
            Ok(bytes) => info!(bytes, "outputs of instances that ended longest ago were removed"),
            Err(error) => warn!(%error, "outputs cannot be held to their limit"),
        }
        Ok(())
    }

    /// Images that release 0.1.0 kept as a file of this node only.
    async fn publish(&self) -> Result<(), Error> {
        match publish_missing(&self.store, &self.images).await {
            Ok(_) => Ok(()),
            Err(PublishError::Store(error)) => Err(error.into()),
            Err(PublishError::Panicked(error)) => Err(error.into()),
            Err(error @ (PublishError::File(_) | PublishError::Read(_))) => {
                warn!(error = %chain(&error), "an image cannot be stored in the database");
                Ok(())
            }
        }
    }

    async fn sweep(&self) -> Result<(), Error> {
        while self.store.sweep_images().await? {}
        Ok(())
    }

    /// Removes files that nobody needed at two passes in a row. What executes one runs on.
    async fn remove_images(&mut self) -> Result<(), Error> {
        let images = self.images.clone();
        let files = match spawn_blocking(move || images.list()).await? {
            Ok(files) => files,
            Err(error) => {
                warn!(%error, "the images cannot be looked through");
                return Ok(());
            }
        };
        let mut unneeded = HashSet::new();
        for some in files.chunks(ASK) {
            unneeded.extend(self.store.unneeded_images(some.to_vec()).await?);
        }
        let (again, new): (Vec<_>, Vec<_>) =
            unneeded.into_iter().partition(|digest| self.unneeded.contains(digest));
        self.unneeded = new.into_iter().collect();
        let images = self.images.clone();
        let removed = spawn_blocking(move || -> io::Result<usize> {
            again.iter().try_fold(0, |n, digest| Ok(n + usize::from(images.remove(digest)?)))
        });
        match removed.await? {
            Ok(0) => {}
            Ok(files) => info!(files, "the files of deleted images were removed"),
            Err(error) => warn!(%error, "the file of a deleted image cannot be removed"),
        }
        Ok(())
    }
}

/// Ends the node only if trying again cannot help.
fn unless_final(done: Result<(), Error>, what: &'static str) -> Result<(), Error> {
    match done {
        Err(Error::Store(error)) if error.retry() != Retry::Never => {
            warn!(error = %chain(&error), "{what}");
            Ok(())
        }
        done => done,
    }
}
