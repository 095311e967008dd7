//! What clients reach, and the name of each pod.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{ADMIN_PORT, GIT_PORT, Validated, metadata, pods_name, selector_labels};

const HTTP: i32 = 80;
const HTTPS: i32 = 443;

pub(super) fn clients(cache: &Validated) -> Service {
    let mut metadata = metadata(cache, cache.name.clone());
    let annotations = &cache.service.annotations;
    metadata.annotations = Some(annotations.clone()).filter(|annotations| !annotations.is_empty());
    let (name, usual) = if cache.tls.is_some() { ("https", HTTPS) } else { ("http", HTTP) };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(cache.service.type_.as_str().into()),
            selector: Some(selector_labels(&cache.name)),
            ports: Some(vec![port(name, cache.service.port.unwrap_or(usual), "git")]),
            // A clone is large: the pod next door saves the network between nodes.
            traffic_distribution: Some("PreferSameNode".into()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

pub(super) fn pods(cache: &Validated) -> Service {
    Service {
        metadata: metadata(cache, pods_name(cache)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(selector_labels(&cache.name)),
            ports: Some(vec![port("git", GIT_PORT, "git"), port("admin", ADMIN_PORT, "admin")]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(name: &str, port: i32, target: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port,
        target_port: Some(IntOrString::String(target.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}
