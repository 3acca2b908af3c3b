//! `Debug` of the messages that hold a secret: everything but the secret, so that no log can leak one.

use std::fmt::{Debug, Formatter, Result};

use crate::instance::{RegisterInstance, Standby};
use crate::launch::{LaunchDocument, SpareDocument};
use crate::management::Hello;

const HIDDEN: &str = "(hidden)";

impl Debug for RegisterInstance {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { token: _, instance_id, attempt, stream } = self;
        f.debug_struct("RegisterInstance")
            .field("token", &HIDDEN)
            .field("instance_id", instance_id)
            .field("attempt", attempt)
            .field("stream", stream)
            .finish()
    }
}

impl Debug for Standby {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { node, epoch, tenant, number, proof: _ } = self;
        f.debug_struct("Standby")
            .field("node", node)
            .field("epoch", epoch)
            .field("tenant", tenant)
            .field("number", number)
            .field("proof", &HIDDEN)
            .finish()
    }
}

impl Debug for SpareDocument {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("SpareDocument")
            .field("format", &self.format)
            .field("standby", &HIDDEN)
            .field("core_addresses", &self.core_addresses)
            .finish_non_exhaustive()
    }
}

impl Debug for LaunchDocument {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("LaunchDocument")
            .field("format", &self.format)
            .field("instance_id", &self.instance_id)
            .field("attempt", &self.attempt)
            .field("workflow", &self.workflow)
            .field("token", &HIDDEN)
            .field("core_addresses", &self.core_addresses)
            .finish_non_exhaustive()
    }
}

impl Debug for Hello {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { protocol_version, client, token: _ } = self;
        f.debug_struct("Hello")
            .field("protocol_version", protocol_version)
            .field("client", client)
            .field("token", &HIDDEN)
            .finish()
    }
}
