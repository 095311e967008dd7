//! The upstream: what it says its refs are, with which credentials it is asked,
//! and requests handed on to it.

pub mod secret;
pub mod egress;
mod reach;
pub mod http;
pub mod github_app;
pub mod credentials;
pub mod error;
pub mod provenance;
pub mod look;
mod lead;
pub mod forward;
pub mod admission;
pub mod lfs;

pub use credentials::Credentials;
pub use error::LookError;
pub use look::Looker;
pub use provenance::Provenance;
pub use secret::Secret;
