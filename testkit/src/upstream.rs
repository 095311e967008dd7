//! A real git server on loopback: smart HTTP in front of `git http-backend`, with a request log, optional
//! authentication, and faults that a test switches while it runs.

mod cgi;
mod fault;
pub mod lfs;
mod log;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use self::fault::Action;
pub use self::fault::Fault;
pub use self::log::{Operation, Record};
pub(crate) use self::log::{base64, operation_of};
use crate::git::Repo;
use crate::listening::Listening;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, anyhow::Error>;

/// Who may read and write; nobody needs credentials unless a test asks for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Any request is served.
    Open,
    /// `Authorization: Basic` with this name and password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// `Authorization: Bearer` with this token.
    Bearer(String),
    /// The same as [`Auth::Basic`], but for GET, which anyone may.
    BasicToPost {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

/// What kind of server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habits {
    /// As the public hosts: protocol v2, partial clones, wants by any id.
    Modern,
    /// As a server of ten years ago: the first protocol only, no partial clones, wants of tips only.
    Old,
    /// As git 2.18 to 2.27: protocol v2 without `object-format`, and a server that dies of what it has not offered.
    Strict,
    /// As the public hosts, with packs that take so many milliseconds to begin, with or without keepalive packets each
    /// second meanwhile.
    Thinking {
        /// How long.
        millis: u32,
        /// Whether the client hears that the server lives.
        keepalives: bool,
    },
}

/// A running git server for all repositories below one directory. It stops when dropped, its children too.
///
/// It runs on threads of its own: a test may block, and the server still answers.
#[derive(Debug)]
pub struct Upstream {
    state: Arc<State>,
    listening: Listening,
    scheme: &'static str,
}

/// What the server's tasks share with the test.
#[derive(Debug)]
struct State {
    root: PathBuf,
    auth: Mutex<Auth>,
    /// Others who are let in: their `Authorization`, and the refs that are hidden from them.
    others: Mutex<Vec<(String, Vec<String>)>>,
    habits: Mutex<Habits>,
    faults: watch::Sender<fault::Faults>,
    log: Mutex<Vec<Record>>,
    busy: Mutex<Busy>,
    lfs: lfs::Lfs,
}

/// Requests under way.
#[derive(Debug, Default)]
struct Busy {
    now: usize,
    most: usize,
}

/// One of them.
struct Counted<'a>(&'a Mutex<Busy>);

impl<'a> Counted<'a> {
    fn new(busy: &'a Mutex<Busy>) -> Self {
        let mut count = lock(busy);
        count.now += 1;
        count.most = count.most.max(count.now);
        drop(count);
        Self(busy)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        lock(self.0).now -= 1;
    }
}

impl Upstream {
    /// Serves the repositories below `root` on a free port of 127.0.0.1.
    pub fn start(root: &Path) -> Result<Self> {
        Self::start_on(root, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Serves the repositories below `root` on this address.
    pub fn start_on(root: &Path, address: SocketAddr) -> Result<Self> {
        Self::start_with(root, address, None)
    }

    /// The same as [`Upstream::start`] over TLS, with a certificate of the kit: `server`, for which `ca.pem` vouches, or `other`, for
    /// which `other-ca.pem` does.
    pub fn start_https(root: &Path, certificate: &str) -> Result<Self> {
        let acceptor = tls::acceptor(certificate)?;
        Self::start_with(root, SocketAddr::from(([127, 0, 0, 1], 0)), Some(acceptor))
    }

    fn start_with(root: &Path, address: SocketAddr, tls: Option<TlsAcceptor>) -> Result<Self> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let root = root.canonicalize().with_context(|| format!("find {}", root.display()))?;
        let state = Arc::new(State {
            root,
            auth: Mutex::new(Auth::Open),
            others: Mutex::default(),
            habits: Mutex::new(Habits::Modern),
            faults: watch::Sender::new(fault::Faults::default()),
            log: Mutex::default(),
            busy: Mutex::default(),
            lfs: lfs::Lfs::default(),
        });
        let shared = Arc::clone(&state);
        let listening = Listening::start("upstream", address, move |stream| {
            let state = Arc::clone(&shared);
            let service = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { state.answer(request).await }
            });
            let tls = tls.clone();
            async move {
                let server = hyper::server::conn::http1::Builder::new();
                // A cut connection is what the test asked for, or the client's own doing.
                match tls {
                    None => drop(server.serve_connection(TokioIo::new(stream), service).await),
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            let _ = server.serve_connection(TokioIo::new(stream), service).await;
                        }
                    }
                }
            }
        })?;
        Ok(Self { state, listening, scheme })
    }

    /// The directory whose repositories are served.
    pub fn root(&self) -> &Path {
        &self.state.root
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// The URL of a repository, named by its path below the root, such as `team/a.git`.
    pub fn url(&self, repo: &str) -> String {
        format!("{}://{}/{repo}", self.scheme, self.address())
    }

    /// Creates a bare repository with one commit, to be served at [`Upstream::url`] of the same name.
    pub async fn seed(&self, repo: &str) -> Result<Repo> {
        Repo::seeded(self.state.root.join(repo)).await
    }

    /// The server's LFS.
    pub fn lfs(&self) -> &lfs::Lfs {
        &self.state.lfs
    }

    /// Asks every request from now on for these credentials.
    pub fn require(&self, auth: Auth) {
        *lock(&self.state.auth) = auth;
    }

    /// Lets another user in, to whom these refs are hidden, as Gerrit hides what a user may not read.
    pub fn admit_as(&self, user: &str, password: &str, hidden: &[&str]) {
        let given = format!("Basic {}", log::base64(&format!("{user}:{password}")));
        lock(&self.state.others).push((given, hidden.iter().map(|name| (*name).to_owned()).collect()));
    }

    /// Serves every request from now on as this kind of server.
    pub fn behave(&self, habits: Habits) {
        *lock(&self.state.habits) = habits;
    }

    /// Lets every request meet this fault from now on; all earlier faults end.
    pub fn fault(&self, fault: Fault) {
        self.state.faults.send_modify(|faults| faults.replace(fault));
    }

    /// Lets requests of one kind meet this fault, besides the faults already there; the latest wins.
    pub fn fault_on(&self, operation: Operation, fault: Fault) {
        self.state.faults.send_modify(|faults| faults.add(None, Some(operation), fault));
    }

    /// Lets requests for one repository meet this fault, besides the faults already there; the latest wins.
    pub fn fault_in(&self, repo: &str, fault: Fault) {
        self.state.faults.send_modify(|faults| faults.add(Some(repo.to_owned()), None, fault));
    }

    /// Ends all faults. Requests held by [`Fault::Hold`] go on; those that hang stay so.
    pub fn mend(&self) {
        self.fault(Fault::None);
    }

    /// Stops listening and cuts all connections, as a crashed host would; the port stays reserved.
    pub async fn down(&self) {
        self.listening.down().await;
    }

    /// Listens again after [`Upstream::down`].
    pub async fn up(&self) {
        self.listening.up().await;
    }

    /// Every request so far, in the order of arrival.
    pub fn log(&self) -> Vec<Record> {
        lock(&self.state.log).clone()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        lock(&self.state.log).clear();
    }

    /// The most requests that were being answered at once, up to where their answers' bodies begin.
    pub fn most_at_once(&self) -> usize {
        lock(&self.state.busy).most
    }

    /// How many requests of one kind arrived for one repository.
    pub fn count(&self, repo: &str, operation: Operation) -> usize {
        lock(&self.state.log).iter().filter(|seen| seen.repo == repo && seen.operation == operation).count()
    }
}

impl State {
    /// Answers one request, or fails, upon which the connection is cut.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let _counted = Counted::new(&self.busy);
        let (parts, body) = request.into_parts();
        let (operation, body) = log::recognise(&parts, body).await?;
        let repo = log::repo_of(parts.uri.path());
        let number = {
            let mut log = lock(&self.log);
            log.push(Record::new(&parts, repo.clone(), operation));
            log.len() - 1
        };
        let Some(hidden) = self.admits(&parts) else {
            self.note(number, StatusCode::UNAUTHORIZED);
            let mut answer = plain(StatusCode::UNAUTHORIZED, "text/plain", "credentials, please\n");
            answer.headers_mut().insert(WWW_AUTHENTICATE, "Basic realm=\"upstream\"".parse()?);
            return Ok(answer);
        };
        let action = fault::meet(self.faults.subscribe(), &repo, operation).await;
        let answer = match action {
            Action::Pass { wrap } => {
                let answer = if operation.is_lfs() && self.lfs.enabled() {
                    self.lfs.answer(&parts, &repo, body).await?
                } else {
                    let habits = *lock(&self.habits);
                    if habits == Habits::Strict {
                        strict(&self.root, &parts, body).await?
                    } else {
                        cgi::run(&self.root, habits, &hidden, &parts, body).await?
                    }
                };
                wrap.apply(answer).await?
            }
            Action::Answer { status, content_type, text } => plain(status, content_type, &text),
            Action::Endless => {
                let mut answer = plain(StatusCode::OK, operation.answered_with(parts.uri.path()), "");
                *answer.body_mut() = fault::endless();
                answer
            }
            Action::Lead(status, url) => {
                let mut answer = plain(status, "text/plain", "elsewhere\n");
                answer.headers_mut().insert(LOCATION, url.parse()?);
                answer
            }
            Action::Later(seconds) => {
                let mut answer = plain(StatusCode::TOO_MANY_REQUESTS, "text/plain", "too many requests\n");
                answer.headers_mut().insert(RETRY_AFTER, seconds.into());
                answer
            }
            Action::Redirect(base) => {
                let mut answer = plain(StatusCode::FOUND, "text/plain", "elsewhere\n");
                let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
                answer.headers_mut().insert(LOCATION, format!("{base}{path}").parse()?);
                answer
            }
        };
        self.note(number, answer.status());
        fault::released(self.faults.subscribe(), &repo, operation).await;
        Ok(answer)
    }

    /// The refs that are hidden from whoever sent the request; none where it does not carry the credentials asked for.
    fn admits(&self, parts: &http::request::Parts) -> Option<Vec<String>> {
        let given = parts.headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
        if let Some((_, hidden)) =
            lock(&self.others).iter().find(|(other, _)| given == Some(other.as_bytes()))
        {
            return Some(hidden.clone());
        }
        let expected = match &*lock(&self.auth) {
            Auth::Open => return Some(Vec::new()),
            Auth::BasicToPost { .. } if parts.method == http::Method::GET => return Some(Vec::new()),
            Auth::Basic { user, password } | Auth::BasicToPost { user, password } => {
                format!("Basic {}", log::base64(&format!("{user}:{password}")))
            }
            Auth::Bearer(token) => format!("Bearer {token}"),
        };
        (given == Some(expected.as_bytes())).then(Vec::new)
    }

    fn note(&self, number: usize, status: StatusCode) {
        if let Some(record) = lock(&self.log).get_mut(number) {
            record.status = Some(status.as_u16());
        }
    }
}

/// What git 2.18 to 2.27 would answer: it offers no `object-format`, and ends without a word when it is asked for one.
async fn strict(root: &Path, parts: &http::request::Parts, body: Body) -> Result<Response<Body>> {
    const NEW: &[u8] = b"object-format=";
    let has = |bytes: &[u8]| bytes.windows(NEW.len()).any(|part| part == NEW);
    let whole = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    let asked = body.collect().await?.to_bytes();
    if has(&asked) {
        return Ok(plain(StatusCode::OK, "application/x-git-upload-pack-result", ""));
    }
    let answer = cgi::run(root, Habits::Modern, &[], parts, whole(asked)).await?;
    if !parts.uri.path().ends_with("/info/refs") {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let (told, mut kept, mut at) = (body.collect().await?.to_bytes(), Vec::new(), 0);
    while let Some(digits) = told.get(at..at + 4) {
        let length = usize::from_str_radix(std::str::from_utf8(digits)?, 16)?.max(4);
        let packet = told.get(at..at + length).context("a packet")?;
        if !has(packet) {
            kept.extend_from_slice(packet);
        }
        at += length;
    }
    Ok(Response::from_parts(head, whole(kept.into())))
}

fn plain(status: StatusCode, content_type: &'static str, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

/// Locks; a test thread that panicked does not spoil what the lock guards.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::git::{Git, ObjectFormat};

    async fn served() -> (tempfile::TempDir, Upstream, Repo, Git) {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::start(dir.path()).unwrap();
        let repo = upstream.seed("a.git").await.unwrap();
        (dir, upstream, repo, Git::new().unwrap().with_timeout(Duration::from_secs(20)))
    }

    #[tokio::test]
    async fn clones_fetches_and_pushes_with_every_protocol() {
        let (dir, upstream, repo, git) = served().await;
        for version in ["0", "1", "2"] {
            let git = git.clone().with_config("protocol.version", version);
            let clone = git.clone_repo(&upstream.url("a.git"), &dir.path().join(version), &[]).await.unwrap();
            clone.git(&["switch", "--quiet", "--create", &format!("b{version}")]).await.unwrap();
            clone.git(&["commit", "--quiet", "--allow-empty", "--message", version]).await.unwrap();
            clone.push("origin", &["HEAD"]).await.unwrap();
            clone.fetch(&["--prune"]).await.unwrap();
            clone.fsck().await.unwrap();
            assert_eq!(git.ls_remote(&upstream.url("a.git")).await.unwrap(), repo.refs().await.unwrap());
        }
        assert!(upstream.count("a.git", Operation::LsRefs) >= 3);
        assert!(upstream.count("a.git", Operation::Fetch) >= 3);
        assert!(upstream.count("a.git", Operation::Push) >= 6);
        assert!(upstream.log().iter().all(|seen| seen.status == Some(200)));
    }

    #[tokio::test]
    async fn a_compressed_request_and_another_object_format_pass() {
        let (dir, upstream, repo, git) = served().await;
        let url = upstream.url("a.git");
        // Enough haves for git to compress its request.
        let clone = git.clone_repo(&url, &dir.path().join("clone"), &[]).await.unwrap();
        for number in 0..60 {
            clone
                .git(&["commit", "--quiet", "--allow-empty", "--message", &number.to_string()])
                .await
                .unwrap();
        }
        repo.commit("main", &[("new", "new")]).await.unwrap();
        clone.fetch(&[]).await.unwrap();
        Repo::init(upstream.root().join("b.git"), ObjectFormat::Sha256).await.unwrap();
        git.clone_repo(&upstream.url("b.git"), &dir.path().join("empty"), &[]).await.unwrap();
    }

    #[tokio::test]
    async fn credentials_are_asked_for() {
        let (_dir, upstream, _repo, git) = served().await;
        upstream.require(Auth::Basic { user: "ada".into(), password: "pw".into() });
        assert!(!git.attempt(["ls-remote", &upstream.url("a.git")]).await.unwrap().status.success());
        git.ls_remote(&upstream.url("a.git").replace("//", "//ada:pw@")).await.unwrap();
        upstream.require(Auth::Bearer("token".into()));
        let bearer = git.with_config("http.extraHeader", "Authorization: Bearer token");
        bearer.ls_remote(&upstream.url("a.git")).await.unwrap();
    }

    #[tokio::test]
    async fn each_fault_is_met_and_ends_when_mended() {
        let (_dir, upstream, repo, git) = served().await;
        repo.grow("main", 1, 300_000, 1).await.unwrap();
        let (url, dir) = (upstream.url("a.git"), tempfile::tempdir().unwrap());
        let hasty = git.clone().with_timeout(Duration::from_millis(300));
        for (fault, says) in [
            (Fault::Hang, "did not end"),
            (Fault::Hold, "did not end"),
            (Fault::HoldAnswer, "did not end"),
            (Fault::Delay(Duration::from_secs(9)), "did not end"),
            (Fault::Throttle(100), "did not end"),
        ] {
            upstream.fault(fault.clone());
            let failure = hasty.ls_remote(&url).await.unwrap_err().to_string();
            assert!(failure.contains(says), "{fault:?}: {failure}");
        }
        for (fault, says) in [
            (Fault::Status(503), "503"),
            (Fault::Html, "not valid"),
            (Fault::FailRatio { ratio: 1.0, seed: 1 }, "500"),
        ] {
            upstream.fault(fault.clone());
            let failure = git.ls_remote(&url).await.unwrap_err().to_string();
            assert!(failure.contains(says), "{fault:?}: {failure}");
        }
        upstream.mend();
        upstream.fault_on(Operation::Fetch, Fault::CutAfter(100_000));
        git.ls_remote(&url).await.unwrap();
        git.clone_repo(&url, &dir.path().join("cut"), &[]).await.unwrap_err();
        upstream.mend();
        git.clone_repo(&url, &dir.path().join("whole"), &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_held_answer_tells_what_was_true_when_it_was_asked_for() {
        let (_dir, upstream, repo, git) = served().await;
        let before = repo.refs().await.unwrap();
        upstream.fault_on(Operation::LsRefs, Fault::HoldAnswer);
        let url = upstream.url("a.git");
        let (answer, ()) = tokio::join!(git.ls_remote(&url), async {
            let arrived = async || {
                let log = upstream.log();
                let look = log.iter().find(|seen| seen.operation == Operation::LsRefs);
                look.and_then(|look| look.status).ok_or("not answered")
            };
            crate::eventually::eventually(Duration::from_secs(5), "the look", arrived).await.unwrap();
            repo.commit("main", &[("late", "late")]).await.unwrap();
            upstream.mend();
        });
        assert_eq!(answer.unwrap(), before);
    }

    #[tokio::test]
    async fn goes_down_and_comes_back_on_the_same_port() {
        let (_dir, upstream, repo, git) = served().await;
        let url = upstream.url("a.git");
        upstream.down().await;
        assert!(git.ls_remote(&url).await.unwrap_err().to_string().contains("onnect"));
        upstream.up().await;
        assert_eq!(git.ls_remote(&url).await.unwrap(), repo.refs().await.unwrap());
    }
}
