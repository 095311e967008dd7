//! The real git-lfs behind every kind of access, however the person at the terminal gives their credentials.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Auth, Upstream, lfs};

use super::{ATTRIBUTES, TOKEN, client, expect_content, noise};
use crate::scene::agent;

const PASSWORD: &str = "kanarienvogel-pw-77ab";
const CALLER: &str = "kanarienvogel-of-a-caller";

/// How git learns credentials.
const WAYS: [&str; 4] = ["helper", "netrc", "extraHeader", "URL"];

/// git and git-lfs of somebody who gives these credentials in one of the [`WAYS`], and the URL to clone.
fn person(way: &str, url: &str, user: &str, password: &str, home: &std::path::Path) -> Result<(Git, String)> {
    std::fs::create_dir_all(home)?;
    // Where the credentials are not found, git-lfs asks again and again.
    let git = client()?.with_timeout(Duration::from_secs(60)).with_env("HOME", home);
    let host = url.split('/').nth(2).and_then(|host| host.split(':').next()).context("a host")?;
    Ok(match way {
        "helper" => {
            let script =
                format!("!f() {{ test $1 = get && echo username={user} && echo password={password}; }}; f");
            (git.with_config("credential.helper", &script), url.to_owned())
        }
        "netrc" => {
            std::fs::write(
                home.join(".netrc"),
                format!("machine {host} login {user} password {password}\n"),
            )?;
            (git, url.to_owned())
        }
        "extraHeader" => {
            let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
            let key = format!("http.{}.extraHeader", url.split("/git/").next().unwrap_or_default());
            (git.with_config(&key, &format!("Authorization: Basic {basic}")), url.to_owned())
        }
        _ => (git, url.replace("//", &format!("//{}:{password}@", user.replace('@', "%40")))),
    })
}

/// Whoever gives these credentials clones with all content, in every way, and is asked for them a few times and not for ever.
pub(crate) async fn expect_clones(
    agent: &Agent,
    url: &str,
    (user, password): (&str, &str),
    content: &[u8],
    dir: &std::path::Path,
) -> Result<()> {
    for way in WAYS {
        let before: u64 = agent.metric(REFUSED).await?;
        let (git, url) = person(way, url, user, password, &dir.join(format!("home-{way}")))?;
        let clone = git.clone_repo(&url, &dir.join(way), &[]).await.context(way)?;
        expect_content(&clone, content).await.context(way)?;
        let refused: u64 = agent.metric::<u64>(REFUSED).await? - before;
        ensure!(refused <= 2, "{way}: an object was refused {refused} times");
    }
    Ok(())
}

/// Objects asked for without credentials.
const REFUSED: &str = "tarn_serve_requests_total{route=\"lfs-object\",status=\"401\"}";

/// A mirror with LFS whose upstream wants credentials, and keeps its objects elsewhere, as forges do.
struct Guarded {
    agent: Agent,
    upstream: Upstream,
    storage: Upstream,
    content: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Guarded {
    async fn with(access: &str) -> Result<Self> {
        let (dir, content) = (tempfile::tempdir()?, noise(50_000));
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let (upstream, storage) = (Upstream::start(&root)?, Upstream::start(&root)?);
        let origin = upstream.seed("a.git").await?;
        for server in [&upstream, &storage] {
            server.lfs().enable(TOKEN);
            server.lfs().hrefs_at(&format!("http://{}", storage.address()));
            server.lfs().put("a.git", &content);
        }
        let pointer = upstream.lfs().put("a.git", &content);
        origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await?;
        upstream.require(Auth::Basic { user: "ada".into(), password: PASSWORD.into() });
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: creds\n  labels: {{tarn.dev/credentials: 'true'}}\n  \
             annotations: {{tarn.dev/hosts: 'http://{}/*'}}\nstringData:\n  username: ada\n  password: {PASSWORD}\n",
            upstream.address()
        );
        let spec = ["secretRef: {name: creds}", &format!("access: {access}")];
        let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret].join("---\n");
        std::fs::write(dir.path().join("tokens"), format!("ci {CALLER}\n"))?;
        let agent =
            agent().arg("--tokens").arg(dir.path().join("tokens")).arg("--allow-upstream").arg("127.0.0.1");
        let agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
        agent.wait_phase(&repo_id(&upstream.url("a.git")), "Ready").await?;
        Ok(Self { agent, upstream, storage, content, dir })
    }

    fn url(&self) -> Result<String> {
        self.agent.git_url(&repo_id(&self.upstream.url("a.git")))
    }

    /// The upstream's user, as it is given through Tarn.
    fn ada(&self) -> String {
        format!("ada@http+{}", self.upstream.address().to_string().replace(':', "._"))
    }

    async fn expect_clones(&self, user: &str, password: &str) -> Result<()> {
        expect_clones(&self.agent, &self.url()?, (user, password), &self.content, self.dir.path()).await
    }

    /// The upstream's user pushes a commit and its object, in every way.
    async fn expect_pushes(&self) -> Result<()> {
        for (way, at) in WAYS.into_iter().zip(1_u8..) {
            let new = [at; 1000];
            let home = self.dir.path().join(format!("pusher-{way}"));
            let (git, url) = person(way, &self.url()?, &self.ada(), PASSWORD, &home)?;
            let clone = git.clone_repo(&url, &self.dir.path().join(format!("pushed-{way}")), &[]).await?;
            std::fs::write(clone.path().join("new.bin"), new)?;
            clone.git(&["add", "new.bin"]).await?;
            clone.git(&["commit", "--quiet", "--message", "new"]).await?;
            clone.git(&["lfs", "push", "origin", "main"]).await.context(way)?;
            clone.push("origin", &["main"]).await.context(way)?;
            let there = self.storage.lfs().get("a.git", &lfs::oid(&new)).context("it is not upstream")?;
            ensure!(there == new[..], "another content");
            self.upstream.lfs().put("a.git", &new);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_lfs_gets_objects_behind_a_token() -> Result<()> {
    Guarded::with("Authenticated").await?.expect_clones("tarn", CALLER).await
}

#[tokio::test(flavor = "multi_thread")]
async fn git_lfs_gets_and_pushes_objects_where_the_upstream_judges() -> Result<()> {
    let guarded = Guarded::with("Upstream").await?;
    guarded.expect_clones(&guarded.ada(), PASSWORD).await?;
    guarded.expect_pushes().await
}

#[tokio::test(flavor = "multi_thread")]
async fn git_lfs_gets_objects_of_all_who_ask_and_pushes_with_credentials() -> Result<()> {
    let guarded = Guarded::with("Anonymous").await?;
    let clone = client()?.clone_repo(&guarded.url()?, &guarded.dir.path().join("clone"), &[]).await?;
    expect_content(&clone, &guarded.content).await?;
    guarded.expect_clones(&guarded.ada(), PASSWORD).await?;
    ensure!(guarded.agent.metric::<u64>(REFUSED).await? == 0, "an object was refused");
    guarded.expect_pushes().await
}
