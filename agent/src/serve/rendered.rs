//! Lists of refs that have been written already.
//!
//! A table of refs is one value, shared by all who read it until the next replaces it, and clients ask for
//! the same few things of it. So each list is written once, however many ask for it at once, and there is one
//! copy of it however many read it. Short of memory for lists that are still read, others wait.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::error::Failure;
use crate::{
    git::{RefSet, upload_pack::ProtocolVersion},
    protocol::{advertisement::Capabilities, ls_refs::LsRefs},
};

/// How many lists are known: a few shapes of request for each of the busiest mirrors.
const MAX_KNOWN: usize = 128;

/// Bytes of lists that are kept though nobody reads them.
const KEPT: usize = 64 << 20;

/// Bytes of all lists. A single longer one takes all the room there is.
const ROOM: usize = 256 << 20;

/// What the semaphore counts.
const UNIT: usize = 1 << 10;

/// How long a request waits for room, and for whoever writes the same list.
const PATIENCE: Duration = Duration::from_secs(10);

/// Refs and prefixes above which a list is written off the runtime's threads: a millisecond's work.
const MANY: usize = 8 << 10;

/// The lists, the latest used first.
pub struct Rendered {
    known: Mutex<VecDeque<Known>>,
    room: Arc<Semaphore>,
}

impl Default for Rendered {
    fn default() -> Self {
        Self { known: Mutex::default(), room: Arc::new(Semaphore::new(ROOM / UNIT)) }
    }
}

/// What is told of the refs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    LsRefs(LsRefs),
    Advertisement(ProtocolVersion),
}

struct Known {
    refs: Weak<RefSet>,
    shape: Shape,
    /// The list, while somebody has it; locked while it is written.
    list: Arc<AsyncMutex<Weak<List>>>,
    kept: Option<Arc<List>>,
}

struct List {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// A reader's hold on a list.
struct Held(Arc<List>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Rendered {
    /// The answer to `request` from `refs`.
    ///
    /// # Errors
    /// Lists that others read take all the room.
    pub async fn ls_refs(&self, request: LsRefs, refs: &Arc<RefSet>) -> Result<Bytes, Failure> {
        let (shape, cost) = (Shape::LsRefs(request.clone()), request.cost(refs));
        self.list(shape, refs, cost, move |refs| request.respond(refs)).await
    }

    /// The advertisement of `refs`.
    ///
    /// # Errors
    /// As for [`Self::ls_refs`].
    pub async fn advertisement(
        &self,
        capabilities: &Capabilities,
        version: ProtocolVersion,
        refs: &Arc<RefSet>,
    ) -> Result<Bytes, Failure> {
        let (capabilities, cost) = (capabilities.clone(), refs.refs().len());
        let write = move |refs: &RefSet| capabilities.advertise(version, refs);
        self.list(Shape::Advertisement(version), refs, cost, write).await
    }

    async fn list(
        &self,
        shape: Shape,
        refs: &Arc<RefSet>,
        cost: usize,
        write: impl FnOnce(&RefSet) -> Vec<u8> + Send + 'static,
    ) -> Result<Bytes, Failure> {
        let list = self.find(&shape, refs);
        let mut written = timeout(PATIENCE, list.lock()).await.map_err(|_| Failure::busy())?;
        if let Some(list) = written.upgrade() {
            return Ok(Bytes::from_owner(Held(list)));
        }
        let bytes = if cost > MANY {
            let refs = refs.clone();
            tokio::task::spawn_blocking(move || write(&refs)).await.map_err(|_| Failure::busy())?
        } else {
            write(refs)
        };
        let room = self.room(bytes.len()).await.ok_or_else(Failure::busy)?;
        let new = Arc::new(List { bytes, _room: room });
        *written = Arc::downgrade(&new);
        drop(written);
        self.keep(&list, &new);
        Ok(Bytes::from_owner(Held(new)))
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, shape: &Shape, refs: &Arc<RefSet>) -> Arc<AsyncMutex<Weak<List>>> {
        let mut known = self.known();
        // A weak reference keeps its table's place in memory from being reused, so that equal
        // addresses mean the same table; those whose table is gone need not stay for that.
        known.retain(|known| known.refs.strong_count() > 0);
        let same =
            |known: &Known| std::ptr::eq(known.refs.as_ptr(), Arc::as_ptr(refs)) && known.shape == *shape;
        let at = known.iter().position(same);
        let found = at.and_then(|at| known.remove(at)).unwrap_or_else(|| Known {
            refs: Arc::downgrade(refs),
            shape: shape.clone(),
            list: Arc::default(),
            kept: None,
        });
        let list = found.list.clone();
        known.push_front(found);
        known.truncate(MAX_KNOWN);
        list
    }

    /// Keeps a list for those who will ask for it, and no longer the ones that were used before all others.
    fn keep(&self, list: &Arc<AsyncMutex<Weak<List>>>, new: &Arc<List>) {
        let mut known = self.known();
        if let Some(known) = known.iter_mut().find(|known| Arc::ptr_eq(&known.list, list)) {
            known.kept = Some(new.clone());
        }
        let mut total = 0;
        for known in known.iter_mut() {
            total += known.kept.as_ref().map_or(0, |list| list.bytes.len());
            if total > KEPT {
                known.kept = None;
            }
        }
    }

    /// Room for a list; what is merely kept makes way.
    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.min(ROOM).div_ceil(UNIT)).ok()?;
        if let Ok(room) = self.room.clone().try_acquire_many_owned(units) {
            return Some(room);
        }
        self.known().iter_mut().for_each(|known| known.kept = None);
        timeout(PATIENCE, self.room.clone().acquire_many_owned(units)).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Head, ObjectFormat, Oid, Ref};

    fn table(digit: u8, refs: usize) -> Arc<RefSet> {
        let name = |number| format!("refs/heads/{number:06}").into();
        let oid = Oid::from_hex(&[digit; 40]).unwrap();
        let refs = (0..refs).map(|number| Ref { name: name(number), oid, peeled: None });
        Arc::new(RefSet::new(ObjectFormat::Sha1, Head::Missing, refs.collect()))
    }

    #[tokio::test]
    async fn every_table_and_request_gets_its_own_answer() {
        let rendered = Rendered::default();
        let requests =
            [LsRefs::everything(), LsRefs { prefixes: vec!["refs/tags/".into()], ..LsRefs::default() }];
        for _ in 0..3 {
            for refs in [table(b'1', 3), table(b'2', 3)] {
                for request in &requests {
                    for _ in 0..2 {
                        let answer = rendered.ls_refs(request.clone(), &refs).await.unwrap();
                        assert_eq!(answer, request.respond(&refs));
                    }
                }
            }
        }
        assert!(rendered.known().len() <= 4, "tables that are gone are forgotten");
    }

    #[tokio::test]
    async fn a_long_list_is_there_once_for_all_who_read_it_and_longer_ones_wait_for_their_readers() {
        let (rendered, refs) = (Rendered::default(), table(b'1', 20_000));
        let ask = || rendered.ls_refs(LsRefs::everything(), &refs);
        let (one, two) = tokio::join!(ask(), ask());
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(one.len() > 1 << 20 && one.as_ptr() == two.as_ptr());
        let taken = ROOM / UNIT - rendered.room.available_permits();
        assert_eq!(taken, one.len().div_ceil(UNIT));
        // Longer than what is kept: it goes with its last reader.
        let room = rendered.room(KEPT).await.unwrap();
        let long = Arc::new(List { bytes: vec![0; KEPT], _room: room });
        rendered.keep(&rendered.find(&Shape::Advertisement(ProtocolVersion::V0), &refs), &long);
        drop((one, two, long));
        let all = u32::try_from(ROOM / UNIT).unwrap();
        let room = rendered.room(ROOM + 1).await.unwrap();
        assert_eq!(room.num_permits(), usize::try_from(all).unwrap(), "what nobody reads has made way");
    }
}
