//! pilot

fn main() {}
