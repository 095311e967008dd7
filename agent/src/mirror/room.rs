//! Whether the disk has room: told by whoever keeps the budget, and by those that find the disk full.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// A mirror that has failed so often for want of room gets no more: it may be larger than the disk.
const PLEAS: u32 = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Room {
    tight: AtomicBool,
    wanted: Notify,
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
