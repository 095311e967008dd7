use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use tar::{Builder, EntryType, Header};

use super::*;

/// A tar of these entries: name, kind, content or target.
fn tar_of(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        // Written by hand, because the library refuses what is to be refused here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_mtime(1_700_000_000);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
            header.set_size(0);
        } else {
            header.set_size(content.len() as u64);
        }
        header.set_cksum();
        let content = if header.size().unwrap() == 0 { &[][..] } else { content };
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn pack(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).unwrap()
}

fn unpack_into(root: &Path, archive: &[u8]) -> Result<Unpacked, ArchiveError> {
    unpack(archive, archive.len() as u64, root)
}

fn refusal(entries: &[(&str, EntryType, &[u8])]) -> String {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(home.path().join("outside"), "old").unwrap();
    let error = unpack_into(&root, &pack(&tar_of(entries))).unwrap_err();
    assert_eq!(fs::read(home.path().join("outside")).unwrap(), b"old");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    error.to_string()
}

#[test]
fn files_keep_their_time_and_the_executable_bit_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let tar = tar_of(&[
        ("./", EntryType::Directory, b""),
        ("./a/b", EntryType::Regular, b"content"),
        ("./.git/objects/pack/p.pack", EntryType::Regular, b"PACK"),
        ("./.git/config", EntryType::Regular, b"[core]\n\tfsmonitor = touch /tmp/x\n"),
        ("./.git/hooks/post-checkout", EntryType::Regular, b"#!/bin/sh\n"),
        ("./link", EntryType::Symlink, b"../../etc/passwd"),
    ]);
    // Several frames are one stream.
    let (first, second) = tar.split_at(700);
    let unpacked = unpack_into(root.path(), &[pack(first), pack(second)].concat()).unwrap();
    assert_eq!(unpacked, Unpacked { files: 3 });
    let file = fs::metadata(root.path().join("a/b")).unwrap();
    assert_eq!((file.mtime(), file.permissions().mode() & 0o7100), (1_700_000_000, 0o100));
    let pack = fs::metadata(root.path().join(".git/objects/pack/p.pack")).unwrap();
    assert_eq!(pack.permissions().mode() & 0o7777, 0o444);
    assert_eq!(fs::symlink_metadata(root.path().join("link")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(fs::read_link(root.path().join("link")).unwrap(), Path::new("../../etc/passwd"));
    assert!(!root.path().join(".git/config").exists() && !root.path().join(".git/hooks").exists());
}

#[test]
fn entries_that_leave_the_clone_are_refused() {
    let file = EntryType::Regular;
    assert!(refusal(&[("/outside", file, b"new")]).contains("absolute"));
    assert!(refusal(&[("../outside", file, b"new")]).contains(".."));
    assert!(refusal(&[("a/../../outside", file, b"new")]).contains(".."));
    assert!(refusal(&[("hard", EntryType::Link, b"../outside")]).contains("hard link"));
    assert!(refusal(&[("sda", EntryType::Block, b"")]).contains("device"));
    assert!(refusal(&[("tty", EntryType::Char, b"")]).contains("device"));
    assert!(refusal(&[("pipe", EntryType::Fifo, b"")]).contains("pipe"));
    assert!(refusal(&[(".git/index", EntryType::Symlink, b"../../outside")]).contains("link within .git"));
    assert!(refusal(&[(".git/objects/info/alternates", file, b"/")]).contains("other repositories"));
}

#[test]
fn nothing_is_written_through_a_link_or_over_a_file() {
    let (file, link) = (EntryType::Regular, EntryType::Symlink);
    for entries in [
        [("up", link, &b".."[..]), ("up/outside", file, b"new")],
        [("up", link, b".."), ("up/made", EntryType::Directory, b"")],
        [("out", link, b"../outside"), ("out", file, b"new")],
        [("here", file, b"one"), ("here", file, b"two")],
    ] {
        assert!(refusal(&entries).contains("cannot write"), "{entries:?}");
    }
}

#[test]
fn what_is_cut_or_damaged_is_noticed_wherever_it_is() {
    let content = vec![7; 3000];
    let tar = tar_of(&[("a", EntryType::Regular, &content), ("b", EntryType::Regular, b"b")]);
    let whole = zstd::encode_all(&tar[..], 1).unwrap();
    let damaged = |archive: &[u8]| {
        let root = tempfile::tempdir().unwrap();
        let error = unpack_into(root.path(), archive).unwrap_err();
        assert!(matches!(error, ArchiveError::Damaged { .. }), "{error}");
    };
    for cut in 0..whole.len() {
        damaged(&whole[..cut]);
    }
    damaged(b"not zstd at all");
    damaged(&pack(b"not tar, but long enough to be a header of an archive").repeat(20));
    damaged(&[whole.clone(), pack(b"more")].concat());
    for cut in [0, 100, 512, 2000, 4096] {
        damaged(&pack(&tar[..cut]));
    }
    let mut header = tar.clone();
    header[3] ^= 1;
    damaged(&pack(&header));
}

#[test]
fn a_size_beyond_the_archive_is_damage_and_a_bomb_is_refused() {
    let mut tar = tar_of(&[("a", EntryType::Regular, b"x")]);
    let mut header = Header::from_byte_slice(&tar[..512]).clone();
    header.set_size(1 << 60);
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(unpack_into(root.path(), &pack(&tar)), Err(ArchiveError::Damaged { .. })));

    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let (mut entry, zeros) = (Header::new_gnu(), vec![0; 1 << 20]);
    entry.set_path("zeros").unwrap();
    entry.set_size(2 << 30);
    entry.set_mode(0o644);
    entry.set_mtime(1);
    entry.set_cksum();
    // The content is not stored as a file: .git/hooks is passed by.
    entry.set_path(".git/hooks/zeros").unwrap();
    entry.set_cksum();
    bomb.write_all(entry.as_bytes()).unwrap();
    for _ in 0..2 << 10 {
        bomb.write_all(&zeros).unwrap();
    }
    let error = unpack_into(root.path(), &bomb.finish().unwrap()).unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
}

#[test]
fn no_header_however_odd_leads_out_or_ends_in_a_panic() {
    let (file, link) = (EntryType::Regular, EntryType::Symlink);
    let tar = tar_of(&[("./ok", file, b"content"), ("./up", link, b"../outside")]);
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("outside"), "old").unwrap();
    let mut unpacked = 0;
    // The start of the name, the numbers but for the sum, the kind, the start of a link's target, the magic.
    let fields = || (0..8).chain(100..148).chain(156..164).chain(257..265).chain([345]);
    for at in fields().chain(fields().map(|at| at + 1024)) {
        for byte in [0, b'/', b'.', b'7', 0x80, 0xff] {
            let mut odd = tar.clone();
            odd[at] = byte;
            let start = at / 512 * 512;
            let mut header = Header::from_byte_slice(&odd[start..start + 512]).clone();
            header.set_cksum();
            odd[start..start + 512].copy_from_slice(header.as_bytes());
            let root = home.path().join("root");
            fs::create_dir(&root).unwrap();
            unpacked += u32::from(unpack_into(&root, &pack(&odd)).is_ok());
            fs::remove_dir_all(&root).unwrap();
        }
    }
    assert!(unpacked > 0, "some of them are harmless");
    assert_eq!(fs::read(home.path().join("outside")).unwrap(), b"old");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}
