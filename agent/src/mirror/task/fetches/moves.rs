//! What a fetch is about to change, for the log.

use crate::git::{Ref, RefSet};

/// Logs at debug every ref that moves, at info their number.
pub(super) fn log(old: Option<&RefSet>, new: &RefSet) {
    let empty = RefSet::empty(new.format());
    let old = old.unwrap_or(&empty);
    let (mut added, mut moved, mut removed) = (0_usize, 0_usize, 0_usize);
    for Ref { name, oid, .. } in new.refs() {
        match old.get(name.as_ref()).map(|old| old.oid) {
            Some(before) if before == *oid => {}
            Some(before) => {
                moved += 1;
                tracing::debug!(%name, old = %before, new = %oid, "ref moves");
            }
            None => {
                added += 1;
                tracing::debug!(%name, new = %oid, "ref appears");
            }
        }
    }
    for Ref { name, oid, .. } in old.refs() {
        if new.get(name.as_ref()).is_none() {
            removed += 1;
            tracing::debug!(%name, old = %oid, "ref goes");
        }
    }
    tracing::info!(added, moved, removed, "fetching");
}
