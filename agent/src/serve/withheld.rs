//! What is shown to nobody, because the upstream does not let this agent have it.

use super::{Serving, error::Failure};
use crate::{
    metrics::Outcome,
    mirror::{
        Mirror,
        freshness::{self, Unavailable},
    },
    upstream::Provenance,
};

impl Serving {
    /// Makes sure that the upstream lets this agent have what is to be shown: see [`freshness::may_show`].
    ///
    /// # Errors
    /// It does not, or nobody knows.
    pub(super) async fn may_show(
        &self,
        mirror: &Mirror,
        provenance: Option<&Provenance>,
    ) -> Result<(), Failure> {
        let shown = freshness::may_show(mirror, provenance).await;
        if let Err(Unavailable::Withheld(trouble)) = &shown {
            let outcome = Outcome { outcome: trouble.reason.as_str() };
            self.metrics.access.withheld.get_or_create(&outcome).inc();
        }
        Ok(shown?)
    }

    /// The same of what lies beside a mirror and does not say with what it was fetched: LFS objects. While the mirror
    /// is here, they go with it.
    ///
    /// # Errors
    /// As [`Self::may_show`].
    pub(super) async fn may_show_beside(&self, mirror: &Mirror) -> Result<(), Failure> {
        match mirror.view().stored {
            Some(_) => Ok(()),
            None => self.may_show(mirror, Some(&Provenance::Unknown)).await,
        }
    }
}
