//! An agent with mirrors of a hostile upstream, the questions to it, and what may come back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tarn_testkit::agent::{Agent, PATIENCE, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::hostile::{Harm, Hostile, MARK};
use tarn_testkit::measure::peak_rss;
use tarn_testkit::trap::{SECRET, Trap};
use tarn_testkit::upstream::lfs;
use tarn_testkit::wire::{Answer, Connection, End, Heard, pkt, request};

use crate::lfs::ATTRIBUTES;
use crate::p4_never_stuck::files;
use crate::p8_nobody_in::access::{PUSHES, READS, is_handed_on};
use crate::p8_nobody_in::credentials::{CANARY, CANARY_BASE64, secret_for};
use crate::scene::agent;

/// The mirror to whose requests no harm is done.
const HEALTHY: &str = "healthy";

/// Longer than what does not hold a request open takes on a busy machine.
pub(super) const QUICK: Duration = Duration::from_secs(135);

/// More than the right answers, and little of those without end.
const MOST: usize = 4 << 20;

/// What is right where the upstream is honest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Right {
    /// What the mirror answers while its upstream is honest.
    AsHonest,
    /// These bytes.
    Bytes(Vec<u8>),
    /// JSON of the LFS API, of the agent's own.
    Json,
    /// The same of the upstream's: where an object is to be uploaded is the upstream's word, and the client goes there itself.
    HandedOn,
    /// What git says of a push.
    Push,
    /// An error.
    Error,
}

/// A question to the agent.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) method: &'static str,
    pub(super) rest: String,
    kind: &'static str,
    body: Vec<u8>,
    /// With the caller's own credentials.
    pub(super) known: bool,
    pub(super) right: Right,
}

impl Question {
    pub(super) fn new(method: &'static str, rest: impl Into<String>, right: Right) -> Self {
        Self { method, rest: rest.into(), kind: "", body: Vec::new(), known: false, right }
    }

    fn with(self, kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { kind, body: body.into(), ..self }
    }

    /// What tells it from the others, whatever it names.
    pub(super) fn name(&self) -> String {
        format!("{} {} {}", self.method, self.rest, String::from_utf8_lossy(&self.body))
    }

    pub(super) async fn ask(&self, stage: &Stage, lane: &str, patience: Duration) -> Result<Heard> {
        let user = format!("ada@http+{}", stage.hostile.address().to_string().replace(':', "._"));
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{CANARY}")));
        let mut headers = vec![("Git-Protocol", "version=2"), ("Connection", "close")];
        if !self.kind.is_empty() {
            headers.push(("Content-Type", self.kind));
        }
        if self.known {
            headers.push(("Authorization", &basic));
        }
        let target = format!("{}{}", stage.path(lane), self.rest);
        let bytes = request(self.method, &target, &headers, &self.body);
        Connection::open(stage.agent.git_address()?).await?.hear(&bytes, MOST, patience).await
    }
}

/// Objects of LFS that nobody has asked for yet: what was brought once is not asked for again.
fn object(round: &str) -> Vec<u8> {
    format!("the object of round {round}, which is long enough to be cut in the middle").into_bytes()
}

fn fetch(want: &str) -> Vec<u8> {
    let lines = [pkt(&format!("want {want}\n")), pkt("ofs-delta\n"), pkt("done\n")].concat();
    [pkt("command=fetch"), b"0001".to_vec(), lines, b"0000".to_vec()].concat()
}

/// An agent that mirrors the hostile server by several names.
pub(super) struct Stage {
    pub(super) agent: Agent,
    pub(super) hostile: Hostile,
    origin: Repo,
    trap: Trap,
    git: Git,
    /// What is answered while the upstream is honest, by the mirror's name and the question's.
    honest: BTreeMap<(String, String), Answer>,
    main: String,
    before: String,
    dir: tempfile::TempDir,
}

impl Stage {
    /// An agent whose one mirror meets no harm: its upstream is another server.
    pub(super) async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let trap = Trap::start(None)?;
        let (hostile, origin) = Hostile::start(&root, trap.address()).await?;
        let inner = hostile.inner();
        inner.lfs().enable("token-of-lfs");
        let pointer = inner.lfs().put("a.git", &object("pointer"));
        origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await?;
        let (main, before) = (origin.rev_parse("main").await?, origin.rev_parse("main^").await?);
        let secret = secret_for(hostile.address(), &[("username", "ada"), ("password", CANARY)]);
        let healthy = manifest(HEALTHY, &inner.url("a.git"), &["freshness: {maxStaleness: 0s}"]);
        let agent = agent().env("TARN_AGENT_LOG", "debug");
        let agent = agent.start_with(&[("healthy.yaml", &healthy), ("secret.yaml", &secret)]).await?;
        let (git, honest) = (Git::new()?, BTreeMap::new());
        let mut stage = Self { agent, hostile, origin, trap, git, honest, main, before, dir };
        stage.learn(HEALTHY).await?;
        Ok(stage)
    }

    /// Declares a mirror of the hostile server for each of these names.
    pub(super) fn declare<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let spec = [
            "secretRef: {name: creds}",
            "access: Anonymous",
            "interval: 1h",
            "freshness: {lookTimeout: 3s, maxStaleness: 0s}",
        ];
        let all: Vec<String> = names.map(|name| manifest(name, &self.hostile.url(name), &spec)).collect();
        self.agent.write_manifest("hostile.yaml", &all.join("---\n"))
    }

    /// Waits until a mirror has all that can be made of it, and learns what it answers while its upstream is honest.
    pub(super) async fn learn(&mut self, name: &str) -> Result<()> {
        self.agent.wait_settled(&self.repo(name)).await?;
        let found = self.agent.get(&format!("{}/lfs-snapshot.tar.zst?wait=30", self.path(name))).await?;
        ensure!(found.status == 200, "{} {}", found.status, found.text());
        for question in self.questions(&format!("honest-{name}")) {
            let heard = question.ask(self, name, QUICK).await?;
            let answer = heard.answer(question.method).await.context("an honest upstream, and no answer")?;
            self.honest.insert((name.to_owned(), question.name()), answer);
            self.judge(name, &question, None, &heard).await.with_context(|| question.name())?;
        }
        Ok(())
    }

    pub(super) fn repo(&self, name: &str) -> String {
        let url = if name == HEALTHY { self.hostile.inner().url("a.git") } else { self.hostile.url(name) };
        repo_id(&url)
    }

    pub(super) fn path(&self, name: &str) -> String {
        format!("/git/{}", self.repo(name))
    }

    /// What the router serves, and what makes the agent ask the upstream for more; new objects for each round.
    pub(super) fn questions(&self, round: &str) -> Vec<Question> {
        const LFS: &str = "application/vnd.git-lfs+json";
        const FETCH: &str = "application/x-git-upload-pack-request";
        let mut all = Vec::new();
        for route in READS {
            let right = if is_handed_on(route) { Right::HandedOn } else { Right::AsHonest };
            all.push(Question::new(route.0, route.1, right).with(route.2, route.3));
        }
        for route in PUSHES {
            all.push(Question::new(route.0, route.1, Right::Push).with(route.2, route.3));
        }
        let handed_on: Vec<Question> = all
            .iter()
            .filter(|question| matches!(question.right, Right::Push | Right::HandedOn))
            .cloned()
            .collect();
        all.extend(handed_on.into_iter().map(|question| Question { known: true, ..question }));
        for operation in ["download", "upload"] {
            let content = object(&format!("{round}-{operation}"));
            let right = match operation {
                "download" => {
                    self.hostile.inner().lfs().put("a.git", &content);
                    Right::Json
                }
                _ => Right::HandedOn,
            };
            let (oid, size) = (lfs::oid(&content), content.len());
            let body = serde_json::json!({"operation": operation, "objects": [{"oid": oid, "size": size}]});
            let batch = Question::new("POST", "/info/lfs/objects/batch", right);
            all.push(batch.with(LFS, body.to_string()));
        }
        for way in ["whole", "part"] {
            let content = object(&format!("{round}-{way}"));
            self.hostile.inner().lfs().put("a.git", &content);
            // Whoever asks may say that it is longer than it is.
            let size = if way == "whole" { content.len() } else { content.len() * 9 };
            let rest = format!("/info/lfs/objects/{}?size={size}", lfs::oid(&content));
            all.push(Question::new("GET", rest, Right::Bytes(content)));
        }
        all.push(Question::new("GET", format!("/snapshot.bundle?base={}", self.before), Right::AsHonest));
        all.push(Question::new("POST", "/git-upload-pack", Right::AsHonest).with(FETCH, fetch(&self.main)));
        all
    }

    /// A request for an object that is not here, nor at the upstream: each another one.
    pub(super) fn unknown(&self, round: &str) -> Question {
        let id = lfs::oid(round.as_bytes());
        let id = id.get(..40).unwrap_or_default();
        let kind = "application/x-git-upload-pack-request";
        Question::new("POST", "/git-upload-pack", Right::Error).with(kind, fetch(id))
    }

    /// An error, or what is right, and nothing that is the trap's or of a page.
    pub(super) async fn judge(
        &self,
        name: &str,
        question: &Question,
        harm: Option<Harm>,
        heard: &Heard,
    ) -> Result<()> {
        let bytes = String::from_utf8_lossy(&heard.bytes);
        for leak in [SECRET, MARK, CANARY, CANARY_BASE64] {
            ensure!(!bytes.contains(leak), "{leak} is shown: {bytes:.2000}");
        }
        ensure!(heard.end != End::Late, "no end: {} bytes, {bytes:.300}", heard.bytes.len());
        // What is cut is no answer, and its reader knows.
        let Some(answer) = heard.answer(question.method).await else { return Ok(()) };
        let (text, kind) = (answer.text(), answer.header("content-type").unwrap_or_default());
        if question.right == Right::Push
            && answer.status == 200
            && kind.starts_with("application/x-git-receive-pack-")
        {
            return Ok(());
        }
        ensure!(!text.contains("\u{1b}]0;") && !text.contains("u001b"), "it paints: {text:?}");
        if !kind.starts_with("application/x-git-") {
            ensure!(!text.contains("\n2026-01-01"), "it forges a line: {text:?}");
        }
        if answer.status >= 400 || text.get(4..8) == Some("ERR ") {
            return Ok(());
        }
        // Where it took long, the answer has begun, and its error stands in a band: it may name whom nobody asked.
        if text.starts_with("000dpackfile\n") && !text.contains("PACK") {
            return Ok(());
        }
        let leads = text.contains(&self.trap.address().to_string());
        ensure!(!leads || question.right == Right::HandedOn, "it leads to another server: {text:.500}");
        match &question.right {
            Right::Bytes(right) => ensure!(answer.body == *right, "not the object: {text:.300}"),
            Right::Json | Right::HandedOn => {
                ensure!(kind == "application/vnd.git-lfs+json", "{kind}: {text:.300}");
                serde_json::from_str::<Value>(&text).with_context(|| text.clone())?;
            }
            Right::Error | Right::Push => bail!("{} {kind} {text:.300}", answer.status),
            Right::AsHonest if harm.is_some_and(Harm::is_gits) => {}
            Right::AsHonest => {
                let honest = |name: &str| self.honest.get(&(name.to_owned(), question.name()));
                // Each mirror has archives of its own.
                if honest(name).is_none() && question.rest.contains("snapshot.tar.zst") {
                    return Ok(());
                }
                let honest = honest(name).or_else(|| honest(HEALTHY)).context("an unknown question")?;
                ensure!(
                    (answer.status, same(&answer.body)) == (honest.status, same(&honest.body)),
                    "another answer than of an honest upstream: {} {text:.300}, not {} {:.300}",
                    answer.status,
                    honest.status,
                    honest.text()
                );
            }
        }
        Ok(())
    }

    /// Nobody else was asked, and the agent serves a mirror beside.
    pub(super) async fn expect_well(&self, what: &str) -> Result<()> {
        ensure!(self.trap.met() == 0, "{what}: another server was asked: {:?}", self.trap.heard());
        for question in self.questions("beside").into_iter().take(2) {
            let heard = question.ask(self, HEALTHY, QUICK).await?;
            self.judge(HEALTHY, &question, None, &heard)
                .await
                .with_context(|| format!("{what}: the healthy mirror"))?;
            let answer = heard.answer(question.method).await.context("cut")?;
            ensure!(answer.status == 200, "{what}: the healthy mirror: {} {}", answer.status, answer.text());
            // Capabilities rest on no look.
            let fresh = answer.header("tarn-freshness").unwrap_or("verified");
            ensure!(fresh == "verified", "{what}: the healthy mirror is {fresh}");
        }
        Ok(())
    }

    /// The agent lives, is small, and neither its log, nor its status, nor its disk has what was shown to it.
    pub(super) async fn expect_clean(&self) -> Result<()> {
        ensure!(self.agent.admin("/healthz").await?.status == 200, "it is not alive");
        let peak = peak_rss(self.agent.pid()?)? >> 20;
        ensure!(peak < 1000, "the agent took {peak} MB");
        let (logs, status) = (self.agent.logs()?, self.agent.status().await?.to_string());
        for (place, text) in [("the log", &logs), ("status", &status)] {
            for leak in [SECRET, MARK, CANARY, CANARY_BASE64, "\u{1b}]0;", "\r\n2026", "\n2026-01-01T00"] {
                ensure!(!text.contains(leak), "{leak:?} is in {place}");
            }
        }
        for file in files(self.agent.data())? {
            // What is on its way may go meanwhile; secrets are where they belong.
            let Ok(content) = std::fs::read(&file) else { continue };
            let has = |text: &str| content.windows(text.len()).any(|part| part == text.as_bytes());
            ensure!(content.len() > MOST || !has(SECRET) && !has(MARK), "a page is in {}", file.display());
        }
        ensure!(self.trap.met() == 0, "{:?}", self.trap.heard());
        Ok(())
    }

    /// The upstream is honest again, and the mirror has all that is there.
    pub(super) async fn expect_mended(&self, name: &str) -> Result<()> {
        self.hostile.repent(name);
        let url = self.agent.git_url(&self.repo(name))?;
        let truth = self.origin.refs().await?;
        eventually(PATIENCE, &format!("{name} to be mended"), async || {
            let seen = self.git.ls_remote(&url).await?;
            ensure!(seen == truth, "{} refs", seen.len());
            Ok(())
        })
        .await?;
        self.git.clone_repo(&url, &self.dir.path().join(format!("clone-{name}")), &[]).await?.fsck().await
    }
}

/// What has to be the same in two answers to one question: not who had fetched first, nor how a pack is put together, of which
/// clients check each object.
fn same(body: &[u8]) -> Vec<u8> {
    let pack = b"000dpackfile\n";
    if body.starts_with(pack) && body.ends_with(b"0000") {
        return pack.to_vec();
    }
    String::from_utf8_lossy(body).replace("\"fetched\":true", "\"fetched\":false").into_bytes()
}
