//! What tests, benchmarks and e2e share: real git upstreams, a real S3 server, faults in between, and the
//! agent as a process. Nothing here stands in for git or S3 where the real one runs.

pub mod agent;
pub mod apiserver;
pub mod damage;
pub mod eventually;
pub mod generate;
pub mod git;
pub mod github;
pub mod hostile;
pub mod listening;
pub mod load;
pub mod measure;
pub mod nginx;
pub mod process;
pub mod proxy;
pub mod s3;
pub mod trap;
pub mod upstream;
pub mod wire;
