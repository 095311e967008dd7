//! What a caller gave for one upstream goes to no other through Tarn, and what is Tarn's goes to none.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Auth, Operation, Upstream};

use super::credentials::CANARY;
use super::{PUSHES, READS, ask};
use crate::scene::agent;

const TOKEN: &str = "kanarienvogel-7f3a-of-a-caller";
const SHARED: &str = "kanarienvogel-7f3a-of-the-agents";
const ADMINISTRATOR: &str = "kanarienvogel-7f3a-of-an-administrator";

/// Two upstreams behind one agent, both of which want credentials and let in whom the upstream lets in.
struct Two {
    agent: Agent,
    right: Upstream,
    wrong: Upstream,
    dir: tempfile::TempDir,
}

/// The user `ada` of an upstream, as a caller gives it through Tarn.
fn ada(upstream: &Upstream) -> String {
    format!("ada@http+{}", upstream.address().to_string().replace(':', "._"))
}

impl Two {
    async fn start(agent: Builder, access: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (mut upstreams, mut documents) = (Vec::new(), Vec::new());
        for name in ["right", "wrong"] {
            let root = dir.path().join(name);
            std::fs::create_dir(&root)?;
            let upstream = Upstream::start(&root)?;
            upstream.seed("a.git").await?;
            upstream.lfs().enable("a-token-of-transfers");
            documents.push(manifest(name, &upstream.url("a.git"), &[&format!("access: {access}")]));
            upstreams.push(upstream);
        }
        for (file, text) in [
            ("tokens", format!("ci {TOKEN}\n")),
            ("peers", SHARED.to_owned()),
            ("admin-tokens", format!("ada {ADMINISTRATOR}\n")),
        ] {
            std::fs::write(dir.path().join(file), text)?;
        }
        let agent = agent.arg("--tokens").arg(dir.path().join("tokens"));
        let agent = agent.arg("--peer-token").arg(dir.path().join("peers"));
        let agent = agent.arg("--admin-tokens").arg(dir.path().join("admin-tokens"));
        let agent = agent.start_with(&[("a.yaml", &documents.join("---\n"))]).await?;
        for upstream in &upstreams {
            agent.wait_phase(&repo_id(&upstream.url("a.git")), "Ready").await?;
            upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
            upstream.clear_log();
        }
        let [right, wrong] = <[Upstream; 2]>::try_from(upstreams).map_err(|_| anyhow::anyhow!("two"))?;
        Ok(Self { agent, right, wrong, dir })
    }

    fn url(&self, upstream: &Upstream) -> Result<String> {
        self.agent.git_url(&repo_id(&upstream.url("a.git")))
    }

    fn path(upstream: &Upstream) -> String {
        format!("/git/{}", repo_id(&upstream.url("a.git")))
    }

    /// A git whose store of credentials has this user, for Tarn's host as git keeps them.
    fn git(&self, user: &str) -> Result<(Git, PathBuf)> {
        let store = self.dir.path().join(format!("store-{}", user.len()));
        let host = self.agent.git_address()?.to_string().replace(':', "%3a");
        let user = user.replace('@', "%40").replace('+', "%2b");
        std::fs::write(&store, format!("http://{user}:{CANARY}@{host}\n"))?;
        let helper = format!("store --file={}", store.display());
        Ok((Git::new()?.with_config("credential.helper", &helper), store))
    }
}

fn authorized(upstream: &Upstream) -> usize {
    upstream.log().iter().filter(|seen| seen.authorized).count()
}

#[tokio::test]
async fn a_credential_for_one_upstream_goes_to_no_other_behind_the_same_host() -> Result<()> {
    let two = Two::start(agent(), "Upstream").await?;
    let (git, store) = two.git(&ada(&two.right))?;
    let kept = std::fs::read_to_string(&store)?;
    git.ls_remote(&two.url(&two.right)?).await?;
    let refused = git.attempt(["ls-remote", &two.url(&two.wrong)?]).await?;
    ensure!(!refused.status.success() && refused.stderr.contains("CredentialsUnbound"), "{}", refused.stderr);
    ensure!(refused.stderr.contains(&format!("USER@{}", &ada(&two.wrong)[4..])), "{}", refused.stderr);
    let clone = git.clone_repo(&two.url(&two.right)?, &two.dir.path().join("clone"), &[]).await?;
    clone.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
    let (right, wrong) = (two.url(&two.right)?, two.url(&two.wrong)?);
    ensure!(clone.push(&wrong, &["HEAD:refs/heads/main"]).await.is_err(), "it was pushed");
    // What is right for one upstream is not forgotten because of another.
    ensure!(std::fs::read_to_string(&store)? == kept, "git has forgotten the credential");
    clone.push(&right, &["HEAD:refs/heads/main"]).await?;
    ensure!(authorized(&two.right) > 0 && authorized(&two.wrong) == 0, "{:?}", two.wrong.log());
    // One that does not say whom it is for goes to neither, whatever the route.
    let (git, _) = two.git("ada")?;
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("ada:{CANARY}")));
    for upstream in [&two.right, &two.wrong] {
        upstream.clear_log();
        let refused = git.attempt(["ls-remote", &two.url(upstream)?]).await?;
        ensure!(refused.stderr.contains("does not say for which upstream"), "{}", refused.stderr);
        for value in [basic.as_str(), "Bearer kanarienvogel-7f3a"] {
            for route in READS.into_iter().chain(PUSHES) {
                let answer =
                    ask(&two.agent, &Two::path(upstream), route, &[("Authorization", value)]).await?;
                ensure!(answer.status == 403, "{route:?}: {} {}", answer.status, answer.text());
            }
        }
        ensure!(authorized(upstream) == 0, "{:?}", upstream.log());
    }
    ensure!(!two.agent.logs()?.contains(CANARY), "the log has the password");
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_the_operator_names_gets_credentials_that_name_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let other = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    let named = format!("http://{}/*", upstream.address());
    let documents = [&upstream, &other].map(|one| {
        let name = format!("m{}", one.address().port());
        manifest(&name, &one.url("a.git"), &["access: Upstream"])
    });
    let agent = agent().arg("--unbound-credentials-to").arg(named);
    let agent = agent.start_with(&[("a.yaml", &documents.join("---\n"))]).await?;
    for one in [&upstream, &other] {
        agent.wait_phase(&repo_id(&one.url("a.git")), "Ready").await?;
        one.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
        one.clear_log();
    }
    let basic = |user: &str| format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{CANARY}")));
    for (one, user, status) in [
        (&upstream, "ada".to_owned(), 200),
        (&upstream, ada(&upstream), 200),
        (&upstream, ada(&other), 403),
        (&upstream, "ada@example.com".to_owned(), 403),
        (&other, "ada".to_owned(), 403),
        (&other, ada(&other), 200),
    ] {
        let headers = [("Authorization", basic(&user))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer = ask(&agent, &Two::path(one), READS[0], &headers).await?;
        ensure!(answer.status == status, "{user}: {} {}", answer.status, answer.text());
    }
    let wrong =
        crate::scene::agent().arg("--unbound-credentials-to").arg("https://u:canary@h").run_to_end().await?;
    ensure!(
        wrong.stderr.contains("--unbound-credentials-to") && !wrong.stderr.contains("canary"),
        "{}",
        wrong.stderr
    );
    Ok(())
}

#[tokio::test]
async fn a_challenge_names_the_upstream_in_tarns_own_words() -> Result<()> {
    for access in ["Upstream", "Anonymous"] {
        let two = Two::start(agent(), access).await?;
        for upstream in [&two.right, &two.wrong] {
            let locks = READS.into_iter().filter(|route| route.1.contains("locks"));
            let reads = READS.into_iter().filter(|_| access == "Upstream");
            for route in reads.chain(locks).chain(PUSHES) {
                let answer = ask(&two.agent, &Two::path(upstream), route, &[]).await?;
                ensure!(answer.status == 401, "{route:?}: {} {}", answer.status, answer.text());
                let word = ada(upstream).replace("ada@", "");
                let realm = format!("{} through Tarn, as USER@{word}", upstream.address());
                let expected = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
                let all: Vec<_> = answer
                    .headers
                    .iter()
                    .filter(|(name, _)| name.to_lowercase().contains("authenticate"))
                    .collect();
                ensure!(answer.header("www-authenticate") == Some(&*expected) && all.len() == 1, "{all:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_token_of_tarns_leaves_in_no_part_of_a_request() -> Result<()> {
    let two = Two::start(agent(), "Anonymous").await?;
    let word = ada(&two.right).replace("ada@", "");
    let locks = READS.into_iter().filter(|route| route.1.contains("locks"));
    for route in PUSHES.into_iter().chain(locks) {
        for token in [TOKEN, SHARED, ADMINISTRATOR] {
            let basic = |text: String| format!("Basic {}", BASE64_STANDARD.encode(text));
            for (name, value) in [
                ("Authorization", format!("Bearer {token}")),
                ("Authorization", basic(format!("ada@{word}:{token}"))),
                ("Authorization", basic(format!("{token}:"))),
                ("Authorization", basic(format!("{token}:x-oauth-basic"))),
                ("Authorization", basic(format!("{token}@{word}:"))),
                ("User-Agent", format!("git/2.39 ({token})")),
                ("Accept", format!("a/b; token={token}")),
            ] {
                let answer = ask(&two.agent, &Two::path(&two.right), route, &[(name, &value)]).await?;
                ensure!(
                    matches!(answer.status, 403 | 415),
                    "{route:?} {name}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
        }
    }
    let sent: Vec<_> =
        two.right.log().into_iter().filter(|seen| seen.operation != Operation::LsRefs).collect();
    ensure!(!sent.iter().any(|seen| seen.authorized), "{sent:?}");
    ensure!(
        sent.iter().all(|seen| !matches!(seen.operation, Operation::Push | Operation::LfsLocks)),
        "{sent:?}"
    );
    Ok(())
}
