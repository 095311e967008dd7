//! Captured texts, and what they are taken for.

use super::*;

fn kind(verb: &str, cases: &[(&str, FailureKind)]) {
    for (text, expected) in cases {
        assert_eq!(classify(verb, text), *expected, "{text}");
    }
}

#[test]
fn captured_messages_are_told_apart() {
    use FailureKind::{BadPack, Disk, Network, NotFound, NotGit, NotOurRef, Other, Unauthorized};
    kind(
        "fetch",
        &[
            ("fatal: unable to access 'http://h/x/': The requested URL returned error: 403", Unauthorized),
            ("fatal: unable to access 'http://h/x/': Could not resolve host: h", Network),
            ("fatal: repository 'http://127.0.0.1:1/x/' not found", NotFound),
            ("fatal: could not read Username for 'http://h': terminal prompts disabled", Unauthorized),
            ("fatal: http://h/x/info/refs not valid: is this a git repository?", NotGit),
            ("fatal: remote error: upload-pack: not our ref 1234", NotOurRef),
            ("error: RPC failed; curl 18 transfer closed\nfatal: early EOF", Network),
            (
                "fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output",
                Disk,
            ),
            ("fatal: sha1 file 'x/tmp_pack_1' write error. Out of diskspace", Disk),
            (
                "error: inflate: data stream error (incorrect data check)\n\
             fatal: pack has bad object at offset 83: inflate returned -3\n\
             fatal: fetch-pack: invalid index-pack output",
                BadPack,
            ),
            (
                "fatal: bad object 0123456789012345678901234567890123456789\n\
             error: http://h/x did not send all necessary objects",
                BadPack,
            ),
            ("what?", Other),
        ],
    );
}

#[test]
fn servers_say_the_same_in_words_of_their_own() {
    use FailureKind::{NotFound, NotOurRef, RateLimited, Status, Unauthorized};
    let oid = "9784ba017f833fc41c1ad4344a75105ee69d639e";
    let lost = [
        // git, and what JGit, Gerrit and Bitbucket Server (JGit or git) say of a branch that has moved.
        format!("fatal: remote error: upload-pack: not our ref {oid}"),
        format!("fatal: git upload-pack: not our ref {oid}"),
        format!("fatal: remote error: want {oid} not valid"),
        format!("error: Server does not allow request for unadvertised object {oid}"),
        format!(
            "remote: TF401035: The object '{oid}' does not exist.        \nfatal: the remote end hung up"
        ),
    ];
    kind("fetch", &lost.each_ref().map(|text| (text.as_str(), NotOurRef)));
    kind(
        "fetch",
        &[
            (
                // GitHub
                "remote: This request was rate-limited due to too many requests. Reduce the frequency of your requests \
             or try again later.\nfatal: unable to access 'https://h/o/r/': The requested URL returned error: 429",
                RateLimited,
            ),
            (
                // GitHub, its secondary limit
                "remote: You have exceeded a secondary rate limit.\n\
             fatal: unable to access 'https://h/o/r/': The requested URL returned error: 403",
                RateLimited,
            ),
            (
                // Bitbucket Cloud
                "remote: Rate limit for this resource has been exceeded\n\
             fatal: unable to access 'https://h/o/r/': The requested URL returned error: 429",
                RateLimited,
            ),
            (
                // Azure DevOps
                "remote: Your usage has exceeded our rate limiting thresholds.\n\
             error: RPC failed; HTTP 503 curl 22 The requested URL returned error: 503",
                RateLimited,
            ),
            // AWS CodeCommit; git 2.54 and newer say it so.
            (
                "fatal: unable to access 'https://h/v1/repos/x/': The requested URL returned error: 429",
                RateLimited,
            ),
            ("fatal: rate limited by 'https://h/o/r/', please try again in 60 seconds", RateLimited),
            ("remote: Retry later\nfatal: unable to access 'https://h/x/': HTTP 429", RateLimited), // GitLab
            (
                // Azure DevOps
                "remote: TF401019: The Git repository with name or identifier x does not exist or you do not have \
             permissions for the operation you are attempting.\nfatal: repository 'https://h/o/p/_git/x/' not found",
                NotFound,
            ),
            (
                "other side: ERROR: Repository not found.\nfatal: Could not read from remote repository.",
                NotFound,
            ),
            (
                // GitLab
                "other side: remote: ERROR: The project you were looking for could not be found or you don't have \
             permission to view it.\nfatal: Could not read from remote repository.",
                NotFound,
            ),
            (
                "remote: HTTP Basic: Access denied\nfatal: Authentication failed for 'https://h/x/'",
                Unauthorized,
            ),
            ("error: RPC failed; HTTP 502 curl 22 The requested URL returned error: 502", Status),
        ],
    );
}

#[test]
fn damage_here_is_told_from_trouble_of_this_machine() {
    use FailureKind::{Damaged, Disk, Machine, Other};
    let oid = "0123456789012345678901234567890123456789";
    let damage = [
        format!("fatal: bad object {oid}"),
        format!("error: Could not read {oid}\nfatal: Failed to traverse parents of commit {oid}"),
        format!("fatal: missing blob object '{oid}'"),
        format!("fatal: unable to read {oid}"),
        format!("fatal: packed object {oid} (stored in objects/pack/pack-1.pack) is corrupt"),
        format!("error: inflate: data stream error (incorrect header check)\nfatal: unable to read {oid}"),
        format!("error: bad packed object CRC for {oid}"),
        format!("error: failed to read delta base object {oid} at offset 12 from pack-1.pack"),
        "fatal: offset beyond end of packfile (truncated pack?)".into(),
        "error: packfile ./pack-1.pack does not match index".into(),
        "error: file ./pack-1.pack is not a GIT packfile".into(),
        "error: wrong index v2 file size in pack-1.idx".into(),
        "error: corrupt ewah bitmap: eof before length".into(),
        "error: corrupted bitmap index file (wrong header)".into(),
        "fatal: pack has bad object at offset 12: inflate returned -3".into(),
        "error: packfile pack-1.pack claims to have 5 objects while index indicates 4 objects".into(),
    ];
    kind("pack-objects", &damage.each_ref().map(|text| (text.as_str(), Damaged)));
    let machine = [
        format!("error: packfile x.pack cannot be mapped: Cannot allocate memory\nfatal: bad object {oid}"),
        format!("error: unable to open x: Too many open files\nfatal: bad object {oid}"),
        format!("error: error reading from x.pack: Input/output error\nfatal: unable to read {oid}"),
        "fatal: unable to create thread: Resource temporarily unavailable".into(),
        "fatal: Out of memory, malloc failed (tried to allocate 18 bytes)".into(),
        "fatal: inflate: out of memory".into(),
        "fatal: mmap failed: Cannot allocate memory".into(),
        "error: git-pack-objects died of signal 9\nfatal: bad object 1".into(),
    ];
    kind("upload-pack", &machine.each_ref().map(|text| (text.as_str(), Machine)));
    kind(
        "repack",
        &[
            ("fatal: sha1 file 'x' write error: No space left on device", Disk),
            ("fatal: unable to create 'x': Read-only file system", Disk),
            // Repacked away under a reader, or no descriptor left.
            ("error: packfile objects/pack/pack-1.pack index unavailable", Other),
            ("fatal: packfile objects/pack/pack-1.pack cannot be accessed", Other),
            ("fatal: Could not read from remote repository.", Other),
        ],
    );
}

#[test]
fn a_child_that_was_killed_says_nothing_about_the_repository() {
    let text = "fatal: bad object 0123456789012345678901234567890123456789";
    let ended = |raw| classify_ended("rev-list", ExitStatus::from_raw(raw), text);
    assert_eq!(ended(9), FailureKind::Machine);
    assert_eq!(ended(137 << 8), FailureKind::Machine);
    assert_eq!(ended(128 << 8), FailureKind::Damaged);
    assert_eq!(FailureKind::Machine.culprit(), Culprit::Machine);
}

#[test]
fn the_other_side_decides_nothing_about_this_one() {
    let oid = "0123456789012345678901234567890123456789";
    for forged in
        ["fatal: write error: No space left on device".to_owned(), format!("fatal: bad object {oid}")]
    {
        for said in [
            format!("remote: {forged}        \nfatal: the remote end hung up unexpectedly"),
            format!("remote: oh\n{forged}\nfatal: error in sideband demultiplexer"), // band 3 of two lines
            format!("fatal: remote error: oh\n{forged}"), // an ERR packet of two lines
            format!("other side: {forged}\nfatal: Could not read from remote repository."),
            format!("fatal: expected 'packfile', received 'x\n{forged}\n'"),
            format!("fatal: invalid server response; got 'x\n{forged}\n'"),
        ] {
            assert_eq!(local("fetch", &said), None, "{said}");
            assert!(!matches!(classify("fetch", &said), FailureKind::Disk | FailureKind::Damaged), "{said}");
        }
        let honest = format!("remote: Counting objects: 3, done.        \n{forged}");
        assert!(local("fetch", &honest).is_some());
    }
    let client = format!(
        "fatal: git upload-pack: protocol error, expected to get object ID, not 'x\nfatal: bad object {oid}'"
    );
    assert_eq!(classify("upload-pack", &client), FailureKind::Other);
}

#[test]
fn the_line_that_tells_is_the_one_that_names_the_cause() {
    let telling = |text| telling_line("fetch", text);
    assert_eq!(telling("remote: Counting\r\n\nerror: a\nfatal: broken\nmore\n"), "fatal: broken");
    assert_eq!(telling("hint: a\nerror: odd\nhint: b"), "error: odd");
    assert_eq!(telling("  \n"), "git said nothing");
    let ssh = "other side: Load key \"k\": error in libcrypto\nother side: git@h: Permission denied (publickey).\n\
               fatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights";
    assert_eq!(telling(ssh), "git@h: Permission denied (publickey).");
    let full = "fatal: fetch-pack: invalid index-pack output\nfatal: write error: No space left on device";
    assert_eq!(telling(full), "fatal: write error: No space left on device");
}

#[test]
fn what_ssh_says_is_understood() {
    use FailureKind::{Credentials, Machine, Network, NotFound, Unauthorized, Untrusted};
    for (line, expected) in [
        ("ssh: connect to host h port 22: No route to host", Network),
        ("ssh: connect to host h port 22: Connection refused", Network),
        ("ssh: Could not resolve hostname h: Temporary failure in name resolution", Network),
        ("kex_exchange_identification: Connection closed by remote host", Network),
        ("kex_exchange_identification: read: Connection reset by peer", Network),
        ("git@h: Permission denied (publickey).", Unauthorized),
        ("Load key \"/k\": error in libcrypto", Credentials),
        ("Host key verification failed.", Untrusted),
        ("fatal: '/x' does not appear to be a git repository", NotFound),
        ("No user exists for uid 10001", Machine),
    ] {
        let text = format!("{} {line}\nfatal: Could not read from remote repository.", OTHERS[1]);
        assert_eq!(classify("fetch", &text), expected, "{line}");
        assert_eq!(telling_line("fetch", &text), line);
    }
}

#[test]
fn a_refusal_is_told_from_everything_else_that_fails() {
    let refusals = [
        "fatal: unable to access 'http://h/x/': The requested URL returned error: 403",
        "fatal: unable to access 'http://h/x/': The requested URL returned error: 410",
        "fatal: unable to access 'http://h/x/': The requested URL returned error: 451",
        "fatal: repository 'http://h/x/' not found",
        "fatal: could not read Username for 'http://h': terminal prompts disabled",
        "other side: ERROR: Repository not found.\nfatal: Could not read from remote repository.",
        "other side: git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.",
        "other side: FATAL: R any x ci DENIED by fallthru\nfatal: Could not read from remote repository.",
        "other side: Gitea: Cannot find repository: o/r\nfatal: Could not read from remote repository.",
    ];
    let others = [
        "fatal: unable to access 'http://h/x/': The requested URL returned error: 500",
        "fatal: unable to access 'http://h/x/': The requested URL returned error: 429",
        "remote: You have exceeded a secondary rate limit.\nfatal: unable to access 'http://h/x/': \
         The requested URL returned error: 403",
        "fatal: unable to access 'http://h/x/': Could not resolve host: h",
        "other side: Host key verification failed.\nfatal: Could not read from remote repository.",
        "other side: Load key \"k\": error in libcrypto",
        "fatal: remote error: upload-pack: not our ref 1234",
        "error: Could not open the lock: Permission denied",
    ];
    for (texts, expected) in [(&refusals[..], true), (&others, false)] {
        for text in texts {
            assert_eq!(classify("fetch", text).is_refusal(), expected, "{text}");
        }
    }
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
