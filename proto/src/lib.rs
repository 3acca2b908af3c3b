//! Wire types, framing, QUIC transport and TLS identities of Dormouse.
