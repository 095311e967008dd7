//! Snapshots as a client unpacks them: whatever the tar says, nothing outside the clone is written or changed, and what
//! git would run or obey is not taken.
#![no_main]

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use tarn_client::archive::unpack;

const BLOCK: usize = 512;

/// A directory for this process, with a file that must stay as it is beside the clone.
static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    let home = std::env::temp_dir().join(format!("tarn-fuzz-archive-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    fs::create_dir(&home).expect("a directory to work in");
    fs::write(home.join("outside"), "old").expect("a file");
    home
});

fuzz_target!(|data: &[u8]| {
    unpack_into(data);
    unpack_into(&with_sums(data));
});

fn unpack_into(tar: &[u8]) {
    let root = HOME.join("root");
    fs::create_dir(&root).expect("the last one is gone");
    fs::create_dir(root.join(".git")).expect("as git init leaves it");
    fs::write(root.join(".git/config"), "ours").expect("as git init leaves it");
    let packed = zstd::encode_all(tar, 1).expect("memory");
    let _ = unpack(packed.as_slice(), packed.len() as u64, &root);
    assert_eq!(fs::read(HOME.join("outside")).expect("it is there"), b"old");
    assert_eq!(fs::read(root.join(".git/config")).expect("it is there"), b"ours");
    assert!(!root.join(".git/hooks").exists(), "hooks");
    assert_eq!(fs::read_dir(&*HOME).expect("it is there").count(), 2, "something beside the clone");
    check(&root.join(".git")).expect("readable");
    fs::remove_dir_all(&root).expect("nothing in it is read-only for good");
}

/// No links in a repository.
fn check(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        assert!(kind.is_dir() || kind.is_file(), "{:?} is neither directory nor file", entry.path());
        if kind.is_dir() {
            check(&entry.path())?;
        }
    }
    Ok(())
}

/// The same with the sums of headers put right: mutations rarely keep them so.
fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    tar.resize(tar.len().div_ceil(BLOCK) * BLOCK, 0);
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = std::str::from_utf8(&header[124..135]).ok();
        let size = size.and_then(|text| usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok());
        at += BLOCK + size.unwrap_or(0).min(tar.len()).div_ceil(BLOCK) * BLOCK;
    }
    // The end of an archive.
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}
