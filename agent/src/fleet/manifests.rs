//! The directory with manifests: read at start, watched for changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{RecursiveMode, Watcher};
use tarn_crds::manifest::MAX_TEXT;
use tokio::{sync::Notify, time::timeout};

use super::{
    Fleet, Known,
    declarations::{Content, Declarations, Flag, Rules, Source},
    last_known::LastKnown,
};

/// How long to wait for more changes before the directory is read: editors and `kubectl`'s volumes change
/// several files at a time.
const SETTLE: Duration = Duration::from_millis(100);

/// The directory is read this often even if nobody reports a change: network file systems report none.
const RESCAN: Duration = Duration::from_secs(30);

/// Keeps the fleet what the directory says.
pub struct Manifests {
    dir: Option<PathBuf>,
    declarations: Declarations,
    /// What the files held when they were read last; they are read twice a minute, and seldom change.
    seen: BTreeMap<String, blake3::Hash>,
    last_known: LastKnown,
    /// What an earlier process left is all that is known.
    unread: bool,
}

impl Manifests {
    /// Reads `dir`, if any; `flags` are mirrors declared on the command line.
    ///
    /// # Errors
    /// The directory cannot be read, and no earlier process read it either.
    pub fn new(
        dir: Option<PathBuf>,
        flags: Vec<Flag>,
        rules: Rules,
        last_known: LastKnown,
    ) -> io::Result<Self> {
        let mut declarations = Declarations::new(flags, rules);
        if let Some(dir) = &dir {
            let followed = last_known.load();
            if let Err(error) = fs::read_dir(dir)
                && followed.is_empty()
            {
                return Err(error);
            }
            declarations.resume(followed);
        }
        Ok(Self { dir, declarations, seen: BTreeMap::new(), last_known, unread: true })
    }

    /// What keeps the declarations for the next process; never ends.
    pub fn keeping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.last_known.writing()
    }

    /// Reads the directory and applies what changed since the last time.
    pub async fn apply(&mut self, fleet: &Fleet) {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || dir.map_or(Ok(Vec::new()), |dir| sources(&dir))).await;
        match read.map_err(io::Error::other).and_then(|sources| sources) {
            Ok(sources) => {
                let found: BTreeSet<&str> = sources.iter().map(|source| source.file.as_str()).collect();
                let gone = self.declarations.ages().filter(|(_, file)| !found.contains(file.as_str()));
                for age in gone.cloned().collect::<Vec<_>>() {
                    self.declarations.remove(&age);
                    self.seen.remove(&age.1);
                }
                for source in sources {
                    let digest = digest(&source.content);
                    if self.seen.insert(source.file.clone(), digest) != Some(digest) {
                        self.declarations.set((None, source.file.clone()), source);
                    }
                }
                self.unread = false;
                self.decided(fleet, Known::All).await;
            }
            // What ran goes on: a directory that is away for a moment declares nothing, good or bad.
            Err(error) => {
                tracing::warn!(%error, "the manifests directory cannot be read; nothing changes");
                if mem::take(&mut self.unread) {
                    self.declarations.be_alone();
                    for (name, _) in self.declarations.take_named() {
                        let file = format!("Secret/{name}");
                        let awaited = Source { file: file.clone(), content: Content::Awaited };
                        self.declarations.set((None, file), awaited);
                    }
                    self.decided(fleet, Known::Earlier).await;
                }
            }
        }
    }

    async fn decided(&mut self, fleet: &Fleet, known: Known) {
        let delta = self.declarations.delta(Instant::now());
        if let Some(followed) = self.declarations.take_followed().filter(|_| self.dir.is_some()) {
            self.last_known.note(followed);
        }
        // Without news nobody is to be woken: the directory is read twice a minute.
        if delta.changes.is_empty() && delta.refused.is_none() && fleet.known() >= known {
            return;
        }
        fleet.apply(delta, known).await;
    }

    /// Begins to watch the directory.
    pub fn changes(&self) -> Changes {
        let happened = Arc::new(Notify::new());
        let notifier = happened.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                notifier.notify_one();
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            if let Some(dir) = &self.dir {
                watcher.watch(dir, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        if let Err(error) = &watching {
            tracing::warn!(%error, "changes of the manifests directory are seen late");
        }
        Changes { happened, _watcher: watching.ok() }
    }

    /// Applies every change, for ever.
    pub async fn follow(mut self, changes: Changes, fleet: Arc<Fleet>) {
        loop {
            if timeout(RESCAN, changes.happened.notified()).await.is_ok() {
                // One reading for a burst of changes, but not none for a stream of them.
                let burst = async { while timeout(SETTLE, changes.happened.notified()).await.is_ok() {} };
                let _ = timeout(10 * SETTLE, burst).await;
            }
            self.apply(&fleet).await;
        }
    }
}

/// Tells when files of the directory change; dropping it ends the watching.
pub struct Changes {
    happened: Arc<Notify>,
    _watcher: Option<notify::RecommendedWatcher>,
}

fn digest(content: &Content) -> blake3::Hash {
    match content {
        Content::Text(text) => blake3::hash(text.as_bytes()),
        // No file has this content, whatever its reason.
        Content::Unreadable(reason) => blake3::keyed_hash(&[1; blake3::KEY_LEN], reason.as_bytes()),
        Content::Object(_) | Content::Awaited => blake3::keyed_hash(&[2; blake3::KEY_LEN], &[]),
    }
}

fn sources(dir: &Path) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is_manifest = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        // Files beginning with a dot are editors' and kubelet's.
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if is_manifest && !name.starts_with('.') && !path.is_dir() {
            let content = text(&path).map_or_else(Content::Unreadable, Content::Text);
            sources.push(Source { content, file: name });
        }
    }
    sources.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(sources)
}

fn text(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > u64::try_from(MAX_TEXT).unwrap_or(u64::MAX) {
        return Err(format!("is larger than {} MiB", MAX_TEXT >> 20));
    }
    fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}
