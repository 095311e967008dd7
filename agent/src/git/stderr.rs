//! What git's standard error means. Pure, over bytes, tested with captured text.
//!
//! Each phrase names the place in git's source (2.39 to 2.55) that prints it.
//!
//! *Invariant:* words from the other side never decide about this side. What an upstream or a client said stands in
//! lines that begin with [`OTHERS`], or is quoted in a line of git's own, with line breaks and all: neither those lines
//! nor what follows a quotation counts when [`local`] looks for damage or for a full disk here.

use std::{fmt, os::unix::process::ExitStatusExt, process::ExitStatus};

use tarn_crds::v1alpha1::conditions::Reason;

/// Why a git command failed, in kinds that a person or the retry logic treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The upstream refuses: it wants other credentials, or any.
    Unauthorized,
    /// The credentials are missing, or of no use: the upstream has not been asked.
    Credentials,
    /// The upstream refuses: it has no such repository, or hides it.
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
    /// The upstream, or its answer, leads to a place that the agent may not ask.
    NotAllowed,
    /// It took longer than allowed.
    TimedOut,
    /// The upstream does not speak git's protocol.
    NotGit,
    /// What the upstream sent is damaged or incomplete.
    BadPack,
    /// The mirror would take more than its declaration allows; git itself never says so.
    TooLarge,
    /// The disk is full or not writable.
    Disk,
    /// This machine lacks memory, threads, processes or descriptors, reads its disk with errors, or a person or the
    /// kernel killed the child: nothing that says anything about the repository.
    Machine,
    /// The repository on this disk lacks an object, or a file of it is damaged.
    Damaged,
    /// None of the above.
    Other,
}

/// Where the cause of a failure lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The local repository: git met a missing or damaged object or file in it. Descriptors that ran out can look like
    /// a missing object, so a second attempt decides.
    Repository,
    /// This machine; the repository and the upstream may be well.
    Machine,
    /// The upstream, or the way there.
    Upstream,
    /// Git's words do not tell.
    Unknown,
}

impl FailureKind {
    /// The reason in conditions, metrics and answers.
    pub fn reason(self) -> Reason {
        match self {
            Self::Unauthorized | Self::Credentials => Reason::AuthenticationFailed,
            Self::NotFound => Reason::RepositoryNotFound,
            Self::NotOurRef | Self::Status => Reason::UpstreamError,
            Self::RateLimited => Reason::RateLimited,
            Self::Network => Reason::UpstreamUnreachable,
            Self::Untrusted => Reason::UpstreamUntrusted,
            Self::NotAllowed => Reason::UpstreamNotAllowed,
            Self::TimedOut => Reason::UpstreamTimeout,
            Self::NotGit => Reason::ProtocolError,
            Self::BadPack | Self::Damaged => Reason::VerificationFailed,
            Self::Disk => Reason::DiskFull,
            Self::TooLarge => Reason::MirrorTooLarge,
            Self::Machine | Self::Other => Reason::GitFailed,
        }
    }

    /// Whether the upstream has said no, in so many words: it works, and does not want this agent to have the repository.
    /// Everything else that fails says nothing about what the agent may have.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Unauthorized | Self::NotFound)
    }

    /// Where the cause lies. For a command that talks to nobody, [`super::GitError::culprit`] knows more.
    pub fn culprit(self) -> Culprit {
        match self {
            Self::Unauthorized | Self::Credentials | Self::NotFound | Self::NotOurRef | Self::Status => {
                Culprit::Upstream
            }
            Self::RateLimited | Self::Network | Self::Untrusted | Self::NotAllowed | Self::TimedOut => {
                Culprit::Upstream
            }
            Self::NotGit | Self::BadPack | Self::TooLarge => Culprit::Upstream,
            Self::Disk | Self::Machine => Culprit::Machine,
            Self::Damaged => Culprit::Repository,
            Self::Other => Culprit::Unknown,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)
    }
}

/// How lines begin that hold the other side's words: sideband.c (demultiplex_sideband) prefixes each line of band 2, and
/// http.c and remote-curl.c what an HTTP server writes. The second is this agent's own mark for what ssh and a file
/// upstream's `upload-pack` print (see `git::command`).
pub(super) const OTHERS: [&str; 2] = ["remote:", "other side:"];

/// Where a line of git's own quotes the other side, or names of the repository's content. What is quoted may hold line
/// breaks, so the rest of the text is git's own no more.
const QUOTES: &[&str] = &[
    "remote error: ",   // pkt-line.c: packet_read_with_status, an ERR packet; sideband.c: band 3
    "received '",       // fetch-pack.c: process_section_header
    "got '",            // remote-curl.c: check_smart_http; connect.c, fetch-pack.c, upload-pack.c
    ", got ",           // fetch-pack.c: receive_shallow_info
    "not '",            // upload-pack.c: parse_want, "expected to get object ID, not '%s'"
    "line: ",           // upload-pack.c, fetch-pack.c: "unexpected line: '%s'", "invalid shallow line: %s"
    "line '",           // connect.c, fetch-pack.c
    "after '",          // fetch-pack.c: do_fetch_pack_v2
    "unexpected '",     // connect.c: process_ref_v2's callers
    "wanted-ref",       // fetch-pack.c: receive_wanted_refs
    "ls-refs response", // connect.c: get_remote_refs
    "server response",  // remote-curl.c: check_smart_http
    "capability '",     // serve.c
    "object format '",  // connect.c, serve.c
    "object-format: ",  // remote-curl.c: get_remote_refs
    "command '",        // serve.c
    "deepen",           // upload-pack.c: parse_deepen and others
    "filter '",         // upload-pack.c
    "unknown ref ",     // upload-pack.c: parse_want_ref
    "said: '",          // transport-helper.c
    "helper said '",    // transport-helper.c
    "redirection",      // http.c: update_url_from_redirect
    "entry '",          // list-objects.c: process_tree_contents, a name in a tree
];

/// What sideband.c puts behind each line of band 2, where it writes to no terminal (DUMB_SUFFIX). A line of the other
/// side without it is one of band 3, whose further lines it does not mark at all.
const BAND_TWO: &str = "        ";

/// How a phrase stands in a line of git's own, after `fatal: ` or `error: `.
#[derive(Clone, Copy)]
enum Shape {
    /// The line begins so.
    Starts(&'static str),
    /// The line ends so: the words of strerror(3).
    Ends(&'static str),
    /// The line begins so, and the name of an object follows.
    Object(&'static str),
}

use Shape::{Ends, Object, Starts};

/// Trouble of this machine. It comes first: what cannot be read for want of memory is called missing or corrupt later.
const MACHINE: &[(Shape, FailureKind)] = &[
    (Ends(": No space left on device"), FailureKind::Disk), // die_errno, error_errno
    (Ends(": Disk quota exceeded"), FailureKind::Disk),
    (Ends(": Read-only file system"), FailureKind::Disk),
    (Ends("write error. Out of diskspace"), FailureKind::Disk), // csum-file.c: flush
    (Ends(": Input/output error"), FailureKind::Machine),
    (Ends(": Cannot allocate memory"), FailureKind::Machine),
    (Ends(": Too many open files"), FailureKind::Machine),
    (Ends(": Too many open files in system"), FailureKind::Machine),
    (Ends(": Resource temporarily unavailable"), FailureKind::Machine), // also "unable to create thread: …"
    (Ends(": Stale file handle"), FailureKind::Machine),
    (Ends(": Permission denied"), FailureKind::Machine),
    (Ends("inflate: out of memory"), FailureKind::Machine), // git-zlib.c: git_inflate
    (Ends("deflate: out of memory"), FailureKind::Machine), // git-zlib.c: git_deflate
    (Starts("inflateInit: out of memory"), FailureKind::Machine), // git-zlib.c: git_inflate_init
    (Starts("Out of memory, "), FailureKind::Machine),      // wrapper.c: xmalloc, xrealloc, xcalloc, xstrdup
    (Starts("mmap failed: "), FailureKind::Machine),        // wrapper.c: xmmap; with advice behind it
    (Starts("unable to create thread: "), FailureKind::Machine), // pack-objects.c, index-pack.c
    (Starts("cannot create async thread: "), FailureKind::Machine), // run-command.c: start_async
    (Starts("cannot fork() for "), FailureKind::Machine),   // run-command.c: start_command
];

/// What arrived cannot be used. It comes before damage: `inflate: …` is printed for what arrives as well.
const ARRIVED: &[Shape] = &[
    Starts("pack is corrupted ("),     // index-pack.c: parse_pack_objects
    Starts("pack signature mismatch"), // index-pack.c: parse_pack_header
    Starts("pack version "),           // index-pack.c: parse_pack_header
    Starts("pack has "), // index-pack.c: bad_object, "pack has bad object at offset"; conclude_pack
    Starts("unresolved deltas left after unpacking"), // unpack-objects.c: unpack_all
    Starts("confusion beyond insanity"), // index-pack.c: conclude_pack
    Starts("Unexpected tail checksum for "), // index-pack.c: conclude_pack
    Ends("did not send all necessary objects"), // builtin/fetch.c: store_updated_refs
    Starts("remote did not send all necessary objects"), // builtin/clone.c
];

/// A missing or damaged object or file of the repository here.
const DAMAGE: &[Shape] = &[
    Object("bad object "),      // revision.c: get_reference, handle_commit
    Object("bad tree object "), // list-objects.c: process_tree_contents
    Starts("bad tree object"),  // list-objects.c: process_tree
    Starts("bad blob object"),  // list-objects.c: process_blob
    Starts("unable to load root tree for commit "), // list-objects.c: do_traverse
    Starts("missing commit object '"), // builtin/rev-list.c: finish_object
    Starts("missing tree object '"),
    Starts("missing blob object '"),
    Starts("missing tag object '"),
    Starts("unexpected missing "),     // builtin/rev-list.c: finish_object__ma
    Object("Could not read "),         // commit.c: repo_parse_commit_internal; tree.c: parse_tree
    Object("could not parse commit "), // upload-pack.c, revision.c
    Starts("Failed to traverse parents of commit "), // revision.c: limit_list, get_revision_1
    Object("unable to parse commit "), // revision.c: handle_commit
    Object("unable to parse object: "), // object.c: parse_object_or_die
    Object("unable to read "),         // pack-objects.c: get_delta, write_no_reuse_object
    Object("unable to get size of "),  // pack-objects.c: check_object; pack-bitmap.c
    Object("unable to get type of object "), // pack-objects.c
    Starts("unable to read tree ("),   // tree-walk's callers
    Starts("unable to get sha1 of object "), // packfile.c: for_each_object_in_pack
    Starts("cannot read commit object "), // commit.c
    Ends(" cannot be read"),           // pack-objects.c: try_delta, "object %s cannot be read"
    Ends("not in the object database"), // commit.c: repo_parse_commit_internal, of the commit-graph
    Object("unable to pack objects reachable from tag "), // pack-objects.c: add_ref_tag
    Starts("hash mismatch "),          // object.c: parse_object_with_flags; object-file.c
    Starts("loose object "),           // odb/source-loose.c: "loose object %s (stored in %s) is corrupt"
    Starts("packed object "),          // odb.c: "packed object %s (stored in %s) is corrupt"
    Starts("packed "),                 // pack-check.c: verify_packfile, "packed %s from %s is corrupt"
    Starts("cannot unpack "),          // pack-check.c: verify_packfile
    Starts("index CRC mismatch for object "), // pack-check.c: verify_packfile
    Ends("pack checksum mismatch"),    // pack-check.c: verify_packfile
    Ends("pack checksum does not match its index"), // pack-check.c: verify_packfile
    Starts("Packfile index for "),     // pack-check.c: verify_pack_index
    Starts("local object "),           // index-pack.c: fix_unresolved_deltas, "local object %s is corrupt"
    Starts("object file "),            // object-file.c: "object file %s is empty"
    Starts("corrupt loose object '"),  // object-file.c: unpack_loose_rest
    Starts("garbage at end of loose object '"),
    Starts("unable to unpack "), // object-file.c: "unable to unpack %s header", "… contents of %s"
    Starts("inflate: "),         // git-zlib.c: git_inflate
    Starts("bad packed object CRC for "), // packfile.c: unpack_entry; pack-objects.c: write_reuse_object
    Starts("corrupt packed object for "), // pack-objects.c: write_reuse_object
    Starts("bad object header"), // packfile.c: unpack_object_header_buffer
    Starts("unknown object type "), // packfile.c: packed_object_info, unpack_entry
    Starts("failed to read delta base object "), // packfile.c: unpack_entry
    Starts("failed to validate delta base reference "), // packfile.c: unpack_entry
    Starts("failed to unpack compressed delta "), // packfile.c: unpack_entry
    Starts("failed to apply delta"), // packfile.c: unpack_entry
    Starts("delta data unpack-initial failed"), // packfile.c: get_size_from_delta
    Starts("delta base offset out of bound for "), // pack-objects.c: get_delta_base
    Starts("could not find object at offset "), // packfile.c: packed_object_info
    Starts("offset beyond end of pack"), // packfile.c: use_pack, check_pack_index_ptr
    Starts("offset before start of pack"), // packfile.c: check_pack_index_ptr
    Starts("offset before end of packfile"), // packfile.c: use_pack
    Starts("index file "),       // packfile.c: load_idx, "index file %s is too small"
    Starts("non-monotonic index "), // packfile.c: load_idx
    Starts("wrong index v"),     // packfile.c: load_idx
    Starts("packfile "),         // packfile.c: open_packed_git_1; see [`NO_DAMAGE`]
    Ends("is not a GIT packfile"), // packfile.c: open_packed_git_1
    Ends("is far too short to be a packfile"), // packfile.c: open_packed_git_1
    Starts("corrupt ewah bitmap"), // ewah/ewah_io.c; pack-bitmap.c
    Starts("corrupt bitmap lookup table"), // pack-bitmap.c
    Starts("corrupted bitmap "), // pack-bitmap.c: load_bitmap_header, load_bitmap_entries_v1
    Starts("failed to load bitmap index"), // pack-bitmap.c: read_bitmap
    Starts("invalid XOR offset in bitmap"), // pack-bitmap.c: load_bitmap_entries_v1
    Starts("duplicate entry in bitmap index"), // pack-bitmap.c: store_bitmap
    Starts("bitmap file '"),     // pack-bitmap.c: verify_bitmap_file
    Starts("bad offset for revindex"), // pack-revindex.c: offset_to_pack_pos
    Starts("reverse-index file "), // pack-revindex.c: load_revindex_from_disk
    Starts("multi-pack-index "), // midx.c
    Starts("bad pack-int-id"),   // midx.c
    Starts("commit-graph "),     // commit-graph.c
    Starts("invalid commit position."), // commit-graph.c
];

/// These begin as damage does, and are none: a pack that cannot be opened has been repacked away, or descriptors have
/// run out (packfile.c: open_packed_git_1, use_pack).
const NO_DAMAGE: &[Shape] = &[
    Ends("cannot be accessed"),
    Ends("index unavailable"),
    Starts("index file corrupt"), // read-cache.c, of a worktree
    Starts("index file open failed"),
    Starts("index file smaller"),
];

/// What tells of the upstream or of the way there, wherever it stands. Order matters: the first one that is found wins.
const UPSTREAM: &[(&str, FailureKind)] = &[
    ("returned error: 429", FailureKind::RateLimited), // http.c: curl_errorstr
    ("rate limited by '", FailureKind::RateLimited),   // remote-curl.c: discover_refs, HTTP_RATE_LIMITED
    ("request was rate-limited", FailureKind::RateLimited), // GitHub, with 429 or 403
    ("rate limit", FailureKind::RateLimited), // GitHub, Bitbucket, Gitea: "exceeded a secondary rate limit"
    ("Rate limit", FailureKind::RateLimited), // Bitbucket Cloud: "Rate limit for this resource has been exceeded"
    ("rate limiting thresholds", FailureKind::RateLimited), // Azure DevOps, with 503
    ("Too Many Requests", FailureKind::RateLimited), // AWS CodeCommit, GitLab
    ("Too many requests", FailureKind::RateLimited),
    ("Retry later", FailureKind::RateLimited), // GitLab
    ("not our ref", FailureKind::NotOurRef),   // upload-pack.c: check_non_tip, parse_want
    ("Server does not allow request for unadvertised object", FailureKind::NotOurRef), // fetch-pack.c: report_unmatched_refs
    ("no such remote ref", FailureKind::NotOurRef), // fetch-pack.c: report_unmatched_refs
    ("couldn't find remote ref", FailureKind::NotOurRef), // remote.c: get_fetch_map
    ("TF401035", FailureKind::NotOurRef),           // Azure DevOps: "The object '…' does not exist"
    ("Authentication failed", FailureKind::Unauthorized), // remote-curl.c: discover_refs, HTTP_NOAUTH
    ("could not read Username", FailureKind::Unauthorized), // prompt.c: git_prompt
    ("could not read Password", FailureKind::Unauthorized), // prompt.c: git_prompt
    ("No user exists for uid", FailureKind::Machine), // ssh: the user it runs as is not in the passwd file
    ("Permission denied (", FailureKind::Unauthorized), // ssh: no key was accepted
    ("error in libcrypto", FailureKind::Credentials), // ssh: the key cannot be read
    ("invalid format", FailureKind::Credentials),   // ssh: "Load key …: invalid format"
    ("Host key verification failed", FailureKind::Untrusted), // ssh
    ("certificate", FailureKind::Untrusted), // libcurl: "SSL certificate problem", "server certificate verification failed"
    ("returned error: 401", FailureKind::Unauthorized), // http.c: curl_errorstr
    ("returned error: 403", FailureKind::Unauthorized), // http.c: curl_errorstr
    ("returned error: 451", FailureKind::Unauthorized), // http.c: curl_errorstr
    ("returned error: 404", FailureKind::NotFound), // http.c: curl_errorstr
    ("returned error: 410", FailureKind::NotFound), // http.c: curl_errorstr
    ("returned error: 5", FailureKind::Status), // http.c: curl_errorstr
    ("DENIED by fallthru", FailureKind::Unauthorized), // gitolite over ssh
    ("is not authorized to read", FailureKind::Unauthorized), // Gitea, Forgejo over ssh
    ("Cannot find repository", FailureKind::NotFound), // Gitea, Forgejo over ssh
    ("Repository not found", FailureKind::NotFound), // GitHub, Bitbucket, JGit over ssh
    ("TF401019", FailureKind::NotFound), // Azure DevOps: "The Git repository with name or identifier … does not exist"
    ("' not found", FailureKind::NotFound), // remote-curl.c: discover_refs, HTTP_MISSING_TARGET
    ("could not be found or you don't have permission", FailureKind::NotFound), // GitLab over ssh
    ("does not appear to be a git repository", FailureKind::NotFound), // path.c: enter_repo's callers
    ("not valid: is this a git repository", FailureKind::NotGit), // remote-curl.c: check_smart_http
    ("invalid server response", FailureKind::NotGit), // remote-curl.c: check_smart_http
    ("bad line length character", FailureKind::NotGit), // pkt-line.c: packet_read_with_status
    ("Operation too slow", FailureKind::TimedOut), // libcurl: CURLE_OPERATION_TIMEDOUT by low speed
    ("timed out", FailureKind::TimedOut), // libcurl, ssh
    ("Could not resolve host", FailureKind::Network), // libcurl, ssh
    ("Failed to connect", FailureKind::Network), // libcurl
    ("Connection refused", FailureKind::Network), // strerror(ECONNREFUSED)
    ("Connection reset", FailureKind::Network), // strerror(ECONNRESET)
    ("No route to host", FailureKind::Network), // strerror(EHOSTUNREACH)
    ("Network is unreachable", FailureKind::Network), // strerror(ENETUNREACH)
    ("kex_exchange_identification", FailureKind::Network), // ssh: the server hangs up before it says who it is
    ("Connection closed by", FailureKind::Network),        // ssh
    ("Temporary failure in name resolution", FailureKind::Network), // ssh: gai_strerror(EAI_AGAIN)
    ("early EOF", FailureKind::Network),                   // index-pack.c: fill
    ("unexpected disconnect", FailureKind::Network),       // pkt-line.c: "while reading sideband packet"
    ("the remote end hung up", FailureKind::Network),      // pkt-line.c
    ("RPC failed", FailureKind::Network),                  // remote-curl.c: post_rpc
    ("unable to access", FailureKind::Network),            // remote-curl.c: discover_refs
    ("expected 'acknowledgments'", FailureKind::Network),  // fetch-pack.c: a flush where the upstream died
    ("expected 'packfile'", FailureKind::Network),         // fetch-pack.c: do_fetch_pack_v2
];

/// What the commands that talk to an upstream are called; all others read the repository here alone.
const TALKING: [&str; 2] = ["fetch", "ls-remote"];

/// Whether `git VERB` talks to an upstream.
pub(super) fn talks(verb: &str) -> bool {
    TALKING.contains(&verb)
}

/// The kind of failure that `stderr` of `git VERB` tells of.
pub fn classify(verb: &str, stderr: &str) -> FailureKind {
    if let Some((kind, _)) = local(verb, stderr) {
        return kind;
    }
    // JGit's words for a want that is no tip any more: "want 1234… not valid".
    if stderr.lines().any(|line| line.contains("want ") && line.trim_end().ends_with("not valid")) {
        return FailureKind::NotOurRef;
    }
    UPSTREAM.iter().find(|(phrase, _)| stderr.contains(phrase)).map_or(FailureKind::Other, |(_, kind)| *kind)
}

/// The kind of failure of a child that ended so.
pub(super) fn classify_ended(verb: &str, status: ExitStatus, stderr: &str) -> FailureKind {
    // 128 + n: a shell or run-command.c (wait_or_whine) passes a signal on; 128 and 129 are git's own, 141 is SIGPIPE.
    let passed_on = matches!(status.code(), Some(130..=140 | 142..=159));
    if status.signal().is_some() || passed_on { FailureKind::Machine } else { classify(verb, stderr) }
}

/// What git's own words in `stderr` of `git VERB` say about this side, and the line that says it: trouble of this
/// machine, damage of the repository, or a pack that arrived damaged. Also of commands that succeed: git goes on
/// without a bitmap that is damaged.
pub fn local<'a>(verb: &str, stderr: &'a str) -> Option<(FailureKind, &'a str)> {
    let lines: Vec<&str> = own_lines(stderr).collect();
    let find =
        |shapes: &[Shape]| lines.iter().copied().find(|line| shapes.iter().any(|shape| shape.fits(line)));
    let signal = |line: &&&str| line.contains(" died of signal "); // run-command.c: wait_or_whine
    if let Some(line) = lines.iter().find(signal) {
        return Some((FailureKind::Machine, line));
    }
    for (shape, kind) in MACHINE {
        if let Some(line) = find(&[*shape]) {
            return Some((*kind, line));
        }
    }
    if let Some(line) = find(ARRIVED) {
        let kind = if talks(verb) { FailureKind::BadPack } else { FailureKind::Damaged };
        return Some((kind, line));
    }
    let damaged = |line: &str| {
        DAMAGE.iter().any(|shape| shape.fits(line)) && !NO_DAMAGE.iter().any(|shape| shape.fits(line))
    };
    lines.iter().copied().find(|line| damaged(line)).map(|line| (FailureKind::Damaged, line))
}

/// The lines that are surely git's own, up to the first one that lets somebody else's lines in.
fn own_lines(stderr: &str) -> impl Iterator<Item = &str> {
    let others = |line: &str| OTHERS.iter().any(|prefix| line.starts_with(prefix));
    let opens = move |line: &str| {
        let band_three = line
            .strip_prefix(OTHERS[0])
            .is_some_and(|said| !said.trim().is_empty() && !said.ends_with(BAND_TWO));
        band_three || !others(line) && QUOTES.iter().any(|quote| line.contains(quote))
    };
    let own = stderr.split(['\n', '\r']).take_while(move |line| !opens(line));
    own.filter(move |line| !others(line)).map(str::trim).filter(|line| !line.is_empty())
}

fn lines(stderr: &str) -> impl DoubleEndedIterator<Item = &str> {
    stderr.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty())
}

impl Shape {
    fn fits(self, line: &str) -> bool {
        let message = ["fatal: ", "error: ", "warning: "].iter().find_map(|prefix| line.strip_prefix(prefix));
        let Some(message) = message else { return false };
        match self {
            Starts(prefix) => message.starts_with(prefix),
            Ends(suffix) => message.ends_with(suffix),
            Object(prefix) => message.strip_prefix(prefix).is_some_and(|rest| {
                let hex = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
                matches!(hex, 40 | 64)
            }),
        }
    }
}

/// The line of `stderr` that tells most: what decides about this side; else the last line of ssh or of a file
/// upstream, where git itself says no more than that it could not read; else the first `fatal:`, the first `error:`,
/// the last line.
pub fn telling_line<'a>(verb: &str, stderr: &'a str) -> &'a str {
    if let Some((_, line)) = local(verb, stderr) {
        return line;
    }
    let starting = |prefix: &'static str| lines(stderr).find(|line| line.starts_with(prefix));
    let other = lines(stderr).rev().find_map(|line| line.strip_prefix(OTHERS[1])).map(str::trim);
    match starting("fatal: ") {
        Some(line) if !line.starts_with("fatal: Could not read from remote") => line,
        hung_up => other
            .or(hung_up)
            .or_else(|| starting("error: "))
            .or_else(|| lines(stderr).next_back())
            .unwrap_or("git said nothing"),
    }
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
mod tests;
