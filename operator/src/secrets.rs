//! Which Secret may be sent to which host: a pure function.
//!
//! Whoever may write a GitMirror must not be able to have any Secret sent to a host of theirs. So the Secret itself says
//! that it is for upstreams, and for which.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tarn_crds::{CREDENTIALS_LABEL, HOSTS_ANNOTATION, repo::RepoId};

/// Whether the Secret with this metadata carries the label.
pub fn labelled(secret: &ObjectMeta) -> bool {
    let label = secret.labels.as_ref().and_then(|labels| labels.get(CREDENTIALS_LABEL));
    label.is_some_and(|label| label == "true")
}

/// Whether the Secret with this metadata may be sent to the host of `url`.
pub fn allowed(secret: &ObjectMeta, url: &str) -> bool {
    let Ok(repo) = RepoId::from_url(url) else { return false };
    let hosts = secret.annotations.as_ref().and_then(|annotations| annotations.get(HOSTS_ANNOTATION));
    labelled(secret)
        && hosts.is_some_and(|hosts| {
            hosts.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(repo.host()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_names_the_hosts_it_is_for() {
        let secret = |label: &str, hosts: &str| ObjectMeta {
            labels: Some([(CREDENTIALS_LABEL.to_owned(), label.to_owned())].into()),
            annotations: Some([(HOSTS_ANNOTATION.to_owned(), hosts.to_owned())].into()),
            ..ObjectMeta::default()
        };
        for (label, hosts, fine) in [
            ("true", "h", true),
            ("true", "x, H", true),
            ("true", "x", false),
            ("true", "h.evil", false),
            ("yes", "h", false),
        ] {
            assert_eq!(allowed(&secret(label, hosts), "https://h/o/r"), fine, "{label} {hosts}");
        }
        assert!(!allowed(&ObjectMeta::default(), "https://h/o/r"));
    }
}
