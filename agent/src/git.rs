//! Git as a child process, and the few of its file formats the agent reads and writes itself.
//!
//! Only [`command`] starts processes. The verbs built on it return typed results; what git says on
//! standard error is bounded, redacted and classified before anyone else sees it.

pub mod command;
pub mod error;
pub mod pulse;
pub mod object;
pub mod orphans;
pub mod checksum;
pub mod index;
pub mod base;
pub mod pack;
pub mod layer;
pub mod young;
pub mod extent;
pub mod bundle;
pub mod refs;
pub mod remote;
pub mod stderr;
pub mod upload_pack;

pub use command::Git;
pub use error::GitError;
pub use object::{ObjectFormat, Oid};
pub use refs::{Head, Ref, RefSet};
