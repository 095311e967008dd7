//! What git's standard error means. Pure, over bytes, tested with captured text.
//!
//! Each phrase names the place in git's source (2.39 to 2.51) that prints it. Order matters: the first
//! phrase found wins, so the more telling ones come first.

use std::fmt;

use tarn_crds::v1alpha1::conditions::Reason;

/// Why a git command failed, in kinds that a person or the retry logic treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The upstream wants other credentials, or any.
    Unauthorized,
    /// The upstream has no such repository, or hides it.
    NotFound,
    /// An object asked for by name is gone upstream, or the upstream serves tips only.
    NotOurRef,
    /// The upstream answers with an error of its own.
    Status,
    /// The upstream asks for fewer requests.
    RateLimited,
    /// No connection, or it broke.
    Network,
    /// The upstream's certificate or host key is not trusted.
    Untrusted,
    /// It took longer than allowed.
    TimedOut,
    /// The disk is full or not writable.
    Disk,
    /// The upstream does not speak git's protocol.
    NotGit,
    /// What arrived, or what lies on the disk, is damaged.
    Corrupt,
    /// None of the above.
    Other,
}

impl FailureKind {
    /// The reason in conditions, metrics and answers.
    pub fn reason(self) -> Reason {
        match self {
            Self::Unauthorized => Reason::AuthenticationFailed,
            Self::NotFound => Reason::RepositoryNotFound,
            Self::NotOurRef | Self::Status => Reason::UpstreamError,
            Self::RateLimited => Reason::RateLimited,
            Self::Network => Reason::UpstreamUnreachable,
            Self::Untrusted => Reason::UpstreamUntrusted,
            Self::TimedOut => Reason::UpstreamTimeout,
            Self::Disk => Reason::DiskFull,
            Self::NotGit => Reason::ProtocolError,
            Self::Corrupt => Reason::VerificationFailed,
            Self::Other => Reason::GitFailed,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)
    }
}

const PHRASES: &[(&str, FailureKind)] = &[
    ("No space left on device", FailureKind::Disk), // strerror(ENOSPC)
    ("Out of diskspace", FailureKind::Disk),        // csum-file.c: flush
    ("Disk quota exceeded", FailureKind::Disk),     // strerror(EDQUOT)
    ("Read-only file system", FailureKind::Disk),   // strerror(EROFS)
    ("not our ref", FailureKind::NotOurRef),        // upload-pack.c: check_non_tip, parse_want
    ("Server does not allow request for unadvertised object", FailureKind::NotOurRef), // fetch-pack.c: report_unmatched_refs
    ("no such remote ref", FailureKind::NotOurRef), // fetch-pack.c: report_unmatched_refs
    ("couldn't find remote ref", FailureKind::NotOurRef), // remote.c: get_fetch_map
    ("Authentication failed", FailureKind::Unauthorized), // remote-curl.c: discover_refs, HTTP_NOAUTH
    ("could not read Username", FailureKind::Unauthorized), // prompt.c: git_prompt
    ("could not read Password", FailureKind::Unauthorized), // prompt.c: git_prompt
    ("Permission denied (", FailureKind::Unauthorized), // ssh: no key was accepted
    ("Host key verification failed", FailureKind::Untrusted), // ssh
    ("certificate", FailureKind::Untrusted), // libcurl: "SSL certificate problem", "server certificate verification failed"
    ("returned error: 429", FailureKind::RateLimited), // http.c: curl_errorstr
    ("returned error: 5", FailureKind::Status), // http.c: curl_errorstr
    ("returned error: 401", FailureKind::Unauthorized), // http.c: curl_errorstr
    ("returned error: 403", FailureKind::Unauthorized), // http.c: curl_errorstr
    ("returned error: 404", FailureKind::NotFound), // http.c: curl_errorstr
    ("Repository not found", FailureKind::NotFound), // what GitHub answers
    ("' not found", FailureKind::NotFound),  // remote-curl.c: discover_refs, HTTP_MISSING_TARGET
    ("does not appear to be a git repository", FailureKind::NotFound), // path.c: enter_repo's callers
    ("not valid: is this a git repository", FailureKind::NotGit), // remote-curl.c: check_smart_http
    ("invalid server response", FailureKind::NotGit), // remote-curl.c: check_smart_http
    ("bad line length character", FailureKind::NotGit), // pkt-line.c: packet_read_with_status
    ("Operation too slow", FailureKind::TimedOut), // libcurl: CURLE_OPERATION_TIMEDOUT by low speed
    ("timed out", FailureKind::TimedOut),    // libcurl, ssh
    ("Could not resolve host", FailureKind::Network), // libcurl
    ("Failed to connect", FailureKind::Network), // libcurl
    ("Connection refused", FailureKind::Network), // strerror(ECONNREFUSED)
    ("Connection reset", FailureKind::Network), // strerror(ECONNRESET)
    ("early EOF", FailureKind::Network),     // index-pack.c: fill
    ("unexpected disconnect", FailureKind::Network), // pkt-line.c: "while reading sideband packet"
    ("the remote end hung up", FailureKind::Network), // pkt-line.c
    ("RPC failed", FailureKind::Network),    // remote-curl.c: post_rpc
    ("unable to access", FailureKind::Network), // remote-curl.c: discover_refs
    ("is corrupt", FailureKind::Corrupt),    // object-file.c, packfile.c
    ("did not send all necessary objects", FailureKind::Corrupt), // builtin/fetch.c: connectivity check
    ("bad object", FailureKind::Corrupt),    // revision.c
];

/// The kind of failure that `stderr` tells of.
pub fn classify(stderr: &str) -> FailureKind {
    PHRASES.iter().find(|(phrase, _)| stderr.contains(phrase)).map_or(FailureKind::Other, |(_, kind)| *kind)
}

/// The line of `stderr` that tells most: the first `fatal:`, else the first `error:`, else the last line.
pub fn telling_line(stderr: &str) -> &str {
    let lines = || stderr.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    let starting = |prefix: &'static str| lines().find(|line| line.starts_with(prefix));
    starting("fatal: ")
        .or_else(|| starting("error: "))
        .or_else(|| lines().next_back())
        .unwrap_or("git said nothing")
}

/// How much of a message is shown: a sentence or two.
const MAX_MESSAGE: usize = 400;

/// Text from outside as one plain line: no control characters, no end of line, not too long, no credentials.
pub fn plain(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let mut line = redact(&words.collect::<Vec<_>>().join(" "));
    if line.len() > MAX_MESSAGE {
        line.truncate(line.floor_char_boundary(MAX_MESSAGE));
        line.push('…');
    }
    line
}

/// Blanks out the user information of every URL in `text`: nothing that looks like a credential passes.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let authority_end = after.find(['/', '?', '#', ' ', '\n', '\'', '"', '>']).unwrap_or(after.len());
        let (authority, tail) = after.split_at(authority_end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str("***@");
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_messages_are_told_apart() {
        let cases = [
            (
                "fatal: unable to access 'http://h/x/': The requested URL returned error: 403",
                FailureKind::Unauthorized,
            ),
            ("fatal: unable to access 'http://h/x/': Could not resolve host: h", FailureKind::Network),
            ("fatal: repository 'http://127.0.0.1:1/x/' not found", FailureKind::NotFound),
            (
                "fatal: could not read Username for 'http://h': terminal prompts disabled",
                FailureKind::Unauthorized,
            ),
            ("fatal: http://h/x/info/refs not valid: is this a git repository?", FailureKind::NotGit),
            ("fatal: remote error: upload-pack: not our ref 1234", FailureKind::NotOurRef),
            ("error: RPC failed; curl 18 transfer closed\nfatal: early EOF", FailureKind::Network),
            (
                "fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output",
                FailureKind::Disk,
            ),
            ("fatal: sha1 file 'x/tmp_pack_1' write error. Out of diskspace", FailureKind::Disk),
            ("what?", FailureKind::Other),
        ];
        for (text, kind) in cases {
            assert_eq!(classify(text), kind, "{text}");
        }
    }

    #[test]
    fn the_first_error_is_the_telling_line() {
        assert_eq!(telling_line("remote: Counting\r\n\nerror: a\nfatal: broken\nmore\n"), "fatal: broken");
        assert_eq!(telling_line("hint: a\nerror: odd\nhint: b"), "error: odd");
        assert_eq!(telling_line("  \n"), "git said nothing");
    }

    #[test]
    fn text_from_outside_becomes_one_plain_line() {
        assert_eq!(plain("\x1b[2J\x07go\r\nlevel=INFO https://u:p@h/"), "[2J go level=INFO https://***@h/");
        assert!(plain(&"é".repeat(1000)).len() <= MAX_MESSAGE + '…'.len_utf8());
    }

    #[test]
    fn credentials_in_urls_are_blanked() {
        let text = "fatal: unable to access 'https://me:s3cr3t@h/x/': see ssh://git@h/y and http://h/a@b";
        let clean = redact(text);
        assert!(!clean.contains("s3cr3t"), "{clean}");
        assert!(clean.contains("https://***@h/x/") && clean.contains("http://h/a@b"), "{clean}");
    }
}
