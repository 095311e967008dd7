//! `git tarn clone`: a clone that starts from Tarn's snapshot of the repository, and ends as `git clone` would.
//!
//! Modules stand in reading order; each imports only from those above it, and `clone` alone knows all. The server
//! is trusted for what a repository contains, as any git server is; nothing it sends may write outside the new
//! clone or make git run a command. The final name appears by a rename: a clone is whole or absent.

pub mod cli;
pub mod exit;
pub mod screen;
pub mod source;
pub mod git;
pub mod server;
pub mod kubectl;
pub mod token;
pub mod credential;
pub mod staging;
pub mod http;
pub mod download;
pub mod archive;
pub mod checkout;
pub mod verify;
pub mod snapshot;
pub mod plain;
pub mod clone;
