//! How a peer learns at once that a server was restarted.
//!
//! A killed server cannot say goodbye, and UDP tells its peers nothing: they would wait for the idle
//! time-out, 20 s. QUIC has an answer, the stateless reset (RFC 9000, section 10.3): the server that comes
//! back answers a packet of a connection it does not know with a token that only it can make, and the peer
//! gives the connection up. For that both lives of the server must derive their tokens from one key. It
//! is derived here from the private key of the server's certificate, which outlives a restart.

use std::{sync::Arc, time::Duration};

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use ring::{digest, hmac};

use crate::endpoint::Identity;

/// Length of our connection ids, in bytes: too many values for one to be met twice.
const ID_BYTES: usize = 8;

/// A server endpoint's settings: its resets are those of its last life.
pub(crate) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let mut seed = digest::Context::new(&digest::SHA256);
    seed.update(b"dormouse: stateless resets");
    seed.update(identity.key_pem.as_bytes());
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed.finish().as_ref());
    let mut config = EndpointConfig::new(Arc::new(key));
    config
        .cid_generator(|| Box::new(RandomIds))
        // By default 20 ms: a thousand peers would hear of the restart over 20 s. A reset is smaller than the
        // packet that it answers, so nobody gains by provoking many.
        .min_reset_interval(Duration::from_millis(1));
    config
}

/// Random connection ids, every one of which may be of an earlier life. (quinn's own carry a
/// signature with a key of this life, and what lacks it is dropped unanswered.)
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes).expect("the kernel gave random bytes for TLS, too");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
