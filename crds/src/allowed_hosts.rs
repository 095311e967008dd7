//! Allow-list of the hosts that agents may ask: `GitCache.spec.upstreams.allowedHosts` and `--allow-upstream`.
//!
//! An entry is a host, all hosts below a domain, a range of addresses, or `*` for every host. Without any entry the list
//! restricts no upstream. Pure: names are compared, never resolved.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::repo::{RepoIdError, Scheme, UpstreamUrl, host_and_port};

/// The longest entry, in bytes: a domain, `*.` and a port.
pub const MAX_ENTRY: usize = 260;

/// The most entries of a list.
pub const MAX_ENTRIES: usize = 256;

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    text: String,
    names: Names,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    /// Every host.
    All,
    /// One host, in lower case; an IPv6 address in brackets.
    Host(String, Option<u16>),
    /// All hosts below a domain, which begins with its dot.
    Below(String, Option<u16>),
    /// All addresses that begin with the same bits.
    Range(IpAddr, u8),
}

/// Why a text is no entry. Repeats nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowedHostError {
    /// Longer than any host name.
    #[error("is longer than {MAX_ENTRY} bytes")]
    TooLong,
    /// A scheme, a user or a path.
    #[error("is a URL; write the host alone, such as github.com")]
    Url,
    /// A prefix length that the address does not have, or bits behind it.
    #[error("has no valid prefix length, or bits set after the prefix; write 10.0.0.0/8 or fd00::/8")]
    Range,
    /// `*` elsewhere than in front.
    #[error("has a * that is not alone and not followed by a dot at the start; write *.example.com")]
    Wildcard,
    /// Digits that some resolvers take for an address.
    #[error("ends in a number, but is no IPv4 address in four decimal parts")]
    Number,
    /// No valid host or port.
    #[error("{0}")]
    Host(#[from] RepoIdError),
}

impl FromStr for AllowedHost {
    type Err = AllowedHostError;

    fn from_str(text: &str) -> Result<Self, AllowedHostError> {
        if text.len() > MAX_ENTRY {
            return Err(AllowedHostError::TooLong);
        }
        Ok(Self { text: text.to_owned(), names: parse(text)? })
    }
}

fn parse(text: &str) -> Result<Names, AllowedHostError> {
    if text == "*" {
        return Ok(Names::All);
    }
    if text.contains("://") || text.contains('@') {
        return Err(AllowedHostError::Url);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Names::Range(address, bits(address)));
    }
    if let Some((address, length)) = text.split_once('/') {
        let address: IpAddr = address.parse().map_err(|_| AllowedHostError::Url)?;
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let length = length.parse().ok().filter(|length| digits && *length <= bits(address));
        let length = length.ok_or(AllowedHostError::Range)?;
        let clean = number(address) & !mask(address, length) == 0;
        return if clean { Ok(Names::Range(address, length)) } else { Err(AllowedHostError::Range) };
    }
    let (host, below) = match text.strip_prefix("*.") {
        Some(host) => (host, true),
        None => (text, false),
    };
    if host.contains('*') {
        return Err(AllowedHostError::Wildcard);
    }
    let (host, port) = host_and_port(host)?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    if address.is_none() && ends_in_number(&host) {
        return Err(AllowedHostError::Number);
    }
    match (below, address, port) {
        (true, Some(_), _) => Err(AllowedHostError::Wildcard),
        (true, None, port) => Ok(Names::Below(format!(".{host}"), port)),
        (false, Some(address), None) => Ok(Names::Range(address, bits(address))),
        (false, _, port) => Ok(Names::Host(host, port)),
    }
}

/// Whether URL parsers take the host for an IPv4 address: its last label is a number, in decimal, octal or hexadecimal.
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || last.bytes().all(|byte| byte.is_ascii_digit())
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The bits of an address's first `length` ones.
fn mask(address: IpAddr, length: u8) -> u128 {
    let behind = u32::from(bits(address) - length);
    let all = if address.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
    all & u128::MAX.checked_shl(behind).unwrap_or(0)
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The whole list. The default one has no entry, and restricts no upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<AllowedHost>);

impl AllowedHosts {
    /// The list of these entries.
    pub fn new(entries: Vec<AllowedHost>) -> Self {
        Self(entries)
    }

    /// Reads the entries of a GitCache.
    ///
    /// # Errors
    /// Which entry is wrong, counted from 0, and why.
    pub fn parse(entries: &[String]) -> Result<Self, (usize, AllowedHostError)> {
        let entries = entries.iter().enumerate().map(|(at, text)| text.parse().map_err(|error| (at, error)));
        entries.collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `*` is on the list.
    pub fn has_all(&self) -> bool {
        self.0.iter().any(|entry| entry.names == Names::All)
    }

    /// Whether an entry names this host, in lower case and without a dot at its end; an IPv6 address has brackets.
    pub fn has_host(&self, host: &str, port: u16) -> bool {
        self.0.iter().any(|entry| match &entry.names {
            Names::Host(named, on) => named == host && on.is_none_or(|on| on == port),
            Names::Below(domain, on) => host.ends_with(domain.as_str()) && on.is_none_or(|on| on == port),
            Names::All | Names::Range(..) => false,
        })
    }

    /// Whether a range holds this address. An IPv4 address mapped into IPv6 is the IPv4 address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|entry| match entry.names {
            Names::Range(first, length) => {
                first.is_ipv4() == address.is_ipv4()
                    && (number(first) ^ number(address)) & mask(first, length) == 0
            }
            _ => false,
        })
    }

    fn has_ranges(&self) -> bool {
        self.0.iter().any(|entry| matches!(entry.names, Names::Range(..)))
    }

    /// Whether a GitMirror may name this URL. Where the list has ranges, the address of a name decides later, when an
    /// agent has resolved it; ssh resolves names by itself, so they have to be on the list.
    pub fn admits(&self, url: &UpstreamUrl) -> bool {
        let Some(port) = url.port().filter(|_| !self.is_empty() && !self.has_all()) else { return true };
        let host = url.id().hostname();
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let later = |_| self.has_ranges() && url.scheme() != Scheme::Ssh;
        self.has_host(host, port) || literal.map_or_else(later, |address| self.has_address(address))
    }

    /// Why [`Self::admits`] says no, and what to do about it.
    pub fn refusal(url: &UpstreamUrl) -> String {
        let host = url.id().host();
        format!(
            "is on {host}, which agents may not ask: add it to spec.upstreams.allowedHosts of the GitCache \
             (--allow-upstream)"
        )
    }
}

impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<&str> = self.0.iter().map(|entry| entry.text.as_str()).collect();
        f.write_str(&entries.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(entries: &[&str]) -> AllowedHosts {
        let entries: Vec<String> = entries.iter().map(|text| (*text).to_owned()).collect();
        AllowedHosts::parse(&entries).unwrap()
    }

    fn admits(entries: &[&str], url: &str) -> bool {
        list(entries).admits(&UpstreamUrl::parse(url).unwrap())
    }

    #[test]
    fn entries_are_hosts_domains_ranges_or_all() {
        for good in [
            "*",
            "github.com",
            "GitHub.com:443",
            "*.corp.example",
            "*.corp.example:8443",
            "10.0.0.5",
            "10.0.0.5:3000",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "fd00::/8",
            "fd00::1",
            "[fd00::1]:443",
            "[fd00::1]",
        ] {
            let entry: AllowedHost = good.parse().unwrap_or_else(|error| panic!("{good}: {error}"));
            assert_eq!(entry.to_string(), good);
        }
        for bad in [
            "",
            "https://github.com",
            "ada@github.com",
            "github.com/org",
            "github.com:",
            "github.com:0",
            "github.com:99999",
            "github.com.",
            ".github.com",
            "**.corp",
            "*corp",
            "a.*.corp",
            "*.10.0.0.1",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "fd00::/129",
            "127.1",
            "2130706433",
            "0x7f.1",
            "x.0x7f",
            "10.0.0.256",
            "bücher.example",
            "a b",
        ] {
            assert!(bad.parse::<AllowedHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_says_which_urls_a_mirror_may_name() {
        for (entries, url, expected) in [
            (&[][..], "https://anything.example/o/r", true),
            (&["*"], "ssh://git@anything.example/o/r", true),
            (&["github.com"], "https://github.com/o/r", true),
            (&["github.com"], "https://GITHUB.com:8443/o/r", true),
            (&["github.com"], "ssh://git@github.com/o/r", true),
            (&["github.com:443"], "https://github.com/o/r", true),
            (&["github.com:443"], "http://github.com/o/r", false),
            (&["github.com:443"], "ssh://git@github.com/o/r", false),
            (&["github.com"], "https://github.com.evil.example/o/r", false),
            (&["github.com"], "https://www.github.com/o/r", false),
            (&["*.corp.example"], "https://git.corp.example/o/r", true),
            (&["*.corp.example"], "https://a.b.corp.example/o/r", true),
            (&["*.corp.example"], "https://corp.example/o/r", false),
            (&["*.corp.example"], "https://evilcorp.example/o/r", false),
            (&["10.0.0.0/8"], "http://10.1.2.3/o/r", true),
            (&["10.0.0.0/8"], "http://11.1.2.3/o/r", false),
            (&["10.0.0.0/8"], "http://git.example/o/r", true),
            (&["10.0.0.0/8"], "ssh://git@git.example/o/r", false),
            (&["fd00::/8"], "http://[fd00::7]/o/r", true),
            (&["fd00::/8"], "http://[fe80::7]/o/r", false),
            (&["github.com"], "file:///srv/git/r", true),
        ] {
            assert_eq!(admits(entries, url), expected, "{entries:?} {url}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_text_is_judged_without_panic(text in "\\PC{0,40}") {
            if let Ok(entry) = text.parse::<AllowedHost>() {
                prop_assert_eq!(entry.to_string(), text);
            }
        }

        #[test]
        fn a_range_holds_what_shares_its_prefix(address: u32, other: u32, length in 0_u8..=32) {
            let address = std::net::Ipv4Addr::from(address);
            let first = u32::from(address) & u32::try_from(mask(address.into(), length)).unwrap();
            let entry = format!("{}/{length}", std::net::Ipv4Addr::from(first));
            let range = list(&[&entry]);
            prop_assert!(range.has_address(address.into()));
            prop_assert!(range.has_address(address.to_ipv6_mapped().into()));
            let same = length == 0 || (u32::from(address) ^ other) >> (32 - u32::from(length)) == 0;
            prop_assert_eq!(range.has_address(std::net::Ipv4Addr::from(other).into()), same);
        }

        #[test]
        fn a_name_is_allowed_whatever_its_case_and_never_by_its_end_alone(
            name in "[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{0,8}){1,3}",
            more in "[a-z0-9]{1,5}",
        ) {
            let upper = name.to_uppercase();
            let url = format!("https://{upper}/o/r");
            prop_assert!(admits(&[&name], &url));
            let (longer, below) = (format!("https://{more}{name}/o/r"), format!("https://{more}.{name}/o/r"));
            prop_assert!(!admits(&[&name], &longer));
            prop_assert!(!admits(&[&name], &below));
            let domain = format!("*.{name}");
            prop_assert!(admits(&[&domain], &below));
            prop_assert!(!admits(&[&domain], &longer));
        }
    }
}
