//! The declarations that the agent follows, kept beside the data: an agent that starts while the API server is away
//! serves what it has, to those who might have it before.
//!
//! *Invariant:* the file holds specs only, and nothing of a Secret but its name.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tarn_crds::v1alpha1::GitMirrorSpec;
use tokio::{sync::watch, time::sleep};

use super::declarations::{Declared, Followed};
use crate::files::{self, blocking, read_bounded};

/// The version that this agent writes; it reads no other.
const VERSION: u64 = 1;

/// The most that is read: a hundred thousand declarations.
const MAX_BYTES: u64 = 64 << 20;

/// The least time between two writings: a burst of changes is written once.
const APART: Duration = Duration::from_secs(1);

/// Where the declarations came from. Those of another cache are none of this one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A directory of manifests.
    Manifests,
    /// The GitMirrors of a GitCache.
    #[serde(rename_all = "camelCase")]
    Cache {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What every version of the file has.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u64,
    origin: Origin,
    mirrors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// When the object was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    /// The file, or kind and name of the object.
    source: String,
    document: usize,
    name: String,
    spec: GitMirrorSpec,
}

/// Why what an earlier process left is of no use.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error("cannot understand it: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its version is {0}, and this agent knows version {VERSION} only")]
    Version(u64),
    #[error("it is of another origin: {0:?}")]
    Origin(Origin),
}

/// Keeps the file. What it is told last is written in the end.
pub struct LastKnown {
    path: PathBuf,
    origin: Origin,
    told: watch::Sender<Arc<[Followed]>>,
}

impl LastKnown {
    /// The file at `path`. Nothing is read or written yet.
    pub fn new(path: PathBuf, origin: Origin) -> Self {
        Self { path, origin, told: watch::Sender::new(Arc::default()) }
    }

    /// What an earlier process followed; nothing where the file is missing, damaged, of a later version or of another
    /// origin.
    pub fn load(&self) -> Vec<Followed> {
        let unusable = match read(&self.path, &self.origin) {
            Ok(followed) => return followed,
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(unusable) => unusable,
        };
        let path = self.path.display();
        tracing::warn!(%path, reason = %unusable, "ignored the declarations of an earlier process");
        Vec::new()
    }

    /// Notes what is followed now.
    pub fn note(&self, followed: Vec<Followed>) {
        self.told.send_replace(followed.into());
    }

    /// Writes what is noted, for ever.
    pub fn writing(&self) -> impl Future<Output = ()> + Send + 'static {
        let (path, origin, mut told) = (self.path.clone(), self.origin.clone(), self.told.subscribe());
        async move {
            while told.changed().await.is_ok() {
                let followed = told.borrow_and_update().clone();
                let (path, origin) = (path.clone(), origin.clone());
                if let Err(error) = blocking(move || write(&path, origin, &followed)).await {
                    tracing::warn!(%error, "cannot keep the declarations for the next start");
                }
                sleep(APART).await;
            }
        }
    }
}

fn read(path: &Path, origin: &Origin) -> Result<Vec<Followed>, Unusable> {
    let text = read_bounded(path, MAX_BYTES)?;
    let Head { version } = serde_json::from_slice(&text)?;
    if version != VERSION {
        return Err(Unusable::Version(version));
    }
    let content: Content = serde_json::from_slice(&text)?;
    if content.origin != *origin {
        return Err(Unusable::Origin(content.origin));
    }
    let followed = content.mirrors.into_iter().map(|entry| {
        let declared = Arc::new(Declared { name: entry.name, spec: entry.spec });
        Followed { position: ((entry.created, entry.source), entry.document), declared }
    });
    Ok(followed.collect())
}

fn write(path: &Path, origin: Origin, followed: &[Followed]) -> io::Result<()> {
    let entry = |followed: &Followed| {
        let ((created, source), document) = followed.position.clone();
        let Declared { name, mut spec } = Declared::clone(&followed.declared);
        // A later agent may have another default: who might read it then may read it still, and nobody else.
        spec.access = Some(spec.effective_access());
        Entry { created, source, document, name, spec }
    };
    let mirrors = followed.iter().map(entry).collect();
    let content = serde_json::to_vec(&Content { version: VERSION, origin, mirrors })?;
    files::replace_private(path, &content)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use tarn_crds::v1alpha1::{Access, SecretRef};

    use super::*;

    fn followed() -> Vec<Followed> {
        let mut spec = GitMirrorSpec::for_url("https://h/o/r");
        spec.secret_ref = Some(SecretRef { name: "creds".into() });
        let position = ((Some("2026-01-01T00:00:00Z".parse().unwrap()), "GitMirror/a".into()), 1);
        vec![Followed { position, declared: Arc::new(Declared { name: "a".into(), spec }) }]
    }

    #[test]
    fn what_was_followed_comes_back_with_its_access_and_for_nobody_else_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("declarations.json");
        write(&path, Origin::Manifests, &followed()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let back = read(&path, &Origin::Manifests).unwrap();
        let (old, new) = (&followed()[0], &back[0]);
        assert_eq!(old.position, new.position);
        assert_eq!(new.declared.spec.access, Some(Access::Rbac));
        let spec = GitMirrorSpec { access: None, ..new.declared.spec.clone() };
        assert_eq!((&spec, &new.declared.name), (&old.declared.spec, &old.declared.name));
    }

    #[test]
    fn what_is_damaged_of_another_version_or_origin_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("declarations.json");
        let kept = LastKnown::new(path.clone(), Origin::Manifests);
        assert!(kept.load().is_empty(), "there is none");
        write(&path, Origin::Cache { namespace: "n".into(), name: "c".into() }, &followed()).unwrap();
        assert!(matches!(read(&path, &Origin::Manifests), Err(Unusable::Origin(_))));
        write(&path, Origin::Manifests, &followed()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, good.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(matches!(read(&path, &Origin::Manifests), Err(Unusable::Version(2))));
        for bad in ["", "{", "{\"version\":1}", &good.replace("https://h/o/r", "\u{0}"), "[]"] {
            fs::write(&path, bad).unwrap();
            assert!(kept.load().is_empty(), "{bad}");
        }
        let long = fs::File::create(&path).unwrap();
        long.set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(read(&path, &Origin::Manifests), Err(Unusable::Io(_))));
    }
}
