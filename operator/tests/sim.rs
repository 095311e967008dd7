//! A small API server in memory: objects with versions, server-side apply with field managers, the status subresource.
//! It can die at any request (before or after it took effect), and the reconcilers' view of it may be old.
//!
//! Of server-side apply it does what the reconcilers rest on: what a manager no longer applies goes, unless another
//! applies it too; items of lists are told apart by `pod` or `type`, other lists are whole. An apply that changes nothing
//! leaves the version as it is.

mod fields;
mod server;

pub(crate) use server::{Answer, Sim};
