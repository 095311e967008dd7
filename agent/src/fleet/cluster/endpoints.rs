//! The other pods of the cache, by the EndpointSlices of its headless Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    pin::pin,
    sync::Arc,
};

use futures_util::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api,
    runtime::watcher::{self, Event, watcher},
};
use tarn_crds::pods_service;
use tokio::sync::watch;

use super::{
    Scope,
    watching::{self, watched},
};
use crate::{metrics::Metrics, peers::addresses::Address};

/// The label by which a Service's slices are found; Kubernetes sets it.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What the headless Service calls the git port.
const GIT_PORT: &str = "git";

/// Tells `out` of the ready pods, this one left out, for ever. While the API server is away, they stay as they were:
/// one that is gone costs an attempt to connect.
pub async fn follow(scope: Scope, out: watch::Sender<Arc<[Address]>>, metrics: Metrics) {
    let api: Api<EndpointSlice> = Api::namespaced(scope.client.clone(), &scope.namespace);
    let config =
        watcher::Config::default().labels(&format!("{SERVICE_LABEL}={}", pods_service(&scope.cache)));
    let mut events = pin!(watched(watcher(api, config)));
    let mut slices = Slices::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                slices.take(event, (scope.scheme, &scope.pod));
                let known: Arc<[Address]> = slices.addresses().into();
                out.send_if_modified(|told| {
                    let changed = *told != known;
                    if changed {
                        tracing::info!(peers = known.len(), "the cache's other ready pods");
                        *told = known;
                    }
                    changed
                });
            }
            Err(error) => {
                metrics.cluster.watch_errors.inc();
                let reason = watching::reason(&error);
                tracing::warn!(
                    reason,
                    "EndpointSlices cannot be watched; the pods last known count, trying again"
                );
            }
        }
    }
}

/// What the slices say, by their names.
#[derive(Debug, Default)]
struct Slices {
    known: BTreeMap<String, Vec<Address>>,
    /// A list that is still coming in.
    coming: Option<BTreeMap<String, Vec<Address>>>,
}

impl Slices {
    fn take(&mut self, event: Event<EndpointSlice>, own: (&'static str, &str)) {
        let named = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match event {
            Event::Init => self.coming = Some(BTreeMap::new()),
            Event::InitApply(slice) => {
                self.coming.get_or_insert_default().insert(named(&slice), others(&slice, own));
            }
            Event::InitDone => self.known = self.coming.take().unwrap_or_default(),
            Event::Apply(slice) => drop(self.known.insert(named(&slice), others(&slice, own))),
            Event::Delete(slice) => drop(self.known.remove(&named(&slice))),
        }
    }

    /// All, once each: a pod stands in two slices while it is moved from one to the other.
    fn addresses(&self) -> Vec<Address> {
        let all: BTreeSet<&Address> = self.known.values().flatten().collect();
        all.into_iter().cloned().collect()
    }
}

/// The ready pods of a slice but one's own, to be reached by the scheme beside its name. Only addresses count, never names: what is called is a pod of the Service.
fn others(slice: &EndpointSlice, (scheme, own): (&'static str, &str)) -> Vec<Address> {
    let port = slice.ports.iter().flatten().find(|port| port.name.as_deref() == Some(GIT_PORT));
    let port = port.and_then(|port| u16::try_from(port.port?).ok());
    let Some(port) = port.filter(|port| *port > 0) else { return Vec::new() };
    let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
        // Not told means ready, as the API has it.
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        let pod = endpoint.target_ref.as_ref()?.name.as_deref()?;
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        (ready && pod != own).then(|| Address::of_pod(pod, scheme, ip, port))
    });
    endpoints.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, endpoints: &Value) -> EndpointSlice {
        let object = json!({
            "metadata": {"name": name},
            "addressType": "IPv4",
            "ports": [{"name": "admin", "port": 8081}, {"name": "git", "port": 8080}],
            "endpoints": endpoints,
        });
        serde_json::from_value(object).unwrap()
    }

    fn endpoint(pod: &str, address: &str, ready: &Value) -> Value {
        json!({"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": pod}})
    }

    #[test]
    fn ready_pods_count_and_this_one_does_not() {
        let all = json!([
            endpoint("c-0", "10.0.0.1", &json!(true)),
            endpoint("c-1", "10.0.0.2", &json!(true)),
            endpoint("c-2", "10.0.0.3", &json!(false)),
            endpoint("c-3", "10.0.0.4", &Value::Null),
            endpoint("c-4", "metadata.internal", &json!(true)),
            {"addresses": ["10.0.0.6"], "conditions": {}},
        ]);
        let mut slices = Slices::default();
        slices.take(Event::Apply(slice("a", &all)), ("http", "c-0"));
        let found: Vec<String> = slices.addresses().iter().map(|address| address.url("")).collect();
        assert_eq!(found, ["http://10.0.0.2:8080", "http://10.0.0.4:8080"]);
    }

    #[test]
    fn a_list_replaces_what_was_known_once_it_is_whole() {
        let one = |pod: &str| json!([endpoint(pod, "10.0.0.2", &json!(true))]);
        let mut slices = Slices::default();
        slices.take(Event::Apply(slice("a", &one("c-1"))), ("http", "c-0"));
        slices.take(Event::Init, ("http", "c-0"));
        slices.take(Event::InitApply(slice("b", &one("c-2"))), ("http", "c-0"));
        let names = |slices: &Slices| slices.addresses().into_iter().map(|a| a.name).collect::<Vec<_>>();
        assert_eq!(names(&slices), ["c-1"]);
        slices.take(Event::InitDone, ("http", "c-0"));
        assert_eq!(names(&slices), ["c-2"]);
        slices.take(Event::Apply(slice("b2", &one("c-2"))), ("http", "c-0"));
        assert_eq!(names(&slices), ["c-2"]);
        slices.take(Event::Delete(slice("b", &json!([]))), ("http", "c-0"));
        slices.take(Event::Delete(slice("b2", &json!([]))), ("http", "c-0"));
        assert!(names(&slices).is_empty());
    }
}
