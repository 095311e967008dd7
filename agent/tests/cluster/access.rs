//! Access RBAC: the cluster says whose a token is and whether they may clone; the agent remembers it for a short while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;
use tarn_testkit::upstream::{Fault, Operation};
use tarn_testkit::wire::{Answer, Connection};

use super::{Cluster, PATIENCE, POD};
use crate::lfs::{ATTRIBUTES, expect_clones};
use crate::p8_nobody_in::{PUSHES, READS, ask, certificate, expect_no_canary, stranger, trusting};

/// A pod's service account.
const JOB: &str = "system:serviceaccount:ci:job";

/// The audience of the cache.
const AUDIENCE: &str = "default.ci.tarn.dev";

/// The audience by which its pods know each other.
const PEERS: &str = "peers.tarn.dev";

impl Cluster {
    /// A mirror that RBAC guards, on a pod of its own.
    async fn guarded(&self) -> Result<(Agent, Repo)> {
        let origin = self.upstream.seed("a.git").await?;
        self.api.mirror("a", "default", json!({"url": self.url("a"), "access": "RBAC"}));
        let pod = self.builder("default", POD)?.env("TARN_AGENT_LOG", "trace").start().await?;
        pod.wait_phase(&self.repo("a"), "Ready").await?;
        Ok((pod, origin))
    }

    fn path(&self, name: &str) -> String {
        format!("/git/{}", self.repo(name))
    }

    /// How many reviews of a kind were asked for.
    fn asked(&self, kind: &str) -> usize {
        self.api.reviews().iter().filter(|review| review.kind == kind).count()
    }

    /// Asks for the first thing a clone asks for.
    async fn knock(&self, pod: &Agent, token: &str) -> Result<Answer> {
        let bearer = format!("Bearer {token}");
        ask(pod, &self.path("a"), READS[0], &[("Authorization", &bearer)]).await
    }

    /// Knocks until the answer has this status; it must come within the time.
    async fn answers(&self, pod: &Agent, token: &str, status: u16, within: Duration) -> Result<Answer> {
        eventually(within, &format!("status {status}"), async || {
            let answer = self.knock(pod, token).await?;
            ensure!(answer.status == status, "{} {}", answer.status, answer.text());
            Ok(answer)
        })
        .await
    }
}

#[tokio::test]
async fn a_role_lets_a_pod_clone_and_without_it_git_shows_the_reason() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, origin) = cluster.guarded().await?;
    let token = cluster.api.mint(JOB, AUDIENCE);
    let url = pod.git_url(&cluster.repo("a"))?.replace("//", &format!("//tarn:{token}@"));
    let refused = cluster.git.attempt(["clone", &url, "refused"]).await?;
    ensure!(refused.stderr.contains("remote: AccessDenied: "), "{}", refused.stderr);
    ensure!(refused.stderr.contains(&format!("{JOB} may not get gitmirrors/clone")), "{}", refused.stderr);
    for route in READS {
        let bearer = format!("Bearer {token}");
        let answer = ask(&pod, &cluster.path("a"), route, &[("Authorization", &bearer)]).await?;
        ensure!(answer.status == 403, "{route:?}: {} {}", answer.status, answer.text());
    }
    // A right to another mirror, or one of another name, is none.
    cluster.api.grant(JOB, "b");
    cluster.api.grant("system:serviceaccount:ci:other", "a");
    cluster.answers(&pod, &token, 403, PATIENCE).await?;
    // By a group, as by name; it is seen within seconds.
    cluster.api.grant("pods", "a");
    cluster.answers(&pod, &token, 200, Duration::from_secs(15)).await?;
    let clone = cluster.git.clone_repo(&url, &cluster.dir.path().join("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == origin.rev_parse("HEAD").await?);
    let reviews = cluster.api.reviews();
    let access = reviews.iter().find(|review| review.kind == "localsubjectaccessreviews");
    let spec = &access.context("no review of access")?.spec;
    ensure!(spec["groups"] == json!(["system:authenticated", "pods"]), "{spec}");
    ensure!(spec["extra"] == json!({"example.org/pod": ["job-1"]}) && spec["uid"].is_string(), "{spec}");
    let whose =
        reviews.iter().find(|review| review.kind == "tokenreviews").context("no review of a token")?;
    ensure!(whose.spec["audiences"] == json!([AUDIENCE]), "{}", whose.spec);
    // A push is not for this token, and is told so without any.
    for route in PUSHES {
        let bearer = format!("Bearer {token}");
        for headers in [&[][..], &[("Authorization", bearer.as_str())]] {
            let answer = ask(&pod, &cluster.path("a"), route, headers).await?;
            ensure!(answer.status == 403 && answer.text().contains("pushInsteadOf"), "{}", answer.text());
        }
    }
    ensure!(!cluster.upstream.log().iter().any(|seen| seen.authorized), "the token went to the upstream");
    ensure!(!pod.logs()?.contains(&token) && !cluster.api.text().contains(&token), "the token is seen");
    expect_no_canary(&pod).await
}

#[tokio::test]
async fn a_token_that_the_cluster_does_not_vouch_for_opens_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, _origin) = cluster.guarded().await?;
    cluster.api.grant(JOB, "a");
    let expired = cluster.api.mint(JOB, AUDIENCE);
    cluster.api.revoke(&expired);
    // The API server's own audience is not the cache's: Tarn must never hold such a token.
    let foreign = cluster.api.mint(JOB, "https://kubernetes.default.svc");
    let peers = cluster.api.mint(JOB, "peers.tarn.dev");
    for route in READS {
        let none = ask(&pod, &cluster.path("a"), route, &[]).await?;
        ensure!(none.status == 401, "{route:?}: {} {}", none.status, none.text());
        ensure!(none.header("www-authenticate").is_some_and(|value| value.starts_with("Basic ")), "{none:?}");
        for token in [&expired, &foreign, &peers, "made-up"] {
            let bearer = format!("Bearer {token}");
            let answer = ask(&pod, &cluster.path("a"), route, &[("Authorization", &bearer)]).await?;
            ensure!(answer.status == 401, "{route:?} {token}: {} {}", answer.status, answer.text());
        }
    }
    // One of another namespace is known, and has no right here.
    let elsewhere = cluster.api.mint("system:serviceaccount:elsewhere:job", AUDIENCE);
    ensure!(cluster.knock(&pod, &elsewhere).await?.status == 403);
    // An API server that knows no audiences says yes to any token; it names none, and that is told.
    cluster.api.forget_audiences();
    ensure!(cluster.knock(&pod, &cluster.api.mint(JOB, "any")).await?.status == 401);
    Ok(())
}

#[tokio::test]
async fn a_role_opens_the_admin_port_and_the_right_to_clone_does_not() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, _origin) = cluster.guarded().await?;
    let (job, admin) = (cluster.api.mint(JOB, AUDIENCE), cluster.api.mint("ada", AUDIENCE));
    cluster.api.grant(JOB, "a");
    cluster.api.grant_right("ada", "get gitcaches/admin default");
    let fetch = format!("/mirrors/{}/fetch", cluster.repo("a"));
    let refused = stranger(&pod, "GET", "/status", None).await?;
    ensure!(refused.status == 401 && refused.text().contains(AUDIENCE), "{}", refused.text());
    let refused = stranger(&pod, "GET", "/status", Some(&job)).await?;
    ensure!(refused.status == 403, "{} {}", refused.status, refused.text());
    ensure!(refused.text().contains("may not get gitcaches/admin \"default\""), "{}", refused.text());
    let status = stranger(&pod, "GET", "/status", Some(&admin)).await?;
    ensure!(status.status == 200 && status.text().contains(&cluster.repo("a")), "{}", status.text());
    // To read is not to order.
    let refused = stranger(&pod, "POST", &fetch, Some(&admin)).await?;
    ensure!(
        refused.status == 403 && refused.text().contains("may not create gitcaches/admin"),
        "{}",
        refused.text()
    );
    cluster.api.grant_right("pods", "create gitcaches/admin default");
    eventually(PATIENCE, "the right to order", async || {
        let ordered = stranger(&pod, "POST", &fetch, Some(&admin)).await?;
        ensure!(ordered.status == 202, "{} {}", ordered.status, ordered.text());
        Ok(())
    })
    .await?;
    // A token for the API server opens nothing.
    let foreign = cluster.api.mint("ada", "https://kubernetes.default.svc");
    ensure!(stranger(&pod, "GET", "/status", Some(&foreign)).await?.status == 401);
    Ok(())
}

#[tokio::test]
async fn a_token_for_one_cache_is_of_no_use_at_another_of_the_namespace() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.upstream.seed("a.git").await?;
    cluster.api.mirror("a", "other", json!({"url": cluster.url("a"), "access": "RBAC"}));
    let pod = cluster.pod_of("other", "other-0").await?;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    cluster.api.grant(JOB, "a");
    let refused = cluster.knock(&pod, &cluster.api.mint(JOB, AUDIENCE)).await?;
    ensure!(refused.status == 401, "{} {}", refused.status, refused.text());
    ensure!(refused.text().contains("other.ci.tarn.dev"), "says whom it must be for: {}", refused.text());
    let own = cluster.api.mint(JOB, "other.ci.tarn.dev");
    ensure!(cluster.knock(&pod, &own).await?.status == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_of_one_caller_are_one_question() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, _origin) = cluster.guarded().await?;
    cluster.api.grant(JOB, "a");
    let token = cluster.api.mint(JOB, AUDIENCE);
    let started = Instant::now();
    let knocks = (0..20).map(|_| async {
        let mut connection = Connection::open(pod.git_address()?).await?;
        let (target, bearer) = (format!("{}{}", cluster.path("a"), READS[0].1), format!("Bearer {token}"));
        let headers = [("Authorization", bearer.as_str()), ("Git-Protocol", "version=2")];
        for _ in 0..50 {
            let answer = connection.ask("GET", &target, &headers, b"").await?;
            ensure!(answer.status == 200, "{}", answer.text());
        }
        Ok(())
    });
    for knocked in futures_util::future::join_all(knocks).await {
        knocked?;
    }
    let questions = (cluster.asked("tokenreviews"), cluster.asked("localsubjectaccessreviews"));
    // On a machine so slow that a minute went by, the question is asked again.
    let times = 1 + usize::try_from(started.elapsed().as_secs() / 60)?;
    ensure!(questions.0 <= times && questions.1 <= times, "{questions:?}");
    Ok(())
}

#[tokio::test]
async fn while_the_api_server_is_away_known_callers_are_served_and_others_turned_away() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, _origin) = cluster.guarded().await?;
    cluster.api.grant(JOB, "a");
    let (known, other) = (cluster.api.mint(JOB, AUDIENCE), cluster.api.mint(JOB, AUDIENCE));
    let asked = Instant::now();
    ensure!(cluster.knock(&pod, &known).await?.status == 200);
    cluster.api.down().await;
    let answer = cluster.knock(&pod, &other).await?;
    ensure!(answer.status == 503 && answer.header("retry-after").is_some(), "{answer:?}");
    ensure!(answer.text().starts_with("AccessUnknown: "), "{}", answer.text());
    if asked.elapsed() < Duration::from_secs(50) {
        ensure!(cluster.knock(&pod, &known).await?.status == 200, "who was let in a moment ago");
    }
    cluster.api.up().await;
    cluster.answers(&pod, &other, 200, PATIENCE).await.map(drop)
}

/// The one test that takes as long as a yes holds.
#[tokio::test]
async fn what_is_taken_back_opens_nothing_after_a_minute_and_nothing_while_nobody_answers() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, _origin) = cluster.guarded().await?;
    cluster.api.grant(JOB, "a");
    let tokens = [(); 3].map(|()| cluster.api.mint(JOB, AUDIENCE));
    let [revoked, disowned, unasked] = &tokens;
    let asked = Instant::now();
    for token in &tokens {
        ensure!(cluster.knock(&pod, token).await?.status == 200);
    }
    cluster.api.revoke(revoked);
    cluster.api.take_back(JOB, "a");
    cluster.answers(&pod, revoked, 401, Duration::from_secs(75)).await?;
    cluster.answers(&pod, disowned, 403, Duration::from_secs(75)).await?;
    let took = asked.elapsed();
    ensure!(took > Duration::from_secs(30), "the answers were not remembered: {took:?}");
    // Whoever was let in more than a minute ago is nobody's guest while the API server is away.
    cluster.api.down().await;
    // It was let in a little later than the first.
    cluster.answers(&pod, unasked, 503, Duration::from_secs(75)).await?;
    Ok(())
}

#[tokio::test]
async fn a_changed_access_takes_effect_without_a_restart() -> Result<()> {
    let cluster = Cluster::new()?;
    let (pod, _origin) = cluster.guarded().await?;
    let spec = |access: &str| json!({"url": cluster.url("a"), "access": access});
    let told = async |access: &'static str, status: u16| {
        cluster.api.mirror("a", "default", spec(access));
        eventually(PATIENCE, access, async || {
            let answer = ask(&pod, &cluster.path("a"), READS[0], &[]).await?;
            ensure!(answer.status == status, "{}", answer.status);
            Ok::<_, anyhow::Error>(())
        })
        .await
    };
    told("Anonymous", 200).await?;
    told("RBAC", 401).await?;
    // There is no file of tokens: nobody is let in, and the entry says why.
    told("Authenticated", 503).await?;
    let stalled = |entry: &Value| entry["findings"][0]["reason"] == "AccessUnsupported";
    cluster.entry("a", POD, "AccessUnsupported", stalled).await.map(drop)
}

/// What a judgement that is remembered costs: three requests, as a clone has them, against those of a mirror for all.
#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_caller_costs_a_clone_less_than_a_millisecond() -> Result<()> {
    let cluster = Cluster::new()?;
    let (rounds, token) = (200, cluster.api.mint(JOB, AUDIENCE));
    cluster.api.grant(JOB, "a");
    for (name, access) in [("a", "RBAC"), ("b", "Anonymous")] {
        cluster.upstream.seed(&format!("{name}.git")).await?;
        cluster.api.mirror(name, "default", json!({"url": cluster.url(name), "access": access}));
    }
    let pod = cluster.builder("default", POD)?.start().await?;
    for name in ["a", "b"] {
        pod.wait_phase(&cluster.repo(name), "Ready").await?;
    }
    let mut connection = Connection::open(pod.git_address()?).await?;
    let bearer = format!("Bearer {token}");
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..rounds {
        for (at, name) in ["a", "b"].into_iter().enumerate() {
            let target = format!("{}{}", cluster.path(name), READS[0].1);
            let headers = [("Git-Protocol", "version=2"), ("Authorization", bearer.as_str())];
            let headers = if name == "a" { &headers[..] } else { &headers[..1] };
            let started = Instant::now();
            for _ in 0..3 {
                let answer = connection.ask("GET", &target, headers, b"").await?;
                ensure!(answer.status == 200, "{}", answer.text());
            }
            times[at].push(started.elapsed());
        }
    }
    let [guarded, open] = times.map(|mut times| {
        times.sort();
        times[rounds / 2]
    });
    println!("three requests, p50: RBAC {guarded:?}, Anonymous {open:?}");
    ensure!(guarded < open + Duration::from_millis(1), "RBAC {guarded:?}, Anonymous {open:?}");
    Ok(())
}

/// Two cold pods and a warm one, by EndpointSlices: whoever answers must know that the caller was allowed.
#[tokio::test]
async fn a_pod_that_asks_another_vouches_for_its_caller_and_proves_who_it_is() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.upstream.seed("a.git").await?;
    cluster.api.mirror("a", "default", json!({"url": cluster.url("a"), "access": "RBAC"}));
    let account = "system:serviceaccount:ci:default-agent";
    let proof = cluster.dir.path().join("proof");
    std::fs::write(&proof, cluster.api.mint(account, PEERS))?;
    let pod = async |name: &str| {
        let pod = cluster.builder("default", name)?.env("TARN_AGENT_LOG", "trace");
        pod.arg("--peer-token").arg(&proof).start().await
    };
    let warm = pod("default-0").await?;
    warm.wait_phase(&cluster.repo("a"), "Ready").await?;
    // Nobody else gets the objects from the upstream.
    cluster.upstream.fault_on(Operation::Fetch, Fault::Hold);
    let cold = pod("default-1").await?;
    cold.wait_phase(&cluster.repo("a"), "Cloning").await?;
    cluster.api.endpoint("default-pods", "default-0", warm.git_address()?);
    eventually(PATIENCE, "the other pod", async || {
        ensure!(cold.logs()?.contains("the cache's other ready pods peers=1"), "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let token = cluster.api.mint(JOB, AUDIENCE);
    let url = cold.git_url(&cluster.repo("a"))?.replace("//", &format!("//tarn:{token}@"));
    // Who may not have it is turned away by the first pod; the second is not asked.
    let refused = cluster.git.attempt(["clone", &url, "refused"]).await?;
    ensure!(refused.stderr.contains("remote: AccessDenied: "), "{}", refused.stderr);
    cluster.api.grant(JOB, "a");
    cluster.answers(&cold, &token, 200, Duration::from_secs(15)).await?;
    let clone = cluster.git.clone_repo(&url, &cluster.dir.path().join("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == origin.rev_parse("HEAD").await?);
    let served = cold.metrics().await?;
    ensure!(served.contains("tarn_serve_proxied_total{outcome=\"served\"}"), "{served}");
    // What the warm pod was shown is a token of the cache's account for this audience, and no other.
    let reviews = cluster.api.reviews();
    ensure!(reviews.iter().any(|review| review.spec["audiences"] == json!([PEERS])), "{reviews:?}");
    let logs = [warm.logs()?, cold.logs()?].concat();
    let shown = std::fs::read_to_string(&proof)?;
    ensure!(!logs.contains(&token) && !logs.contains(&shown), "a token is in a log");

    // The way in for agents is for agents of this cache alone, and only for what both know of the mirror.
    let caller = ("Tarn-Caller", "RBAC kubernetes;system%3Aserviceaccount%3Aci%3Ajob");
    let own = format!("Bearer {shown}");
    let job = format!("Bearer {token}");
    let other =
        format!("Bearer {}", cluster.api.mint("system:serviceaccount:elsewhere:default-agent", PEERS));
    let account_elsewhere = format!("Bearer {}", cluster.api.mint(account, AUDIENCE));
    let marked = ("Tarn-Proxied-By", "default-1");
    for (what, headers, status) in [
        ("no proof", vec![marked, caller], 403),
        ("the caller's own token", vec![marked, caller, ("Authorization", &job)], 403),
        ("another cache's agent", vec![marked, caller, ("Authorization", &other)], 403),
        ("a token for callers", vec![marked, caller, ("Authorization", &account_elsewhere)], 403),
        ("no caller", vec![marked, ("Authorization", &own)], 403),
        (
            "another access",
            vec![marked, ("Tarn-Caller", "Anonymous anonymous;"), ("Authorization", &own)],
            403,
        ),
        ("an agent that does not say that it is one", vec![caller, ("Authorization", &own)], 401),
        ("an agent", vec![marked, caller, ("Authorization", &own)], 200),
    ] {
        for route in READS {
            // With credentials of its own the rest of the API answers as to anybody whom it lets in.
            if status == 200 && route != READS[0] {
                continue;
            }
            let answer = ask(&warm, &cluster.path("a"), route, &headers).await?;
            ensure!(answer.status == status, "{what}: {route:?}: {} {}", answer.status, answer.text());
        }
    }
    // Pods that know different declarations do not vouch for each other.
    cluster.api.mirror("a", "default", json!({"url": cluster.url("a"), "access": "Upstream"}));
    eventually(PATIENCE, "the new access", async || {
        let answer =
            ask(&warm, &cluster.path("a"), READS[0], &[marked, caller, ("Authorization", &own)]).await?;
        ensure!(answer.status == 403 && answer.text().contains("another access"), "{}", answer.text());
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// Pods are called by their addresses, which no certificate names: they know each other by the key they share.
#[tokio::test]
async fn pods_ask_each_other_over_tls_and_believe_none_but_their_own() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.upstream.seed("a.git").await?;
    cluster.api.mirror("a", "default", json!({"url": cluster.url("a"), "access": "RBAC"}));
    cluster.api.grant(JOB, "a");
    let proof = cluster.dir.path().join("proof");
    std::fs::write(&proof, cluster.api.mint("system:serviceaccount:ci:default-agent", PEERS))?;
    let pod = async |name: &str, shown: &str| {
        let pod = cluster.builder("default", name)?.env("TARN_AGENT_LOG", "info,tarn_agent=debug");
        let pod = pod.arg("--tls-cert").arg(certificate(&format!("{shown}.pem")));
        let pod = pod.arg("--tls-key").arg(certificate(&format!("{shown}.key")));
        pod.arg("--peer-token").arg(&proof).start().await
    };
    let warm = pod("default-0", "server").await?;
    warm.wait_phase(&cluster.repo("a"), "Ready").await?;
    cluster.upstream.fault_on(Operation::Fetch, Fault::Hold);
    cluster.api.endpoint("default-pods", "default-0", warm.git_address()?);
    let token = cluster.api.mint(JOB, AUDIENCE);
    for (name, shown, authority, served) in
        [("default-1", "renewed", "renewed.pem", "unreachable"), ("default-2", "server", "ca.pem", "served")]
    {
        let cold = pod(name, shown).await?;
        cold.wait_phase(&cluster.repo("a"), "Cloning").await?;
        eventually(PATIENCE, "the other pod", async || {
            ensure!(cold.logs()?.contains("the cache's other ready pods peers=1"), "not yet");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let url = cold.git_url(&cluster.repo("a"))?.replace("http://", &format!("https://tarn:{token}@"));
        // Refs are the upstream's where no peer is believed.
        trusting(authority)?.ls_remote(&url).await?;
        let metrics = cold.metrics().await?;
        let line = format!("tarn_serve_proxied_total{{outcome=\"{served}\"}}");
        ensure!(metrics.contains(&line), "{name}: {metrics}");
        ensure!(metrics.matches("tarn_serve_proxied_total{").count() == 1, "{name}: {metrics}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn git_lfs_gets_objects_behind_a_role() -> Result<()> {
    let (cluster, content) = (Cluster::new()?, b"an object".repeat(1000));
    let origin = cluster.upstream.seed("a.git").await?;
    cluster.upstream.lfs().enable("a-token-of-transfers");
    let pointer = cluster.upstream.lfs().put("a.git", &content);
    origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await?;
    cluster.api.mirror("a", "default", json!({"url": cluster.url("a"), "access": "RBAC"}));
    cluster.api.grant(JOB, "a");
    let pod = cluster.builder("default", POD)?.start().await?;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    let (url, token) = (pod.git_url(&cluster.repo("a"))?, cluster.api.mint(JOB, AUDIENCE));
    expect_clones(&pod, &url, ("tarn", &token), &content, cluster.dir.path()).await
}
