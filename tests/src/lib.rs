//! Whole-system tests of Dormouse: real processes, real databases, real faults.
