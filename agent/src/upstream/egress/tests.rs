use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn egress(home: &str, entries: &[&str]) -> Egress {
    let entries = entries.iter().map(|entry| entry.parse().unwrap()).collect();
    Egress::new(home, Arc::new(AllowedHosts::new(entries)))
}

/// Whether a URL of an answer is followed, where its name leads to this address.
fn followed(home: &str, entries: &[&str], url: &str, address: &str) -> bool {
    let egress = egress(home, entries);
    let judged = egress.judge(url, |_| false);
    judged.is_ok_and(|target| admits(egress.list(), target.trust, address.parse().unwrap()))
}

const PUBLIC: &str = "93.184.215.14";

#[test]
fn addresses_are_told_by_what_they_are_for() {
    use AddressKind::{Local, Private, Public, Reserved};
    for (address, kind) in [
        (PUBLIC, Public),
        ("0.0.0.0", Local),
        ("0.1.2.3", Local),
        ("127.0.0.1", Local),
        ("127.255.255.254", Local),
        ("169.254.169.254", Local),
        ("168.63.129.16", Local),
        ("224.0.0.1", Local),
        ("239.255.255.250", Local),
        ("255.255.255.255", Local),
        ("10.0.0.1", Private),
        ("172.15.255.255", Public),
        ("172.16.0.1", Private),
        ("172.31.255.255", Private),
        ("172.32.0.1", Public),
        ("192.168.1.1", Private),
        ("100.63.255.255", Public),
        ("100.64.0.1", Private),
        ("100.100.100.200", Private),
        ("100.128.0.1", Public),
        ("192.0.0.192", Reserved),
        ("192.0.2.1", Reserved),
        ("198.18.0.1", Reserved),
        ("198.20.0.1", Public),
        ("198.51.100.1", Reserved),
        ("203.0.113.1", Reserved),
        ("240.0.0.1", Reserved),
        ("192.88.99.1", Reserved),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", Public),
        ("::", Local),
        ("::1", Local),
        ("fe80::1", Local),
        ("febf::1", Local),
        ("fec0::1", Private),
        ("fc00::1", Private),
        ("fd00:ec2::254", Private),
        ("ff02::1", Local),
        ("2001:db8::1", Reserved),
        ("3fff::1", Reserved),
        ("2001:2::1", Reserved),
        ("100::1", Reserved),
        ("5f00::1", Reserved),
        ("64:ff9b:1::a9fe:a9fe", Reserved),
        ("64:ff9b::5db8:d70e", Public),
        ("4000::1", Reserved),
    ] {
        assert_eq!(AddressKind::of(address.parse().unwrap()), kind, "{address}");
    }
}

#[test]
fn an_answer_leads_to_the_upstream_itself_or_to_public_addresses() {
    let home = "https://git.corp.example/o/r";
    for (url, address, expected) in [
        // The upstream itself, wherever it is but on this machine.
        ("https://git.corp.example/lfs/1", "10.0.0.7", true),
        ("https://GIT.corp.example.:443/lfs/1", "10.0.0.7", true),
        ("https://git.corp.example/lfs/1", "169.254.169.254", false),
        ("https://git.corp.example/lfs/1", "127.0.0.1", false),
        ("https://git.corp.example/lfs/1", "::ffff:127.0.0.1", false),
        // Another port is another server.
        ("https://git.corp.example:8443/lfs/1", "10.0.0.7", false),
        ("https://git.corp.example:8443/lfs/1", PUBLIC, true),
        ("https://storage.example/1", PUBLIC, true),
        ("https://storage.example/1", "10.0.0.7", false),
        ("https://storage.example/1", "100.64.0.1", false),
        ("https://storage.example/1", "192.0.2.1", false),
        ("https://storage.example/1", "fd00::1", false),
        ("https://169.254.169.254/latest/meta-data", PUBLIC, false),
        ("https://localhost/1", "127.0.0.1", false),
        // Not encrypted, though the upstream is.
        ("http://storage.example/1", PUBLIC, false),
        ("http://git.corp.example/1", PUBLIC, false),
        ("http://git.corp.example:443/1", PUBLIC, false),
        // What is no URL to follow.
        ("https://ada:pw@storage.example/1", PUBLIC, false),
        ("https://ada@storage.example/1", PUBLIC, false),
        ("file:///etc/passwd", PUBLIC, false),
        ("ftp://storage.example/1", PUBLIC, false),
        ("gopher://storage.example/1", PUBLIC, false),
        ("data:text/plain,1", PUBLIC, false),
        ("javascript:1", PUBLIC, false),
        ("https:///", PUBLIC, false),
        ("//storage.example/1", PUBLIC, false),
        ("", PUBLIC, false),
    ] {
        assert_eq!(followed(home, &[], url, address), expected, "{url} at {address}");
    }
}

#[test]
fn a_literal_or_local_upstream_is_where_a_person_wrote_it() {
    for (home, url, address, expected) in [
        ("http://127.0.0.1:9000/r", "http://127.0.0.1:9000/x", "127.0.0.1", true),
        ("http://127.0.0.1:9000/r", "http://127.0.0.1:9001/x", "127.0.0.1", false),
        ("http://127.0.0.1:9000/r", "http://localhost:9000/x", "127.0.0.1", false),
        ("http://127.0.0.1:9000/r", "http://127.1:9000/x", "127.0.0.1", true),
        ("http://[::1]:9000/r", "http://[0:0::1]:9000/x", "::1", true),
        ("http://localhost:9000/r", "http://localhost:9000/x", "127.0.0.1", true),
        ("http://localhost:9000/r", "http://localhost:9000/x", "::1", true),
        ("http://localhost:9000/r", "http://localhost:9000/x", "169.254.169.254", false),
        ("http://evil.example/r", "http://evil.example/x", "::1", false),
    ] {
        assert_eq!(followed(home, &[], url, address), expected, "{home} {url} {address}");
    }
}

#[test]
fn with_a_list_nothing_is_asked_that_it_does_not_name() {
    let home = "https://github.com/o/r";
    let list = &["github.com", "*.githubusercontent.com", "minio.corp:9000", "10.20.0.0/16"][..];
    for (url, address, expected) in [
        ("https://github.com/o/r.git/info/lfs", PUBLIC, true),
        // A name on the list is trusted with its addresses.
        ("https://github.com/o/r", "10.0.0.1", true),
        ("https://a.githubusercontent.com/1", PUBLIC, true),
        ("https://githubusercontent.com/1", PUBLIC, false),
        ("https://a.githubusercontent.com.evil.example/1", PUBLIC, false),
        ("http://minio.corp:9000/1", "10.0.0.9", true),
        ("https://minio.corp/1", "10.0.0.9", false),
        ("https://anything.example/1", "10.20.3.4", true),
        ("https://anything.example/1", "10.21.3.4", false),
        ("https://anything.example/1", PUBLIC, false),
        ("https://10.20.3.4/1", "10.20.3.4", true),
        ("https://[::ffff:10.20.3.4]/1", "::ffff:10.20.3.4", true),
        ("https://10.21.3.4/1", "10.21.3.4", false),
        ("https://93.184.215.14/1", PUBLIC, false),
        ("http://a.githubusercontent.com/1", PUBLIC, true),
        ("http://anything.example/1", "10.20.3.4", false),
    ] {
        assert_eq!(followed(home, list, url, address), expected, "{url} at {address}");
    }
    // `*` is as no list, for names that it does not name otherwise.
    let free = &["*", "minio.corp"][..];
    assert!(followed(home, free, "https://storage.example/1", PUBLIC));
    assert!(!followed(home, free, "https://storage.example/1", "10.0.0.1"));
    assert!(followed(home, free, "https://minio.corp/1", "10.0.0.1"));
    assert!(
        egress("https://gitlab.com/r", list).home(|_| false).is_ok_and(|home| home.trust == Trust::Ranges)
    );
    assert!(egress("https://10.1.2.3/r", list).home(|_| false).is_err());
    assert!(egress("https://github.com/r", list).home(|_| true).is_ok());
}

#[test]
fn of_a_name_that_a_proxy_resolves_only_the_name_is_judged() {
    let told =
        |entries: &[&str], url: &str| egress("https://github.com/r", entries).judge(url, |_| true).is_ok();
    assert!(told(&[], "https://storage.example/1"));
    assert!(!told(&[], "https://169.254.169.254/1"));
    assert!(!told(&[], "https://[::ffff:169.254.169.254]/1"));
    assert!(!told(&["10.0.0.0/8"], "https://storage.example/1"));
    assert!(told(&["storage.example"], "https://storage.example/1"));
    assert!(told(&["10.0.0.0/8"], "https://10.0.0.1/1"));
}

#[test]
fn a_refusal_names_the_host_and_the_remedy_and_nothing_that_the_resolver_knows() {
    let told = egress("https://h/r", &[]).judge("https://10.1.2.3:8443/secret?token=x", |_| false);
    let told = told.unwrap_err().to_string();
    assert!(told.contains("10.1.2.3:8443") && told.contains("--allow-upstream"), "{told}");
    assert!(!told.contains("token") && !told.contains("secret"), "{told}");
}

/// An address that is not public.
fn inner() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        any::<[u8; 3]>().prop_map(|[b, c, d]| Ipv4Addr::new(127, b, c, d)),
        any::<[u8; 3]>().prop_map(|[b, c, d]| Ipv4Addr::new(10, b, c, d)),
        any::<[u8; 2]>().prop_map(|[c, d]| Ipv4Addr::new(169, 254, c, d)),
        any::<[u8; 2]>().prop_map(|[c, d]| Ipv4Addr::new(192, 168, c, d)),
        (16_u8..32, any::<[u8; 2]>()).prop_map(|(b, [c, d])| Ipv4Addr::new(172, b, c, d)),
        (64_u8..128, any::<[u8; 2]>()).prop_map(|(b, [c, d])| Ipv4Addr::new(100, b, c, d)),
        (224_u8..=255, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d)),
        any::<[u8; 3]>().prop_map(|[b, c, d]| Ipv4Addr::new(0, b, c, d)),
    ]
}

/// The ways in which IPv6 can hold an IPv4 address.
fn embedded(address: Ipv4Addr, way: u8, more: u16) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match way {
        0 => address.to_ipv6_mapped(),
        1 => Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        2 => Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        3 => Ipv6Addr::new(0x2002, high, low, more, 0, 0, 0, more),
        4 => Ipv6Addr::new(0x2001, 0, more, more, 0, more, !high, !low),
        _ => Ipv6Addr::new(0x64, 0xff9b, 1, more, 0, 0, high, low),
    }
}

/// The ways in which a URL can spell an IPv4 address.
fn spelt(address: Ipv4Addr, way: u8) -> String {
    let [a, b, c, d] = address.octets();
    let number = u32::from(address);
    match way {
        0 => address.to_string(),
        1 => format!("{number}"),
        2 => format!("0x{number:x}"),
        3 => format!("0{number:o}"),
        4 => format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        5 => format!("0x{a:x}.0X{b:X}.{c}.{d}"),
        6 => format!("{a}.{}", number & 0xff_ffff),
        7 => format!("{a}.{b}.{}", number & 0xffff),
        8 => format!("{address}."),
        9 => address.to_string().replace('.', "\u{3002}"),
        10 => address.to_string().replace('1', "\u{ff11}"),
        11 => address.to_string().replace('.', "%2e"),
        12 => format!("[::ffff:{address}]"),
        13 => format!("[0:0:0:0:0:FFFF:{address}]"),
        _ => format!("[::{address}]"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_spelling_of_an_inner_address_is_followed(
        address in inner(), way in 0_u8..=14, port in prop::option::of(1_u16..), tls: bool,
    ) {
        let scheme = if tls { "HTTPS" } else { "http" };
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let url = format!("{scheme}://{}{port}/latest/meta-data", spelt(address, way));
        let judged = egress("http://upstream.example/o/r", &[]).judge(&url, |_| false);
        prop_assert!(judged.is_err(), "{} is followed: {:?}", url, judged);
        // Nor where a proxy stands between.
        prop_assert!(egress("http://upstream.example/o/r", &[]).judge(&url, |_| true).is_err(), "{}", url);
    }

    #[test]
    fn an_inner_address_in_ipv6_is_no_public_one(address in inner(), way in 0_u8..=5, more: u16) {
        let address = embedded(address, way, more);
        prop_assert!(AddressKind::of(address.into()) > AddressKind::Public, "{}", address);
        let url = format!("https://[{address}]/");
        prop_assert!(egress("https://upstream.example/o/r", &[]).judge(&url, |_| false).is_err());
        // A name that leads there, whatever it led to when somebody looked before.
        prop_assert!(!followed("https://upstream.example/o/r", &[], "https://rebound.example/", &address.to_string()));
    }

    #[test]
    fn any_address_that_a_name_of_an_answer_leads_to_is_public(address: u128) {
        let address = Ipv6Addr::from(address);
        let fits = followed("https://h/r", &[], "https://s/", &address.to_string());
        prop_assert_eq!(fits, AddressKind::of(address.into()) == AddressKind::Public);
        // The unicast space, and what DNS64 makes up.
        let global = address.segments()[0] & 0xe000 == 0x2000 || address.segments()[..2] == [0x64, 0xff9b];
        prop_assert!(!fits || global || address.to_ipv4_mapped().is_some());
    }

    #[test]
    fn every_ipv4_address_is_followed_or_not_as_the_standard_library_knows_it(address: u32) {
        let address = Ipv4Addr::from(address);
        let inner = address.is_loopback() || address.is_private() || address.is_link_local()
            || address.is_unspecified() || address.is_multicast() || address.is_broadcast()
            || address.is_documentation();
        let kind = AddressKind::of(address.into());
        prop_assert!(!inner || kind != AddressKind::Public, "{}", address);
        prop_assert_eq!(AddressKind::of(address.to_ipv6_mapped().into()), kind);
    }

    #[test]
    fn the_upstream_is_itself_in_every_spelling_and_nothing_else_is(
        name in "[a-z]{1,8}(\\.[a-z]{2,6}){1,2}", dot: bool, upper: bool, other in "[a-z]{1,4}", port in 1_u16..,
    ) {
        let home = format!("https://{name}:{port}/o/r");
        let own = |url: &str| egress(&home, &[]).judge(url, |_| false).is_ok_and(|target| target.own);
        let shown = if upper { name.to_uppercase() } else { name.clone() };
        let dot = if dot { "." } else { "" };
        let same = format!("https://{shown}{dot}:{port}/lfs?a=b");
        prop_assert!(own(&same), "{}", same);
        for foreign in [
            format!("https://{name}.{other}:{port}/"),
            format!("https://{other}.{name}:{port}/"),
            format!("https://{name}:{}/", if port == 9 { 10 } else { 9 }),
            format!("https://{name}@{other}:{port}/"),
            format!("https://{name}:{port}@{other}/"),
            format!("https://{other}#@{name}:{port}/"),
            format!("https://{other}\\@{name}:{port}/"),
            format!("https://{other}/{name}:{port}/"),
        ] {
            prop_assert!(!own(&foreign), "{}", foreign);
        }
    }

    #[test]
    fn names_are_compared_as_dns_has_them(label in "[a-z]{1,6}", accent in "[äöüéñ]") {
        let (unicode, home) = (format!("https://{label}{accent}.example/"), format!("https://{label}{accent}.example/r"));
        let judged = egress(&home, &[]).judge(&unicode.to_uppercase(), |_| false);
        prop_assert!(judged.is_ok_and(|target| target.own));
        let punycode = Url::parse(&unicode).unwrap().host_str().unwrap().to_owned();
        prop_assert!(punycode.starts_with("xn--"), "{}", punycode);
        let listed = egress("https://elsewhere.example/r", &[&punycode]);
        prop_assert!(listed.judge(&unicode, |_| false).is_ok_and(|target| target.trust == Trust::Named));
    }

    #[test]
    fn any_text_is_judged_without_panic(text in "\\PC{0,60}", scheme in "(https?:(//?)?|)") {
        let judged = egress("https://h/r", &["10.0.0.0/8"]).judge(&format!("{scheme}{text}"), |_| false);
        prop_assert!(judged.is_err() || judged.is_ok_and(|target| matches!(target.url.scheme(), "http" | "https")));
    }
}
