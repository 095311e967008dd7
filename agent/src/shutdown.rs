//! When to stop: SIGTERM or SIGINT.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first SIGTERM or SIGINT. A second one ends the process at once.
///
/// # Errors
/// Signals cannot be handled.
pub fn on_signal() -> io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if first {
                tracing::info!("stopping: streams under way may finish");
                cancelled.cancel();
            } else {
                tracing::warn!("stopping at once");
                std::process::exit(130);
            }
        }
    });
    Ok(token)
}
