//! Removes everything of a repository from the store.

use std::time::Duration;

use tarn_crds::repo::RepoId;

use super::manifest::Keys;
use crate::store::{Meta, Store, StoreError, list_all};

/// How often the list is read again: an upload that was under way may end meanwhile.
const ROUNDS: usize = 3;

/// Removes what there is of `id`: manifests first, so that none names what is gone. What an attempt leaves goes at the
/// next one. Returns how many objects went; `None` where they were no longer to go, of which `wanted` is asked before
/// each.
///
/// # Errors
/// The store's.
pub async fn wipe(
    store: &dyn Store,
    id: &RepoId,
    wanted: impl Fn() -> bool,
) -> Result<Option<usize>, StoreError> {
    let keys = Keys::of(id);
    let prefix = keys.all();
    let mut removed = 0;
    for _ in 0..ROUNDS {
        let mut there = list_all(store, prefix).await?;
        if there.is_empty() {
            break;
        }
        there.sort_by_key(|meta| !is_manifest(meta));
        for meta in there {
            if !wanted() {
                return Ok(None);
            }
            store.delete(&meta.key).await?;
            removed += 1;
        }
    }
    store.abort_uploads(prefix, Duration::ZERO).await?;
    Ok(Some(removed))
}

fn is_manifest(meta: &Meta) -> bool {
    meta.key.ends_with(".json")
}
