//! Whether a request comes from the agent's own machine or pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::ConnectInfo;
use http::{Extensions, HeaderMap, HeaderName, header, uri::Authority};

use crate::listen::ReachedAt;

/// Headers of requests that somebody else sends: a page in a browser, or a proxy for its clients.
const OF_OTHERS: [HeaderName; 4] =
    [header::ORIGIN, header::FORWARDED, header::VIA, HeaderName::from_static("x-forwarded-for")];

/// Whether the sender is a program on the agent's own machine, or in its pod, that asks for itself.
///
/// Both ends of the connection must be 127.0.0.1 or ::1: a mesh's sidecar, which hands on what comes from elsewhere, calls the
/// pod's own address or calls from another loopback address. `Host` must name the loopback interface, so that no page in a
/// browser gets here by a name of its own that resolves to 127.0.0.1.
pub(super) fn is_local(extensions: &Extensions, headers: &HeaderMap) -> bool {
    let near = extensions.get::<ReachedAt>().is_some_and(|ReachedAt(address)| is_loopback(*address));
    let far =
        extensions.get::<ConnectInfo<SocketAddr>>().is_some_and(|ConnectInfo(address)| is_loopback(*address));
    near && far && names_loopback(headers) && OF_OTHERS.iter().all(|name| !headers.contains_key(name))
}

fn is_loopback(address: SocketAddr) -> bool {
    let address = address.ip().to_canonical();
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address)
}

/// A browser always sends `Host`; a request without one is none of a page.
fn names_loopback(headers: &HeaderMap) -> bool {
    headers.get_all(header::HOST).iter().all(|host| {
        let host = Authority::try_from(host.as_bytes());
        host.is_ok_and(|host| {
            ["localhost", "127.0.0.1", "[::1]"].contains(&host.host().to_ascii_lowercase().as_str())
        })
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn local(near: &str, far: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let mut extensions = Extensions::new();
        extensions.insert(ReachedAt(near.parse().unwrap()));
        extensions.insert(ConnectInfo::<SocketAddr>(far.parse().unwrap()));
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        is_local(&extensions, &headers.collect())
    }

    #[test]
    fn only_a_program_on_the_same_machine_that_asks_for_itself_is_local() {
        for (near, far) in [
            ("127.0.0.1:8081", "127.0.0.1:40000"),
            ("[::1]:8081", "[::1]:40000"),
            ("[::ffff:127.0.0.1]:8081", "[::ffff:127.0.0.1]:40000"),
        ] {
            for host in ["localhost:8081", "127.0.0.1:8081", "LocalHost", "[::1]:8081"] {
                assert!(local(near, far, &[("host", host)]), "{near} {far} {host}");
            }
            assert!(local(near, far, &[]), "HTTP/1.0 knows no Host");
        }
        for (near, far) in [
            ("10.0.0.7:8081", "10.0.0.9:40000"),
            ("10.0.0.7:8081", "10.0.0.7:40000"),
            // Sidecars of meshes.
            ("10.0.0.7:8081", "127.0.0.1:40000"),
            ("127.0.0.1:8081", "127.0.0.6:40000"),
            ("[fd00::7]:8081", "[::1]:40000"),
        ] {
            assert!(!local(near, far, &[("host", "localhost")]), "{near} {far}");
        }
        assert!(!is_local(&Extensions::new(), &HeaderMap::new()), "nobody knows where it is from");
    }

    #[test]
    fn pages_in_browsers_and_clients_of_proxies_are_not_local() {
        for headers in [
            &[("host", "evil.example:8081")][..],
            &[("host", "localhost.evil.example")],
            &[("host", "127.0.0.1@evil.example")],
            &[("host", "localhost:8081"), ("origin", "http://evil.example")],
            &[("host", "localhost:8081"), ("x-forwarded-for", "10.0.0.9")],
            &[("host", "localhost:8081"), ("forwarded", "for=10.0.0.9")],
            &[("host", "localhost:8081"), ("via", "1.1 proxy")],
        ] {
            assert!(!local("127.0.0.1:8081", "127.0.0.1:40000", headers), "{headers:?}");
        }
    }
}
