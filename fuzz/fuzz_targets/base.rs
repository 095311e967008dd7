//! A mirror's base as a disk may have damaged it: note, header and index are files that git or the agent wrote, but every
//! byte of them may be another one by now.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use tarn_agent::git::{
    ObjectFormat, Oid,
    base::{Base, HEADER},
};

/// A repository for this process.
static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    let home = std::env::temp_dir().join(format!("tarn-fuzz-base-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(home.join("objects/pack")).expect("a directory to work in");
    home
});

fuzz_target!(|data: &[u8]| {
    // The note, the index and the pack, each after a byte that says how long the one before is, in units of 64 bytes.
    let Some((lengths, rest)) = data.split_at_checked(2) else { return };
    let (note, rest) = rest.split_at(rest.len().min(usize::from(lengths[0]) * 64));
    let (index, pack) = rest.split_at(rest.len().min(usize::from(lengths[1]) * 64));
    let packs = HOME.join("objects/pack");
    // One tip that is none's, and what the disk has made of the others.
    let tips = 1 + note.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    let named = format!("{tips}\npack-1.pack\n{}\n", "1".repeat(40));
    let named = [named.as_bytes(), note].concat();
    for (path, content) in [
        (HOME.join("tarn-base"), &named[..]),
        (packs.join("pack-1.idx"), index),
        (packs.join("pack-1.pack"), pack),
    ] {
        fs::write(path, content).expect("a disk with room");
    }
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let Ok(Some(base)) = Base::find(&HOME, format) else { continue };
        assert!(HEADER <= base.end() && base.end() < base.bytes, "entries end where they begin, or later");
        let asked: Vec<Oid> = data.windows(format.bytes()).take(64).filter_map(Oid::from_bytes).collect();
        if let Ok(lacking) = base.index.lacks(&asked) {
            assert!(lacking.iter().all(|oid| asked.contains(oid)), "what nobody asked for");
            assert!(base.index.count() > 0 || lacking.len() == asked.len(), "an empty pack holds nothing");
        }
    }
});
