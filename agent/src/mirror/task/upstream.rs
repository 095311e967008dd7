//! The upstream as the present declaration names it.

use std::sync::Arc;

use super::site::Site;
use crate::{
    git::remote::{Remote, Way},
    mirror::{MissingCredentials, Settings},
    upstream::{LookError, Looker, credentials::Installed},
};

/// See the module.
pub(super) struct Upstream {
    pub(super) looker: Arc<Looker>,
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
        let way = Way::Only { origin: None, addresses: None };
        let remote = Remote { url: settings.url.as_str().to_owned(), credentials, way };
        let (git, url, refs) = (site.git.clone(), settings.url.clone(), settings.refs.clone());
        let looker = Looker::new(git, url, remote, given, installed.clone(), refs, &site.allowed)?;
        Ok(Self { looker: Arc::new(looker), installed })
    }

    /// The files with credentials that git commands read: they stay for as long as this is held.
    pub(super) fn installed(&self) -> Option<Arc<Installed>> {
        self.installed.clone()
    }
}
