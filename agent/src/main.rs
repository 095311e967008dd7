//! `tarn-agent`: flags, then [`tarn_agent`].
fn main() {}
