//! plugins
fn main() {}
