//! Set-up, build, test and benchmarks of lockwatch.

fn main() {}
