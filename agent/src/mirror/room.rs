//! Whether the disk has room, and which mirrors are growing: told by whoever keeps the budget, by those that find the disk
//! full, and by those that write.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tarn_crds::repo::RepoId;
use tokio::sync::{Notify, watch};

/// A mirror that has failed so often for want of room gets no more: it may be larger than the disk.
const PLEAS: u32 = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Room {
    tight: AtomicBool,
    wanted: Notify,
    /// Mirrors that are not to come for a while, and until when.
    held_off: Mutex<BTreeMap<RepoId, Instant>>,
    /// Work that writes to the disk, by a number of its own.
    writers: Mutex<BTreeMap<u64, Writer>>,
    next: AtomicU64,
    begun: Notify,
}

/// Work that makes a mirror grow.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The mirror.
    pub id: RepoId,
    /// Bytes that the work has written and not yet put in place.
    pub grown: u64,
    /// Where these bytes are, and whether they stay.
    pub kind: WriteKind,
    cut: watch::Sender<Option<Cut>>,
}

/// Where work writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Into staging.
    Staged,
    /// Into the mirror itself.
    InPlace,
    /// Into the mirror itself, in place of what is there: the mirror is twice as large for a while.
    Rewrite,
}

/// Why work is to end: the disk is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It may try again with more room: other mirrors make way.
    MayPlead,
    /// It takes so much that no other mirror makes way for it.
    Final,
}

/// Keeps a [`Writer`] in the list.
#[derive(Debug)]
pub struct Writing {
    room: Arc<Room>,
    number: u64,
    cut: watch::Receiver<Option<Cut>>,
}

impl Writing {
    /// The work has written so many bytes by now.
    pub fn grown(&self, bytes: u64) {
        if let Some(writer) = self.room.writers.lock().get_mut(&self.number) {
            writer.grown = bytes;
        }
    }

    /// Waits until the work is to end.
    pub async fn cut(&mut self) -> Cut {
        match self.cut.wait_for(Option::is_some).await.map(|cut| *cut) {
            Ok(Some(cut)) => cut,
            // The list has lost it, which only happens when this is dropped.
            _ => std::future::pending().await,
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.room.writers.lock().remove(&self.number);
    }
}

impl Room {
    /// Work on the mirror begins to write.
    pub fn write(self: &Arc<Self>, id: RepoId, kind: WriteKind) -> Writing {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, cut) = watch::channel(None);
        self.writers.lock().insert(number, Writer { id, grown: 0, kind, cut: sender });
        self.begun.notify_one();
        Writing { room: self.clone(), number, cut }
    }

    /// Waits until work begins to write. For one listener.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// The work that writes now.
    pub fn writing(&self) -> Vec<Writer> {
        self.writers.lock().values().cloned().collect()
    }

    /// Ends all work that makes the mirror grow.
    pub fn cut(&self, id: &RepoId, cut: Cut) {
        for writer in self.writers.lock().values().filter(|writer| writer.id == *id) {
            writer.cut.send_replace(Some(cut));
        }
    }

    /// Whether what nobody waits for had better not come now.
    pub fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// Says so.
    pub fn set_tight(&self, tight: bool) {
        self.tight.store(tight, Ordering::Relaxed);
    }

    /// Whether requests for a mirror that is not here are to be handed on, and not to bring it: it would not stay.
    pub fn holds_off(&self, id: &RepoId) -> bool {
        let mut held_off = self.held_off.lock();
        let until = held_off.get(id).copied();
        let holds = until.is_some_and(|until| Instant::now() < until);
        if until.is_some() && !holds {
            held_off.remove(id);
        }
        holds
    }

    /// Says until when.
    pub fn hold_off(&self, id: RepoId, until: Instant) {
        self.held_off.lock().insert(id, until);
    }

    /// A mirror finds the disk full, after so many failures in a row.
    pub fn lacks(&self, failures: u32) {
        if failures <= PLEAS {
            self.wanted.notify_one();
        }
    }

    /// Waits until a mirror finds the disk full. For one listener.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_is_listed_while_it_lasts_and_ended_by_the_mirror_it_is_for() {
        let room = Arc::new(Room::default());
        let id = |name: &str| RepoId::from_route(&format!("h/o/{name}")).unwrap();
        let mut one = room.write(id("one"), WriteKind::Staged);
        let two = room.write(id("two"), WriteKind::InPlace);
        one.grown(7);
        let listed: Vec<_> = room.writing().into_iter().map(|writer| (writer.id, writer.grown)).collect();
        assert_eq!(listed, [(id("one"), 7), (id("two"), 0)]);
        room.cut(&id("one"), Cut::Final);
        assert_eq!(one.cut().await, Cut::Final);
        drop((one, two));
        assert!(room.writing().is_empty());
    }

    #[test]
    fn a_mirror_is_held_off_for_its_time() {
        let (room, id) = (Room::default(), RepoId::from_route("h/o/r").unwrap());
        assert!(!room.holds_off(&id));
        room.hold_off(id.clone(), Instant::now() + Duration::from_secs(60));
        assert!(room.holds_off(&id));
        room.hold_off(id.clone(), Instant::now());
        assert!(!room.holds_off(&id));
    }
}
