//! The reconcilers, against an API server of the tests' own.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::needless_pass_by_value, reason = "tests hand over what json! made")]

mod converge;
mod golden;
mod reviewers;
mod rights;
mod sim;
