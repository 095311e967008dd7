//! Which Secret opens which upstream. Only a Secret that lists the upstream's host is used, so that a GitMirror cannot
//! send a foreign Secret to a host of its author's choice.

use k8s_openapi::api::core::v1::Secret;
use tarn_crds::{CREDENTIALS_LABEL, HOSTS_ANNOTATION, repo::UpstreamUrl, v1alpha1::conditions::Reason};

use super::source::Known;
use crate::upstream::Credentials;

/// Why a Secret gives no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoCredentials {
    /// The API server has not answered for it yet.
    Awaited,
    /// It could not be read, and nobody knows whether it would do.
    Unreadable(String),
    /// It will not do as it is.
    Wrong(Reason, String),
}

/// The credentials for `url` of the Secret `name`, of which this is known.
pub(super) fn credentials(
    name: &str,
    known: Option<&Known>,
    url: &UpstreamUrl,
) -> Result<Credentials, NoCredentials> {
    match known {
        Some(Known::Present(secret)) => {
            of_secret(name, secret, url).map_err(|(reason, message)| NoCredentials::Wrong(reason, message))
        }
        Some(Known::Unreadable(reason)) => {
            Err(NoCredentials::Unreadable(format!("the Secret {name} {reason}")))
        }
        Some(Known::Awaited) => Err(NoCredentials::Awaited),
        None => {
            let message = format!("there is no Secret {name}: add it");
            Err(NoCredentials::Wrong(Reason::SecretNotFound, message))
        }
    }
}

fn of_secret(name: &str, secret: &Secret, url: &UpstreamUrl) -> Result<Credentials, (Reason, String)> {
    let label = secret.metadata.labels.iter().flatten().find(|(key, _)| *key == CREDENTIALS_LABEL);
    if label.is_none_or(|(_, value)| value != "true") {
        return Err((
            Reason::SecretNotAllowed,
            format!("label the Secret {name} with {CREDENTIALS_LABEL}=true"),
        ));
    }
    let hosts = secret.metadata.annotations.iter().flatten().find(|(key, _)| *key == HOSTS_ANNOTATION);
    let host = url.id().host();
    if !hosts
        .is_some_and(|(_, hosts)| hosts.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(host)))
    {
        return Err((
            Reason::SecretNotAllowed,
            format!("list {host} in the annotation {HOSTS_ANNOTATION} of the Secret {name}"),
        ));
    }
    let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
    Credentials::from_data(&data, url)
        .map_err(|error| (Reason::SecretInvalid, format!("Secret {name}: {error}")))
}
