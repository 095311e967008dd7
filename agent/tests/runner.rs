//! What Tarn promises, tried on the agent's binary: real git clients, real upstreams over HTTP and file, all
//! on loopback. Modules are the promises of docs/semantics.md and the surfaces of the agent; names of tests
//! are sentences. One binary, because linking is slower than running.

#![expect(
    clippy::indexing_slicing,
    reason = "a missing field of a JSON answer is a null, and fails the test"
)]

mod architecture;
mod checkpoints;
mod cli;
mod clients;
mod cluster;
mod fleet;
mod hooks;
mod lfs;
mod limits;
mod manifests;
mod p10_one_base;
mod p1_never_stale;
mod p2_never_torn;
mod p4_never_stuck;
mod p7_bounded;
mod p8_nobody_in;
mod p9_status_tells_the_truth;
mod peers;
mod scene;
mod serving;
mod snapshots;
mod stop;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every Rust file below a directory.
fn rust_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// A file that no `mod` names is never compiled, and its tests never run.
#[test]
fn no_file_is_forgotten() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let (mut files, mut declared) = (BTreeSet::new(), BTreeSet::new());
    for path in rust_files(&root)? {
        // Modules of the runner lie beside it, those of any other file in the directory of its name.
        let below = if path == root.join("runner.rs") { root.clone() } else { path.with_extension("") };
        for line in std::fs::read_to_string(&path)?.lines() {
            if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
                declared.insert(below.join(name).with_extension("rs"));
            }
        }
        if path != root.join("runner.rs") {
            files.insert(path);
        }
    }
    assert_eq!(files, declared);
    Ok(())
}
