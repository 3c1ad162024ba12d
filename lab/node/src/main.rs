//! lab-node

fn main() {}
