//! Launcher and supervisor with real processes. No store, no network.

mod adopt;
mod bench;
mod images;
mod launch;
mod node;
mod supervise;
