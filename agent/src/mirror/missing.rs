//! Credentials that a declaration names, and that are missing.

use std::time::{Duration, Instant};

use tarn_crds::v1alpha1::conditions::Reason;

/// How long what is here is served on after its credentials have gone: a rotation by deleting the Secret and making it
/// again takes seconds, and whoever took it away for good wants an end.
const GRACE: Duration = Duration::from_secs(600);

/// Why the upstream cannot be asked. What is on the disk is served meanwhile, stale, to whom it was served before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingCredentials {
    /// In a word.
    pub reason: Reason,
    /// What to do about it.
    pub message: String,
    /// Time from which on they are known to be missing; none while nobody can be asked whether they are.
    pub since: Option<Instant>,
}

impl MissingCredentials {
    /// Whether they have been missing for so long that nothing is served any more.
    pub fn is_final(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= GRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_bridged_and_a_removal_takes_effect() {
        let missing =
            |since| MissingCredentials { reason: Reason::SecretNotFound, message: String::new(), since };
        let now = Instant::now();
        assert!(!missing(Some(now)).is_final(now + GRACE - Duration::from_secs(1)));
        assert!(missing(Some(now)).is_final(now + GRACE));
        assert!(!missing(None).is_final(now + GRACE * 100), "nobody could say");
    }
}
