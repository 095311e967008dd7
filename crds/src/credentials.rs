//! Which Secret may be sent to which upstream: one pure function for the operator and the agent.
//!
//! Whoever may write a GitMirror must not be able to have any Secret sent to a host of theirs. So the Secret itself says
//! that it is for upstreams, and for which.

use std::collections::BTreeMap;

use crate::repo::{UpstreamList, UpstreamUrl};

/// A Secret is used as upstream credentials only if it carries this label with the value `true`.
pub const CREDENTIALS_LABEL: &str = "tarn.dev/credentials";

/// A Secret with the credentials label lists here the upstreams that it may be sent to, as an [`UpstreamList`].
pub const HOSTS_ANNOTATION: &str = "tarn.dev/hosts";

/// Why a Secret may not be sent to an upstream; each says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// It does not say that it is for upstreams.
    #[error("label the Secret {name} with {CREDENTIALS_LABEL}=true")]
    Unlabelled {
        /// The Secret.
        name: String,
    },
    /// It does not name this upstream.
    #[error("list {entry} in the annotation {HOSTS_ANNOTATION} of the Secret {name}{invalid}")]
    Unlisted {
        /// The Secret.
        name: String,
        /// What to list.
        entry: String,
        /// What is wrong with entries that are there.
        invalid: String,
    },
}

/// Whether the Secret with these labels and annotations may be sent to `url`.
///
/// # Errors
/// What it lacks.
pub fn may_be_sent(
    name: &str,
    labels: Option<&BTreeMap<String, String>>,
    annotations: Option<&BTreeMap<String, String>>,
    url: &UpstreamUrl,
) -> Result<(), NotAllowed> {
    let name = || name.to_owned();
    if labels.and_then(|labels| labels.get(CREDENTIALS_LABEL)).is_none_or(|label| label != "true") {
        return Err(NotAllowed::Unlabelled { name: name() });
    }
    let hosts = annotations.and_then(|annotations| annotations.get(HOSTS_ANNOTATION));
    let list = hosts.map(|hosts| UpstreamList::parse(hosts)).unwrap_or_default();
    if list.admits(url) {
        return Ok(());
    }
    let invalid = list.invalid().iter().take(3).map(|invalid| format!("; its {invalid}")).collect();
    Err(NotAllowed::Unlisted { name: name(), entry: UpstreamList::entry_for(url), invalid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_says_that_it_is_for_upstreams_and_for_which() {
        let pair = |key: &str, value: &str| Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
        let url = UpstreamUrl::parse("http://h:81/o/r").unwrap();
        for (label, hosts, says) in [
            ("true", "http://h:81", ""),
            ("true", "x, http://h:81/o/*", ""),
            ("true", "h:81", "list http://h:81 in the annotation tarn.dev/hosts of the Secret s"),
            ("true", "http://h:81/o/", "; its entry 1 ends in a slash; write /* for"),
            ("yes", "http://h:81", "label the Secret s with tarn.dev/credentials=true"),
        ] {
            let (labels, annotations) = (pair(CREDENTIALS_LABEL, label), pair(HOSTS_ANNOTATION, hosts));
            match may_be_sent("s", labels.as_ref(), annotations.as_ref(), &url) {
                Ok(()) => assert_eq!(says, "", "{label} {hosts}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!says.is_empty() && error.contains(says), "{label} {hosts}: {error}");
                }
            }
        }
        assert!(may_be_sent("s", None, None, &url).is_err());
    }
}
