//! What a GitCache is made of: pure functions, a file for each kind.

mod network_policy;
mod pdb;
mod role;
mod service;
mod service_account;
mod statefulset;

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{Role, RoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use tarn_crds::CACHE_LABEL;

use super::validate::Validated;

pub use statefulset::{DATA, TEMPLATE_ANNOTATION, immutable};

/// Objects as they should be.
#[derive(Clone, Debug)]
pub struct Prepared;

/// Objects as the API server has them.
#[derive(Clone, Debug)]
pub struct Applied;

/// All objects of a GitCache; the state says whether they are wanted or there.
#[derive(Clone, Debug)]
pub struct Resources<State> {
    /// The identity of the pods.
    pub service_account: ServiceAccount,
    /// What the pods may do.
    pub role: Role,
    /// Gives the role to the pods.
    pub role_binding: RoleBinding,
    /// What clients reach.
    pub service: Service,
    /// The name of each pod.
    pub pods_service: Service,
    /// How many pods may be away at a time.
    pub pdb: PodDisruptionBudget,
    /// Who reaches which port.
    pub network_policy: NetworkPolicy,
    /// The pods.
    pub stateful_set: StatefulSet,
    pub(super) state: PhantomData<State>,
}

impl Resources<Applied> {
    /// What the API server answered with.
    #[expect(clippy::too_many_arguments, reason = "one for each object, so that none is forgotten")]
    pub(super) const fn applied(
        service_account: ServiceAccount,
        role: Role,
        role_binding: RoleBinding,
        service: Service,
        pods_service: Service,
        pdb: PodDisruptionBudget,
        network_policy: NetworkPolicy,
        stateful_set: StatefulSet,
    ) -> Self {
        Self {
            service_account,
            role,
            role_binding,
            service,
            pods_service,
            pdb,
            network_policy,
            stateful_set,
            state: PhantomData,
        }
    }
}

/// Builds every object.
pub fn build(cache: &Validated) -> Resources<Prepared> {
    Resources {
        service_account: service_account::build(cache),
        role: role::build(cache),
        role_binding: role::binding(cache),
        service: service::clients(cache),
        pods_service: service::pods(cache),
        pdb: pdb::build(cache),
        network_policy: network_policy::build(cache),
        stateful_set: statefulset::build(cache),
        state: PhantomData,
    }
}

/// The port that git clients reach in a pod.
const GIT_PORT: i32 = 8080;
/// The port of probes and metrics.
const ADMIN_PORT: i32 = 8081;
/// The value of `app.kubernetes.io/name` on agents.
pub const APP: &str = "tarn-agent";

/// Labels by which pods are selected; they never change.
pub fn selector_labels(name: &str) -> BTreeMap<String, String> {
    labels(&[("app.kubernetes.io/name", APP), (CACHE_LABEL, name)])
}

/// The selector as text, for `status.selector`.
pub fn selector_text(name: &str) -> String {
    let labels = selector_labels(name);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn selector(cache: &Validated) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(&cache.name)), match_expressions: None }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The name of the pods' account and role.
fn agent_name(cache: &Validated) -> String {
    tarn_crds::agent_account(&cache.name)
}

/// The name of the headless Service.
fn pods_name(cache: &Validated) -> String {
    tarn_crds::pods_service(&cache.name)
}

/// Metadata of an object called `name`.
fn metadata(cache: &Validated, name: String) -> ObjectMeta {
    let mut labels = selector_labels(&cache.name);
    labels.insert("app.kubernetes.io/managed-by".into(), "tarn-operator".into());
    ObjectMeta {
        name: Some(name),
        namespace: Some(cache.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![cache.owner.clone()]),
        ..ObjectMeta::default()
    }
}
