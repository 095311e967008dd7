//! Mirrors that are not for everybody, without a cluster: callers with tokens of a file, and callers whom the upstream
//! lets in. Every route has the same door.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tarn_agent::serve::{
    endpoint as endpoint_of,
    routes::{Endpoint, Purpose},
};
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Auth, Fault, Operation, Upstream};
use tarn_testkit::wire::{Answer, Connection};

use super::credentials::{CANARY, expect_no_canary, secret};
use crate::scene::agent;

const TOKEN: &str = "kanarienvogel-7f3a-of-a-caller";

/// One route of a repository: method, what follows the repository, content type, body.
pub(crate) type Route = (&'static str, &'static str, &'static str, &'static [u8]);

const LFS: &str = "application/vnd.git-lfs+json";

/// Every route by which something of a mirror is had, or asked for: `every_endpoint_is_in_the_lists` compares the list with
/// the router.
pub(crate) const READS: [Route; 16] = [
    ("GET", "/info/refs?service=git-upload-pack", "", b""),
    ("POST", "/git-upload-pack", "application/x-git-upload-pack-request", b"0014command=ls-refs\n0000"),
    ("POST", "/ensure-refs", "application/json", b"{\"refs\":{\"refs/heads/main\":\"\"}}"),
    ("GET", "/snapshot.tar.zst", "", b""),
    ("HEAD", "/snapshot.tar.zst", "", b""),
    ("GET", "/lfs-snapshot.tar.zst", "", b""),
    ("HEAD", "/lfs-snapshot.tar.zst", "", b""),
    ("GET", "/snapshot.bundle?base=0123456789012345678901234567890123456789", "", b""),
    ("POST", "/info/lfs/objects/batch", LFS, b"{\"operation\":\"download\",\"objects\":[]}"),
    ("POST", "/info/lfs/objects/batch", LFS, b"{\"operation\":\"upload\",\"objects\":[]}"),
    (
        "GET",
        "/info/lfs/objects/4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393?size=1",
        "",
        b"",
    ),
    (
        "HEAD",
        "/info/lfs/objects/4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393?size=1",
        "",
        b"",
    ),
    ("GET", "/info/lfs/locks", "", b""),
    ("POST", "/info/lfs/locks", LFS, b"{\"path\":\"a\"}"),
    ("POST", "/info/lfs/locks/verify", LFS, b"{}"),
    ("POST", "/info/lfs/locks/1/unlock", LFS, b"{}"),
];

/// The routes of a push.
pub(crate) const PUSHES: [Route; 2] = [
    ("GET", "/info/refs?service=git-receive-pack", "", b""),
    ("POST", "/git-receive-pack", "application/x-git-receive-pack-request", b"0000"),
];

/// Whether the mirror has no part in the answer to a route but to hand it on: the upstream wants credentials of its own.
pub(crate) fn is_handed_on(route: Route) -> bool {
    route.1.contains("locks") || route.3.starts_with(b"{\"operation\":\"upload\"")
}

#[test]
fn every_endpoint_is_in_the_lists() -> Result<()> {
    let listed = |routes: &[Route], endpoint: Endpoint, method: &str| {
        routes.iter().any(|route| {
            let (path, query) = route.1.split_once('?').unwrap_or((route.1, ""));
            route.0 == method
                && endpoint_of(&format!("/git/h/o/r{path}"), query).is_ok_and(|of| of == endpoint)
        })
    };
    for endpoint in Endpoint::ALL.iter().copied() {
        let routes = match endpoint.purpose() {
            Purpose::Read => &READS[..],
            Purpose::Push => &PUSHES[..],
        };
        for method in endpoint.methods() {
            ensure!(listed(routes, endpoint, method.as_str()), "{method} {endpoint:?} is asked by no test");
        }
    }
    Ok(())
}

/// Asks a route of the repository at `path`.
pub(crate) async fn ask(agent: &Agent, path: &str, route: Route, headers: &[(&str, &str)]) -> Result<Answer> {
    let (method, rest, kind, body) = route;
    let mut all = headers.to_vec();
    all.push(("Git-Protocol", "version=2"));
    if !kind.is_empty() {
        all.push(("Content-Type", kind));
    }
    let mut connection = Connection::open(agent.git_address()?).await?;
    connection.ask(method, &format!("{path}{rest}"), &all, body).await
}

/// An agent with tokens, and a mirror.
struct Guarded {
    agent: Agent,
    upstream: Upstream,
    origin: Repo,
    git: Git,
    dir: tempfile::TempDir,
}

impl Guarded {
    async fn with(access: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let origin = upstream.seed("a.git").await?;
        upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
        let access = format!("access: {access}");
        let yaml =
            manifest("a", &upstream.url("a.git"), &["secretRef: {name: creds}", &access, "interval: 10s"]);
        let yaml = [yaml, secret(&upstream, &[("username", "ada"), ("password", CANARY)])].join("---\n");
        std::fs::write(dir.path().join("tokens"), format!("# callers\nci {TOKEN}\n"))?;
        let agent = agent().arg("--tokens").arg(dir.path().join("tokens")).env("TARN_AGENT_LOG", "trace");
        let agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
        agent.wait_phase(&repo_id(&upstream.url("a.git")), "Ready").await?;
        Ok(Self { agent, upstream, origin, git: Git::new()?, dir })
    }

    fn path(&self) -> String {
        format!("/git/{}", repo_id(&self.upstream.url("a.git")))
    }

    fn url(&self, user: &str, password: &str) -> Result<String> {
        let at = if user.is_empty() { String::new() } else { format!("{user}:{password}@") };
        Ok(self.agent.git_url(&repo_id(&self.upstream.url("a.git")))?.replace("//", &format!("//{at}")))
    }

    /// The upstream's user, as a URL has it: through Tarn it says which upstream is meant.
    fn ada(&self) -> String {
        format!("ada%40http+{}", self.upstream.address().to_string().replace(':', "._"))
    }

    /// That user's header with a password.
    fn basic(&self, password: &str) -> String {
        let user = self.ada().replace("%40", "@");
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn every_route_wants_a_token_that_the_file_has() -> Result<()> {
    let guarded = Guarded::with("Authenticated").await?;
    let bearer = format!("Bearer {TOKEN}");
    let longer = format!("{bearer}x");
    for route in READS {
        for wrong in ["", "Bearer kanarienvogel-7f3a-of-another", &longer, "Basic Y2k6", "Bearer ci"] {
            let headers = [("Authorization", wrong)];
            let headers = if wrong.is_empty() { &[][..] } else { &headers[..] };
            let answer = ask(&guarded.agent, &guarded.path(), route, headers).await?;
            ensure!(answer.status == 401, "{route:?} {wrong}: {} {}", answer.status, answer.text());
            let challenge = answer.header("www-authenticate").unwrap_or_default();
            ensure!(challenge.starts_with("Basic realm="), "{route:?}: {challenge}");
        }
        // Whoever calls itself an agent has to prove it.
        let forged = [("Tarn-Proxied-By", "default-0"), ("Tarn-Caller", "Authenticated token;ci")];
        for headers in [&forged[..], &[forged[0], forged[1], ("Authorization", &bearer)]] {
            let answer = ask(&guarded.agent, &guarded.path(), route, headers).await?;
            ensure!(answer.status == 403, "{route:?}: {} {}", answer.status, answer.text());
        }
        let answer = ask(&guarded.agent, &guarded.path(), route, &[("Authorization", &bearer)]).await?;
        // Locks are the upstream's business, which this token is not for.
        let expected = if is_handed_on(route) { 403 } else { answer.status };
        ensure!(
            answer.status == expected && answer.status != 401,
            "{route:?}: {} {}",
            answer.status,
            answer.text()
        );
        ensure!(expected == 403 || answer.status != 403, "{route:?}: {}", answer.text());
    }
    for route in PUSHES {
        for headers in [&[][..], &[("Authorization", bearer.as_str())]] {
            let answer = ask(&guarded.agent, &guarded.path(), route, headers).await?;
            ensure!(
                answer.status == 403 && answer.text().contains("pushInsteadOf"),
                "{route:?}: {}",
                answer.text()
            );
        }
    }
    expect_no_canary(&guarded.agent).await
}

#[tokio::test]
async fn git_sends_a_token_as_a_password_and_shows_why_one_is_refused() -> Result<()> {
    let guarded = Guarded::with("Authenticated").await?;
    let clone = guarded.git.clone_repo(&guarded.url("tarn", TOKEN)?, &guarded.place("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == guarded.origin.rev_parse("HEAD").await?);
    for version in ["0", "2"] {
        let git = guarded.git.clone().with_config("protocol.version", version);
        let refused = git.attempt(["ls-remote", &guarded.url("tarn", "kanarienvogel-of-nobody")?]).await?;
        ensure!(!refused.status.success());
        ensure!(refused.stderr.contains("remote: Unauthenticated: "), "{}", refused.stderr);
        ensure!(refused.stderr.contains("Authentication failed"), "{}", refused.stderr);
        let unasked = git.attempt(["ls-remote", &guarded.url("", "")?]).await?;
        ensure!(unasked.stderr.contains("could not read Username"), "{}", unasked.stderr);
    }
    // The file changes: who is taken out of it is out, who is added is in.
    std::fs::write(guarded.place("tokens"), "ci another-token-of-the-same-caller\n")?;
    let old = guarded.url("tarn", TOKEN)?;
    eventually(Duration::from_secs(20), "the old token to be refused", async || {
        ensure!(!guarded.git.attempt(["ls-remote", &old]).await?.status.success());
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    guarded.git.ls_remote(&guarded.url("tarn", "another-token-of-the-same-caller")?).await?;
    let sent = BASE64_STANDARD.encode(format!("tarn:{TOKEN}"));
    ensure!(!guarded.agent.logs()?.contains(&sent), "the log has the header");
    expect_no_canary(&guarded.agent).await
}

#[tokio::test]
async fn a_token_counts_for_as_long_as_the_file_has_it_and_is_there() -> Result<()> {
    const COUNT: &str = "tarn_access_tokens{file=\"tokens\"}";
    let guarded = Guarded::with("Authenticated").await?;
    let (first, second) = (guarded.url("tarn", TOKEN)?, guarded.url("tarn", "a-token-of-another-caller")?);
    guarded.git.ls_remote(&first).await?;
    let opens = async |url: &str| {
        Ok::<_, anyhow::Error>(guarded.git.attempt(["ls-remote", url]).await?.status.success())
    };
    // A line that makes no sense is no token any more, and takes no other away.
    std::fs::write(guarded.place("tokens"), "ci short\nbot a-token-of-another-caller\n")?;
    eventually(Duration::from_secs(20), "the broken line to count no longer", async || {
        ensure!(!opens(&first).await? && opens(&second).await?, "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    ensure!(guarded.agent.logs()?.contains("shorter than 16 characters"), "nobody was told");
    ensure!(guarded.agent.metric::<u64>(COUNT).await? == 1, "{}", guarded.agent.metrics().await?);
    // Without the file there are no tokens.
    let (file, away) = (guarded.place("tokens"), guarded.place("away"));
    std::fs::rename(&file, &away)?;
    eventually(Duration::from_secs(60), "no token to count", async || {
        ensure!(!opens(&second).await?, "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    ensure!(guarded.agent.logs()?.contains("no token counts until it is back"), "nobody was told");
    // An alert can tell: the series is there, and 0.
    let metrics = guarded.agent.metrics().await?;
    ensure!(metrics.lines().any(|line| line == format!("{COUNT} 0")), "{metrics}");
    ensure!(!metrics.contains("file=\"admin-tokens\""), "there is no such file");
    std::fs::rename(&away, &file)?;
    eventually(Duration::from_secs(20), "the token to count again", async || {
        ensure!(opens(&second).await?, "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    expect_no_canary(&guarded.agent).await
}

#[tokio::test]
async fn a_rejected_document_keeps_no_others_access_loose() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    let url = upstream.url("a.git");
    let misspelt = manifest("zero", &upstream.url("zero.git"), &["intervall: 1m"]);
    let open = manifest("a", &url, &["access: Anonymous"]);
    let agent = agent().start_with(&[("0.yaml", &misspelt), ("a.yaml", &open)]).await?;
    agent.wait_ready(&[&repo_id(&url)]).await?;
    let git = Git::new()?;
    git.ls_remote(&agent.git_url(&repo_id(&url))?).await?;
    // This agent has no tokens: nobody is let in.
    agent.write_manifest("a.yaml", &manifest("a", &url, &["access: Authenticated"]))?;
    let listed = agent.git_url(&repo_id(&url))?;
    eventually(Duration::from_secs(20), "the new access", async || {
        let refused = git.attempt(["ls-remote", &listed]).await?;
        ensure!(
            !refused.status.success() && refused.stderr.contains("AccessUnsupported"),
            "{}",
            refused.stderr
        );
        Ok::<_, anyhow::Error>(())
    })
    .await
}

#[tokio::test]
async fn callers_are_let_in_as_the_upstream_would_let_them_in() -> Result<()> {
    let guarded = Guarded::with("Upstream").await?;
    guarded.upstream.clear_log();
    for route in READS {
        let answer = ask(&guarded.agent, &guarded.path(), route, &[]).await?;
        ensure!(answer.status == 401, "{route:?}: {} {}", answer.status, answer.text());
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        ensure!(challenge.contains(&format!("{} through Tarn", guarded.upstream.address())), "{answer:?}");
    }
    let tried = |authorized| {
        let log = guarded.upstream.log();
        log.iter()
            .filter(|seen| seen.operation == Operation::Advertise && seen.authorized == authorized)
            .count()
    };
    ensure!(tried(false) == 1, "one answer for all who send nothing: {}", tried(false));
    let ada = guarded.ada();
    let refused = guarded.git.attempt(["ls-remote", &guarded.url(&ada, "wrong")?]).await?;
    ensure!(refused.stderr.contains("Authentication failed"), "{}", refused.stderr);
    let (own, before) = (guarded.url(&ada, CANARY)?, tried(true));
    for name in ["one", "two"] {
        guarded.git.clone_repo(&own, &guarded.place(name), &[]).await?;
    }
    // The look of the mirror itself needs no advertisement any more.
    ensure!(tried(true) == before + 1, "one answer for both clones: {} {before}", tried(true));
    // Who may read may try to push, with the same credentials.
    let clone = guarded.git.clone_repo(&own, &guarded.place("three"), &[]).await?;
    clone.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
    clone.push(&own, &["HEAD:refs/heads/main"]).await?;
    ensure!(guarded.origin.rev_parse("main").await? == clone.rev_parse("HEAD").await?);
    expect_no_canary(&guarded.agent).await
}

#[tokio::test]
async fn an_upstream_that_cannot_judge_lets_nobody_new_in() -> Result<()> {
    let guarded = Guarded::with("Upstream").await?;
    let known = guarded.url(&guarded.ada(), CANARY)?;
    let refs = guarded.git.ls_remote(&known).await?;
    // The faults come before the question of credentials.
    guarded.upstream.require(Auth::Open);
    for (fault, what) in [
        (Fault::Status(503), "an error"),
        // A page for people, which has status 200.
        (Fault::Html, "a login page"),
        (Fault::Redirect("http://127.0.0.1:9".into()), "a redirect"),
        (Fault::Hang, "silence"),
    ] {
        guarded.upstream.fault(fault);
        let stranger = guarded.basic(&what.replace(' ', "-"));
        let headers = [("Authorization", stranger.as_str())];
        let answer = ask(&guarded.agent, &guarded.path(), READS[0], &headers).await?;
        ensure!(answer.status == 503 && answer.header("retry-after").is_some(), "{what}: {answer:?}");
        ensure!(answer.text().starts_with("AccessUnknown: "), "{what}: {}", answer.text());
    }
    guarded.upstream.mend();
    guarded.upstream.down().await;
    ensure!(guarded.git.ls_remote(&known).await? == refs, "who was let in is served what is here");
    let basic = guarded.basic("stranger");
    let stranger = [("Authorization", basic.as_str())];
    for (headers, status) in [(&stranger[..], 503), (&[], 401)] {
        let answer = ask(&guarded.agent, &guarded.path(), READS[0], headers).await?;
        ensure!(answer.status == status, "{answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_for_tarn_or_kubernetes_never_leaves_for_the_upstream() -> Result<()> {
    let pod = "Bearer e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6Y2k6am9iIiwiYXVkIjpbImFueSJdfQ.c2ln";
    let own = format!("Bearer {TOKEN}");
    for access in ["Anonymous", "Upstream"] {
        let guarded = Guarded::with(access).await?;
        guarded.upstream.clear_log();
        for token in [pod, &own] {
            let lfs = READS.into_iter().filter(|route| is_handed_on(*route));
            for route in PUSHES.into_iter().chain(lfs) {
                let headers = [("Authorization", token)];
                let answer = ask(&guarded.agent, &guarded.path(), route, &headers).await?;
                let refused = if access == "Upstream" {
                    matches!(answer.status, 401 | 403)
                } else {
                    answer.status == 403
                };
                ensure!(refused, "{access} {route:?}: {} {}", answer.status, answer.text());
            }
            if access == "Upstream" {
                let answer =
                    ask(&guarded.agent, &guarded.path(), READS[0], &[("Authorization", token)]).await?;
                ensure!(answer.status == 401, "{}: {}", answer.status, answer.text());
            }
        }
        let log = guarded.upstream.log();
        let sent = log.iter().filter(|seen| matches!(seen.operation, Operation::Push | Operation::LfsLocks));
        ensure!(sent.count() == 0, "{log:?}");
        ensure!(!log.iter().any(|seen| seen.operation == Operation::Advertise), "{log:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_private_mirror_has_is_not_had_through_a_public_one() -> Result<()> {
    let guarded = Guarded::with("Authenticated").await?;
    let public = guarded.upstream.seed("public.git").await?;
    public.commit("main", &[("f", "public")]).await?;
    // Known to this agent alone, in the mirror, and in the pack cache.
    let private = guarded.origin.commit("main", &[("f", "private")]).await?;
    let clone = guarded.git.clone_repo(&guarded.url("tarn", TOKEN)?, &guarded.place("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == private, "the clone is fresh");
    let url = guarded.upstream.url("public.git");
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    guarded.agent.write_manifest("public.yaml", &manifest("public", &url, &spec))?;
    guarded.agent.wait_phase(&repo_id(&url), "Ready").await?;
    let path = format!("/git/{}", repo_id(&url));
    let fetch = format!(
        "0011command=fetch0016object-format=sha10001000fno-progress0032want {private}\n0009done\n0000"
    );
    let post = async |path: String| {
        let kind = [("Content-Type", "application/x-git-upload-pack-request"), ("Git-Protocol", "version=2")];
        let mut connection = Connection::open(guarded.agent.git_address()?).await?;
        connection.ask("POST", &format!("{path}/git-upload-pack"), &kind, fetch.as_bytes()).await
    };
    let through_public = post(path.clone()).await?;
    let text = through_public.text();
    ensure!(!text.contains("packfile") && text.contains("ERR "), "{text}");
    ensure!(post(guarded.path()).await?.status == 401, "the answer in the cache is not for everybody");
    let bundle = guarded.agent.get(&format!("{path}/snapshot.bundle?base={private}")).await?;
    ensure!(bundle.status >= 400, "{}", bundle.status);
    let body = format!("{{\"commits\":[\"{private}\"]}}");
    let kind = [("Content-Type", "application/json")];
    let mut connection = Connection::open(guarded.agent.git_address()?).await?;
    let ensured = connection.ask("POST", &format!("{path}/ensure-refs"), &kind, body.as_bytes()).await?;
    ensure!(ensured.text().contains(&format!("\"missing_commits\":[\"{private}\"]")), "{}", ensured.text());
    // No way of writing the path leads there either.
    let repo = guarded.path();
    let name = repo.rsplit('/').next().context("a name")?;
    for trick in [
        format!("{path}/../{name}"),
        format!("{path}/..%2f{name}"),
        format!("{path}/%2e%2e/{name}"),
        format!("{path}//../{name}"),
        format!("{repo}.git"),
        format!("{repo}/"),
        format!("{}%00", repo),
        repo.replacen("/git/", "/git//", 1),
        repo.replacen("/git/", "/git/./", 1),
        repo.replace("127.0.0.1", "127.0.0.1."),
        repo.to_uppercase().replace("/GIT/", "/git/"),
    ] {
        let answer = guarded.agent.get(&format!("{trick}/info/refs?service=git-upload-pack")).await?;
        ensure!(matches!(answer.status, 400 | 401 | 404), "{trick}: {} {}", answer.status, answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_two_readers_understand_differently_is_refused() -> Result<()> {
    let guarded = Guarded::with("Authenticated").await?;
    let (path, token) = (guarded.path(), format!("Authorization: Bearer {TOKEN}\r\n"));
    let line = format!("GET {path}/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: test\r\n");
    let post = format!("POST {path}/git-upload-pack HTTP/1.1\r\nHost: test\r\nContent-Type: x\r\n{token}");
    let inner = format!("{line}\r\n");
    for (what, request) in [
        ("two callers", format!("{line}{token}Authorization: Bearer another\r\n\r\n")),
        ("a folded header", format!("{line}Authorization: Bearer\r\n {TOKEN}\r\n\r\n")),
        ("a blank before the colon", format!("{line}Authorization : Bearer {TOKEN}\r\n\r\n")),
        ("two lengths", format!("{post}Content-Length: 4\r\nContent-Length: 5\r\n\r\n0000")),
        (
            "a length and chunks",
            format!("{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("an unknown coding", format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}")),
        ("a length that is none", format!("{post}Content-Length: +4\r\n\r\n0000{inner}")),
    ] {
        let mut connection = Connection::open(guarded.agent.git_address()?).await?;
        connection.send(request.as_bytes()).await?;
        // Refused, or the connection is closed; what is smuggled behind it is never let in.
        while let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(2), connection.answer()).await {
            ensure!(matches!(answer.status, 400 | 401 | 415), "{what}: {} {}", answer.status, answer.text());
        }
    }
    Ok(())
}
