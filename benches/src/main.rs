//! The benchmark program of Dormouse.

fn main() {}
