//! Waits that may have nothing to wait for.

/// Waits for `future`; for ever where there is none.
pub async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
