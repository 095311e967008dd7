//! The upstream: what it says its refs are, and with which credentials it is asked.

pub mod credentials;
pub mod look;

pub use credentials::{Credentials, Secret};
pub use look::{LookError, Looker};
