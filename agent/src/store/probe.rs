//! What a store can do, found out by trying.

use bytes::Bytes;

use super::{Capabilities, PutMode, Store, StoreError};

/// Creates an object twice. A store that takes the second one ignores the condition: such stores exist, and
/// proxies that strip the header.
///
/// # Errors
/// The store cannot be written to. The object is deleted either way, if that can be done.
pub async fn probe(store: &dyn Store) -> Result<Capabilities, StoreError> {
    let key = format!("v1/_probe/{:032x}", rand::random::<u128>());
    store.put(&key, Bytes::from_static(b"first"), PutMode::Create).await?;
    let second = store.put(&key, Bytes::from_static(b"second"), PutMode::Create).await;
    let deleted = store.delete(&key).await;
    let conditional_create = match second {
        Ok(()) => false,
        Err(StoreError::Exists(_)) => true,
        Err(error) => return Err(error),
    };
    deleted?;
    Ok(Capabilities { conditional_create })
}
