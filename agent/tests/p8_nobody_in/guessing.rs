//! Callers' own credentials: what the upstream shows them decides, and guessing goes no faster through Tarn.

use std::time::Duration;

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Auth, Fault, Upstream};

use super::access::Route;
use super::credentials::{CANARY, secret};
use super::{PUSHES, READS, ask};
use crate::scene::agent;

/// A mirror whose callers the upstream judges.
struct Judged {
    agent: Agent,
    upstream: Upstream,
    origin: Repo,
    _dir: tempfile::TempDir,
}

impl Judged {
    async fn new() -> Result<Self> {
        Self::with("Upstream").await
    }

    async fn with(access: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let upstream = Upstream::start(dir.path())?;
        let origin = upstream.seed("a.git").await?;
        upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
        upstream.lfs().enable("a-token-of-transfers");
        let access = format!("access: {access}");
        let spec = ["secretRef: {name: creds}", &access, "freshness: {lookTimeout: 10s}"];
        let yaml = manifest("a", &upstream.url("a.git"), &spec);
        let yaml = [yaml, secret(&upstream, &[("username", "ada"), ("password", CANARY)])].join("---\n");
        let agent = agent().start_with(&[("a.yaml", &yaml)]).await?;
        agent.wait_phase(&repo_id(&upstream.url("a.git")), "Ready").await?;
        Ok(Self { agent, upstream, origin, _dir: dir })
    }

    fn path(&self) -> String {
        format!("/git/{}", repo_id(&self.upstream.url("a.git")))
    }

    /// The `Authorization` of a user of the upstream, who says which upstream is meant.
    fn basic(&self, user: &str, password: &str) -> String {
        let host = self.upstream.address().to_string().replace(':', "._");
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}@http+{host}:{password}")))
    }

    /// How many questions with wrong credentials, or none, came to the upstream.
    fn strangers(&self) -> usize {
        self.upstream.log().iter().filter(|seen| seen.status == Some(401)).count()
    }
}

#[tokio::test]
async fn an_upstream_that_asks_for_credentials_with_the_refs_alone_lets_nobody_in_without() -> Result<()> {
    let judged = Judged::new().await?;
    judged.upstream.require(Auth::BasicToPost { user: "ada".into(), password: CANARY.into() });
    for route in READS {
        let answer = ask(&judged.agent, &judged.path(), route, &[]).await?;
        ensure!(answer.status == 401, "{route:?}: {} {}", answer.status, answer.text());
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        ensure!(challenge.contains("through Tarn"), "{challenge:?}");
    }
    let own = judged.basic("ada", CANARY);
    let answer = ask(&judged.agent, &judged.path(), READS[1], &[("Authorization", &own)]).await?;
    let main = judged.origin.rev_parse("main").await?;
    ensure!(answer.status == 200 && answer.text().contains(&main), "{} {}", answer.status, answer.text());
    Ok(())
}

#[tokio::test]
async fn a_caller_whom_the_upstream_shows_fewer_refs_than_the_mirror_has_gets_none_of_them() -> Result<()> {
    let judged = Judged::new().await?;
    judged.origin.commit("secret", &[("f", "hidden")]).await?;
    let url = judged.agent.git_url(&repo_id(&judged.upstream.url("a.git")))?;
    let host = judged.upstream.address().to_string().replace(':', "._");
    let (git, own) = (Git::new()?, url.replace("//", &format!("//ada%40http+{host}:{CANARY}@")));
    ensure!(git.ls_remote(&own).await?.contains_key("refs/heads/secret"), "the mirror has it");
    // Callers are now shown other refs than the mirror: as Gerrit has it.
    judged.upstream.admit_as("bob", "builder", &["refs/heads/secret"]);
    let bob = judged.basic("bob", "builder");
    for route in READS {
        let answer = ask(&judged.agent, &judged.path(), route, &[("Authorization", &bob)]).await?;
        ensure!(answer.status == 403, "{route:?}: {} {}", answer.status, answer.text());
        ensure!(route.0 == "HEAD" || answer.text().contains("fewer branches"), "{}", answer.text());
    }
    ensure!(git.ls_remote(&own).await?.contains_key("refs/heads/secret"), "who sees all is let in");
    // One that is gone hides nothing: the mirror has not looked since.
    judged.origin.git(&["update-ref", "-d", "refs/heads/secret"]).await?;
    judged.upstream.admit_as("eve", "all", &[]);
    let eve = judged.basic("eve", "all");
    let answer = ask(&judged.agent, &judged.path(), READS[1], &[("Authorization", &eve)]).await?;
    ensure!(answer.status == 200 && !answer.text().contains("secret"), "{} {}", answer.status, answer.text());
    Ok(())
}

/// A batch request that is handed on to the upstream.
const UPLOAD: Route = (
    "POST",
    "/info/lfs/objects/batch",
    "application/vnd.git-lfs+json",
    b"{\"operation\":\"upload\",\"objects\":[{\"oid\":\"4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\",\"size\":1}]}",
);

#[tokio::test]
async fn after_five_refusals_in_a_minute_no_more_credentials_are_tried() -> Result<()> {
    let locks = READS.into_iter().filter(|route| route.1.contains("locks")).map(|route| ("Anonymous", route));
    let routes =
        [("Upstream", READS[0]), ("Upstream", PUSHES[0]), ("Upstream", PUSHES[1]), ("Anonymous", UPLOAD)];
    for (access, route) in routes.into_iter().chain(locks) {
        let judged = Judged::with(access).await?;
        let own = judged.basic("ada", CANARY);
        // What everybody may read tries no credentials.
        let own_route = if access == "Upstream" { READS[1] } else { route };
        // There is no such lock, and who asks for what there is not may be guessing.
        let own_route = if own_route.1.contains("unlock") { UPLOAD } else { own_route };
        let known = ask(&judged.agent, &judged.path(), own_route, &[("Authorization", &own)]).await?;
        ensure!(known.status < 300, "{route:?}: {} {}", known.status, known.text());
        judged.upstream.clear_log();
        let mut told = Vec::new();
        for guess in 0..20 {
            let guess = judged.basic("ada", &format!("guess-{guess}"));
            let answer = ask(&judged.agent, &judged.path(), route, &[("Authorization", &guess)]).await?;
            if answer.status == 429 {
                let wait: u64 = answer.header("retry-after").unwrap_or_default().parse()?;
                ensure!((1..=60).contains(&wait), "{wait}");
                ensure!(answer.text().contains("TooManyRefusals: "), "{}", answer.text());
            }
            told.push(answer.status);
        }
        let expected: Vec<u16> = [vec![401; 5], vec![429; 15]].concat();
        ensure!(told == expected, "{access} {route:?}: {told:?}");
        ensure!(judged.strangers() == 5, "{access} {route:?}: {}", judged.strangers());
        // Whom the upstream has let in lately goes on.
        let again = ask(&judged.agent, &judged.path(), own_route, &[("Authorization", &own)]).await?;
        ensure!(again.status < 300, "{route:?}: {}", again.text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_credentials_are_tried_at_a_time() -> Result<()> {
    let judged = Judged::new().await?;
    judged.upstream.clear_log();
    judged.upstream.require(Auth::Open);
    judged.upstream.fault(Fault::Hold);
    let many = (0..40).map(|number| {
        let (agent, path, token) =
            (&judged.agent, judged.path(), judged.basic(&format!("caller-{number}"), "pw"));
        async move {
            let route = if number % 2 == 0 { READS[0] } else { PUSHES[0] };
            ask(agent, &path, route, &[("Authorization", &token)]).await.map(|answer| answer.status)
        }
    });
    let watch = async {
        tarn_testkit::eventually::eventually(Duration::from_secs(10), "sixteen", async || {
            let held = judged.upstream.log().len();
            ensure!(held >= 16, "{held}");
            Ok(())
        })
        .await?;
        // Each takes a while from now on, so that one too many would meet the others.
        judged.upstream.fault(Fault::Delay(Duration::from_millis(200)));
        anyhow::Ok(())
    };
    let (told, watched) = tokio::join!(futures_util::future::join_all(many), watch);
    watched?;
    let told: Vec<u16> = told.into_iter().collect::<Result<_>>()?;
    ensure!(told.iter().all(|status| *status == 200), "{told:?}");
    ensure!(judged.upstream.most_at_once() == 16, "{} at a time", judged.upstream.most_at_once());
    Ok(())
}
