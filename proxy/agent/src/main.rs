//! pilot-agent

fn main() {}
