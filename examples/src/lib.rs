//! Workflows somebody would really run.
