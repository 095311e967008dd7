//! The clock that dates a store's objects. This machine's may be wrong by days.

use bytes::Bytes;
use jiff::Timestamp;

use super::{PutMode, Store, StoreError};

/// An object that is written to see when.
const CLOCK: &str = "v1/_clock";

/// The store's time.
///
/// # Errors
/// The store's.
pub async fn store_clock(store: &dyn Store) -> Result<Timestamp, StoreError> {
    store.put(CLOCK, Bytes::new(), PutMode::Overwrite).await?;
    Ok(store.head(CLOCK).await?.0.modified)
}
