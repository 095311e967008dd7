//! Where an entry of a snapshot may go. Pure.

/// The deepest directory; each level holds a descriptor.
const DEEPEST: usize = 200;

/// The longest name of an entry.
const LONGEST: usize = 4096;

/// What an entry's name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// The clone itself.
    Root,
    /// A file of the worktree, by its path.
    Worktree(Vec<&'a [u8]>),
    /// A file of the repository, by its path, `.git` included.
    Git(Vec<&'a [u8]>),
    /// A file that git makes itself where it needs one: configuration, hooks, logs, lists of what to ignore.
    Ignored,
    /// A file that would make git read, or write, elsewhere.
    Refused(&'static str),
}

/// Judges a name.
///
/// # Errors
/// No archive of a clone has such a name.
pub(super) fn judge(name: &[u8]) -> Result<Place<'_>, &'static str> {
    if name.len() > LONGEST {
        return Err("has a name that is too long");
    }
    if name.starts_with(b"/") {
        return Err("has an absolute name");
    }
    if name.contains(&0) {
        return Err("has a zero byte in its name");
    }
    let parts: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.len() > DEEPEST {
        return Err("lies too deep");
    }
    if parts.contains(&&b".."[..]) {
        return Err("has .. in its name");
    }
    let Some((first, rest)) = parts.split_first() else { return Ok(Place::Root) };
    if rest.iter().any(|part| is_dot_git(part)) {
        return Err("lies in a second .git");
    }
    if *first == b".git" {
        return Ok(judge_git(parts));
    }
    if is_dot_git(first) {
        return Err("lies in a second .git");
    }
    Ok(Place::Worktree(parts))
}

/// Whether some file system takes a name for `.git`, as git's own `verify_path` has it: in any case, with letters that
/// HFS+ ignores, with what NTFS cuts off, by its short name, or behind a backslash.
fn is_dot_git(name: &[u8]) -> bool {
    name.split(|byte| *byte == b'\\').any(|name| {
        let name = folded(name);
        name == b".git" || name == b"git~1"
    })
}

/// A name as a file system sees it that ignores as much as any: letters in lower case, without those that HFS+ ignores,
/// and without a stream, dots and blanks at the end, as NTFS has it.
fn folded(name: &[u8]) -> Vec<u8> {
    let mut rest = name.split(|byte| *byte == b':').next().unwrap_or_default();
    let mut seen = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        rest = ignorable(rest).unwrap_or_else(|| {
            seen.push(first.to_ascii_lowercase());
            after
        });
    }
    while matches!(seen.last(), Some(b'.' | b' ')) {
        seen.pop();
    }
    seen
}

/// What follows a character at the beginning of `text` that HFS+ ignores: `next_hfs_char` of git's utf8.c has the list.
fn ignorable(text: &[u8]) -> Option<&[u8]> {
    match text {
        [0xe2, 0x80, 0x8c..=0x8f | 0xaa..=0xae, rest @ ..]
        | [0xe2, 0x81, 0xaa..=0xaf, rest @ ..]
        | [0xef, 0xbb, 0xbf, rest @ ..] => Some(rest),
        _ => None,
    }
}

/// Within `.git`, the list says what is taken: names as git writes them, and none that a file system may take for another.
fn judge_git(parts: Vec<&[u8]>) -> Place<'_> {
    let inner = parts.get(1..).unwrap_or_default();
    match inner {
        [] | [b"HEAD" | b"index" | b"packed-refs" | b"shallow" | b"refs" | b"objects"] | [b"refs", ..] => {
            Place::Git(parts)
        }
        [b"objects", rest @ ..] => match judge_object(rest) {
            Ok(()) => Place::Git(parts),
            Err(why) => Place::Refused(why),
        },
        [first, ..] => match folded(first).as_slice() {
            b"commondir" | b"gitdir" | b"modules" | b"worktrees" => {
                Place::Refused("belongs to another repository")
            }
            b"objects" | b"refs" => Place::Refused("is no name that git writes"),
            _ => Place::Ignored,
        },
    }
}

/// Judges a path below `.git/objects`. Git writes lower-case letters, digits and `-`, `_`, `.` there: whatever else may be
/// another name of `info/alternates`.
fn judge_object(parts: &[&[u8]]) -> Result<(), &'static str> {
    if parts.iter().any(|part| is_alternates(&folded(part))) {
        return Err("names other repositories");
    }
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(byte);
    let written = |part: &&[u8]| part.iter().all(plain) && !part.ends_with(b".");
    if parts.iter().all(written) { Ok(()) } else { Err("is no name that git writes") }
}

fn is_alternates(name: &[u8]) -> bool {
    matches!(name, b"alternates" | b"http-alternates")
}

/// The mode of a file in `.git`: git makes objects read-only, and nothing there is executable.
pub(super) fn git_mode(parts: &[&[u8]]) -> u32 {
    if parts.get(1) == Some(&&b"objects"[..]) { 0o444 } else { 0o666 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &'static str) -> Vec<&'static [u8]> {
        name.split('/').map(str::as_bytes).collect()
    }

    #[test]
    fn a_name_leads_into_the_clone_or_nowhere() {
        for (name, place) in [
            ("./", Place::Root),
            (".", Place::Root),
            ("./src/main.rs", Place::Worktree(parts("src/main.rs"))),
            ("src//a/./b/", Place::Worktree(parts("src/a/b"))),
            (".gitignore", Place::Worktree(parts(".gitignore"))),
            ("./.git/objects/pack/pack-1.pack", Place::Git(parts(".git/objects/pack/pack-1.pack"))),
            (".git/HEAD", Place::Git(parts(".git/HEAD"))),
            (".git/refs/remotes/origin/HEAD", Place::Git(parts(".git/refs/remotes/origin/HEAD"))),
            (".git/config", Place::Ignored),
            (".git/config.worktree", Place::Ignored),
            (".git/hooks/post-checkout", Place::Ignored),
            (".git/info/attributes", Place::Ignored),
            (".git/HEAD/x", Place::Ignored),
            (".git/objects/info/alternates", Place::Refused("names other repositories")),
            (".git/objects/info/Http-Alternates", Place::Refused("names other repositories")),
            (".git/modules/a/config", Place::Refused("belongs to another repository")),
            (".git/commondir", Place::Refused("belongs to another repository")),
            (".git/COMMONDIR", Place::Refused("belongs to another repository")),
            (".git/objects/INFO/alternates", Place::Refused("names other repositories")),
            (".git/objects/info/alternates.", Place::Refused("names other repositories")),
            (".git/objects/info/alternates ::$DATA", Place::Refused("names other repositories")),
            (".git/objects/info/alter\u{200c}nates", Place::Refused("names other repositories")),
            (".git/objects/info/ALTERN~1", Place::Refused("is no name that git writes")),
            (".git/objects/inf\u{17f}o/x", Place::Refused("is no name that git writes")),
            (".git/Objects/info/alternates", Place::Refused("is no name that git writes")),
            (".git/ob\u{200d}jects/info/alternates", Place::Refused("is no name that git writes")),
            (".git/REFS/heads/main", Place::Refused("is no name that git writes")),
            (".git/refs/heads/Größe", Place::Git(parts(".git/refs/heads/Größe"))),
            (
                ".git/objects/info/commit-graphs/graph-1.graph",
                Place::Git(parts(".git/objects/info/commit-graphs/graph-1.graph")),
            ),
            ("a/git~2", Place::Worktree(parts("a/git~2"))),
            (".gitx", Place::Worktree(parts(".gitx"))),
            ("a:b", Place::Worktree(parts("a:b"))),
        ] {
            assert_eq!(judge(name.as_bytes()).unwrap(), place, "{name}");
        }
    }

    #[test]
    fn names_that_lead_out_are_errors() {
        let deep = "a/".repeat(201);
        let long = "a".repeat(4097);
        for name in
            ["/etc/passwd", "../x", "a/../../x", "a/..", "a/.git/config", ".GIT/config", "a\0b", &deep, &long]
        {
            judge(name.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn what_some_file_system_takes_for_dot_git_is_an_error() {
        for name in [
            ".Git",
            ".g\u{200c}it",
            ".gi\u{feff}t",
            "\u{202e}.git",
            ".git\u{206a}",
            "git~1",
            "GIT~1",
            ".git.",
            ".git ",
            ".git . .",
            ".git::$INDEX_ALLOCATION",
            ".git:x",
            "git~1. ",
            "a\\.git",
            "a\\git~1\\b",
        ] {
            for path in [name.to_owned(), format!("{name}/config"), format!("a/{name}/hooks/x")] {
                judge(path.as_bytes()).unwrap_err();
            }
        }
    }
}
