//! The upstream: what it says its refs are, with which credentials it is asked,
//! and requests handed on to it.

pub mod credentials;
pub mod github_app;
pub mod forward;
pub mod look;
pub mod admission;
pub mod lfs;

pub use credentials::{Credentials, Secret};
pub use look::{LookError, Looker};
