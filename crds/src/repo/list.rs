//! `UpstreamList`: upstreams as people list them, such as `github.com/org/*`. Pure.

use super::authority::Authority;
use super::path::canonical_part;
use super::{RepoIdError, Scheme, UpstreamUrl};

/// The longest list, in bytes; Kubernetes has no longer annotations.
const MAX_LIST: usize = 256 * 1024;

/// A list of upstreams: entries `[scheme://]host[:port][/path]`, separated by commas.
///
/// An entry without a scheme means https and ssh: whoever wants to send something in the clear writes `http://`. The host
/// ignores case and the path does not, as in [`super::RepoId`]. Without a path all repositories of the host are meant. In a path,
/// `*` stands for any characters within one segment, and `**` at the end for one segment or more: `org/*` are the
/// repositories directly below `org`.
///
/// An entry that is none admits nothing, and hides no other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamList {
    entries: Vec<Entry>,
    invalid: Vec<InvalidEntry>,
}

/// An entry that names no upstreams. Does not repeat the entry: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {number} {problem}")]
pub struct InvalidEntry {
    /// Which entry, from 1.
    pub number: usize,
    /// What is wrong with it, and what to write.
    pub problem: EntryProblem,
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// No scheme that takes credentials.
    #[error("has a scheme other than https, http and ssh; write host, or http://host")]
    Scheme,
    /// A user or password.
    #[error("has a user; write the host alone")]
    User,
    /// A slash at the end.
    #[error("ends in a slash; write /* for the repositories below, /** for those at any depth")]
    Slash,
    /// `**` that is not the last segment.
    #[error("has ** before its end; write * for one segment")]
    Depth,
    /// No host, or no path.
    #[error(transparent)]
    Upstream(RepoIdError),
    /// More than any list has.
    #[error("is too long")]
    TooLong,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    scheme: Scheme,
    authority: Authority,
    path: Option<Pattern>,
}

/// Segments, each split at its `*`; then perhaps any more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    segments: Vec<Vec<String>>,
    deeper: bool,
}

impl UpstreamList {
    /// Reads a list. Entries that are empty are passed by.
    pub fn parse(text: &str) -> Self {
        let mut list = Self::default();
        if text.len() > MAX_LIST {
            list.invalid.push(InvalidEntry { number: 1, problem: EntryProblem::TooLong });
            return list;
        }
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        for (entry, number) in entries.zip(1..) {
            match parse_entry(entry) {
                Ok(entries) => list.entries.extend(entries),
                Err(problem) => list.invalid.push(InvalidEntry { number, problem }),
            }
        }
        list
    }

    /// Whether an entry means this upstream.
    pub fn admits(&self, url: &UpstreamUrl) -> bool {
        self.entries.iter().any(|entry| {
            entry.scheme == url.scheme()
                && entry.authority == url.id().authority
                && entry.path.as_ref().is_none_or(|path| path.admits(url.id().path()))
        })
    }

    /// The entries that are none.
    pub fn invalid(&self) -> &[InvalidEntry] {
        &self.invalid
    }

    /// How to list the host of `url`.
    pub fn entry_for(url: &UpstreamUrl) -> String {
        let host = url.id().host();
        if url.scheme() == Scheme::Http { format!("http://{host}") } else { host.to_owned() }
    }
}

/// An entry without a scheme is two: a port that is one scheme's own may be another's only by being written.
fn parse_entry(text: &str) -> Result<Vec<Entry>, EntryProblem> {
    let (schemes, rest) = match text.split_once("://") {
        None => (&[Scheme::Https, Scheme::Ssh][..], text),
        Some(("https", rest)) => (&[Scheme::Https][..], rest),
        Some(("http", rest)) => (&[Scheme::Http][..], rest),
        Some(("ssh", rest)) => (&[Scheme::Ssh][..], rest),
        Some(_) => return Err(EntryProblem::Scheme),
    };
    let (host, path) = match rest.split_once('/') {
        None | Some((_, "")) => (rest.trim_end_matches('/'), None),
        Some((host, path)) => (host, Some(Pattern::parse(path)?)),
    };
    if host.contains('@') {
        return Err(EntryProblem::User);
    }
    let entries = schemes.iter().map(|&scheme| {
        let authority = Authority::parse(host, scheme.default_port()).map_err(EntryProblem::Upstream)?;
        Ok(Entry { scheme, authority, path: path.clone() })
    });
    entries.collect()
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, EntryProblem> {
        let text = text.strip_suffix(".git").unwrap_or(text);
        let (text, deeper) = match text.strip_suffix("**") {
            Some("") => ("", true),
            Some(rest) => (rest.strip_suffix('/').ok_or(EntryProblem::Depth)?, true),
            None => (text, false),
        };
        let mut segments = Vec::new();
        for segment in text.split('/').filter(|_| !text.is_empty()) {
            match segment {
                "" if segments.is_empty() => return Err(EntryProblem::Upstream(RepoIdError::EmptySegment)),
                "" => return Err(EntryProblem::Slash),
                "." | ".." => return Err(EntryProblem::Upstream(RepoIdError::DotSegment)),
                _ if segment.contains("**") => return Err(EntryProblem::Depth),
                _ => {}
            }
            let parts: Result<Vec<_>, _> = segment.split('*').map(canonical_part).collect();
            segments.push(parts.map_err(EntryProblem::Upstream)?);
        }
        Ok(Self { segments, deeper })
    }

    fn admits(&self, path: &str) -> bool {
        let mut given = path.split('/');
        let fits = self.segments.iter().all(|parts| given.next().is_some_and(|segment| fits(parts, segment)));
        fits && given.next().is_some() == self.deeper
    }
}

/// Whether the parts stand in the segment in this order, the first at its beginning and the last at its end.
fn fits(parts: &[String], segment: &str) -> bool {
    let (first, rest) = match parts {
        [] => return segment.is_empty(),
        [only] => return segment == only,
        [first, rest @ ..] => (first, rest),
    };
    let (Some(mut left), Some((last, middle))) = (segment.strip_prefix(first.as_str()), rest.split_last())
    else {
        return false;
    };
    for part in middle {
        let Some((_, after)) = left.split_once(part.as_str()) else { return false };
        left = after;
    }
    left.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admits(list: &str, url: &str) -> bool {
        UpstreamList::parse(list).admits(&UpstreamUrl::parse(url).unwrap())
    }

    #[test]
    fn a_host_means_https_and_ssh_and_the_clear_has_to_be_written() {
        for (list, url, expected) in [
            ("h", "https://h/o/r", true),
            ("h", "ssh://git@h/o/r", true),
            ("h", "http://h/o/r", false),
            ("http://h", "http://h/o/r", true),
            ("http://h", "https://h/o/r", false),
            ("https://h", "ssh://git@h/o/r", false),
            ("ssh://h", "ssh://git@h/o/r", true),
            ("x, H ,", "https://h/o/r", true),
            ("https://h/", "https://h/o/r", true),
            ("h.evil", "https://h/o/r", false),
            ("h", "https://h.evil/o/r", false),
            ("h", "https://h:8443/o/r", false),
            ("h:8443", "https://h:8443/o/r", true),
            ("h:8443", "http://h:8443/o/r", false),
            ("h:443", "https://h/o/r", true),
            ("h:443", "ssh://git@h/o/r", false),
            ("h:22", "ssh://git@h/o/r", true),
            ("http://[::1]:80", "http://[::1]/o/r", true),
            ("", "https://h/o/r", false),
        ] {
            assert_eq!(admits(list, url), expected, "{list} {url}");
        }
    }

    #[test]
    fn a_path_is_compared_by_segments_and_with_its_case() {
        for (list, path, expected) in [
            ("h/org/*", "org/r", true),
            ("h/org/*", "org/r.git", true),
            ("h/org/*", "Org/r", false),
            ("h/org/*", "org2/r", false),
            ("h/org/*", "org/a/b", false),
            ("h/org/*", "org", false),
            ("h/org/**", "org/a/b", true),
            ("h/org/**", "org/a", true),
            ("h/org/**", "org", false),
            ("h/**", "a/b/c", true),
            ("h/org/r", "org/r.git", true),
            ("h/org/r.git", "org/r", true),
            ("h/org/r", "org/r2", false),
            ("h/org/app-*", "org/app-", true),
            ("h/org/app-*", "org/app", false),
            ("h/org/*-*x", "org/a-b-x", true),
            ("h/org/*aa", "org/aa", true),
            ("h/org/a*a", "org/a", false),
            ("h/o%20g/*", "o%20g/r", true),
            ("h/o/%7Er", "o/~r", true),
            ("h/*/r", "any/r", true),
        ] {
            assert_eq!(admits(list, &format!("https://h/{path}")), expected, "{list} {path}");
        }
    }

    #[test]
    fn what_is_no_entry_admits_nothing_hides_no_other_and_says_what_to_write() {
        for (entry, says) in [
            ("file:///srv", "https, http and ssh"),
            ("ftp://h", "https, http and ssh"),
            ("https://canary:canary@h", "the host alone"),
            ("canary@h/o", "the host alone"),
            ("h/canary/", "/* for the repositories below"),
            ("h/canary//r", "slash"),
            ("h//canary", "empty path segment"),
            ("h/../canary", "segments . and .."),
            ("h/%2e%2e/canary", "percent-encode"),
            ("h/**/canary", "before its end"),
            ("h/canary**", "before its end"),
            ("h:canary", "port"),
            ("*.canary", "valid host name"),
            ("h/a b", "percent-encode it"),
            ("https://", "valid host name"),
        ] {
            let list = UpstreamList::parse(&format!("{entry}, good"));
            let [invalid] = list.invalid() else { panic!("{entry}: {list:?}") };
            let text = invalid.to_string();
            assert!(text.starts_with("entry 1 ") && text.contains(says), "{entry}: {text}");
            assert!(!text.contains("canary"), "{text}");
            assert!(list.admits(&UpstreamUrl::parse("https://good/o/r").unwrap()), "{entry}");
            assert!(!admits(entry, "https://h/canary/r"), "{entry}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_and_what_is_listed_for_a_url_admits_it(
            text in "\\PC{0,40}", path in "[a-zA-Z0-9._~-]{1,6}(/[a-zA-Z0-9_~ -]{1,6}){1,3}",
        ) {
            let path = path.replace(' ', "%20");
            for scheme in ["https", "http", "ssh"] {
                let Ok(url) = UpstreamUrl::parse(&format!("{scheme}://h:77/{path}")) else { continue };
                let _ = UpstreamList::parse(&text).admits(&url);
                let host = UpstreamList::entry_for(&url);
                prop_assert!(UpstreamList::parse(&host).admits(&url));
                let whole = format!("{host}/{}", url.id().path());
                prop_assert!(UpstreamList::parse(&whole).admits(&url));
            }
        }
    }
}
