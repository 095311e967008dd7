//! What tests, benchmarks and e2e share: real git upstreams, a real S3 server, faults in between, and the
//! agent as a process. Nothing here stands in for git or S3 where the real one runs.

pub mod eventually;
pub mod git;
pub mod process;
pub mod upstream;
