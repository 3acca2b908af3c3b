//! Control Dormouse from other programs.
