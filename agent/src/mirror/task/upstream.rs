//! The upstream as the present declaration names it.

use std::sync::Arc;

use super::site::Site;
use crate::{
    git::remote::Remote,
    mirror::{MissingCredentials, Settings},
    upstream::{LookError, Looker, credentials::Installed},
};

/// See the module.
pub(super) struct Upstream {
    pub(super) looker: Arc<Looker>,
    remote: Remote,
    installed: Option<Arc<Installed>>,
}

impl Upstream {
    /// Makes the files with credentials, and what looks need.
    pub(super) fn connect(site: &Site, settings: &Settings) -> Result<Self, Arc<LookError>> {
        let failed = |error: std::io::Error| {
            LookError::Refused(format!("cannot write the credentials for git: {error}"))
        };
        let missing = |missing: &MissingCredentials| LookError::NoCredentials(missing.message.clone());
        let given = settings.credentials.as_ref().map_err(missing)?;
        let installed = given.install(&site.disk.private(), &settings.url).map_err(failed)?;
        let credentials = installed.as_ref().map(|installed| installed.config().to_owned());
        let remote = Remote { url: settings.url.as_str().to_owned(), credentials };
        let (git, url, refs) = (site.git.clone(), settings.url.clone(), settings.refs.clone());
        let looker = Looker::new(git, url, remote.clone(), given, installed.clone(), refs)?;
        Ok(Self { looker: Arc::new(looker), remote, installed })
    }

    /// The files with credentials that [`Self::remote`] names: they stay for as long as this is held.
    pub(super) fn installed(&self) -> Option<Arc<Installed>> {
        self.installed.clone()
    }

    /// The upstream for git commands, where redirects have led.
    pub(super) fn remote(&self) -> Remote {
        Remote { url: self.looker.url(), ..self.remote.clone() }
    }
}
