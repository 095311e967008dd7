//! The wire protocols of git and Git LFS as values: pure parsers and writers, no input or output.

pub mod advertisement;
pub mod fetch;
pub mod lfs;
pub mod ls_refs;
pub mod pktline;
pub mod request;
pub mod response;
pub mod shape;
pub mod sideband;
