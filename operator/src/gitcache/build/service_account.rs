//! The pods' identity.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{Validated, agent_name, metadata};

pub(super) fn build(cache: &Validated) -> ServiceAccount {
    ServiceAccount { metadata: metadata(cache, agent_name(cache)), ..ServiceAccount::default() }
}
