//! Both ends of the wire against each other, and against peers that misbehave.

mod calls;
mod handshake;
mod hostile;
mod identity;
mod pair;
mod renewal;
mod restart;
mod trust;
