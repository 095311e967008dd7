//! The control plane: runs the pods of GitCaches, and sums up the status of GitMirrors.
//!
//! Nothing here is needed to serve: agents go on without it. Every controller reads, decides with pure functions, and
//! writes what differs; it may be killed between any two requests.

pub mod error;
pub mod events;
pub mod ssa;

pub mod context;

pub mod gitcache;
pub mod gitmirror;
pub mod reviewers;

pub mod config;

pub mod admin;

pub mod controllers;

pub mod app;
