//! `git tarn clone`, tried on its binary: real git, a real upstream, the real agent for git's own protocol, snapshots
//! made by real git and tar. Names of tests are sentences. One binary, because linking is slower than running.

#![expect(
    clippy::indexing_slicing,
    reason = "a missing field of a JSON answer is a null, and fails the test"
)]

mod archives;
mod checkouts;
mod clones;
mod directories;
mod faults;
mod fallbacks;
mod front;
mod real;
mod scene;
mod secrets;
mod tokens;
mod verified;
