//! istioctl

fn main() {}
