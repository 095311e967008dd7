//! A Tarn that wants a token: git is given one by the helper, for Tarn alone, and clones through snapshots bring it along.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::git::{Git, isolate};
use tarn_testkit::process::{Output, command, run};
use tarn_testkit::upstream::Upstream;

const TOKEN: &str = "kanarienvogel-client-5d21";

const PATIENCE: Duration = Duration::from_secs(60);

/// A mirror that wants a token, and the home of a user who has one.
struct Guarded {
    agent: Agent,
    upstream: Upstream,
    dir: tempfile::TempDir,
}

impl Guarded {
    async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for name in ["upstream", "home", "work"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        let upstream = Upstream::start(&dir.path().join("upstream"))?;
        upstream.seed("a.git").await?;
        std::fs::write(dir.path().join("tokens"), format!("ci {TOKEN}\n"))?;
        std::fs::write(dir.path().join("token"), format!("{TOKEN}\n"))?;
        let binary = Path::new(env!("CARGO_BIN_EXE_git-tarn")).with_file_name("tarn-agent");
        let named = std::env::var_os("TARN_TESTKIT_AGENT").is_some();
        ensure!(named || binary.exists(), "these tests need the agent: cargo build -p tarn-agent");
        let yaml = manifest("a", &upstream.url("a.git"), &["access: Authenticated"]);
        let agent = Builder::new(binary).arg("--tokens").arg(dir.path().join("tokens"));
        let agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
        agent.wait_ready(&[&repo_id(&upstream.url("a.git"))]).await?;
        Ok(Self { agent, upstream, dir })
    }

    fn server(&self) -> Result<String> {
        Ok(format!("http://{}", self.agent.git_address()?))
    }

    /// `git-tarn` of the user.
    async fn tarn(&self, args: &[&str], stdin: &str) -> Result<Output> {
        let mut tarn = command(env!("CARGO_BIN_EXE_git-tarn"));
        isolate(&mut tarn, &self.dir.path().join("home"));
        tarn.env("PATH", self.path());
        // Isolated from the machine's configuration, not from the user's own.
        tarn.env("GIT_CONFIG_GLOBAL", self.dir.path().join("home/.gitconfig"));
        tarn.current_dir(self.dir.path().join("work")).args(args);
        run(tarn, stdin.as_bytes(), PATIENCE).await
    }

    async fn git(&self, args: &[&str]) -> Result<Output> {
        let git = Git::new()?.with_env("GIT_CONFIG_GLOBAL", self.dir.path().join("home/.gitconfig"));
        git.with_env("PATH", self.path()).attempt(args).await
    }

    /// Where programs are found: those of the test first.
    fn path(&self) -> String {
        let system = std::env::var("PATH").unwrap_or_default();
        format!("{}:{system}", self.dir.path().join("bin").display())
    }

    /// A kubectl that runs this script, and writes down what it was called with.
    fn kubectl(&self, script: &str) -> Result<()> {
        let (bin, calls) = (self.dir.path().join("bin"), self.dir.path().join("calls"));
        std::fs::create_dir_all(&bin)?;
        // In place by a rename: one that is being written cannot be run.
        std::fs::write(
            bin.join("new"),
            format!("#!/bin/sh\necho \"$*\" >> '{}'\n{script}\n", calls.display()),
        )?;
        std::fs::set_permissions(bin.join("new"), std::fs::Permissions::from_mode(0o755))?;
        Ok(std::fs::rename(bin.join("new"), bin.join("kubectl"))?)
    }

    /// What kubectl was called with since the last time.
    fn calls(&self) -> Result<String> {
        let calls = self.dir.path().join("calls");
        let said = std::fs::read_to_string(&calls).unwrap_or_default();
        std::fs::write(calls, "")?;
        Ok(said)
    }
}

#[tokio::test]
async fn git_clones_after_a_login_and_no_other_host_gets_the_token() -> Result<()> {
    let guarded = Guarded::new().await?;
    let url = guarded.agent.git_url(&repo_id(&guarded.upstream.url("a.git")))?;
    ensure!(!guarded.git(&["ls-remote", &url]).await?.status.success(), "let in without a token");
    let (server, file) = (guarded.server()?, guarded.dir.path().join("token"));
    let file = file.to_str().unwrap_or_default();
    let login = guarded.tarn(&["login", "--server", &server, "--token-file", file], "").await?;
    ensure!(login.status.success(), "{}", login.stderr);
    let listed = guarded.git(&["ls-remote", &url]).await?;
    ensure!(listed.status.success(), "{}", listed.stderr);
    let config = std::fs::read_to_string(guarded.dir.path().join("home/.gitconfig"))?;
    ensure!(!config.contains(TOKEN) && !login.stderr.contains(TOKEN), "the token is not copied: {config}");
    // Read anew each time: pods' tokens are renewed.
    std::fs::write(guarded.dir.path().join("token"), "another-token-that-nobody-knows")?;
    ensure!(!guarded.git(&["ls-remote", &url]).await?.status.success(), "an old token is remembered");
    std::fs::write(guarded.dir.path().join("token"), TOKEN)?;
    let credential = ["credential", "--server", &server, "--token-file", file];
    let ask = async |action: &str, question: &str| {
        guarded.tarn(&[&credential[..], &[action]].concat(), question).await
    };
    let host = server.trim_start_matches("http://");
    let answer = ask("get", &format!("protocol=http\nhost={host}\n\n")).await?;
    ensure!(answer.stdout == format!("username=tarn\npassword={TOKEN}\n").as_bytes(), "{}", answer.text());
    for question in ["protocol=https\nhost=github.com\n\n", &format!("protocol=https\nhost={host}\n\n")] {
        let answer = ask("get", question).await?;
        ensure!(answer.status.success() && answer.stdout.is_empty(), "{question}: {}", answer.text());
    }
    for action in ["store", "erase", "capability"] {
        let answer = ask(action, &format!("protocol=http\nhost={host}\npassword=x\n\n")).await?;
        ensure!(answer.status.success() && answer.stdout.is_empty(), "{action}: {}", answer.text());
    }
    // Git's own helpers keep what is typed for one upstream apart from others'.
    let by_path = format!("credential.{server}.useHttpPath");
    let set = guarded.git(&["config", "--global", &by_path]).await?;
    ensure!(set.text() == "true", "{} {}", set.text(), set.stderr);
    std::fs::write(guarded.dir.path().join("token"), "")?;
    let answer = ask("get", &format!("protocol=http\nhost={host}\n\n")).await?;
    ensure!(!answer.status.success() && answer.stderr.contains("holds no token"), "{}", answer.stderr);
    Ok(())
}

#[tokio::test]
async fn a_logout_takes_back_what_a_login_wrote() -> Result<()> {
    let guarded = Guarded::new().await?;
    let config = guarded.dir.path().join("home/.gitconfig");
    std::fs::write(&config, "[user]\n\tname = Ada\n")?;
    let (server, file) = (guarded.server()?, guarded.dir.path().join("token"));
    let file = file.to_str().unwrap_or_default();
    let login = guarded.tarn(&["login", "--server", &server, "--token-file", file], "").await?;
    ensure!(
        login.status.success() && std::fs::read_to_string(&config)?.contains("credential"),
        "{}",
        login.stderr
    );
    let logout = guarded.tarn(&["logout"], "").await?;
    ensure!(
        logout.status.success() && logout.stderr.contains("no longer proves itself"),
        "{}",
        logout.stderr
    );
    let left = guarded.git(&["config", "--global", "--list"]).await?;
    ensure!(left.text() == "user.name=Ada", "{}", left.text());
    let url = guarded.agent.git_url(&repo_id(&guarded.upstream.url("a.git")))?;
    ensure!(!guarded.git(&["ls-remote", &url]).await?.status.success(), "git still has the token");
    Ok(())
}

#[tokio::test]
async fn a_clone_through_tarn_proves_itself_with_the_token() -> Result<()> {
    let guarded = Guarded::new().await?;
    let (server, file) = (guarded.server()?, guarded.dir.path().join("token"));
    let file = file.to_str().unwrap_or_default();
    let url = guarded.upstream.url("a.git");
    let clone = ["clone", "--server", &server, "--json", &url];
    let alone = guarded.tarn(&[&clone[..], &["alone"]].concat(), "").await?;
    ensure!(alone.text().contains("\"how\":\"upstream\""), "{} {}", alone.text(), alone.stderr);
    let with = guarded.tarn(&[&clone[..], &["with", "--token-file", file]].concat(), "").await?;
    let how = with.text();
    // By a snapshot if there is one already, else through git: with the token in either case.
    let through_tarn =
        ["snapshot", "git-through-tarn"].iter().any(|way| how.contains(&format!("\"how\":\"{way}\"")));
    ensure!(through_tarn, "{how} {}", with.stderr);
    let config = std::fs::read_to_string(guarded.dir.path().join("work/with/.git/config"))?;
    ensure!(!config.contains(TOKEN) && !with.stderr.contains(TOKEN) && !how.contains(TOKEN), "{config}");
    Ok(())
}

#[tokio::test]
async fn git_clones_with_tokens_that_kubectl_makes_when_they_are_needed() -> Result<()> {
    let guarded = Guarded::new().await?;
    let url = guarded.agent.git_url(&repo_id(&guarded.upstream.url("a.git")))?;
    let (server, home) = (guarded.server()?, guarded.dir.path().join("home/.gitconfig"));
    // As the real one: the token alone on standard output, whatever else there is to say on the other.
    let script = format!("echo 'Warning: something is deprecated' >&2\necho {TOKEN}");
    guarded.kubectl(&script)?;
    let login = ["login", "--server", &server, "--service-account", "ci", "--namespace", "builds"];
    // Whom it is for is never guessed, nor had from a server.
    let unknown = guarded.tarn(&login, "").await?;
    ensure!(!unknown.status.success() && unknown.stderr.contains("--audience"), "{}", unknown.stderr);
    let audience = ["--audience", "default.ci.tarn.dev"];
    let done = guarded.tarn(&[&login[..], &audience].concat(), "").await?;
    ensure!(done.status.success() && done.stderr.contains("service account ci"), "{}", done.stderr);
    let expected = "create token ci --namespace=builds --audience=default.ci.tarn.dev --duration=1h\n";
    let calls = guarded.calls()?;
    ensure!(calls == expected, "{calls}");
    let listed = guarded.git(&["ls-remote", &url]).await?;
    ensure!(listed.status.success() && guarded.calls()? == expected, "{}", listed.stderr);
    // Nothing is remembered.
    guarded.kubectl("echo a-token-that-nobody-knows")?;
    ensure!(!guarded.git(&["ls-remote", &url]).await?.status.success(), "an old token is remembered");
    guarded.kubectl(&script)?;
    guarded.calls()?;
    // A clone needs no flag after the login; the audience is the GitCache's.
    let again = guarded.tarn(&[&login[..], &["--audience", "git.example"]].concat(), "").await?;
    ensure!(again.status.success(), "{}", again.stderr);
    let upstream = guarded.upstream.url("a.git");
    let cloned = guarded.tarn(&["clone", "--json", &upstream, "a"], "").await?;
    let how = cloned.text();
    ensure!(how.contains("\"how\":\"snapshot\"") || how.contains("\"how\":\"git-through-tarn\""), "{how}");
    let (calls, wanted) = (guarded.calls()?, expected.replace("=default.ci.tarn.dev ", "=git.example "));
    ensure!(calls.lines().count() > 1 && calls.lines().all(|call| call == wanted.trim_end()), "{calls}");
    let config = std::fs::read_to_string(&home)?;
    for text in [&config, &done.stderr, &listed.stderr, &calls, &how, &cloned.stderr] {
        ensure!(!text.contains(TOKEN), "{text}");
    }
    // From then on a file, and kubectl is not asked any more.
    let file = guarded.dir.path().join("token");
    let file = file.to_str().unwrap_or_default();
    let done = guarded.tarn(&["login", "--server", &server, "--token-file", file], "").await?;
    ensure!(done.status.success(), "{}", done.stderr);
    ensure!(guarded.git(&["ls-remote", &url]).await?.status.success() && guarded.calls()?.is_empty());
    let config = std::fs::read_to_string(&home)?;
    ensure!(!config.contains("serviceAccount") && !config.contains("builds"), "{config}");
    Ok(())
}

#[tokio::test]
async fn a_kubectl_that_makes_no_token_is_told_with_what_to_do() -> Result<()> {
    let guarded = Guarded::new().await?;
    let server = guarded.server()?;
    let login =
        ["login", "--server", &server, "--service-account", "ci", "--namespace", "builds", "--audience", "a"];
    for (script, says) in [
        (
            "echo 'Error from server (Forbidden): serviceaccounts \"ci\" is forbidden' >&2; exit 1",
            &["is forbidden", "kubectl auth can-i create serviceaccounts/token --namespace=builds"][..],
        ),
        ("exit 3", &["exit status: 3"]),
        (":", &["kubectl printed no token"]),
        ("echo two words", &["kubectl printed no token"]),
        ("yes canary | head -c 1000000", &["kubectl"]),
    ] {
        guarded.kubectl(script)?;
        let failed = guarded.tarn(&login, "").await?;
        ensure!(failed.status.code() == Some(1), "{script}: {}", failed.stderr);
        for part in says {
            ensure!(failed.stderr.contains(part), "{script}: {}", failed.stderr);
        }
        ensure!(!failed.stderr.contains("canary"), "{}", failed.stderr);
    }
    // What cannot be used is not written down.
    ensure!(!guarded.dir.path().join("home/.gitconfig").exists(), "a login that failed left something");
    let mut tarn = command(env!("CARGO_BIN_EXE_git-tarn"));
    isolate(&mut tarn, &guarded.dir.path().join("home"));
    // Of all programs only git is there.
    let bare = guarded.dir.path().join("bare");
    std::fs::create_dir(&bare)?;
    let found =
        std::env::var("PATH")?.split(':').map(|dir| Path::new(dir).join("git")).find(|git| git.exists());
    std::os::unix::fs::symlink(found.unwrap_or_default(), bare.join("git"))?;
    tarn.env("PATH", &bare).args(login);
    let missing = run(tarn, b"", PATIENCE).await?;
    ensure!(missing.status.code() == Some(1), "{}", missing.stderr);
    for part in ["kubectl", "PATH", "--token-file"] {
        ensure!(missing.stderr.contains(part), "{}", missing.stderr);
    }
    Ok(())
}
