//! Ends at once: what is left of a launch when the program does nothing.

fn main() {}
