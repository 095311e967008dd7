//! Keeps a mirror's snapshot: knows the newest, downloads it once for all who ask, builds the next.
//!
//! A task beside the mirror's own, which it only watches. What it holds is served at once, however old; nothing is
//! built while a request waits for it. What is to be done is decided by [`plan`], a pure function.
//!
//! ```text
//! DATA/snapshots/<host>/<path>.git/<digest>.tar.zst    the archive
//! DATA/snapshots/<host>/<path>.git/<digest>.json       its manifest: written once the archive is whole
//! ```

mod plan;
mod local;
mod keeper;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{Trouble, cold::Stream};
use crate::{
    blockfile::{Download, Progress, Reader},
    snapshot::manifest::Snapshot,
};

pub(super) use keeper::Keeper;

/// Requests that wait for the keeper; it answers at once but for opening a file.
const MAX_QUEUED: usize = 1024;

/// How long a request waits for the store to say whether it has a snapshot.
const FIND: Duration = Duration::from_secs(5);

/// What the keeper last told of itself.
#[derive(Clone, Debug, Default)]
pub struct SnapshotView {
    /// The snapshot that is served.
    pub known: Option<Arc<Snapshot>>,
    /// What is on the disk of it; none where nobody has asked for it here.
    pub reader: Option<Reader>,
    /// Why its content is believed.
    pub checked: Checked,
    /// What is under way.
    pub doing: Doing,
    /// Why the last attempt at something failed, if it did.
    pub trouble: Option<Trouble>,
}

impl SnapshotView {
    /// How much of it is on the disk now.
    pub fn progress(&self) -> Option<Progress> {
        self.reader.as_ref().map(Reader::progress)
    }
}

/// Why the content of a snapshot is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checked {
    /// It is not: it was found in a store, or on the disk, and not compared yet.
    #[default]
    NotYet,
    /// This agent has built it.
    Built,
    /// An agent of this cache has signed it.
    Signed,
    /// Its worktree was compared with its commit.
    Compared,
    /// It is not, and cannot be compared: the mirror does not have the commit, say.
    Unknown,
}

impl Checked {
    /// In a word, for status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYet => "not yet",
            Self::Built => "built",
            Self::Signed => "signed",
            Self::Compared => "compared",
            Self::Unknown => "unknown",
        }
    }
}

/// What becomes of a snapshot that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    /// The store is being asked.
    #[default]
    Finding,
    /// One is being built.
    Building,
    /// The one held is being published.
    Publishing,
    /// One is built once the mirror is up to date.
    WaitingForMirror,
    /// Nothing is due.
    Idle,
    /// None is coming: the upstream's `HEAD` leads to no commit, or the mirror is suspended.
    Nothing,
    /// None is coming of this `HEAD`: its worktree is too large.
    TooLarge,
    /// None is wanted: `spec.snapshot.suspend`.
    Suspended,
}

impl Doing {
    /// Whether no snapshot will come of what is there now.
    fn is_never(self) -> bool {
        matches!(self, Self::Nothing | Self::TooLarge | Self::Suspended)
    }
}

/// A snapshot to read. While it is read, its download goes on.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Which.
    pub snapshot: Arc<Snapshot>,
    /// Its archive.
    pub reader: Reader,
    /// Held by whoever reads an archive that is still on its way.
    pub cold: Option<(Download, Arc<Stream>)>,
}

/// Why there is nothing to read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unready {
    /// There will be a snapshot.
    #[error("{0}")]
    Coming(String),
    /// There is none, and none is coming.
    #[error("{0}")]
    Never(&'static str),
    /// The user wants none.
    #[error(
        "spec.snapshot.suspend of the GitMirror is true: it has no snapshots, bundles and archives of LFS objects; clone \
         the repository"
    )]
    Suspended,
    /// It cannot be read here now.
    #[error("{0}")]
    Failed(String),
}

/// What requests ask of the keeper.
enum Message {
    Open(oneshot::Sender<Result<Offer, Unready>>),
    /// Somebody wants a snapshot: the store is asked for a newer one, if that is due. Answered once that has begun.
    Want(oneshot::Sender<()>),
    /// Take the archive off the disk, if the store has it; answers with its bytes.
    Evict(oneshot::Sender<u64>),
}

/// How much of an archive is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// In all.
    pub here: u64,
    /// Of that, what the store has too.
    pub elsewhere: u64,
}

/// A handle on the keeper. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<SnapshotView>,
}

impl Snapshots {
    fn new() -> (Self, mpsc::Receiver<Message>, watch::Sender<SnapshotView>) {
        let (messages, inbox) = mpsc::channel(MAX_QUEUED);
        let (out, view) = watch::channel(SnapshotView::default());
        (Self { messages, view }, inbox, out)
    }

    /// What the keeper last told.
    pub fn view(&self) -> SnapshotView {
        self.view.borrow().clone()
    }

    /// The archive's bytes on the disk.
    pub fn bytes(&self) -> Bytes {
        let view = self.view.borrow();
        let here = view.progress().map_or(0, |progress| progress.verified);
        let shared = view.known.as_ref().is_some_and(|known| known.generation.0 > 0);
        Bytes { here, elsewhere: if shared { here } else { 0 } }
    }

    /// Takes the archive off the disk, if it is whole and the store has it, or there is no store and the mirror has gone as
    /// well; returns its bytes. Whoever reads it goes on.
    pub async fn evict(&self) -> u64 {
        let (reply, answer) = oneshot::channel();
        if self.messages.try_send(Message::Evict(reply)).is_err() {
            return 0;
        }
        answer.await.unwrap_or(0)
    }

    /// Follows what the keeper tells.
    pub(super) fn watch(&self) -> watch::Receiver<SnapshotView> {
        self.view.clone()
    }

    /// The snapshot that is served, without downloading it; waits until one is known, but no longer than `patience`,
    /// nor where none is coming. While the store is being asked for one, it waits for that at least.
    ///
    /// # Errors
    /// There is none yet, or never.
    pub async fn known(&self, patience: Duration) -> Result<Arc<Snapshot>, Unready> {
        let (begun, asked) = oneshot::channel();
        let mut view = self.view.clone();
        if self.messages.try_send(Message::Want(begun)).is_ok() && view.borrow().known.is_none() {
            let _ = timeout(FIND, asked).await;
        }
        let found = view.wait_for(|view| view.known.is_some() || view.doing != Doing::Finding);
        let _ = timeout(patience.max(FIND), found).await;
        let told = view.wait_for(|view| view.known.is_some() || view.doing.is_never());
        let _ = timeout(patience, told).await;
        let view = self.view();
        view.known.clone().ok_or_else(|| missing(&view))
    }

    /// The snapshot to read, from the disk or, while it arrives there, from the store. Waits as [`Self::known`].
    ///
    /// # Errors
    /// There is none yet, or never, or it cannot be written here.
    pub async fn open(&self, patience: Duration) -> Result<Offer, Unready> {
        self.known(patience).await?;
        let (reply, answer) = oneshot::channel();
        let busy = || Unready::Failed("too many requests wait for this snapshot".into());
        self.messages.try_send(Message::Open(reply)).map_err(|_| busy())?;
        answer.await.unwrap_or_else(|_| Err(Unready::Failed("the mirror is being removed".into())))
    }
}

/// Why there is none.
fn missing(view: &SnapshotView) -> Unready {
    let coming = |text: &str| Unready::Coming(text.to_owned());
    match (&view.trouble, view.doing) {
        (_, Doing::Suspended) => Unready::Suspended,
        (_, Doing::TooLarge) => Unready::Never(
            "the worktree is too large for a snapshot, by its files, their bytes or its paths: clone the repository",
        ),
        (_, Doing::Nothing) => Unready::Never("the repository has no commit to make a snapshot of"),
        (Some(trouble), _) => Unready::Coming(format!("{}: {}", trouble.reason, trouble.message)),
        (None, Doing::Building) => coming("the first snapshot is being built"),
        (None, Doing::Finding) => coming("the store is being asked for a snapshot"),
        (None, _) => coming("the first snapshot is built once the mirror is up to date"),
    }
}
