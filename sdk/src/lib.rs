//! Write durable workflows as ordinary programs.
