//! What a spool knows of its files.

use std::{
    collections::HashMap,
    hash::Hash,
    path::Path,
    sync::{Arc, Weak},
};

use lru::LruCache;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::DropGuard;

use super::{
    ledger::{Charge, OpenFile, Part},
    reader::{Follower, Progress},
};

pub(super) struct Index<K: Hash + Eq, E> {
    pub(super) growing: HashMap<K, Growing<E>>,
    pub(super) kept: LruCache<K, Kept>,
}

pub(super) struct Growing<E> {
    pub(super) number: u64,
    pub(super) open: Arc<OpenFile>,
    pub(super) progress: watch::Receiver<Progress<E>>,
    /// Lives as long as someone wants the file.
    pub(super) interest: Weak<DropGuard>,
    pub(super) asked: bool,
}

pub(super) struct Kept {
    pub(super) number: u64,
    pub(super) path: Arc<Path>,
    pub(super) length: u64,
    pub(super) used: Instant,
    pub(super) asked: bool,
    pub(super) open: Weak<OpenFile>,
    pub(super) charge: Arc<Charge>,
}

impl Kept {
    pub(super) fn is_read(&self) -> bool {
        self.open.strong_count() > 0
    }

    /// Takes it out of the books of what is kept; its path is to be removed.
    pub(super) fn evict(self) -> Arc<Path> {
        self.charge.to(Part::Pinned);
        self.path
    }
}

/// What a look into the index found.
pub(super) enum Found<E> {
    Follower(Follower<E>),
    /// Kept, and to be opened.
    Closed {
        number: u64,
        path: Arc<Path>,
        length: u64,
        charge: Arc<Charge>,
        first: bool,
    },
}

impl<E> Growing<E> {
    /// Whether its maker goes on, or has ended well.
    pub(super) fn is_wanted(&self) -> bool {
        match &self.progress.borrow().end {
            None => self.interest.strong_count() > 0,
            Some(end) => end.is_ok(),
        }
    }
}
