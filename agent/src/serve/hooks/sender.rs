//! What the senders of webhooks sign and say: pure functions of headers and bodies.

use http::{HeaderMap, HeaderName};
use ring::hmac;
use serde::Deserialize;
use tarn_crds::repo::RepoId;

/// Who sends a webhook, which decides about headers and the form of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve) enum Sender {
    /// GitHub, and what imitates it.
    GitHub,
    /// GitLab, which sends a token instead of a signature.
    GitLab,
    /// Gitea and Forgejo.
    Gitea,
    /// Anyone: `{"url": "…"}`.
    Generic,
}

const GITHUB_EVENT: HeaderName = HeaderName::from_static("x-github-event");
const GITHUB_SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");
const GITLAB_EVENT: HeaderName = HeaderName::from_static("x-gitlab-event");
const GITLAB_TOKEN: HeaderName = HeaderName::from_static("x-gitlab-token");
const GITEA_EVENT: HeaderName = HeaderName::from_static("x-gitea-event");
const GITEA_SIGNATURE: HeaderName = HeaderName::from_static("x-gitea-signature");
const GENERIC_SIGNATURE: HeaderName = HeaderName::from_static("tarn-signature");

const SHA256_BYTES: usize = 32;

/// What a sender proves that it knows a secret with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) enum Proof {
    /// The secret itself.
    Token(Vec<u8>),
    /// The HMAC-SHA-256 of the body.
    Signature(Vec<u8>),
}

impl Proof {
    /// Whether whoever sent `body` knows one of the secrets. In constant time for each secret.
    pub(in crate::serve) fn holds(&self, body: &[u8], secrets: &[String]) -> bool {
        secrets.iter().any(|secret| match self {
            Self::Token(token) => same(secret.as_bytes(), token),
            Self::Signature(signature) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
                hmac::verify(&key, body, signature).is_ok()
            }
        })
    }
}

impl Sender {
    /// The one whose route this is, such as `/hooks/github`.
    pub(in crate::serve) fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/hooks/")? {
            "github" => Some(Self::GitHub),
            "gitlab" => Some(Self::GitLab),
            "gitea" => Some(Self::Gitea),
            "generic" => Some(Self::Generic),
            _ => None,
        }
    }

    /// Headers that matter, which are all that other agents are sent along with the body.
    pub(in crate::serve) const fn headers(self) -> [HeaderName; 2] {
        match self {
            Self::GitHub => [GITHUB_EVENT, GITHUB_SIGNATURE],
            Self::GitLab => [GITLAB_EVENT, GITLAB_TOKEN],
            Self::Gitea => [GITEA_EVENT, GITEA_SIGNATURE],
            Self::Generic => [GENERIC_SIGNATURE, GENERIC_SIGNATURE],
        }
    }

    /// What a request is to be proved genuine by; none where it cannot be, whatever its body says.
    pub(in crate::serve) fn proof(self, headers: &HeaderMap) -> Option<Proof> {
        let [_, header] = self.headers();
        let mut values = headers.get_all(header).iter();
        // Of several, none is to be overheard.
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        if self == Self::GitLab {
            return Some(Proof::Token(value.as_bytes().to_owned()));
        }
        let text = value.to_str().ok()?;
        let digits = if self == Self::Gitea { text } else { text.strip_prefix("sha256=")? };
        hex::decode(digits).ok().filter(|bytes| bytes.len() == SHA256_BYTES).map(Proof::Signature)
    }

    /// Whether the event is one that moves refs; others are taken and nothing follows.
    pub(in crate::serve) fn moves_refs(self, headers: &HeaderMap) -> bool {
        let [header, _] = self.headers();
        let event = headers.get(header).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match self {
            Self::GitHub | Self::Gitea => matches!(event, "push" | "create" | "delete"),
            Self::GitLab => matches!(event, "Push Hook" | "Tag Push Hook" | "System Hook"),
            Self::Generic => true,
        }
    }

    /// The repositories that the body may mean: its URLs, as far as they are any. They name a mirror, no more.
    pub(in crate::serve) fn repositories(self, body: &[u8]) -> Vec<RepoId> {
        let Ok(event) = serde_json::from_slice::<Event>(body) else { return Vec::new() };
        let of = |place: Option<Place>| {
            let place = place.unwrap_or_default();
            [place.clone_url, place.ssh_url, place.git_http_url, place.git_ssh_url]
        };
        let urls = match self {
            Self::GitHub | Self::Gitea => of(event.repository).to_vec(),
            Self::GitLab => [of(event.project), of(event.repository)].concat(),
            Self::Generic => vec![event.url],
        };
        let mut found = Vec::new();
        for id in urls.into_iter().flatten().filter_map(|url| repository(&url)) {
            if !found.contains(&id) {
                found.push(id);
            }
        }
        found
    }
}

/// What of an event says which repository it is of.
#[derive(Deserialize)]
struct Event {
    repository: Option<Place>,
    project: Option<Place>,
    url: Option<String>,
}

#[derive(Deserialize, Default)]
struct Place {
    clone_url: Option<String>,
    ssh_url: Option<String>,
    git_http_url: Option<String>,
    git_ssh_url: Option<String>,
}

/// The repository of a URL, which may also look as scp's arguments do: `git@host:path`.
fn repository(url: &str) -> Option<RepoId> {
    let scp = url.split_once(':').filter(|_| !url.contains("://"));
    let url = scp.map_or_else(|| url.to_owned(), |(host, path)| format!("ssh://{host}/{path}"));
    RepoId::from_url(&url).ok()
}

/// Whether two texts are the same, in a time that tells nothing of where they differ: their digests under a key that
/// nobody knows are compared.
fn same(one: &[u8], other: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>());
    hmac::verify(&key, other, hmac::sign(&key, one).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn genuine(sender: Sender, headers: &HeaderMap, body: &[u8], secrets: &[&str]) -> bool {
        let secrets: Vec<_> = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        sender.proof(headers).is_some_and(|proof| proof.holds(body, &secrets))
    }

    #[test]
    fn githubs_own_example_is_genuine_and_nothing_near_it() {
        // From GitHub's documentation on validating webhook deliveries.
        let (secret, body) = ("It's a Secret to Everybody", b"Hello, World!");
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signed = |value: &str| headers(&[(GITHUB_SIGNATURE, value)]);
        let github =
            |value: &str, body: &[u8], all: &[&str]| genuine(Sender::GitHub, &signed(value), body, all);
        assert!(github(good, body, &["old", secret]));
        assert!(!github(good, b"Hello, World?", &[secret]));
        assert!(!github(good, body, &["other"]) && !github(good, body, &[]));
        let bare = good.trim_start_matches("sha256=");
        for bad in
            [bare, "", "sha256=", "sha256=7", "sha256=zz", &good[..good.len() - 2], &format!("{good}00")]
        {
            assert_eq!(Sender::GitHub.proof(&signed(bad)), None, "{bad}");
        }
        assert_eq!(Sender::GitHub.proof(&HeaderMap::new()), None);
        let mut twice = signed(good);
        twice.append(GITHUB_SIGNATURE, HeaderValue::from_static("sha256=00"));
        assert_eq!(Sender::GitHub.proof(&twice), None);
        // Gitea's header holds the digits alone.
        assert!(genuine(Sender::Gitea, &headers(&[(GITEA_SIGNATURE, bare)]), body, &[secret]));
        assert!(genuine(Sender::Generic, &headers(&[(GENERIC_SIGNATURE, good)]), body, &[secret]));
    }

    #[test]
    fn gitlab_sends_the_secret_itself() {
        let gitlab =
            |token: &str| genuine(Sender::GitLab, &headers(&[(GITLAB_TOKEN, token)]), b"", &["one", "two"]);
        assert!(gitlab("one") && gitlab("two"));
        assert!(!gitlab("") && !gitlab("on") && !gitlab("onetwo"));
    }

    #[test]
    fn events_name_repositories_by_their_urls() {
        let id = RepoId::from_url("https://git.example.com/o/r.git").unwrap();
        for (sender, body) in [
            (Sender::GitHub, r#"{"repository": {"clone_url": "https://git.example.com/o/r.git", "id": 7}}"#),
            (Sender::Gitea, r#"{"repository": {"clone_url": 7, "ssh_url": "git@git.example.com:o/r.git"}}"#),
            (Sender::Gitea, r#"{"repository": {"ssh_url": "git@git.example.com:o/r.git"}}"#),
            (Sender::GitLab, r#"{"project": {"git_http_url": "https://git.example.com/o/r.git"}}"#),
            (Sender::GitLab, r#"{"repository": {"git_ssh_url": "git@git.example.com:o/r.git"}}"#),
            (Sender::Generic, r#"{"url": "https://git.example.com/o/r.git"}"#),
        ] {
            let found = sender.repositories(body.as_bytes());
            // A number instead of a URL makes no sense as a whole.
            let expected = if body.contains("clone_url\": 7") { vec![] } else { vec![id.clone()] };
            assert_eq!(found, expected, "{body}");
        }
        assert!(
            Sender::Generic.repositories(br#"{"url": "https://git.example.com/o/..%2f..%2fr"}"#).is_empty()
        );
        assert!(Sender::GitHub.repositories(b"[]").is_empty());
    }

    #[test]
    fn only_events_that_move_refs_lead_to_a_look() {
        for (sender, header, event, moves) in [
            (Sender::GitHub, GITHUB_EVENT, "push", true),
            (Sender::GitHub, GITHUB_EVENT, "delete", true),
            (Sender::GitHub, GITHUB_EVENT, "ping", false),
            (Sender::Gitea, GITEA_EVENT, "create", true),
            (Sender::GitLab, GITLAB_EVENT, "Tag Push Hook", true),
            (Sender::GitLab, GITLAB_EVENT, "Note Hook", false),
        ] {
            assert_eq!(sender.moves_refs(&headers(&[(header, event)])), moves, "{event}");
        }
    }

    proptest! {
        #[test]
        fn no_body_and_no_header_makes_trouble(body in any::<Vec<u8>>(), value in "\\PC{0,80}") {
            for sender in [Sender::GitHub, Sender::GitLab, Sender::Gitea, Sender::Generic] {
                let _ = sender.repositories(&body);
                let [_, header] = sender.headers();
                if let Ok(value) = HeaderValue::from_str(&value) {
                    let headers = HeaderMap::from_iter([(header, value)]);
                    prop_assert!(!genuine(sender, &headers, &body, &["canary-of-the-hook"]));
                }
            }
        }
    }
}
