//! Tarn's data plane: mirrors git repositories and serves them over smart HTTP.
//!
//! Modules are listed in reading order, and a module imports only from those above it; [`app`] puts them
//! together.

pub mod telemetry;
pub mod metrics;
pub mod never;
pub mod shutdown;
pub mod descriptors;
pub mod secrecy;
pub mod supervisor;
pub mod backoff;
pub mod files;
pub mod authorities;
pub mod spool;
pub mod queue;
pub mod tls;
pub mod git;
pub mod protocol;
pub mod upstream;
pub mod store;
pub mod popularity;
pub mod config;
pub mod packs;
pub mod recipe;
pub mod lfs;
pub mod blockfile;
pub mod generations;
pub mod checkpoint;
pub mod peers;
pub mod snapshot;
pub mod mirror;
pub mod fleet;
pub mod access;
pub mod audit;
pub mod serve;
pub mod listen;
pub mod admin;
pub mod report;
pub mod inspect;
pub mod app;
