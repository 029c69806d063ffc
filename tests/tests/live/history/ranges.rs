//! Ranges that the kernel merges, cuts and splits.
