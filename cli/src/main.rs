//! Durable workflows that are ordinary compiled programs: the dormouse command.

fn main() {}
