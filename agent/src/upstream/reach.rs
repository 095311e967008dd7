//! Names resolved for connections to upstreams: a connection gets only those addresses that may be asked.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tarn_crds::allowed_hosts::AllowedHosts;
use tokio::net::lookup_host;
use url::{Host, Url};

use super::egress::{NotAllowed, Target, Trust, admits};

/// How hosts are reached: which addresses their names may lead to, and who resolves the names. It is the resolver of their
/// connections. Literal addresses do not come here: they are judged with their URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) trust: Trust,
    pub(super) list: Arc<AllowedHosts>,
    pub(super) proxied: bool,
}

/// Why a name gives no address to connect to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unresolved {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
}

/// Whether a proxy of the environment gets requests for this URL, and resolves its name.
pub(super) fn proxied(url: &Url) -> bool {
    static PROXIES: LazyLock<Matcher> = LazyLock::new(Matcher::from_system);
    url.as_str().parse().is_ok_and(|uri| PROXIES.intercept(&uri).is_some())
}

impl Reach {
    /// The reach of a place that was judged by `list`.
    pub(super) fn of(target: &Target, list: &Arc<AllowedHosts>) -> Self {
        Self { trust: target.trust, list: list.clone(), proxied: proxied(&target.url) }
    }

    /// That of an upstream that no HTTP request goes to.
    pub(super) fn none() -> Self {
        Self { trust: Trust::Ranges, list: Arc::default(), proxied: false }
    }

    /// The addresses of the host of `url`, as curl takes them; nothing where there is nothing to resolve.
    pub(super) async fn for_curl(&self, url: &str) -> Result<Option<String>, Unresolved> {
        let Ok(url) = Url::parse(url) else { return Ok(None) };
        let (Some(Host::Domain(name)), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Ok(None);
        };
        let found = self.find(name).await?;
        let shown = found.iter().map(|address| match address.ip() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        });
        Ok(Some(format!("{name}:{port}:{}", shown.collect::<Vec<_>>().join(","))))
    }

    /// The addresses of a host that may be asked; at least one.
    pub(super) async fn find(&self, name: &str) -> Result<Vec<SocketAddr>, Unresolved> {
        let found: Vec<SocketAddr> = lookup_host((name, 0)).await?.collect();
        let fit = |address: &&SocketAddr| admits(&self.list, self.trust, address.ip());
        let fit: Vec<SocketAddr> = found.iter().filter(fit).copied().collect();
        match found.first() {
            Some(_) if !fit.is_empty() => Ok(fit),
            Some(first) => {
                let address = first.ip();
                tracing::warn!(host = name, %address, "a name leads to an address that is not asked");
                Err(NotAllowed::Host(name.to_owned()).into())
            }
            None => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("the name {name} has no address")).into())
            }
        }
    }
}

impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move { Ok(Box::new(reach.find(name.as_str()).await?.into_iter()) as Addrs) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_gets_only_addresses_that_may_be_asked() {
        let reach = |trust, entries: &[&str]| {
            let entries = entries.iter().map(|entry| entry.parse().unwrap()).collect();
            Reach { trust, list: Arc::new(AllowedHosts::new(entries)), proxied: false }
        };
        for trust in [Trust::Answer, Trust::Own, Trust::Ranges] {
            let refused = reach(trust, &[]).find("localhost").await.unwrap_err();
            assert!(matches!(refused, Unresolved::NotAllowed(NotAllowed::Host(_))), "{trust:?}: {refused}");
            let found = reach(trust, &["127.0.0.1"]).find("localhost").await.unwrap();
            assert!(found.iter().all(|address| address.ip().to_string() == "127.0.0.1"), "{found:?}");
        }
        assert!(reach(Trust::Loopback, &[]).find("localhost").await.is_ok());
        let missing = reach(Trust::Named, &[]).find("nothing.invalid").await.unwrap_err();
        assert!(matches!(missing, Unresolved::Io(_)), "{missing}");
    }
}
