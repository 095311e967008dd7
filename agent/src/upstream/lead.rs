//! Where requests go besides the upstream's own URL: to URLs of its answers, and by git.

use std::{sync::Arc, time::Duration};

use tarn_crds::repo::Scheme;
use tokio::time::timeout;

use super::{
    egress::Target,
    http::{Host, HttpError},
    look::Looker,
    reach::{Reach, proxied},
};
use crate::git::{
    GitError,
    remote::{Remote, Way},
};

/// How long a name may take to be resolved for git.
const RESOLVING: Duration = Duration::from_secs(30);

impl Looker {
    /// The upstream for git commands, where redirects have led: git may ask its host, at the addresses that its name has now
    /// and that may be asked, and no other.
    ///
    /// # Errors
    /// The name has no such address.
    pub async fn for_git(&self) -> Result<Remote, GitError> {
        let remote = Remote { url: self.url(), ..self.remote.clone() };
        if !matches!(self.url.scheme(), Scheme::Http | Scheme::Https) {
            return Ok(remote);
        }
        if self.host.reach().proxied {
            return Ok(Remote { way: Way::Proxy, ..remote });
        }
        let resolved = timeout(RESOLVING, self.host.reach().for_curl(&remote.url)).await;
        match resolved.map_or(Err(HttpError::TimedOut(RESOLVING)), |found| found.map_err(HttpError::from)) {
            Ok(addresses) => {
                let origin = Some(format!("{}://{}", self.url.scheme().as_str(), self.url.id().host()));
                Ok(Remote { way: Way::Only { origin, addresses }, ..remote })
            }
            Err(error) => {
                let (verb, kind) = ("fetch".into(), error.kind());
                Err(GitError::Failed { verb, kind, message: error.to_string() })
            }
        }
    }

    /// Judges a URL that came out of an answer of the upstream, and gives who asks it.
    ///
    /// # Errors
    /// It is not to be asked.
    pub(super) fn lead(&self, url: &str) -> Result<(Target, Arc<Host>), HttpError> {
        let target = self.egress.judge(url, proxied).inspect_err(|refused| {
            tracing::warn!(repo = %self.url.id(), error = %refused, "a URL of the upstream's is not followed");
        })?;
        if target.own {
            return Ok((target, self.host.clone()));
        }
        let host = Host::elsewhere(self.ca.as_ref(), Reach::of(&target, self.egress.list()))?;
        // They are as many as there are ways to be reached, a handful.
        if let Ok(mut elsewhere) = self.elsewhere.lock()
            && !elsewhere.iter().any(|known| Arc::ptr_eq(known, &host))
        {
            elsewhere.push(host.clone());
        }
        Ok((target, host))
    }
}
