//! What names a repository, what does not, and the round trips between the forms.

use std::collections::HashMap;
use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;

fn id(url: &str) -> String {
    RepoId::from_url(url).unwrap_or_else(|error| panic!("{url}: {error}")).to_string()
}

#[test]
fn spellings_of_one_repository_have_one_id() {
    for url in [
        "https://github.com/org/repo.git",
        "https://github.com/org/repo",
        "https://GitHub.com/org/repo.git/",
        "https://github.com:443/org/repo//",
        "http://github.com:80/org/repo",
        "ssh://git@github.com/org/repo.git",
        "ssh://github.com:22/org/repo",
        "https://github.com/%6frg/repo",
    ] {
        assert_eq!(id(url), "github.com/org/repo", "{url}");
    }
}

#[test]
fn what_differs_in_host_port_path_or_case_of_the_path_differs() {
    let urls = [
        "https://github.com/org/repo",
        "https://github.com/Org/repo",
        "https://github.com:8443/org/repo",
        "https://gitlab.com/org/repo",
        "https://github.com/org/repo/sub",
        "http://github.com:443/org/repo",
        "https://[::1]/org/repo",
        "https://[::1]:8443/org/repo",
    ];
    let ids: std::collections::BTreeSet<_> = urls.iter().map(|url| id(url)).collect();
    assert_eq!(ids.len(), urls.len());
}

#[test]
fn a_file_url_is_host_localhost() {
    let url = UpstreamUrl::parse("file:///srv/git/repo.git").unwrap();
    assert_eq!((url.scheme(), url.as_str()), (Scheme::File, "file:///srv/git/repo.git"));
    assert_eq!(url.id().to_string(), "localhost/srv/git/repo");
}

#[test]
fn git_gets_the_url_as_written_but_for_host_port_and_trailing_slashes() {
    for (written, handed) in [
        ("https://GitHub.com:443/Org/repo.git//", "https://github.com/Org/repo.git"),
        ("ssh://git@Host:22/~me/repo", "ssh://git@host/~me/repo"),
        ("ssh://git@host:2222/a%20b", "ssh://git@host:2222/a%20b"),
    ] {
        assert_eq!(UpstreamUrl::parse(written).unwrap().as_str(), handed);
    }
}

#[test]
fn a_directory_is_safe_on_disk_and_in_keys() {
    for (url, dir) in [
        ("https://github.com/org/repo", "github.com/org/repo.git"),
        ("https://git.corp:8443/a/b/c.git", "git.corp._8443/a/b/c.git"),
        ("https://[2001:DB8::1]:8443/a", "ipv6._2001-db8--1._8443/a.git"),
        ("https://h/a%20b%C3%BC/c:d", "h/a%20b%C3%BC/c%3Ad.git"),
        ("https://h/org/.github", "h/org/.github.git"),
        ("https://h/org/-x", "h/org/-x.git"),
        ("https://h/org/x.lock", "h/org/x.lock.git"),
    ] {
        assert_eq!(RepoId::from_url(url).unwrap().store_prefix(), dir);
    }
}

#[test]
fn the_host_name_is_known_without_its_port() {
    let id = RepoId::from_url("https://git.corp:8443/a").unwrap();
    assert_eq!((id.host(), id.hostname(), id.path()), ("git.corp:8443", "git.corp", "a"));
}

#[test]
fn bad_urls_are_refused_with_their_reason() {
    use RepoIdError as E;
    let long = format!("https://h/{}", "x".repeat(252));
    let longer = format!("https://h/{}", "xxxxxxx/".repeat(65));
    let host = format!("https://{}/x", "h".repeat(249));
    for (url, reason) in [
        ("", E::Scheme),
        ("org/repo", E::Scheme),
        ("/srv/git/repo", E::Scheme),
        ("ftp://h/a", E::Scheme),
        ("HTTPS://h/a", E::Scheme),
        ("ext::sh -c id", E::ScpLike),
        ("git@github.com:org/repo", E::ScpLike),
        ("https://user@h/a", E::Credentials),
        ("https://user:pw@h/a", E::Credentials),
        ("https://@h/a", E::Credentials),
        ("ssh://git:pw@h/a", E::Credentials),
        ("ssh://a@b@h/a", E::User),
        ("ssh://-oProxyCommand=id@h/a", E::User),
        ("ssh://@h/a", E::User),
        ("ssh://-oProxyCommand=id/a", E::Host),
        ("file://h/a", E::FileHost),
        ("https:///a", E::Host),
        ("https://-h/a", E::Host),
        ("https://_h/a", E::Host),
        ("https://h_/a", E::Host),
        ("https://h..x/a", E::Host),
        ("https://h./a", E::Host),
        ("https://h%41/a", E::Host),
        ("https://[::1/a", E::Host),
        ("https://[::1]x/a", E::Host),
        ("https://[fe80::1%25eth0]/a", E::Host),
        (&host, E::HostTooLong),
        ("https://h:/a", E::Port),
        ("https://h:0/a", E::Port),
        ("https://h:65536/a", E::Port),
        ("https://h:+443/a", E::Port),
        ("https://user:p/w@h/a", E::Port),
        ("https://h", E::NoPath),
        ("https://h/", E::NoPath),
        ("file:///", E::NoPath),
        ("https://h/a?x", E::Query),
        ("https://h/a#x", E::Query),
        ("https://h//a", E::EmptySegment),
        ("https://h/a//b", E::EmptySegment),
        ("https://h/a/../b", E::DotSegment),
        ("https://h/./b", E::DotSegment),
        ("https://h/a/..", E::DotSegment),
        ("https://h/a/..git", E::DotSegment),
        ("https://h/...git", E::DotSegment),
        (&long, E::SegmentTooLong),
        (&longer, E::PathTooLong),
        ("https://h/a%2", E::PercentEncoding),
        ("https://h/a%zz", E::PercentEncoding),
        ("https://h/a%2Fb", E::EncodedSeparator),
        ("https://h/%2e%2E/b", E::EncodedSeparator),
        ("https://h/a%5cb", E::EncodedSeparator),
        ("https://h/a%00b", E::Control),
        ("https://h/a%0ab", E::Control),
        ("https://h/a%c2%80b", E::Control),
        ("https://h/a\nb", E::Control),
        ("https://h/a\\b", E::Control),
        ("https://h/a b", E::NotEncoded),
        ("https://h/ü", E::NotEncoded),
        ("https://h/%ff", E::NotUtf8),
        ("https://h/a.git/b", E::InnerGit),
        ("https://h/a.git.git", E::InnerGit),
        ("file:///srv/main/.git", E::InnerGit),
    ] {
        assert_eq!(UpstreamUrl::parse(url), Err(reason), "{url}");
    }
}

#[test]
fn no_error_repeats_its_input() {
    for url in ["https://user:hunter2@h/a", "ssh://git:hunter2@h/a", "hunter2:x", "https://h/hunter2/../x"] {
        let error = RepoId::from_url(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[test]
fn bad_routes_are_refused_with_their_reason() {
    use RepoIdError as E;
    for (route, reason) in [
        ("", E::NoPath),
        ("github.com", E::NoPath),
        ("github.com/", E::NoPath),
        ("/etc/passwd", E::Host),
        ("../etc/passwd", E::Host),
        ("..%2f/etc", E::Host),
        ("user@h/a", E::Credentials),
        ("h/../a", E::DotSegment),
        ("h/%2e%2e/a", E::EncodedSeparator),
        ("h/a/", E::EmptySegment),
        ("h/a//b", E::EmptySegment),
        ("h/a%2Fb", E::EncodedSeparator),
        ("h/a%00", E::Control),
        ("h/a%FF", E::NotUtf8),
        ("h/a.git/b", E::InnerGit),
        ("h/.git", E::InnerGit),
    ] {
        assert_eq!(RepoId::from_route(route), Err(reason), "{route}");
    }
}

#[test]
fn a_route_names_the_same_repository_with_and_without_git() {
    assert_eq!(RepoId::from_route("h:8443/a/b.git"), RepoId::from_route("h:8443/a/b"));
    assert_eq!(RepoId::from_route("H/a").unwrap(), RepoId::from_url("https://h/a").unwrap());
}

#[test]
fn only_directories_tarn_would_make_are_read_back() {
    for dir in [
        "h/a",
        "H/a.git",
        "h/%61.git",
        "h._443x/a.git",
        "h._080/a.git",
        "/h/a.git",
        "h/../a.git",
        "_tmp/a.git",
        "h/a.git/",
    ] {
        assert!(RepoId::from_dir(Path::new(dir)).is_err(), "{dir}");
    }
}

fn host() -> impl Strategy<Value = String> {
    let name = "[A-Za-z0-9]([A-Za-z0-9_-]{0,6}[A-Za-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,4}[a-z0-9])?){0,2}";
    prop_oneof![4 => name, 1 => any::<std::net::Ipv6Addr>().prop_map(|address| format!("[{address}]")), 1 => Just("ipv6".into())]
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[A-Za-z0-9._~-]{1,12}",
        1 => "\\PC{1,8}".prop_map(|text| utf8(&text)),
        1 => "(%[0-9A-Fa-f]{2}|[a-z.]){1,4}",
        1 => Just(".git".into()),
    ]
}

fn utf8(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn url() -> impl Strategy<Value = String> {
    let scheme = prop_oneof![Just("https://"), Just("http://"), Just("ssh://git@"), Just("ssh://")];
    let port = prop_oneof![2 => Just(String::new()), 1 => (1u16..).prop_map(|port| format!(":{port}")), 1 => Just(":443".into())];
    let path = prop::collection::vec(segment(), 1..5).prop_map(|segments| segments.join("/"));
    let end = prop_oneof![Just(""), Just(".git"), Just("/"), Just(".git/")];
    (scheme, host(), port, path, end)
        .prop_map(|(scheme, host, port, path, end)| format!("{scheme}{host}{port}/{path}{end}"))
}

proptest! {
    #[test]
    fn canonicalisation_is_idempotent(url in url()) {
        if let Ok(once) = UpstreamUrl::parse(&url) {
            let twice = UpstreamUrl::parse(once.as_str()).unwrap();
            prop_assert_eq!(&once, &twice);
        }
    }

    #[test]
    fn ids_survive_the_directory_and_the_route(url in url()) {
        if let Ok(id) = RepoId::from_url(&url) {
            prop_assert_eq!(&RepoId::from_dir(&id.dir()).unwrap(), &id);
            prop_assert_eq!(&RepoId::from_route(&id.route()).unwrap(), &id);
            prop_assert_eq!(&RepoId::from_route(&format!("{}.git", id.route())).unwrap(), &id);
        }
    }

    #[test]
    fn distinct_ids_have_distinct_directories(urls in prop::collection::vec(url(), 1..40)) {
        let mut seen = HashMap::new();
        for id in urls.iter().filter_map(|url| RepoId::from_url(url).ok()) {
            let other = seen.insert(id.dir(), id.clone());
            prop_assert!(other.is_none_or(|other| other == id));
        }
    }

    #[test]
    fn a_directory_stays_below_the_root_whatever_the_input(route in "(\\PC|[/%.a-f0-9]){0,40}", url in url()) {
        let ids = [RepoId::from_route(&route), RepoId::from_url(&route), RepoId::from_url(&url), RepoId::from_dir(Path::new(&route))];
        for id in ids.into_iter().flatten() {
            let dir = id.dir();
            prop_assert!(dir.components().count() >= 2);
            for component in dir.components() {
                let Component::Normal(name) = component else { panic!("{dir:?}") };
                prop_assert!(name.len() <= 255);
            }
            let inner = dir.parent().unwrap().components();
            prop_assert!(inner.clone().all(|part| !part.as_os_str().to_str().unwrap().ends_with(".git") || part == dir.components().next().unwrap()));
            prop_assert!(dir.to_str().unwrap().ends_with(".git"));
        }
    }

    #[test]
    fn nothing_panics(text in any::<String>()) {
        let _ = (RepoId::from_url(&text), RepoId::from_route(&text), RepoId::from_dir(Path::new(&text)));
    }
}
