//! Whether a snapshot's worktree is that of the commit that it names: hashed along the whole way, from the commit's name
//! by its trees to every file of the archive.
//!
//! The mirror only says what trees hold, and nothing that it says is believed unhashed: it may have been restored from the
//! same store. What is below `.git` is not looked at; clients that verify do that.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bstr::ByteSlice;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use tar::EntryType;

use super::{SnapshotError, archive::Unwanted};
use crate::{
    files::blocking,
    git::{Git, ObjectFormat, Oid},
};

/// Listing the trees of half a million files takes seconds; on a slow disk, minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// The most files and directories: no agent makes a snapshot of more.
const MAX_ENTRIES: usize = 2_000_000;

/// The deepest tree.
const MAX_DEPTH: usize = 1000;

/// How much larger than itself an archive may be: text shrinks to a tenth.
const MAX_GROWTH: u64 = 100;

/// The longest file that is looked at once more, for line ends that git has changed when it was checked out.
const MAX_TEXT: u64 = 8 << 20;

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Every file is the commit's, and there is no other.
    Same,
    /// A file is not the commit's: this one, and how.
    Differs(String),
    /// It cannot be told, and why.
    Unknown(String),
}

impl Compared {
    /// Its label in metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Differs(_) => "differs",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What to compare.
pub struct Compare {
    /// The installed git.
    pub git: Git,
    /// The mirror.
    pub dir: PathBuf,
    /// A directory to work in; nothing is there yet, and the caller removes it.
    pub work: PathBuf,
    /// The archive.
    pub archive: PathBuf,
    /// The commit that it is of.
    pub commit: Oid,
}

/// A file of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    oid: Oid,
}

/// What is at a path of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File { executable: bool },
    Link,
    Submodule,
}

/// The files of a commit, by their paths.
type Files = HashMap<Vec<u8>, Entry>;

/// Why a comparison ends early.
enum Stop {
    Outcome(Compared),
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn unknown(reason: impl Into<String>) -> Stop {
    Stop::Outcome(Compared::Unknown(reason.into()))
}

fn differs(path: &[u8], how: &str) -> Stop {
    let path: String = String::from_utf8_lossy(path).chars().take(200).collect();
    Stop::Outcome(Compared::Differs(format!("{path:?} {how}")))
}

impl Compare {
    /// Runs it. A dropped future leaves files in `work`, and a thread that ends soon.
    ///
    /// # Errors
    /// Git fails, or the disk.
    pub async fn run(self) -> Result<Compared, SnapshotError> {
        fs::create_dir_all(&self.work)?;
        match self.files().await? {
            Ok(files) => {
                let unwanted = Arc::new(AtomicBool::new(false));
                let _given_up = SetOnDrop(unwanted.clone());
                let (archive, format) = (self.archive.clone(), self.commit.format());
                let compare = move || match read(&archive, files, format, &unwanted) {
                    Ok(()) => Ok(Compared::Same),
                    Err(Stop::Outcome(outcome)) => Ok(outcome),
                    Err(Stop::Io(error)) => Err(error),
                };
                let compared = blocking(compare).await;
                compared
                    .map_err(|error| if Unwanted::is(&error) { SnapshotError::GivenUp } else { error.into() })
            }
            Err(outcome) => Ok(outcome),
        }
    }

    /// The commit's files, level by level.
    async fn files(&self) -> Result<Result<Files, Compared>, SnapshotError> {
        let format = self.commit.format();
        let mut files = Files::new();
        let mut level = vec![(Vec::new(), self.commit)];
        for depth in 0..MAX_DEPTH {
            if level.is_empty() {
                return Ok(Ok(files));
            }
            let printed = self.work.join(format!("level-{depth}"));
            let names = level.iter().map(|(_, oid)| format!("{oid}\n")).collect::<String>();
            let cat = self.git.command("cat-file").git_dir(&self.dir).args(["--batch", "--buffer"]);
            cat.input(names.into_bytes()).output_to(fs::File::create(&printed)?).run(LIMIT).await?;
            let (mut taken, asked) = (files, level);
            let listed = blocking(move || {
                let mut next = Vec::new();
                let mut from = BufReader::new(fs::File::open(&printed)?);
                for (path, oid) in asked {
                    match object(&mut from, oid, format) {
                        Ok(Object::Commit(tree)) if depth == 0 => next.push((path, tree)),
                        Ok(Object::Tree(entries)) if depth > 0 => match spread(&path, &entries, format) {
                            Some(entries) => sort(entries, &mut taken, &mut next),
                            None => return Ok(Err(unknown(format!("the tree {oid} cannot be read")))),
                        },
                        Ok(_) => return Ok(Err(unknown(format!("{oid} is another kind of object")))),
                        Err(Stop::Io(error)) => return Err(error),
                        Err(stop) => return Ok(Err(stop)),
                    }
                    if taken.len() + next.len() > MAX_ENTRIES {
                        return Ok(Err(unknown("the commit has too many files")));
                    }
                }
                fs::remove_file(&printed)?;
                Ok(Ok((taken, next)))
            });
            match listed.await? {
                Ok((taken, next)) => (files, level) = (taken, next),
                Err(Stop::Outcome(outcome)) => return Ok(Err(outcome)),
                Err(Stop::Io(error)) => return Err(error.into()),
            }
        }
        Ok(Err(Compared::Unknown("the commit's trees are too deep".into())))
    }
}

/// An object as git prints it.
enum Object {
    /// A commit, by its tree.
    Commit(Oid),
    /// What a tree holds.
    Tree(Vec<u8>),
}

/// Reads one answer of `cat-file --batch`, which must be the object called `oid`: its content is hashed.
fn object(from: &mut impl BufRead, oid: Oid, format: ObjectFormat) -> Result<Object, Stop> {
    let mut line = String::new();
    from.by_ref().take(256).read_line(&mut line)?;
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let [_, kind, size] = words.as_slice() else {
        return Err(unknown(format!("the mirror does not have {oid}")));
    };
    let size: u64 = size.parse().map_err(|_| unknown("git printed no size"))?;
    let mut content = Vec::new();
    from.by_ref().take(size).read_to_end(&mut content)?;
    let mut end = [0; 1];
    from.read_exact(&mut end)?;
    let mut hash = Hash::new(kind, size, format);
    hash.update(&content);
    if hash.finish() != Some(oid) {
        return Err(unknown(format!("the mirror's {oid} is another object")));
    }
    match *kind {
        "tree" => Ok(Object::Tree(content)),
        "commit" => {
            let tree =
                content.strip_prefix(b"tree ").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
            let tree = tree.and_then(Oid::from_hex).ok_or_else(|| unknown("the commit names no tree"))?;
            Ok(Object::Commit(tree))
        }
        _ => Err(unknown(format!("{oid} is neither a commit nor a tree"))),
    }
}

/// Entries of a tree: path, mode, object.
type Listed = Vec<(Vec<u8>, Vec<u8>, Oid)>;

/// The entries of a tree; `None` where it is malformed.
fn spread(dir: &[u8], mut tree: &[u8], format: ObjectFormat) -> Option<Listed> {
    let length = if format == ObjectFormat::Sha1 { 20 } else { 32 };
    let mut entries = Vec::new();
    while !tree.is_empty() {
        let zero = tree.iter().position(|byte| *byte == 0)?;
        let (head, rest) = (tree.get(..zero)?, tree.get(zero + 1..)?);
        let mut words = head.splitn(2, |byte| *byte == b' ');
        let (mode, name) = (words.next()?, words.next()?);
        let oid = Oid::from_hex(hex::encode(rest.get(..length)?).as_bytes())?;
        let path = if dir.is_empty() { name.to_owned() } else { [dir, b"/", name].concat() };
        entries.push((path, mode.to_owned(), oid));
        tree = rest.get(length..)?;
    }
    Some(entries)
}

/// Puts files to the files, and trees to those that are still to be read.
fn sort(entries: Listed, files: &mut Files, trees: &mut Vec<(Vec<u8>, Oid)>) {
    for (path, mode, oid) in entries {
        let kind = match mode.as_slice() {
            b"40000" | b"040000" => {
                trees.push((path, oid));
                continue;
            }
            b"120000" => Kind::Link,
            b"160000" => Kind::Submodule,
            mode => Kind::File { executable: mode == b"100755" },
        };
        files.insert(path, Entry { kind, oid });
    }
}

/// Compares the archive with the files. Blocks the thread, and ends early once `unwanted` is set.
fn read(archive: &Path, mut files: Files, format: ObjectFormat, unwanted: &AtomicBool) -> Result<(), Stop> {
    // The first file that is not as the commit has it, and whether git may have changed it when it was checked out.
    let (mut odd, mut encoded) = (None, false);
    let file = fs::File::open(archive)?;
    let most = file.metadata()?.len().saturating_mul(MAX_GROWTH).max(1 << 30);
    let unpacked = zstd::stream::read::Decoder::new(file)?.take(most);
    let mut tar = tar::Archive::new(unpacked);
    for entry in tar.entries()? {
        if unwanted.load(Ordering::Relaxed) {
            return Err(io::Error::other(Unwanted).into());
        }
        let mut entry = entry?;
        let path = relative(&entry.path_bytes());
        if path.is_empty() || path == b".git" || path.starts_with(b".git/") {
            continue;
        }
        let (kind, mode, size) = (entry.header().entry_type(), entry.header().mode()?, entry.size());
        if kind == EntryType::Directory {
            continue;
        }
        let wanted = files.remove(&path).ok_or_else(|| differs(&path, "is not in the commit"))?;
        let found = match kind {
            EntryType::Regular => Kind::File { executable: mode & 0o100 != 0 },
            EntryType::Symlink => Kind::Link,
            _ => return Err(differs(&path, "is neither a file nor a link")),
        };
        if found != wanted.kind {
            return Err(differs(&path, "has another mode than in the commit"));
        }
        let same = if found == Kind::Link {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            named(&target, format) == Some(wanted.oid)
        } else {
            let (same, text) = same(&mut entry, size, wanted.oid, format)?;
            encoded |= same && is_attributes(&path) && text.contains_str("working-tree-encoding");
            same
        };
        if !same && odd.is_none() {
            odd = Some(path);
        }
    }
    match odd {
        Some(_) if encoded => return Err(unknown("files of the commit are checked out in another encoding")),
        Some(path) => return Err(differs(&path, "has another content than in the commit")),
        None => {}
    }
    match files.iter().find(|(_, entry)| entry.kind != Kind::Submodule) {
        Some((path, _)) => Err(differs(path, "is missing")),
        None => Ok(()),
    }
}

/// Whether the file says what git changes of others when it checks them out.
fn is_attributes(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next() == Some(b".gitattributes")
}

/// Whether the content is that of the blob `wanted`, but perhaps for what git changes of texts when it checks them out; and
/// the content, if it is no longer than a text.
fn same(
    content: &mut impl Read,
    size: u64,
    wanted: Oid,
    format: ObjectFormat,
) -> io::Result<(bool, Vec<u8>)> {
    let (mut hash, mut text) = (Hash::new("blob", size, format), Vec::new());
    let mut chunk = vec![0; 64 << 10];
    while let count @ 1.. = content.read(&mut chunk)? {
        let part = chunk.get(..count).unwrap_or_default();
        hash.update(part);
        if size <= MAX_TEXT {
            text.extend_from_slice(part);
        }
    }
    Ok((hash.finish() == Some(wanted) || checked_out(&text, wanted, format), text))
}

/// Whether `text` is the blob `wanted` with CRLF for its line ends, or with its own name in `$Id$`.
fn checked_out(text: &[u8], wanted: Oid, format: ObjectFormat) -> bool {
    let plain = |text: &[u8]| replaced(text, b"\r\n", b"\n");
    let bare = replaced(text, format!("$Id: {wanted} $").as_bytes(), b"$Id$");
    [plain(text), plain(&bare), bare].iter().any(|text| named(text, format) == Some(wanted))
}

fn replaced(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    text.replace(from, to)
}

/// The name of the blob with this content.
fn named(content: &[u8], format: ObjectFormat) -> Option<Oid> {
    let mut hash = Hash::new("blob", content.len() as u64, format);
    hash.update(content);
    hash.finish()
}

/// The name of an entry, without `./` before it and `/` behind it.
fn relative(name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    if name == b"." { Vec::new() } else { name.to_owned() }
}

/// An object's name in the making.
struct Hash(Context);

impl Hash {
    fn new(kind: &str, size: u64, format: ObjectFormat) -> Self {
        let mut context = Context::new(match format {
            ObjectFormat::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            ObjectFormat::Sha256 => &SHA256,
        });
        context.update(format!("{kind} {size}\0").as_bytes());
        Self(context)
    }

    fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    fn finish(self) -> Option<Oid> {
        Oid::from_hex(hex::encode(self.0.finish().as_ref()).as_bytes())
    }
}

/// Tells the thread that compares to stop when nobody waits for it any more.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: ObjectFormat = ObjectFormat::Sha1;

    /// A tar of these entries, compressed: name, kind, mode, content or target.
    fn archive(dir: &Path, entries: &[(&str, EntryType, u32, &[u8])]) -> PathBuf {
        let path = dir.join("archive");
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, mode, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            if *kind == EntryType::Symlink {
                header.set_size(0);
                tar.append_link(&mut header, name, str::from_utf8(content).unwrap()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, name, *content).unwrap();
            }
        }
        fs::write(&path, zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap()).unwrap();
        path
    }

    fn commit() -> Files {
        let file = |content: &[u8]| Entry {
            kind: Kind::File { executable: false },
            oid: named(content, SHA1).unwrap(),
        };
        let link = Entry { kind: Kind::Link, ..file(b"a") };
        let submodule = Entry { kind: Kind::Submodule, ..file(b"any") };
        let names: [(&[u8], Entry); 4] =
            [(b"a", file(b"text\n")), (b"d/id", file(b"$Id$\n")), (b"link", link), (b"sub", submodule)];
        names.into_iter().map(|(name, entry)| (name.to_owned(), entry)).collect()
    }

    fn compared(entries: &[(&str, EntryType, u32, &[u8])], files: Files) -> Compared {
        let dir = tempfile::tempdir().unwrap();
        match read(&archive(dir.path(), entries), files, SHA1, &AtomicBool::new(false)) {
            Ok(()) => Compared::Same,
            Err(Stop::Outcome(outcome)) => outcome,
            Err(Stop::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn an_archive_is_the_commits_or_it_is_told_in_what_it_differs() {
        let (file, link, dir) = (EntryType::Regular, EntryType::Symlink, EntryType::Directory);
        let id = format!("$Id: {} $\n", named(b"$Id$\n", SHA1).unwrap());
        let a = ("a", file, 0o644, &b"text\n"[..]);
        let rest = [
            (".git/config", file, 0o644, &b"x"[..]),
            ("d/", dir, 0o755, b""),
            ("d/id", file, 0o644, b"$Id$\n"),
            ("link", link, 0o777, b"a"),
            ("sub/", dir, 0o755, b""),
        ];
        let with = |first: (&'static str, EntryType, u32, &'static [u8])| {
            compared(&[&[first][..], &rest].concat(), commit())
        };
        assert_eq!(with(a), Compared::Same);
        assert_eq!(with(("a", file, 0o644, b"text\r\n")), Compared::Same, "line ends of a checkout");
        let expanded = [a, ("d/id", file, 0o644, id.as_bytes()), ("link", link, 0o777, b"a")];
        assert_eq!(compared(&expanded, commit()), Compared::Same, "its own name");
        let differs = |compared: Compared, word: &str| match compared {
            Compared::Differs(text) => assert!(text.contains(word), "{word}: {text}"),
            other => panic!("{word}: {other:?}"),
        };
        differs(with(("a", file, 0o644, b"tEXt\n")), "another content");
        differs(with(("a", file, 0o755, b"text\n")), "another mode");
        differs(with(("a", link, 0o777, b"text\n")), "another mode");
        differs(with(("b", file, 0o644, b"text\n")), "\"b\" is not in the commit");
        differs(with(("sub/x", file, 0o644, b"")), "\"sub/x\" is not in the commit");
        differs(compared(&rest, commit()), "\"a\" is missing");
        differs(compared(&[&[a][..], &rest, &[a]].concat(), commit()), "\"a\" is not in the commit");
        let forged = [a, ("d/id", file, 0o644, b"$Id: rm -rf $\n"), ("link", link, 0o777, b"a")];
        differs(compared(&forged, commit()), "d/id");
    }

    #[test]
    fn objects_are_believed_by_their_hashes_alone() {
        let tree = [b"100644 a\0".as_slice(), &[7; 20]].concat();
        let mut hash = Hash::new("tree", tree.len() as u64, SHA1);
        hash.update(&tree);
        let oid = hash.finish().unwrap();
        let printed = [format!("{oid} tree {}\n", tree.len()).as_bytes(), &tree, b"\n"].concat();
        let Ok(Object::Tree(found)) = object(&mut printed.as_slice(), oid, SHA1) else { panic!("no tree") };
        assert_eq!(spread(b"d", &found, SHA1).unwrap()[0].0, b"d/a");
        let other = Oid::from_hex(&[b'1'; 40]).unwrap();
        for (printed, oid) in [(&printed[..], other), (b"x missing\n", other)] {
            assert!(matches!(object(&mut &*printed, oid, SHA1), Err(Stop::Outcome(Compared::Unknown(_)))));
        }
    }
}
