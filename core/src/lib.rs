//! The Dormouse core: domain, store and instance server.
