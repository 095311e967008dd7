//! Whether the disk has room: told by whoever keeps the budget, and by those that find the disk full.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tarn_crds::repo::RepoId;
use tokio::sync::Notify;

/// A mirror that has failed so often for want of room gets no more: it may be larger than the disk.
const PLEAS: u32 = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Room {
    tight: AtomicBool,
    wanted: Notify,
    /// Mirrors that are not to come for a while, and until when.
    held_off: Mutex<BTreeMap<RepoId, Instant>>,
}

impl Room {
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
        let mut held_off = self.held_off.lock().unwrap_or_else(PoisonError::into_inner);
        let until = held_off.get(id).copied();
        let holds = until.is_some_and(|until| Instant::now() < until);
        if until.is_some() && !holds {
            held_off.remove(id);
        }
        holds
    }

    /// Says until when.
    pub fn hold_off(&self, id: RepoId, until: Instant) {
        self.held_off.lock().unwrap_or_else(PoisonError::into_inner).insert(id, until);
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
