//! Where the other agents are that may have a mirror which this one lacks: as the flags say, or as the cluster does
//! (see `fleet::cluster::endpoints`). Nothing but these addresses is ever called.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tarn_crds::repo::RepoId;
use tokio::sync::watch;
use url::Url;

use super::weight;

/// Another agent's git port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// What it is called: the pod's name, or the address itself.
    pub name: String,
    /// `http://host:port`.
    base: String,
}

impl Address {
    /// The agent of a pod, by `http` or `https`.
    pub fn of_pod(name: impl Into<String>, scheme: &'static str, ip: IpAddr, port: u16) -> Self {
        let base = format!("{scheme}://{}", SocketAddr::new(ip, port));
        Self { name: name.into(), base }
    }

    /// The agent that a flag names.
    ///
    /// # Errors
    /// What is wrong with the text, without the text: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| "is no URL, such as http://10.0.0.7:8080")?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("must begin with http:// or https://");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold credentials");
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("must end after the port: agents serve below /git/");
        }
        let base = url.origin().ascii_serialization();
        Ok(Self { name: base.clone(), base })
    }

    /// Where a path of its git port is.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The addresses as they are now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Addresses(watch::Receiver<Arc<[Address]>>);

impl Addresses {
    /// These, until others are sent.
    pub fn new(mut known: Vec<Address>) -> (Self, watch::Sender<Arc<[Address]>>) {
        known.sort_unstable();
        known.dedup();
        let (sender, receiver) = watch::channel(known.into());
        (Self(receiver), sender)
    }

    /// Follows them.
    pub fn watch(&self) -> watch::Receiver<Arc<[Address]>> {
        self.0.clone()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Address> {
        self.0.borrow().to_vec()
    }

    /// All of them, in the order in which they are to be asked for `id`: the same for all agents, and another for each
    /// mirror, so that the cold of many mirrors spread over the warm.
    pub fn ranked(&self, id: &RepoId) -> Vec<Address> {
        let mut all = self.0.borrow().to_vec();
        all.sort_by_cached_key(|address| std::cmp::Reverse(weight(&address.name, id)));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_are_hosts_and_ports_and_nothing_else() {
        let parsed = Address::parse("http://10.0.0.7:8080").unwrap();
        assert_eq!(parsed.url("/git/x"), "http://10.0.0.7:8080/git/x");
        assert_eq!(
            Address::parse("https://tarn.example.com/").unwrap().url("/"),
            "https://tarn.example.com/"
        );
        for text in [
            "10.0.0.7:8080",
            "ftp://10.0.0.7",
            "http://canary:canary@10.0.0.7",
            "http://10.0.0.7/canary",
            "http://10.0.0.7/?canary",
            "canary",
        ] {
            assert!(!Address::parse(text).unwrap_err().contains("canary"), "{text}");
        }
        let v6 = Address::of_pod("c-0", "http", "fd00::1".parse().unwrap(), 8080);
        assert_eq!((v6.url("/"), v6.to_string()), ("http://[fd00::1]:8080/".to_owned(), "c-0".to_owned()));
    }

    #[test]
    fn each_mirror_has_an_order_of_its_own_that_all_agents_share() {
        let address = |n: u8| Address::of_pod(format!("c-{n}"), "http", IpAddr::from([10, 0, 0, n]), 8080);
        let (here, _here) = Addresses::new((0..4).map(address).collect());
        let (there, _there) = Addresses::new((0..4).rev().map(address).collect());
        let mut firsts = BTreeSet::new();
        for number in 0..50 {
            let id = RepoId::from_route(&format!("example.org/r{number}")).unwrap();
            let ranked = here.ranked(&id);
            assert_eq!((ranked.len(), &ranked), (4, &there.ranked(&id)));
            firsts.insert(ranked[0].clone());
        }
        assert_eq!(firsts.len(), 4);
    }
}
