//! Where Tarn is, and what the routes of a repository are called there.

use url::{Host, Url};

use crate::cli::GivenUrl;
use crate::git::Git;
use tarn_crds::repo::RepoId;

/// Why there is no Tarn to ask.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Nobody said where it is.
    #[error("where is Tarn? give --server URL, set TARN_URL, or `git config --global tarn.url URL`")]
    Unknown,
    /// What was said is no URL of a server.
    #[error("{origin} must be an http:// or https:// URL without user, query or fragment")]
    Invalid {
        /// Who said it.
        origin: &'static str,
    },
}

/// Tarn's base URL.
#[derive(Clone, Debug)]
pub struct Server(Url);

impl Server {
    /// The server named by the flag or the variable, else by `git config tarn.url`.
    ///
    /// # Errors
    /// None is named, or not by a URL.
    pub async fn find(given: Option<&GivenUrl>, git: &Git) -> Result<Self, ServerError> {
        match given {
            Some(url) if !url.expose().is_empty() => Self::parse(url.expose())
                .ok_or(ServerError::Invalid { origin: "the server (--server, TARN_URL)" }),
            _ => {
                let configured = git.anywhere().args(["config", "--get", "tarn.url"]).run().await;
                let text = configured.ok().filter(|text| !text.is_empty()).ok_or(ServerError::Unknown)?;
                Self::parse(&text).ok_or(ServerError::Invalid { origin: "git config tarn.url" })
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let plain = url.username().is_empty() && url.password().is_none();
        let whole = url.query().is_none() && url.fragment().is_none() && url.has_host();
        (matches!(url.scheme(), "http" | "https") && plain && whole).then_some(Self(url))
    }

    /// The URL.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Whether others may change on the way what it answers: over http, but on this machine.
    pub fn is_exposed(&self) -> bool {
        let here = match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        self.0.scheme() == "http" && !here
    }

    /// Host and port with the scheme, as git's configuration names whom credentials are for.
    pub fn scope(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    /// The audience of the GitCache whose Service the host names in full: `NAME.NAMESPACE.svc`, perhaps with the cluster's
    /// domain. From the URL that the user configured, never from what a server says: that could name another's audience.
    pub fn audience(&self) -> Option<String> {
        let mut labels = self.0.domain()?.split('.');
        let (cache, namespace) = (labels.next()?, labels.next()?);
        (labels.next() == Some("svc")).then(|| tarn_crds::audience(namespace, cache))
    }

    /// Where this repository is served.
    pub fn repository(&self, id: &RepoId) -> Repository {
        Repository(format!("{}/git/{}", self.0.as_str().trim_end_matches('/'), id.route()))
    }
}

/// A repository's base URL in Tarn; git clones from it.
#[derive(Clone, Debug)]
pub struct Repository(String);

impl Repository {
    /// What git is given.
    pub fn git_url(&self) -> &str {
        &self.0
    }

    /// The snapshot.
    pub fn snapshot(&self) -> String {
        format!("{}/snapshot.tar.zst", self.0)
    }

    /// What came after a commit. The route is fixed, so the link in the snapshot's answer is not followed: it could
    /// lead to another host.
    pub fn bundle(&self, base: &str) -> String {
        format!("{}/snapshot.bundle?base={base}", self.0)
    }

    /// The request for refs and commits.
    pub fn ensure_refs(&self) -> String {
        format!("{}/ensure-refs", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_lie_below_the_base() {
        let id = RepoId::from_url("https://github.com/org/repo.git").unwrap();
        for base in ["http://tarn.ci", "http://tarn.ci/"] {
            let repository = Server::parse(base).unwrap().repository(&id);
            assert_eq!(repository.git_url(), "http://tarn.ci/git/github.com/org/repo");
        }
        let below = Server::parse("https://gw.corp:8443/tarn/").unwrap().repository(&id);
        assert_eq!(below.snapshot(), "https://gw.corp:8443/tarn/git/github.com/org/repo/snapshot.tar.zst");
    }

    #[test]
    fn an_audience_is_known_of_services_alone() {
        let audience = |url: &str| Server::parse(url).unwrap().audience();
        for url in ["http://default.ci.svc", "https://default.ci.svc.cluster.local:8443/x"] {
            assert_eq!(audience(url).as_deref(), Some("default.ci.tarn.dev"), "{url}");
        }
        for url in ["https://tarn.example", "http://default", "http://default.ci", "http://127.0.0.1:8080"] {
            assert_eq!(audience(url), None, "{url}");
        }
    }

    #[test]
    fn what_is_not_encrypted_is_exposed_but_on_this_machine() {
        let exposed = |text: &str| Server::parse(text).unwrap().is_exposed();
        for url in
            ["http://tarn.ci", "http://10.0.0.1:8080", "http://[fd00::1]", "http://localhost.evil.example"]
        {
            assert!(exposed(url), "{url}");
        }
        for url in ["https://tarn.ci", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:8080"] {
            assert!(!exposed(url), "{url}");
        }
    }

    #[test]
    fn a_server_has_no_password_and_speaks_http() {
        for wrong in ["tarn.ci", "ftp://tarn.ci", "http://u:p@tarn.ci", "http://tarn.ci/?x=1", "/srv"] {
            assert!(Server::parse(wrong).is_none(), "{wrong}");
        }
    }
}
