//! meshload

fn main() {}
