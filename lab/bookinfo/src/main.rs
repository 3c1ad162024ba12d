//! bookinfo

fn main() {}
