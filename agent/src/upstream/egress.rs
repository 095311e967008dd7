//! Judgement of where the agent may send a request: a pure function of the upstream, the allow-list and the URL.
//!
//! *Invariant:* a URL that comes out of an upstream's answer leads to the upstream's own host and port, to a public
//! address, or to a host that the allow-list names. A URL is judged in two steps: [`Egress::judge`] looks at the scheme,
//! the host and a literal address; [`admits`] looks at each address that a name resolves to. The resolver that asks
//! it ([`super::reach`]) gives the connection nothing else, so a name cannot change between judgement and connection.
//!
//! Without a list, the upstream may be anywhere, because a person wrote its URL. Its name must not lead to this machine or
//! the link, which whoever owns the name could choose later. With a list, nothing is asked that the list does not name.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use tarn_crds::allowed_hosts::AllowedHosts;
use url::{Host, Url};

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressKind {
    /// A host of the internet.
    Public,
    /// Set aside for documentation, benchmarks or the future; some networks use such addresses as their own.
    Reserved,
    /// A host of a private network: RFC 1918, unique local, or shared by a carrier.
    Private,
    /// This machine, its link, all hosts, or the machine below a virtual one: no place for an upstream.
    Local,
}

impl AddressKind {
    /// The kind of `address`. An IPv6 address that stands for an IPv4 one is of that one's kind.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            // Azure answers its virtual machines at 168.63.129.16, with their secrets.
            [0 | 127, ..] | [169, 254, ..] | [224..=239, ..] | [255, 255, 255, 255] | [168, 63, 129, 16] => {
                Self::Local
            }
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Self::Private,
            [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] => Self::Reserved,
            [198, 51, 100, _] | [203, 0, 113, _] | [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let v4 = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match address.segments() {
            // Unspecified and loopback lie in the old compatible form.
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Local,
            [0, 0, 0, 0, 0, 0, high, low] => v4(high, low).max(Self::Reserved),
            [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
            // Translated by a gateway, as DNS64 names IPv4 hosts to those that have IPv6 alone.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
            // 6to4, and Teredo, which hides the bits of its client's address.
            [0x2002, high, low, ..] => v4(high, low).max(Self::Reserved),
            [0x2001, 0, _, _, _, _, high, low] => v4(!high, !low).max(Self::Reserved),
            [0xfe80..=0xfebf, ..] | [0xff00..=0xffff, ..] => Self::Local,
            [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Self::Private,
            [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Reserved,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

/// Which addresses a host's name may lead to; those of the list's ranges besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Any: the list names the host.
    Named,
    /// All but [`AddressKind::Local`]: it is the upstream's own host, and there is no list.
    Own,
    /// The same, and this machine: the upstream's own name is `localhost`.
    Loopback,
    /// [`AddressKind::Public`] ones: an upstream's answer names the host.
    Answer,
    /// None.
    Ranges,
}

/// Why a URL is not asked. The text names the host and a remedy, and no address: a client must not learn from it what the
/// agent's resolver knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// The list does not name the host, or its address is none that may be asked.
    #[error(
        "the agent may not ask {0}: add it to spec.upstreams.allowedHosts of the GitCache (--allow-upstream) if the \
         upstream belongs there"
    )]
    Host(String),
    /// The upstream is reached over TLS, and sends the agent to a place that is not.
    #[error("the upstream leads from https to http")]
    Downgrade,
    /// A scheme other than http and https, a URL with credentials, or none at all.
    #[error("the upstream's answer holds a URL that is not followed: {0}")]
    Url(&'static str),
}

/// One upstream, and what may be asked because of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Egress {
    home: Option<Url>,
    list: Arc<AllowedHosts>,
}

/// Where a request goes, once it was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The URL.
    pub url: Url,
    /// Whether it is the upstream's own scheme, host and port.
    pub own: bool,
    /// Which addresses its name may lead to.
    pub trust: Trust,
}

impl Egress {
    /// The judgement for the upstream at `home`, a URL that a person wrote.
    pub fn new(home: &str, list: Arc<AllowedHosts>) -> Self {
        Self { home: Url::parse(home).ok(), list }
    }

    /// The allow-list.
    pub fn list(&self) -> &Arc<AllowedHosts> {
        &self.list
    }

    /// Judges a URL that came out of an answer of the upstream. `proxied`: a proxy resolves its name, so that only the name
    /// can be judged.
    ///
    /// # Errors
    /// It is not to be asked.
    pub fn judge(&self, url: &str, proxied: impl FnOnce(&Url) -> bool) -> Result<Target, NotAllowed> {
        let url = Url::parse(url).map_err(|_| NotAllowed::Url("it cannot be read"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(NotAllowed::Url("its scheme is neither http nor https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(NotAllowed::Url("it holds credentials"));
        }
        let (host, port) = place(&url).ok_or(NotAllowed::Url("it names no host"))?;
        let same = |home: &Url| {
            home.scheme() == url.scheme() && place(home).is_some_and(|home| home == (host.clone(), port))
        };
        let own = self.home.as_ref().is_some_and(same);
        let named = self.list.has_host(&host.to_string(), port);
        let literal = literal(&host);
        let listed = named || literal.is_some_and(|address| self.list.has_address(address));
        if self.home.as_ref().is_some_and(|home| home.scheme() == "https")
            && url.scheme() == "http"
            && !listed
        {
            return Err(NotAllowed::Downgrade);
        }
        let trust = if listed { Trust::Named } else { self.trust(&host, own) };
        let fits = match literal {
            Some(address) => admits(&self.list, trust, address),
            // The list's ranges say nothing of a name that this agent does not resolve.
            None => trust != Trust::Ranges || !proxied(&url),
        };
        if fits { Ok(Target { url, own, trust }) } else { Err(NotAllowed::Host(shown(&host, port))) }
    }

    /// Judges the upstream's own URL.
    ///
    /// # Errors
    /// It is not to be asked.
    pub fn home(&self, proxied: impl FnOnce(&Url) -> bool) -> Result<Target, NotAllowed> {
        let home = self.home.as_ref().ok_or(NotAllowed::Url("it cannot be read"))?;
        self.judge(home.as_str(), proxied)
    }

    /// Which addresses a host may have that no entry of the list names.
    fn trust(&self, host: &Host<String>, own: bool) -> Trust {
        let free = self.list.is_empty() || self.list.has_all();
        match host {
            _ if !free => Trust::Ranges,
            _ if !own => Trust::Answer,
            Host::Domain(name) if name == "localhost" || name.ends_with(".localhost") => Trust::Loopback,
            Host::Domain(_) => Trust::Own,
            // A person wrote the address itself.
            Host::Ipv4(_) | Host::Ipv6(_) => Trust::Named,
        }
    }
}

/// Whether a host of this trust may be asked at this address.
pub fn admits(list: &AllowedHosts, trust: Trust, address: IpAddr) -> bool {
    let kind = AddressKind::of(address);
    let by_kind = match trust {
        Trust::Named => true,
        Trust::Own => kind != AddressKind::Local,
        Trust::Loopback => kind != AddressKind::Local || address.to_canonical().is_loopback(),
        Trust::Answer => kind == AddressKind::Public,
        Trust::Ranges => false,
    };
    by_kind || list.has_address(address)
}

fn literal(host: &Host<String>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
    }
}

/// The URL's host and port, in one form: without a dot at the name's end.
fn place(url: &Url) -> Option<(Host<String>, u16)> {
    let host = match url.host()? {
        Host::Domain(name) => Host::Domain(name.strip_suffix('.').unwrap_or(name).to_owned()),
        Host::Ipv4(address) => Host::Ipv4(address),
        Host::Ipv6(address) => Host::Ipv6(address),
    };
    Some((host, url.port_or_known_default()?))
}

fn shown(host: &impl fmt::Display, port: u16) -> String {
    if matches!(port, 80 | 443) { host.to_string() } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests;
