//! Which credentials of a caller may go to which upstream. Pure.
//!
//! All upstreams are served below one host, and git keeps credentials by host: what was typed for one upstream, git offers
//! for every other. So a caller's user name says for which upstream the password is, `USER@HOST`, and the upstream gets `USER`.
//! Credentials that do not say so go only to upstreams that the operator of the agent has named.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, header};
use tarn_crds::repo::{Scheme, UpstreamList, UpstreamUrl};

use super::{Refusal, credential::Credential};

/// What follows the `@` in the name of a user of this upstream. A port is written without its colon, which would end the
/// name: `git.corp._8443`. Who sends a password in the clear writes that too: `http+git.corp`.
pub fn host_word(url: &UpstreamUrl) -> String {
    let host = url.id().host_word();
    if url.scheme() == Scheme::Http { format!("http+{host}") } else { host }
}

/// What an upstream is asked with for the caller whose `headers` hold `credential`. `named` are the upstreams that get
/// credentials which do not say for whom they are.
///
/// # Errors
/// The credential is not for this upstream, or does not say so.
pub(super) fn for_upstream(
    credential: &Credential,
    headers: &HeaderMap,
    url: &UpstreamUrl,
    named: &UpstreamList,
) -> Result<Option<HeaderValue>, Refusal> {
    let word = host_word(url);
    let unbound = |text: &str| Refusal::Unbound(format!("{text}; give the user name as USER@{word}"));
    let (user, password) = match credential {
        Credential::None => return Ok(None),
        Credential::Basic { user, password } => match user.rsplit_once('@') {
            Some((user, host)) if host.eq_ignore_ascii_case(&word) => (user, password),
            Some(_) => return Err(unbound("the user name says that the password is for another upstream")),
            None if named.admits(url) => return Ok(as_it_came(headers)),
            None => return Err(unbound("the user name does not say for which upstream the password is")),
        },
        Credential::Bearer(_) if named.admits(url) => return Ok(as_it_came(headers)),
        Credential::Bearer(_) => return Err(unbound("the token does not say for which upstream it is")),
    };
    let basic = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
    // Base64 fits into a header.
    let mut value = HeaderValue::from_str(&format!("Basic {basic}")).ok();
    value.iter_mut().for_each(|value| value.set_sensitive(true));
    Ok(value)
}

fn as_it_came(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut value = headers.get(header::AUTHORIZATION).cloned();
    value.iter_mut().for_each(|value| value.set_sensitive(true));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(value: &str, url: &str, named: &str) -> Result<Option<String>, Refusal> {
        let mut headers = HeaderMap::new();
        if !value.is_empty() {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        let (url, named) = (UpstreamUrl::parse(url).unwrap(), UpstreamList::parse(named));
        let sent = for_upstream(&Credential::of(&headers)?, &headers, &url, &named)?;
        assert!(sent.iter().all(HeaderValue::is_sensitive));
        Ok(sent.map(|value| value.to_str().unwrap().to_owned()))
    }

    fn basic(user: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:canary")))
    }

    #[test]
    fn a_password_goes_to_the_upstream_that_its_user_names() {
        for (user, url, upstream_sees) in [
            ("ada@h", "https://h/o/r", "ada"),
            ("ada@H", "https://h/o/r", "ada"),
            ("ada@corp.example@h", "https://h/o/r", "ada@corp.example"),
            ("ada@h._8443", "https://h:8443/o/r", "ada"),
            ("ada@http+h", "http://h/o/r", "ada"),
            ("@h", "https://h/o/r", ""),
        ] {
            assert_eq!(given(&basic(user), url, ""), Ok(Some(basic(upstream_sees))), "{user} {url}");
        }
        assert_eq!(given("", "https://h/o/r", ""), Ok(None));
    }

    #[test]
    fn no_other_upstream_gets_it_whatever_is_named() {
        for (user, url) in [
            ("ada@h", "https://evil/o/r"),
            ("ada@h", "http://h/o/r"),
            ("ada@http+h", "https://h/o/r"),
            ("ada@h", "https://h:8443/o/r"),
            ("ada@h.evil", "https://h/o/r"),
            ("h@ada", "https://h/o/r"),
            ("ada@", "https://h/o/r"),
        ] {
            for named in ["", "h, evil, http://h, h:8443"] {
                let Err(Refusal::Unbound(text)) = given(&basic(user), url, named) else {
                    panic!("{user} {url}")
                };
                assert!(!text.contains("ada") && !text.contains("canary"), "{text}");
            }
        }
    }

    #[test]
    fn what_does_not_say_whom_it_is_for_goes_where_the_operator_says() {
        for value in [basic("ada"), "Bearer canary".to_owned()] {
            for (url, named, sent) in [
                ("https://h/o/r", "", false),
                ("https://h/o/r", "other", false),
                ("https://h/o/r", "other, h", true),
                ("https://h/o/r", "h/team/*", false),
                ("https://h/team/r", "h/team/*", true),
                ("http://h/o/r", "h", false),
                ("http://h/o/r", "http://h", true),
            ] {
                let got = given(&value, url, named);
                assert_eq!(got.is_ok(), sent, "{url} {named}");
                assert!(got.is_err() || got == Ok(Some(value.clone())), "{got:?}");
            }
        }
    }
}
