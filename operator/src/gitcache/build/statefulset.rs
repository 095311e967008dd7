//! The pods: the agent, as little privileged as a pod can be.

use k8s_openapi::{
    DeepMerge,
    api::{
        apps::v1::{
            RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy,
            StatefulSetSpec, StatefulSetUpdateStrategy,
        },
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
            HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, ObjectFieldSelector,
            PersistentVolumeClaim, PersistentVolumeClaimSpec, PodAffinityTerm, PodAntiAffinity,
            PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource, SeccompProfile,
            SecretKeySelector, SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection,
            SleepAction, Volume, VolumeMount, VolumeProjection, VolumeResourceRequirements,
            WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use tarn_crds::v1alpha1::{Budget, CachePrewarm, Limits, S3, SecretRef, Store, VolumeClaim};

use super::{ADMIN_PORT, GIT_PORT, Validated, agent_name, metadata, pods_name, selector, selector_labels};
use crate::ssa::covers;

/// The name of the volume that holds the mirrors.
pub const DATA: &str = "data";
/// Digest of the pods' template, which tells a change of the pods from one of, say, their number.
pub const TEMPLATE_ANNOTATION: &str = "tarn.dev/template";
/// Where the token is by which the pods know each other; the kubelet renews it.
const PEER: &str = "/var/run/secrets/tarn.dev/peer";
/// In memory: what the agent writes for git to read, and must not outlive the pod, such as files with credentials.
const RUNTIME: &str = "/run/tarn";
/// Some hundred bytes for each mirror with credentials.
const RUNTIME_SIZE: &str = "16Mi";
/// Where the callers' tokens are.
const TOKENS: &str = "/etc/tarn/tokens";
/// Where the certificate and its key are, under the names that a Secret of type kubernetes.io/tls has for them.
const TLS: &str = "/etc/tarn/tls";
/// The certificate, and its key.
const TLS_FILES: [&str; 2] = ["tls.crt", "tls.key"];
/// The key of the Secret with the callers' tokens.
const TOKENS_KEY: &str = "tokens";
/// Where the secrets of webhooks are.
const WEBHOOKS: &str = "/etc/tarn/webhooks";
/// The key of the Secret with those.
const WEBHOOKS_KEY: &str = "secret";
/// Where the keys for what is in the store are.
const STORE_KEYS: &str = "/etc/tarn/store";
/// The key of the Secret with those.
const STORE_KEYS_KEY: &str = "keys";
/// Seconds for which a token for peers is good.
const PEER_TOKEN: i64 = 3600;
/// The agent's user and group: any but root's, the same in image and volume.
const USER: i64 = 65532;
/// Seconds between a pod's leaving the Services and its being told to stop: clients' connections move over meanwhile.
const LEAVE: i64 = 5;
/// Seconds for which the agent lets answers under way finish, if nothing else is declared: its own default.
const DRAIN: i64 = 25;
/// Seconds for its last words after that, and for its end.
const MARGIN: i64 = 10;

pub(super) fn build(cache: &Validated) -> StatefulSet {
    let claim = cache.storage.volume_claim.as_ref();
    let template = template(cache);
    let digest = blake3::hash(&serde_json::to_vec(&template).unwrap_or_default()).to_hex();
    let digest = digest.get(..16).unwrap_or_default().to_owned();
    let mut metadata = metadata(cache, cache.name.clone());
    metadata.annotations = Some([(TEMPLATE_ANNOTATION.to_owned(), digest)].into());
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(cache.replicas),
            service_name: Some(pods_name(cache)),
            selector: selector(cache),
            // Pods do not wait for each other; only their replacement has an order.
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(cache.partition),
                    ..RollingUpdateStatefulSetStrategy::default()
                }),
            }),
            persistent_volume_claim_retention_policy: claim.map(|_| {
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some("Delete".into()),
                    when_scaled: Some("Retain".into()),
                }
            }),
            volume_claim_templates: claim.map(|claim| vec![volume_claim(claim)]),
            template,
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// The name of the first field that cannot change in place and differs between the two.
pub fn immutable(live: &StatefulSet, wanted: &StatefulSet) -> Option<&'static str> {
    let (live, wanted) = (live.spec.as_ref()?, wanted.spec.as_ref()?);
    let same_claims = || {
        let claims = |spec: &StatefulSetSpec| {
            serde_json::to_value(spec.volume_claim_templates.clone().unwrap_or_default()).unwrap_or_default()
        };
        covers(&claims(live), &claims(wanted))
    };
    if live.selector.match_labels != wanted.selector.match_labels {
        Some("selector")
    } else if live.service_name != wanted.service_name {
        Some("serviceName")
    } else if live.pod_management_policy != wanted.pod_management_policy {
        Some("podManagementPolicy")
    } else if !same_claims() {
        Some("volumeClaimTemplates")
    } else {
        None
    }
}

fn template(cache: &Validated) -> PodTemplateSpec {
    let scheduling = &cache.scheduling;
    let mut template = PodTemplateSpec {
        metadata: None,
        spec: Some(PodSpec {
            service_account_name: Some(agent_name(cache)),
            containers: vec![agent(cache)],
            volumes: Some(volumes(cache)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            // Variables of the namespace's Services would be taken for the agent's own.
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace(cache)),
            affinity: Some(scheduling.affinity.clone().unwrap_or_else(|| apart(cache))),
            tolerations: Some(scheduling.tolerations.clone()).filter(|list| !list.is_empty()),
            topology_spread_constraints: Some(scheduling.topology_spread_constraints.clone())
                .filter(|list| !list.is_empty()),
            ..PodSpec::default()
        }),
    };
    if let Some(overrides) = cache.overrides.clone() {
        template.merge_from(overrides);
    }
    // A shorter one would cut the answers that are to finish.
    if let Some(spec) = &mut template.spec {
        let own = spec.termination_grace_period_seconds;
        spec.termination_grace_period_seconds = own.max(Some(grace(cache)));
    }
    let metadata = template.metadata.get_or_insert_with(ObjectMeta::default);
    metadata.labels.get_or_insert_default().extend(selector_labels(&cache.name));
    template
}

/// Seconds from a pod's end being decided to its kill.
fn grace(cache: &Validated) -> i64 {
    let drain = cache.drain.as_ref().map(|drain| drain.get().as_secs());
    LEAVE + drain.and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(DRAIN) + MARGIN
}

fn agent(cache: &Validated) -> Container {
    let port = |name: &str, port| ContainerPort {
        name: Some(name.into()),
        container_port: port,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        ..VolumeMount::default()
    };
    let read_only = |name, path| VolumeMount { read_only: Some(true), ..mount(name, path) };
    let mut mounts = vec![mount(DATA, "/data"), mount("tmp", "/tmp"), mount("runtime", RUNTIME)];
    mounts.push(read_only("peer", PEER));
    mounts.extend(cache.auth.tokens_secret_ref.as_ref().map(|_| read_only("tokens", TOKENS)));
    mounts.extend(cache.tls.as_ref().map(|_| read_only("tls", TLS)));
    mounts.extend(cache.webhooks.as_ref().map(|_| read_only("webhooks", WEBHOOKS)));
    mounts.extend(store_keys(cache).map(|_| read_only("store-keys", STORE_KEYS)));
    Container {
        name: "agent".into(),
        image: Some(cache.image.clone()),
        command: Some(vec!["tarn-agent".into()]),
        args: Some(arguments(cache)),
        env: Some(environment(cache)),
        ports: Some(vec![port("git", GIT_PORT), port("admin", ADMIN_PORT)]),
        resources: cache.resources.clone(),
        // Neither probe depends on a mirror, the API server or the store.
        startup_probe: Some(Probe {
            failure_threshold: Some(60),
            period_seconds: Some(1),
            ..probe("/healthz")
        }),
        liveness_probe: Some(Probe {
            failure_threshold: Some(6),
            period_seconds: Some(10),
            ..probe("/healthz")
        }),
        readiness_probe: Some(Probe {
            failure_threshold: Some(3),
            period_seconds: Some(2),
            ..probe("/readyz")
        }),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: LEAVE }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            privileged: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn arguments(cache: &Validated) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["serve", "--in-cluster", "--cache", &cache.name, "--data", "/data"].map(String::from).into();
    arguments.extend(["--listen".into(), format!("0.0.0.0:{GIT_PORT}")]);
    arguments.extend(["--admin-listen".into(), format!("0.0.0.0:{ADMIN_PORT}")]);
    arguments.extend(["--log-format".into(), "json".into()]);
    arguments.extend(["--peer-token".into(), format!("{PEER}/token")]);
    for audience in audiences(cache) {
        arguments.extend(["--audience".into(), audience]);
    }
    let network = &cache.network_policy;
    if network.enabled && network.metrics_from.is_some() {
        // Only those whom it names reach the port.
        arguments.push("--open-metrics".into());
    }
    for upstream in &cache.auth.unbound_credentials_to {
        arguments.extend(["--unbound-credentials-to".into(), upstream.clone()]);
    }
    if cache.auth.tokens_secret_ref.is_some() {
        arguments.extend(["--tokens".into(), format!("{TOKENS}/{TOKENS_KEY}")]);
    }
    arguments.extend(warmth(&cache.prewarm));
    if let Some(budget) = budget(cache) {
        arguments.extend(["--disk-budget".into(), budget]);
    }
    if cache.tls.is_some() {
        for (flag, file) in ["--tls-cert", "--tls-key"].into_iter().zip(TLS_FILES) {
            arguments.extend([flag.into(), format!("{TLS}/{file}")]);
        }
    }
    if cache.webhooks.is_some() {
        arguments.extend(["--webhook-secret-file".into(), format!("{WEBHOOKS}/{WEBHOOKS_KEY}")]);
    }
    for host in &cache.allowed_hosts {
        arguments.extend(["--allow-upstream".into(), host.clone()]);
    }
    arguments.extend(limits(&cache.limits));
    if let Some(drain) = &cache.drain {
        arguments.extend(["--drain".into(), drain.get().as_secs().to_string()]);
    }
    if let Some(copies) = cache.replication {
        arguments.extend(["--replication".into(), copies.to_string()]);
    }
    arguments
}

/// Whom callers' tokens must be for. Told also where it is the default: an agent of an older image has another.
fn audiences(cache: &Validated) -> Vec<String> {
    let own = || vec![tarn_crds::audience(&cache.namespace, &cache.name)];
    Some(cache.auth.audiences.clone()).filter(|named| !named.is_empty()).unwrap_or_else(own)
}

/// What differs from the agent's own defaults, so that an agent that knows no such flags does without.
fn warmth(wanted: &CachePrewarm) -> Vec<String> {
    let CachePrewarm { most_cloned, window, concurrency } = wanted;
    let usual = CachePrewarm::default();
    let flags = [
        ("--prewarm-most-cloned", most_cloned.to_string(), *most_cloned != usual.most_cloned),
        ("--prewarm-window", window.to_string(), *window != usual.window),
        ("--prewarm-concurrency", concurrency.to_string(), *concurrency != usual.concurrency),
    ];
    let changed = flags.into_iter().filter(|(_, _, differs)| *differs);
    changed.flat_map(|(flag, value, _)| [flag.to_owned(), value]).collect()
}

/// The limits that are set; of the others the agent knows its own defaults.
fn limits(wanted: &Limits) -> Vec<String> {
    let Limits {
        max_connections,
        max_connections_per_client,
        max_requests,
        max_requests_per_client,
        max_bytes_per_second,
        max_bytes_per_second_per_client,
        client_timeout,
    } = wanted;
    let counts = [
        ("--max-connections", max_connections),
        ("--max-connections-per-client", max_connections_per_client),
        ("--max-requests", max_requests),
        ("--max-requests-per-client", max_requests_per_client),
    ];
    let rates =
        [("--max-rate", max_bytes_per_second), ("--max-rate-per-client", max_bytes_per_second_per_client)];
    let counts = counts.map(|(flag, count)| (flag, count.map(|count| count.to_string())));
    let rates = rates.map(|(flag, rate)| (flag, rate.as_ref().map(|rate| rate.value().to_string())));
    let silence = client_timeout.as_ref().map(|timeout| timeout.get().as_secs().to_string());
    let all = counts.into_iter().chain(rates).chain([("--client-timeout", silence)]);
    all.filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten().collect()
}

/// The budget, where it is not the agent's own default. The share of an emptyDir with a limit is one of that limit: the
/// agent sees the node's whole disk, and the kubelet evicts a pod above the limit.
fn budget(cache: &Validated) -> Option<String> {
    let limit = cache.storage.empty_dir.as_ref().filter(|_| cache.storage.volume_claim.is_none());
    match (&cache.budget, limit.and_then(|dir| dir.size_limit.as_ref())) {
        (Budget::Percent(_), Some(limit)) => Some(cache.budget.bytes_of(limit.value()).to_string()),
        (budget, _) => (*budget != Budget::default()).then(|| budget.to_string()),
    }
}

/// Which store, for the agent and for the commands `tarn-agent store …` that people run beside it.
fn store(cache: &Validated, store: &Store) -> Vec<(&'static str, String)> {
    let Store { s3: Some(s3), signing_key_secret_ref, audit } = store else { return Vec::new() };
    let S3 { bucket, prefix, endpoint, region, force_path_style, secret_ref: _ } = s3;
    // Caches that share a bucket do not share what is in it, unless somebody writes so.
    let own = || format!("{}/{}", cache.namespace, cache.name);
    let prefix = match prefix.clone().unwrap_or_else(own) {
        root if root.is_empty() => root,
        prefix => format!("/{prefix}"),
    };
    let path_style = force_path_style.then(|| "true".to_owned());
    let all = [
        ("TARN_AGENT_STORE", Some(format!("s3://{bucket}{prefix}"))),
        ("TARN_AGENT_S3_ENDPOINT", endpoint.clone()),
        ("TARN_AGENT_S3_REGION", region.clone()),
        ("TARN_AGENT_S3_PATH_STYLE", path_style),
        (
            "TARN_AGENT_STORE_KEY",
            signing_key_secret_ref.as_ref().map(|_| format!("{STORE_KEYS}/{STORE_KEYS_KEY}")),
        ),
        ("TARN_AGENT_AUDIT_STORE", audit.then(|| "true".to_owned())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// The Secret with the keys for what is in the store.
fn store_keys(cache: &Validated) -> Option<&SecretRef> {
    cache.store.as_ref()?.signing_key_secret_ref.as_ref()
}

fn environment(cache: &Validated) -> Vec<EnvVar> {
    let from = |name: &str, source: EnvVarSource| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(source),
    };
    let field = |(name, path): (&str, &str)| {
        let field_ref = ObjectFieldSelector { field_path: path.into(), api_version: Some("v1".into()) };
        from(name, EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() })
    };
    let pod =
        [("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace"), ("POD_UID", "metadata.uid")];
    let mut environment: Vec<EnvVar> = pod.into_iter().map(field).collect();
    let plain =
        |(name, value): (&str, String)| EnvVar { name: name.into(), value: Some(value), value_from: None };
    // git and the agent write nowhere but to /data, /tmp and, where an agent knows of it, /run/tarn.
    environment.push(plain(("HOME", "/tmp".into())));
    environment.push(plain(("RUNTIME_DIRECTORY", RUNTIME.into())));
    environment.extend(cache.store.iter().flat_map(|wanted| store(cache, wanted)).map(plain));
    let s3 = cache.store.as_ref().and_then(|store| store.s3.as_ref());
    let secret = s3.and_then(|s3| s3.secret_ref.as_ref());
    for (name, key, optional) in [
        ("AWS_ACCESS_KEY_ID", "accessKeyID", false),
        ("AWS_SECRET_ACCESS_KEY", "secretAccessKey", false),
        ("AWS_SESSION_TOKEN", "sessionToken", true),
    ] {
        environment.extend(secret.map(|secret| {
            let selector = SecretKeySelector {
                name: secret.name.clone(),
                key: key.into(),
                optional: optional.then_some(true),
            };
            from(name, EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() })
        }));
    }
    environment
}

fn probe(path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("admin".into()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn volumes(cache: &Validated) -> Vec<Volume> {
    let empty = |name: &str, limit| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: limit, medium: None }),
        ..Volume::default()
    };
    let runtime = Volume {
        name: "runtime".into(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(RUNTIME_SIZE.into())),
            medium: Some("Memory".into()),
        }),
        ..Volume::default()
    };
    let limit = cache.storage.empty_dir.as_ref().and_then(|dir| dir.size_limit.as_ref());
    let data = cache.storage.volume_claim.is_none().then(|| empty(DATA, limit.map(Into::into)));
    let tokens = cache.auth.tokens_secret_ref.as_ref();
    let tokens = tokens.map(|secret| secret_volume("tokens", &secret.name, &[TOKENS_KEY]));
    let tls = cache.tls.as_ref().map(|tls| secret_volume("tls", &tls.secret_ref.name, &TLS_FILES));
    let webhooks = cache.webhooks.as_ref();
    let webhooks =
        webhooks.map(|webhooks| secret_volume("webhooks", &webhooks.secret_ref.name, &[WEBHOOKS_KEY]));
    let store_keys =
        store_keys(cache).map(|secret| secret_volume("store-keys", &secret.name, &[STORE_KEYS_KEY]));
    let secrets = tokens.into_iter().chain(tls).chain(webhooks).chain(store_keys);
    data.into_iter().chain([empty("tmp", None), runtime, peer()]).chain(secrets).collect()
}

/// These keys of a Secret, as files that the agent's group may read.
fn secret_volume(name: &str, secret: &str, keys: &[&str]) -> Volume {
    let item = |key: &&str| KeyToPath { key: (*key).into(), path: (*key).into(), mode: None };
    Volume {
        name: name.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.into()),
            items: Some(keys.iter().map(item).collect()),
            default_mode: Some(0o440),
            optional: None,
        }),
        ..Volume::default()
    }
}

/// A token of the pod's account that is good for nothing but to be known by the other pods.
fn peer() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(tarn_crds::PEER_AUDIENCE.into()),
        expiration_seconds: Some(PEER_TOKEN),
        path: "token".into(),
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    Volume {
        name: "peer".into(),
        projected: Some(ProjectedVolumeSource { sources: Some(vec![source]), default_mode: Some(0o440) }),
        ..Volume::default()
    }
}

fn volume_claim(claim: &VolumeClaim) -> PersistentVolumeClaim {
    let size = (&claim.size).into();
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(DATA.into()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: claim.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), size)].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// Pods of one GitCache avoid each other's nodes, so that a node takes one copy with it at most.
fn apart(cache: &Validated) -> Affinity {
    let term = PodAffinityTerm {
        topology_key: "kubernetes.io/hostname".into(),
        label_selector: Some(selector(cache)),
        ..PodAffinityTerm::default()
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}
