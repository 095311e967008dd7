//! The credentials of a Secret, for an upstream that the Secret names ([`tarn_crds::credentials`]).

use k8s_openapi::api::core::v1::Secret;
use tarn_crds::{credentials::may_be_sent, repo::UpstreamUrl, v1alpha1::conditions::Reason};

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
    let (labels, annotations) = (secret.metadata.labels.as_ref(), secret.metadata.annotations.as_ref());
    may_be_sent(name, labels, annotations, url)
        .map_err(|denied| (Reason::SecretNotAllowed, denied.to_string()))?;
    let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
    Credentials::from_data(&data, url)
        .map_err(|error| (Reason::SecretInvalid, format!("Secret {name}: {error}")))
}
