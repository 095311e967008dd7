//! One state of a repository's refs, as a value, and its `packed-refs` and `HEAD` files.
//!
//! The agent owns the refs of its mirrors: it writes `packed-refs` whole by rename and leaves no loose
//! refs, so that no reader ever sees a mixture of two states (docs/decisions/0001).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bstr::{BStr, BString, ByteSlice};
use sha2::{Digest, Sha256};

use super::object::{ObjectFormat, Oid};
use crate::files;

/// What `HEAD` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// It names a branch, which may not exist (then the branch is unborn).
    Symbolic(BString),
    /// It names an object directly.
    Detached(Oid),
    /// The upstream advertises none.
    Missing,
}

/// A ref and the object it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    /// Its full name, such as `refs/heads/main`; bytes, for git does not ask for UTF-8.
    pub name: BString,
    /// The object it names.
    pub oid: Oid,
    /// The object an annotated tag finally points at.
    pub peeled: Option<Oid>,
}

/// A whole state of a repository's refs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefSet {
    format: ObjectFormat,
    head: Head,
    /// Sorted by name, each name once.
    refs: Vec<Ref>,
}

/// Why a file is not a `packed-refs` or `HEAD` this agent wrote.
#[derive(Debug, thiserror::Error)]
pub enum RefsError {
    /// The file could not be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A line has no meaning.
    #[error("line {line} of {path} is not a ref")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// Where a text is not what this agent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// In the text of `HEAD`, not of `packed-refs`.
    pub in_head: bool,
    /// Counted from 1.
    pub line: usize,
}

impl RefSet {
    /// A state with these refs, in any order; of two refs with one name the first wins. Refs that git would
    /// not have, by name or by object format, are left out: what upstreams say ends up in files and packets.
    pub fn new(format: ObjectFormat, head: Head, mut refs: Vec<Ref>) -> Self {
        let names_object = |oid: &Oid| oid.format() == format && !oid.is_null();
        refs.retain(|r| is_valid_name(&r.name) && [Some(r.oid), r.peeled].iter().flatten().all(names_object));
        let head = match head {
            Head::Symbolic(name) if !is_valid_name(&name) => Head::Missing,
            Head::Detached(oid) if !names_object(&oid) => Head::Missing,
            head => head,
        };
        refs.sort_by(|a, b| a.name.cmp(&b.name));
        refs.dedup_by(|a, b| a.name == b.name);
        Self { format, head, refs }
    }

    /// The state of a repository without refs.
    pub fn empty(format: ObjectFormat) -> Self {
        Self::new(format, Head::Missing, Vec::new())
    }

    /// The hash function of its objects.
    pub fn format(&self) -> ObjectFormat {
        self.format
    }

    /// What `HEAD` says.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// All refs, sorted by name.
    pub fn refs(&self) -> &[Ref] {
        &self.refs
    }

    /// The ref called `name`.
    pub fn get(&self, name: &BStr) -> Option<&Ref> {
        let at = self.refs.binary_search_by(|r| r.name.as_bstr().cmp(name)).ok()?;
        self.refs.get(at)
    }

    /// The object `HEAD` leads to; `None` where it is missing or unborn.
    pub fn head_oid(&self) -> Option<Oid> {
        match &self.head {
            Head::Symbolic(name) => self.get(name.as_bstr()).map(|r| r.oid),
            Head::Detached(oid) => Some(*oid),
            Head::Missing => None,
        }
    }

    /// The objects named by refs and by a detached `HEAD`, without repetition, in no particular order.
    pub fn tips(&self) -> impl Iterator<Item = Oid> + '_ {
        let detached = match &self.head {
            Head::Detached(oid) => Some(*oid),
            _ => None,
        };
        self.refs.iter().map(|r| r.oid).chain(detached)
    }

    /// The same state without the refs `keep` refuses.
    pub fn filtered(self, keep: impl Fn(&BStr) -> bool) -> Self {
        let refs = self.refs.into_iter().filter(|r| keep(r.name.as_bstr())).collect();
        Self { refs, ..self }
    }

    /// A digest of the whole state, equal where and only where the states are: `sha256:` and 64 digits.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut line = |parts: &[&[u8]]| {
            for part in parts {
                hash.update(part);
            }
            hash.update(b"\n");
        };
        match &self.head {
            Head::Symbolic(name) => line(&[b"ref: ", name.as_slice()]),
            Head::Detached(oid) => line(&[oid.to_hex().as_bytes(), b" HEAD"]),
            Head::Missing => line(&[b"no HEAD"]),
        }
        for r in &self.refs {
            line(&[r.oid.to_hex().as_bytes(), b" ", r.name.as_slice()]);
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{digest}")
    }

    /// The text of git's `packed-refs` file for this state.
    pub fn to_packed_refs(&self) -> Vec<u8> {
        // "sorted" lets git search the file by bisection, "fully-peeled" says that a ref without a
        // peel line is no annotated tag (refs/packed-backend.c).
        let mut text = b"# pack-refs with: peeled fully-peeled sorted \n".to_vec();
        for r in &self.refs {
            text.extend_from_slice(r.oid.to_hex().as_bytes());
            text.push(b' ');
            text.extend_from_slice(&r.name);
            text.push(b'\n');
            if let Some(peeled) = r.peeled {
                text.push(b'^');
                text.extend_from_slice(peeled.to_hex().as_bytes());
                text.push(b'\n');
            }
        }
        text
    }

    /// Reads back what [`RefSet::write`] wrote into the repository `dir`.
    ///
    /// # Errors
    /// A file that cannot be read, or holds what this agent never writes.
    pub fn read(dir: &Path, format: ObjectFormat) -> Result<Self, RefsError> {
        let (packed, head) = (dir.join("packed-refs"), dir.join("HEAD"));
        let syntax = |Syntax { in_head, line }| {
            let path = if in_head { head.clone() } else { packed.clone() };
            RefsError::Syntax { path, line }
        };
        Self::parse(&read(&packed)?, &read(&head)?, format).map_err(syntax)
    }

    /// The hash function of the objects that the refs of the repository `dir` name; `None` where it has no refs.
    pub fn format_at(dir: &Path) -> Option<ObjectFormat> {
        let packed = fs::read(dir.join("packed-refs")).ok()?;
        let first = packed.lines().find(|line| !line.starts_with(b"#"))?;
        Oid::from_hex(first.split_once_str(" ")?.0).map(|oid| oid.format())
    }

    /// Reads the texts of a `packed-refs` and a `HEAD` file.
    ///
    /// # Errors
    /// What this agent never writes.
    pub fn parse(packed: &[u8], head: &[u8], format: ObjectFormat) -> Result<Self, Syntax> {
        let mut refs: Vec<Ref> = Vec::new();
        for (at, line) in packed.lines().enumerate() {
            let syntax = || Syntax { in_head: false, line: at + 1 };
            if line.starts_with(b"#") {
                continue;
            }
            if let Some(peeled) = line.strip_prefix(b"^") {
                refs.last_mut().ok_or_else(syntax)?.peeled = Some(Oid::from_hex(peeled).ok_or_else(syntax)?);
                continue;
            }
            let (oid, name) = line.split_once_str(" ").ok_or_else(syntax)?;
            refs.push(Ref { name: name.into(), oid: Oid::from_hex(oid).ok_or_else(syntax)?, peeled: None });
        }
        let line = head.trim_ascii_end();
        let head = match line.strip_prefix(b"ref: ") {
            Some(name) if name == NO_HEAD => Head::Missing,
            Some(name) => Head::Symbolic(name.into()),
            None => Head::Detached(Oid::from_hex(line).ok_or(Syntax { in_head: true, line: 1 })?),
        };
        Ok(Self::new(format, head, refs))
    }

    /// The text of git's `HEAD` file for this state.
    pub fn to_head(&self) -> Vec<u8> {
        let mut head = match &self.head {
            Head::Symbolic(name) => [b"ref: ".as_slice(), name.as_slice()].concat(),
            Head::Detached(oid) => oid.to_hex().into_bytes(),
            Head::Missing => [b"ref: ".as_slice(), NO_HEAD].concat(),
        };
        head.push(b'\n');
        head
    }

    /// Makes this state the repository's: `packed-refs` by rename, then `HEAD` by rename, both synced.
    ///
    /// A crash in between leaves whole files, at worst the new refs with the old `HEAD`; the look at the
    /// next start mends that. All objects must be there already.
    ///
    /// # Errors
    /// A file that cannot be written: a full disk, above all.
    pub fn write(&self, dir: &Path) -> Result<(), RefsError> {
        replace(&dir.join("packed-refs"), &self.to_packed_refs())?;
        replace(&dir.join("HEAD"), &self.to_head())
    }
}

/// Git wants a HEAD in every repository; where the upstream has none, ours names a branch that no
/// upstream can have, since the mirror never stores refs below `refs/tarn/`.
const NO_HEAD: &[u8] = b"refs/tarn/no-head";

/// Whether git takes `name` for the full name of a ref (git-check-ref-format(1)).
fn is_valid_name(name: &[u8]) -> bool {
    let forbidden = |byte: &u8| *byte <= b' ' || *byte == 0x7f || b"~^:?*[\\".contains(byte);
    let component = |part: &[u8]| !part.is_empty() && !part.starts_with(b".") && !part.ends_with(b".lock");
    name.starts_with(b"refs/")
        && !name.iter().any(forbidden)
        && !name.contains_str("..")
        && !name.contains_str("@{")
        && !name.ends_with(b".")
        && name.split_str("/").all(component)
}

fn read(path: &Path) -> Result<Vec<u8>, RefsError> {
    fs::read(path).map_err(|source| RefsError::Io { path: path.into(), source })
}

fn replace(path: &Path, content: &[u8]) -> Result<(), RefsError> {
    files::replace(path, content).map_err(|source| RefsError::Io { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(digit: u8) -> Oid {
        Oid::from_hex(&[digit; 40]).unwrap()
    }

    fn sample(head: Head) -> RefSet {
        let tag = Ref { name: "refs/tags/v1".into(), oid: oid(b'2'), peeled: Some(oid(b'1')) };
        let main = Ref { name: "refs/heads/main".into(), oid: oid(b'1'), peeled: None };
        let odd = Ref { name: b"refs/heads/\xff'\"".as_slice().into(), oid: oid(b'3'), peeled: None };
        RefSet::new(ObjectFormat::Sha1, head, vec![tag, main, odd])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        for head in [Head::Symbolic("refs/heads/main".into()), Head::Detached(oid(b'9')), Head::Missing] {
            let refs = sample(head);
            refs.write(dir.path()).unwrap();
            assert_eq!(RefSet::read(dir.path(), ObjectFormat::Sha1).unwrap(), refs);
        }
    }

    #[test]
    fn packed_refs_are_sorted_and_peeled() {
        let text = sample(Head::Missing).to_packed_refs();
        let expected = format!(
            "# pack-refs with: peeled fully-peeled sorted \n{one} refs/heads/main\n{three} refs/heads/\u{0}'\"\n{two} refs/tags/v1\n^{one}\n",
            one = "1".repeat(40),
            two = "2".repeat(40),
            three = "3".repeat(40)
        );
        assert_eq!(text.replace(b"\xff", b"\0").as_bstr(), expected.as_bytes().as_bstr());
    }

    #[test]
    fn names_that_git_refuses_are_left_out() {
        let good = ["refs/heads/a", "refs/heads/ü/@/a.b-c_d", "refs/x"];
        let bad = [
            "HEAD",
            "refs/",
            "refs/a b",
            "refs/a\nb",
            "refs/a\0b",
            "refs//a",
            "refs/.a",
            "refs/a.lock/b",
            "refs/a..b",
            "refs/a.",
            "refs/a@{1}",
            "refs/a~1",
            "refs/a^",
            "refs/a:b",
            "refs/a?",
            "refs/*",
            "refs/[a",
            "refs/a\\b",
            "refs/heads/a/",
        ];
        let refs =
            good.iter().chain(&bad).map(|name| Ref { name: (*name).into(), oid: oid(b'1'), peeled: None });
        let set = RefSet::new(ObjectFormat::Sha1, Head::Symbolic("../../x".into()), refs.collect());
        assert_eq!(set.refs().len(), good.len(), "{set:?}");
        assert_eq!(set.head(), &Head::Missing);
        assert!(
            RefSet::new(ObjectFormat::Sha256, Head::Detached(oid(b'1')), set.refs().to_vec())
                .refs()
                .is_empty()
        );
    }

    #[test]
    fn the_digest_tells_states_apart() {
        let with = |head| sample(head).digest();
        let main = with(Head::Symbolic("refs/heads/main".into()));
        assert_eq!(main, with(Head::Symbolic("refs/heads/main".into())));
        assert_ne!(main, with(Head::Detached(oid(b'1'))));
        assert_ne!(
            main,
            sample(Head::Symbolic("refs/heads/main".into())).filtered(|n| n != "refs/tags/v1").digest()
        );
    }

    #[test]
    fn a_broken_file_names_its_line() {
        let dir = tempfile::tempdir().unwrap();
        sample(Head::Missing).write(dir.path()).unwrap();
        fs::write(dir.path().join("packed-refs"), "# pack-refs\nnonsense\n").unwrap();
        let error = RefSet::read(dir.path(), ObjectFormat::Sha1).unwrap_err();
        assert!(error.to_string().starts_with("line 2 of "), "{error}");
    }
}
