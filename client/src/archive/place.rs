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
    // On file systems that ignore case, .GIT is .git.
    if rest.iter().any(|part| part.eq_ignore_ascii_case(b".git")) {
        return Err("lies in a second .git");
    }
    if *first == b".git" {
        return Ok(judge_git(parts));
    }
    if first.eq_ignore_ascii_case(b".git") {
        return Err("lies in a second .git");
    }
    Ok(Place::Worktree(parts))
}

/// Within `.git`, the list says what is taken.
fn judge_git(parts: Vec<&[u8]>) -> Place<'_> {
    let taken = match parts.get(1..).unwrap_or_default() {
        [] | [b"HEAD" | b"index" | b"packed-refs" | b"shallow" | b"refs" | b"objects"] => true,
        [b"objects", b"info", name, ..] if is_alternates(name) => {
            return Place::Refused("names other repositories");
        }
        [b"commondir" | b"gitdir" | b"modules" | b"worktrees", ..] => {
            return Place::Refused("belongs to another repository");
        }
        [b"refs" | b"objects", ..] => true,
        _ => false,
    };
    if taken { Place::Git(parts) } else { Place::Ignored }
}

/// In any case: some file systems ignore it.
fn is_alternates(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"alternates") || name.eq_ignore_ascii_case(b"http-alternates")
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
}
