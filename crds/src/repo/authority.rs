//! Host and port: parsed, in canonical form, and as the name of a directory.

use std::net::Ipv6Addr;

use super::{MAX_HOST, RepoIdError};

/// A host in lower case and, if it is not the scheme's own, a port.
///
/// In a directory name a port is the last label, `git.corp._8443`, and an IPv6 address is `ipv6._2001-db8--1`.
/// Labels of host names never start with an underscore, so neither can be mistaken for a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Authority {
    text: String,
    hostname: usize,
}

impl Authority {
    /// Parses `host[:port]`; `default_port` is left out of the result.
    pub(super) fn parse(text: &str, default_port: Option<u16>) -> Result<Self, RepoIdError> {
        if text.contains('@') {
            return Err(RepoIdError::Credentials);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(RepoIdError::Host)?;
                let address: Ipv6Addr = address.parse().map_err(|_| RepoIdError::Host)?;
                let port = if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':').ok_or(RepoIdError::Host)?)
                };
                (format!("[{address}]"), port)
            }
            None => {
                let (host, port) =
                    text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                (hostname(host)?, port)
            }
        };
        let port = port.map(parse_port).transpose()?.filter(|port| Some(*port) != default_port);
        Ok(Self::new(&host, port))
    }

    /// Reads back what [`Self::dir`] wrote.
    pub(super) fn from_dir(dir: &str) -> Result<Self, RepoIdError> {
        let (host, port) = match dir.rsplit_once("._") {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (host, Some(parse_port(port)?))
            }
            _ => (dir, None),
        };
        let host = match host.strip_prefix("ipv6._") {
            Some(address) => {
                let address: Ipv6Addr = address.replace('-', ":").parse().map_err(|_| RepoIdError::Host)?;
                format!("[{address}]")
            }
            None => hostname(host)?,
        };
        Ok(Self::new(&host, port))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn hostname(&self) -> &str {
        self.text.get(..self.hostname).unwrap_or_default()
    }

    /// The name of the directory of this host's repositories.
    pub(super) fn dir(&self) -> String {
        let host = self.hostname();
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => format!("ipv6._{}", address.replace(':', "-")),
            None => host.to_owned(),
        };
        match self.text.get(self.hostname + 1..) {
            Some(port) => format!("{host}._{port}"),
            None => host,
        }
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.text.get(self.hostname + 1..)?.parse().ok()
    }

    fn new(host: &str, port: Option<u16>) -> Self {
        let text = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Self { text, hostname: host.len() }
    }
}

/// Parses `host` or `host:port`; the host comes back in lower case, an IPv6 address in brackets.
///
/// # Errors
/// What is wrong with it.
pub fn host_and_port(text: &str) -> Result<(String, Option<u16>), RepoIdError> {
    let authority = Authority::parse(text, None)?;
    Ok((authority.hostname().to_owned(), authority.port()))
}

/// Checks a host name and lowers its case.
fn hostname(text: &str) -> Result<String, RepoIdError> {
    if text.len() > MAX_HOST {
        return Err(RepoIdError::HostTooLong);
    }
    if text.split('.').all(is_label) { Ok(text.to_ascii_lowercase()) } else { Err(RepoIdError::Host) }
}

/// Letters, digits, dashes and underscores (which DNS allows and some in-house names have), not at the edges.
fn is_label(label: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = label.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

fn parse_port(text: &str) -> Result<u16, RepoIdError> {
    // `parse` alone would take a sign.
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RepoIdError::Port);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(RepoIdError::Port)
}
