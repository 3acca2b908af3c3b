//! What the programs of this package share. They show what the machine can do without Dormouse, and
//! `dormouse-benches` runs them.
//!
//! Nothing here may use code of Dormouse.

pub mod entries;
pub mod quic;
