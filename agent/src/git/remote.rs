//! Talking to an upstream through git: fetch objects by name, list refs where no native look can.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bstr::{BString, ByteSlice};
use tokio::sync::watch;

use super::{
    command::{Command, Git, GitError, aside},
    object::{ObjectFormat, Oid},
    refs::{Head, Ref, RefSet},
    stderr::{Culprit, FailureKind, local, plain},
};
use crate::files::{self, remove_tree};

/// Local commands that touch no upstream; generous, for a cold disk and 100,000 refs.
const LOCAL_LIMIT: Duration = Duration::from_secs(120);

/// Where fetches by name park refs until their objects are known to be there; the agent's own
/// packed-refs never name it.
const INCOMING: &str = "refs/tarn/incoming/";

/// An upstream as git commands reach it.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The URL, without credentials.
    pub url: String,
    /// A git configuration file with credentials, readable by this user alone.
    pub credentials: Option<PathBuf>,
    /// Whom git may ask over HTTP.
    pub way: Way,
}

/// Whom git may ask over HTTP.
#[derive(Clone, Debug)]
pub enum Way {
    /// Whoever the environment's proxy lets it ask.
    Proxy,
    /// This origin (`https://host:port`), if any, and nobody else, without a proxy.
    Only {
        /// The origin.
        origin: Option<String>,
        /// The host's addresses, as curl is told them; git resolves no name then.
        addresses: Option<String>,
    },
}

/// A proxy that is not there.
const NOWHERE: &str = "http://127.0.0.1:1";

/// How long a fetch may show no sign of life before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Duration);

impl Patience {
    /// With an ordinary fetch. Servers send keepalives every five seconds while they compute.
    pub const UPDATE: Self = Self(Duration::from_secs(60));

    /// With the first one: not every server sends keepalives, and it has most to do then.
    pub const FIRST: Self = Self(Duration::from_secs(300));

    /// The same after so many attempts in a row that were given up: each doubles it, lest the upstream compute the same
    /// for ever.
    pub fn after(self, given_up: u32) -> Self {
        Self(self.0.saturating_mul(1 << given_up.min(10)))
    }
}

impl Remote {
    fn command(&self, git: &Git, verb: &str) -> Command {
        // A redirect may lead to another host, which is not to get the credentials; the look, which follows
        // those within the host, has found where the repository is.
        let mut command =
            git.command(verb).config("http.followRedirects=false").config("transfer.bundleURI=false");
        if let Way::Only { origin, addresses } = &self.way {
            // git fetches packs from any URL that an upstream names, also where it did not ask for such URLs.
            command = command.without_proxies().config(format!("http.proxy={NOWHERE}"));
            if let Some(origin) = origin {
                command = command.config(format!("http.{origin}/.proxy="));
            }
            if let Some(addresses) = addresses {
                command = command.config(format!("http.curloptResolve={addresses}"));
            }
        }
        match &self.credentials {
            Some(file) => command.config(format!("include.path={}", file.display())),
            None => command,
        }
    }

    /// What a local upstream's `upload-pack` prints is no word of git's here.
    fn far_side(&self, command: Command) -> Command {
        if self.url.starts_with("file://") {
            command.arg(format!("--upload-pack={}", aside("git-upload-pack")))
        } else {
            command
        }
    }

    /// Fetches `oids` and all they reach into the repository `dir`, as packs. No ref changes.
    ///
    /// After it, every object is there and connected (git checks). A dropped future leaves at most a
    /// temporary pack.
    ///
    /// # Errors
    /// What git says; [`super::stderr::FailureKind::NotOurRef`] where the upstream lacks an object or
    /// serves tips by ref name only.
    pub async fn fetch(
        &self,
        git: &Git,
        dir: &Path,
        oids: &HashSet<Oid>,
        patience: Patience,
        limit: Duration,
        progress: Arc<watch::Sender<Option<String>>>,
    ) -> Result<(), GitError> {
        let mut input = Vec::with_capacity(oids.len() * 65);
        for oid in oids {
            input.extend_from_slice(oid.to_hex().as_bytes());
            input.push(b'\n');
        }
        self.fetch_refspecs(git, dir, input, patience, limit, progress).await
    }

    /// Fetches `refs` by name, for upstreams that refuse wants by object name, into a hidden namespace.
    ///
    /// The caller must check afterwards that the objects it is after have arrived: the refs may have
    /// moved since the look. [`clear_incoming`] removes the namespace.
    ///
    /// # Errors
    /// What git says.
    pub async fn fetch_by_name(
        &self,
        git: &Git,
        dir: &Path,
        refs: &RefSet,
        patience: Patience,
        limit: Duration,
        progress: Arc<watch::Sender<Option<String>>>,
    ) -> Result<(), GitError> {
        let mut input = Vec::new();
        for r in refs.refs() {
            let short = r.name.strip_prefix(b"refs/").unwrap_or(&r.name);
            input.extend_from_slice(
                &[b"+", r.name.as_slice(), b":", INCOMING.as_bytes(), short, b"\n"].concat(),
            );
        }
        self.fetch_refspecs(git, dir, input, patience, limit, progress).await
    }

    async fn fetch_refspecs(
        &self,
        git: &Git,
        dir: &Path,
        refspecs: Vec<u8>,
        patience: Patience,
        limit: Duration,
        progress: Arc<watch::Sender<Option<String>>>,
    ) -> Result<(), GitError> {
        // unpackLimit=1: never loose objects. fsckObjects stays off: the upstream's history is what it is.
        let command = self.command(git, "fetch").git_dir(dir).config("fetch.unpackLimit=1");
        let output = self
            .far_side(command)
            .args(["--progress", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"])
            .args(["--no-recurse-submodules", "--refmap=", "--stdin"])
            .arg(&self.url)
            .input(refspecs)
            .progress(progress)
            .silence(patience.0)
            .run(limit)
            .await?;
        // fetch-pack.c: update_shallow. The objects have arrived, but their history ends nowhere in particular.
        if output.stderr.contains("shallow roots are not allowed to be updated") {
            return Err(GitError::Failed {
                verb: "fetch".into(),
                kind: FailureKind::BadPack,
                message: "the upstream is a shallow clone: make it whole with git fetch --unshallow".into(),
            });
        }
        Ok(())
    }

    /// Lists the upstream's refs through `git ls-remote`, for transports without a native look.
    ///
    /// An unborn `HEAD` does not show in it.
    ///
    /// # Errors
    /// What git says.
    pub async fn ls_remote(&self, git: &Git, limit: Duration) -> Result<RefSet, GitError> {
        let command = self.far_side(self.command(git, "ls-remote")).args(["--symref"]).arg(&self.url);
        Ok(parse_ls_remote(&command.run(limit).await?.stdout))
    }
}

fn parse_ls_remote(text: &[u8]) -> RefSet {
    let (mut refs, mut head): (Vec<Ref>, _) = (Vec::new(), Head::Missing);
    for line in text.lines() {
        let Some((value, name)) = line.split_once_str("\t") else { continue };
        if let Some(target) = value.strip_prefix(b"ref: ") {
            if name == b"HEAD" {
                head = Head::Symbolic(target.into());
            }
            continue;
        }
        let Some(oid) = Oid::from_hex(value) else { continue };
        if name == b"HEAD" {
            if head == Head::Missing {
                head = Head::Detached(oid);
            }
        } else if let Some(tag) = name.strip_suffix(b"^{}") {
            if let Some(last) = refs.last_mut().filter(|last| last.name == tag) {
                last.peeled = Some(oid);
            }
        } else {
            refs.push(Ref { name: BString::from(name), oid, peeled: None });
        }
    }
    let format = refs.first().map_or(ObjectFormat::Sha1, |r| r.oid.format());
    RefSet::new(format, head, refs)
}

/// Makes an empty bare repository at `dir`.
///
/// # Errors
/// What git says: above all a full or read-only disk.
pub async fn init(git: &Git, dir: &Path, format: ObjectFormat) -> Result<(), GitError> {
    git.command("init")
        .args(["--quiet", "--bare", "--template=", "--initial-branch=main"])
        .arg(format!("--object-format={}", format.name()))
        .arg(dir)
        .run(LOCAL_LIMIT)
        .await?;
    let written = files::replace(&dir.join("config"), config(format).as_bytes());
    written.map_err(|source| GitError::Io { verb: "init".into(), source })
}

/// The configuration of a mirror, known to the byte so that damage of it shows. `git init` writes the same and, if it finds
/// the disk to be so, what the file system lacks; a bare repository needs none of that.
pub fn config(format: ObjectFormat) -> &'static str {
    match format {
        ObjectFormat::Sha1 => "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n",
        ObjectFormat::Sha256 => {
            "[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n\
             [extensions]\n\tobjectformat = sha256\n"
        }
    }
}

/// Stores `content` as a blob in the repository `dir`.
///
/// # Errors
/// What git says: above all a full or read-only disk.
pub async fn write_blob(git: &Git, dir: &Path, content: &[u8]) -> Result<Oid, GitError> {
    let command = git.command("hash-object").git_dir(dir).args(["-w", "--stdin"]).input(content.to_vec());
    let output = command.run(LOCAL_LIMIT).await?;
    Oid::from_hex(output.stdout.trim_ascii_end()).ok_or_else(|| GitError::Failed {
        verb: "hash-object".into(),
        kind: FailureKind::Other,
        message: "it prints no object name".into(),
    })
}

/// Those of `oids` that the repository `dir` lacks.
///
/// # Errors
/// What git says.
pub async fn missing(git: &Git, dir: &Path, oids: &[Oid]) -> Result<HashSet<Oid>, GitError> {
    if oids.is_empty() {
        return Ok(HashSet::new());
    }
    let input = oids.iter().map(|oid| format!("{oid}\n")).collect::<String>().into_bytes();
    let command = git.command("cat-file").git_dir(dir).args(["--batch-check=%(objectname)", "--buffer"]);
    let output = command.input(input).run(LOCAL_LIMIT).await?;
    let lacking = output.stdout.lines().filter_map(|line| line.strip_suffix(b" missing"));
    let lacking: HashSet<Oid> = lacking.filter_map(Oid::from_hex).collect();
    match local("cat-file", &output.stderr) {
        // Git calls missing what is in a pack that it could not open.
        Some((kind, line)) if kind.culprit() == Culprit::Machine && !lacking.is_empty() => {
            Err(GitError::Failed { verb: "cat-file".into(), kind, message: plain(line) })
        }
        _ => Ok(lacking),
    }
}

/// Removes what [`Remote::fetch_by_name`] parked.
///
/// # Errors
/// The files cannot be removed.
pub fn clear_incoming(dir: &Path) -> io::Result<()> {
    remove_tree(&dir.join("refs/tarn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_doubles_with_each_attempt_given_up() {
        assert_eq!(Patience::UPDATE.after(0), Patience::UPDATE);
        assert_eq!(Patience::UPDATE.after(3), Patience(Duration::from_secs(480)));
        assert!(Patience::UPDATE.after(u32::MAX).0 > Patience::UPDATE.after(9).0);
    }

    #[test]
    fn ls_remote_tells_head_tags_and_peels() {
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        let text = format!(
            "ref: refs/heads/main\tHEAD\n{one}\tHEAD\n{one}\trefs/heads/main\n{two}\trefs/tags/v1\n{one}\trefs/tags/v1^{{}}\n"
        );
        let refs = parse_ls_remote(text.as_bytes());
        assert_eq!(refs.head(), &Head::Symbolic("refs/heads/main".into()));
        assert_eq!(refs.refs().len(), 2);
        assert_eq!(refs.get("refs/tags/v1".into()).unwrap().peeled, Oid::from_hex(one.as_bytes()));
        let detached = parse_ls_remote(format!("{two}\tHEAD\n").as_bytes());
        assert_eq!(detached.head_oid(), Oid::from_hex(two.as_bytes()));
    }
}
