//! From declarations to what to run: a pure function.
//!
//! GitMirrors and their Secrets come from files or from an API server; the same rules hold for both. What is
//! wrong with one declaration never disturbs another.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use tarn_crds::{
    CREDENTIALS_LABEL, HOSTS_ANNOTATION,
    manifest::{Manifest, read},
    repo::{RepoId, RepoIdError, Scheme, UpstreamUrl},
    v1alpha1::{Access, GitMirror, GitMirrorSpec, conditions::Reason},
};

use crate::{
    mirror::{CheckpointSettings, Settings, SnapshotSettings},
    upstream::Credentials,
};

/// What to run, and what not and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Mirrors to run; each repository once.
    pub mirrors: Vec<Settings>,
    /// Mirrors that cannot be set up as declared.
    pub stalled: Vec<Stalled>,
    /// Documents that are no valid declarations.
    pub rejected: Vec<Rejected>,
    /// How many declarations wait for something that they need.
    pub pending: usize,
}

/// A mirror that is declared well, but cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// The GitMirror's name.
    pub name: String,
    /// Its repository.
    pub repo: RepoId,
    /// Its URL.
    pub url: UpstreamUrl,
    /// In a word.
    pub reason: Reason,
    /// What to do about it.
    pub message: String,
}

/// A document that is no valid declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The file's name, or the flag.
    pub file: String,
    /// Which document of the file, from 1.
    pub document: usize,
    /// The field, such as `spec.interval`; empty where the whole document is meant.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// A file with declarations, or an object of an API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The file's name; of an object kind and name, such as `GitMirror/linux`.
    pub file: String,
    /// What it holds.
    pub content: Content,
}

/// What a source holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Documents to be checked.
    Text(String),
    /// An object that an API server has checked against the schema and its rules.
    Object(Box<Manifest>),
    /// Nothing that can be read, and why.
    Unreadable(String),
    /// What it needs is still being asked for: what ran of it goes on.
    Pending,
}

/// What the agent is told on its command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Admit file:// upstreams.
    pub allow_file: bool,
    /// There is a cluster, which can tell who its users are.
    pub in_cluster: bool,
    /// There are tokens of callers to compare with.
    pub tokens: bool,
}

/// The settings of a mirror declared by nothing but its URL.
///
/// # Errors
/// What is wrong with the URL.
pub fn from_url(url: &str, rules: Rules) -> Result<Settings, String> {
    let spec = GitMirrorSpec::for_url(url);
    let url = UpstreamUrl::parse(url).map_err(|error: RepoIdError| error.to_string())?;
    check_scheme(&url, rules)?;
    let name = url.id().to_string();
    Ok(settings(name, &spec, url, Credentials::default()))
}

/// Works out what to run from `flags` (which come first) and `sources`, in their order. A source with an
/// error keeps what `previous` ran of it: a bad edit takes nothing away.
pub fn desired(
    flags: &[Settings],
    sources: &[Source],
    previous: &mut BTreeMap<String, Vec<Settings>>,
    rules: Rules,
) -> Desired {
    let mut found = Found::default();
    for source in sources {
        found.add(source);
    }
    let mut out = Desired { rejected: std::mem::take(&mut found.rejected), ..Desired::default() };
    let mut owners: BTreeMap<RepoId, String> = BTreeMap::new();
    let mut good: BTreeMap<String, Vec<Settings>> = BTreeMap::new();
    for flag in flags {
        claim(&mut owners, &mut out, flag.clone());
    }
    for Declared { file, document, mirror } in std::mem::take(&mut found.mirrors) {
        match resolve(&mirror, &found.secrets, rules) {
            Ok(settings) => {
                if claim(&mut owners, &mut out, settings.clone()) {
                    good.entry(file).or_default().push(settings);
                }
            }
            Err(Unresolved::Rejected { field, reason }) => {
                out.rejected.push(Rejected { file, document, field: field.into(), reason });
            }
            Err(Unresolved::Stalled(stalled)) => {
                // What is missing may stand in a document that was just spoilt.
                let ran = previous.values().flatten().find(|ran| *ran.url.id() == stalled.repo);
                let stalled = found.explain(&mirror, stalled);
                match ran.filter(|_| !out.rejected.is_empty()).cloned() {
                    Some(ran) => {
                        if claim(&mut owners, &mut out, ran.clone()) {
                            good.entry(file).or_default().push(ran);
                        }
                    }
                    None => out.stalled.push(*stalled),
                }
            }
        }
    }
    for file in out.rejected.iter().map(|rejected| &rejected.file).chain(&found.pending) {
        for settings in previous.get(file).into_iter().flatten() {
            if !owners.contains_key(settings.url.id()) {
                owners.insert(settings.url.id().clone(), settings.name.clone());
                out.mirrors.push(settings.clone());
                good.entry(file.clone()).or_default().push(settings.clone());
            }
        }
    }
    out.pending = found.pending.len();
    *previous = good;
    out
}

#[derive(Default)]
struct Found {
    mirrors: Vec<Declared>,
    secrets: BTreeMap<String, Secret>,
    rejected: Vec<Rejected>,
    pending: Vec<String>,
    /// Secrets that cannot be read, and why.
    unreadable: BTreeMap<String, String>,
}

struct Declared {
    file: String,
    document: usize,
    mirror: Box<GitMirror>,
}

impl Found {
    fn add(&mut self, source: &Source) {
        let file = source.file.clone();
        match &source.content {
            Content::Pending => self.pending.push(file),
            Content::Unreadable(reason) => {
                if let Some(secret) = file.strip_prefix("Secret/") {
                    self.unreadable.insert(secret.to_owned(), reason.clone());
                }
                let whole = Rejected { file, document: 1, field: String::new(), reason: reason.clone() };
                self.rejected.push(whole);
            }
            Content::Object(manifest) => self.add_manifest(file, 1, Manifest::clone(manifest)),
            Content::Text(text) => {
                for (manifest, document) in read(text).into_iter().zip(1..) {
                    match manifest {
                        Ok(manifest) => self.add_manifest(file.clone(), document, manifest),
                        Err(errors) => self.rejected.extend(errors.into_iter().map(|error| Rejected {
                            file: file.clone(),
                            document: error.document,
                            field: error.field,
                            reason: error.reason,
                        })),
                    }
                }
            }
        }
    }

    /// Says of a Secret that cannot be read that it cannot, and not that it is missing.
    fn explain(&self, mirror: &GitMirror, mut stalled: Box<Stalled>) -> Box<Stalled> {
        let secret = mirror.spec.secret_ref.as_ref().map(|secret| secret.name.as_str()).unwrap_or_default();
        if let Some(reason) = self.unreadable.get(secret) {
            stalled.message = format!("the Secret {secret} {reason}");
        }
        stalled
    }

    fn add_manifest(&mut self, file: String, document: usize, manifest: Manifest) {
        match manifest {
            Manifest::GitMirror(mirror) => self.mirrors.push(Declared { file, document, mirror }),
            Manifest::Secret(secret) => {
                let name = secret.metadata.name.clone().unwrap_or_default();
                self.secrets.insert(name, *secret);
            }
            // A GitCache says how a cluster runs agents; this one runs already.
            Manifest::GitCache(_) => {}
        }
    }
}

/// Gives the repository to the first who declares it. The others are stalled, unless they say the same.
fn claim(owners: &mut BTreeMap<RepoId, String>, out: &mut Desired, settings: Settings) -> bool {
    let id = settings.url.id().clone();
    match owners.get(&id) {
        None => {
            owners.insert(id, settings.name.clone());
            out.mirrors.push(settings);
            true
        }
        Some(owner) => {
            let message =
                format!("GitMirror {owner} mirrors the same repository, {id}: remove one of the two");
            out.stalled.push(Stalled {
                name: settings.name,
                repo: id,
                url: settings.url,
                reason: Reason::DuplicateUrl,
                message,
            });
            false
        }
    }
}

enum Unresolved {
    Rejected { field: &'static str, reason: String },
    Stalled(Box<Stalled>),
}

fn resolve(
    mirror: &GitMirror,
    secrets: &BTreeMap<String, Secret>,
    rules: Rules,
) -> Result<Settings, Unresolved> {
    let rejected = |field, reason| Unresolved::Rejected { field, reason };
    let name = mirror.metadata.name.clone().unwrap_or_default();
    let spec = &mirror.spec;
    let url = UpstreamUrl::parse(&spec.url).map_err(|error| rejected("spec.url", error.to_string()))?;
    check_scheme(&url, rules).map_err(|reason| rejected("spec.url", reason))?;
    if spec.effective_access() == Access::Rbac && !rules.in_cluster {
        let why = if spec.access.is_some() { "RBAC" } else { "RBAC, the default with a secretRef," };
        let reason = format!("{why} needs a Kubernetes cluster: set Anonymous, Authenticated or Upstream");
        return Err(rejected("spec.access", reason));
    }
    let stalled = |(reason, message)| {
        let (name, repo, url) = (name.clone(), url.id().clone(), url.clone());
        Unresolved::Stalled(Box::new(Stalled { name, repo, url, reason, message }))
    };
    if let Some(message) = unsupported(spec.effective_access(), rules) {
        return Err(stalled((Reason::AccessUnsupported, message.into())));
    }
    let credentials = match &spec.secret_ref {
        None => Credentials::default(),
        Some(secret) => credentials(&secret.name, secrets, &url).map_err(stalled)?,
    };
    Ok(settings(name, spec, url, credentials))
}

/// What the access that is asked for lacks.
fn unsupported(access: Access, rules: Rules) -> Option<&'static str> {
    (access == Access::Authenticated && !rules.tokens).then_some(
        "access Authenticated needs tokens to compare with: give the agent --tokens FILE, or the GitCache \
         spec.auth.tokensSecretRef",
    )
}

fn check_scheme(url: &UpstreamUrl, rules: Rules) -> Result<(), String> {
    if url.scheme() == Scheme::File && !rules.allow_file {
        return Err("is a file:// URL: start the agent with --allow-file-upstreams to admit those".into());
    }
    Ok(())
}

/// Only a Secret that says it is for this host is used, so that nobody can have a foreign Secret sent to a
/// host of theirs.
fn credentials(
    name: &str,
    secrets: &BTreeMap<String, Secret>,
    url: &UpstreamUrl,
) -> Result<Credentials, (Reason, String)> {
    let secret = secrets
        .get(name)
        .ok_or_else(|| (Reason::SecretNotFound, format!("there is no Secret {name}: add it")))?;
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

fn settings(name: String, spec: &GitMirrorSpec, url: UpstreamUrl, credentials: Credentials) -> Settings {
    Settings {
        name,
        url,
        interval: spec.interval.get(),
        timeout: spec.timeout.get(),
        suspend: spec.suspend,
        refs: spec.refs.clone(),
        max_staleness: spec.freshness.max_staleness.get(),
        look_timeout: spec.freshness.look_timeout.get(),
        on_upstream_failure: spec.freshness.on_upstream_failure,
        access: spec.effective_access(),
        prewarm: spec.prewarm,
        credentials,
        snapshot: SnapshotSettings {
            interval: spec.snapshot.interval.get(),
            max_age: spec.snapshot.max_age.get(),
        },
        checkpoint: CheckpointSettings {
            interval: spec.checkpoint.interval.get(),
            keep: usize::try_from(spec.checkpoint.keep).unwrap_or(1).max(1),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\n";

    fn source(file: &str, text: &str) -> Source {
        Source { file: file.into(), content: Content::Text(text.into()) }
    }

    fn mirror(name: &str, spec: &str) -> String {
        format!("{HEAD}metadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    }

    fn run(sources: &[Source]) -> Desired {
        desired(&[], sources, &mut BTreeMap::new(), Rules::default())
    }

    #[test]
    fn two_declarations_of_one_repository_stall_the_second() {
        let one = mirror("one", "url: https://h/o/r.git");
        let two = mirror("two", "url: 'ssh://git@h/o/r'");
        let out = run(&[source("a.yaml", &one), source("b.yaml", &two)]);
        assert_eq!(out.mirrors.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["one"]);
        let stalled = out.stalled.first().unwrap();
        assert_eq!((stalled.name.as_str(), stalled.reason), ("two", Reason::DuplicateUrl));
        assert!(stalled.message.contains("GitMirror one"), "{}", stalled.message);
    }

    #[test]
    fn a_bad_edit_takes_nothing_away() {
        let mut previous = BTreeMap::new();
        let good = source("a.yaml", &mirror("one", "url: https://h/o/r"));
        let bad = source("a.yaml", &mirror("one", "url: https://h/o/r, intervall: 1m"));
        let first = desired(&[], &[good], &mut previous, Rules::default());
        for _ in 0..2 {
            let out = desired(&[], std::slice::from_ref(&bad), &mut previous, Rules::default());
            assert_eq!(out.mirrors, first.mirrors);
            let rejected = out.rejected.first().unwrap();
            assert_eq!((rejected.file.as_str(), rejected.field.as_str()), ("a.yaml", "spec.intervall"));
        }
        assert!(desired(&[], &[], &mut previous, Rules::default()).mirrors.is_empty());
    }

    #[test]
    fn a_bad_edit_of_a_secret_takes_nothing_away_either() {
        let spec = "url: https://h/o/r, access: Anonymous, secretRef: {name: s}";
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s, labels: {tarn.dev/credentials: 'true'}, \
                      annotations: {tarn.dev/hosts: h}}\nstringData: {bearerToken: t}\n";
        let sources = |secret: &str| [source("a.yaml", &mirror("one", spec)), source("b.yaml", secret)];
        let mut previous = BTreeMap::new();
        let first = desired(&[], &sources(secret), &mut previous, Rules::default());
        assert_eq!(first.mirrors.len(), 1);
        for _ in 0..2 {
            let spoilt = secret.replace("stringData", "stringDate");
            let out = desired(&[], &sources(&spoilt), &mut previous, Rules::default());
            assert_eq!(out.mirrors, first.mirrors);
        }
        let gone = desired(&[], &sources(""), &mut previous, Rules::default());
        assert_eq!(gone.stalled.first().unwrap().reason, Reason::SecretNotFound);
    }

    #[test]
    fn objects_of_a_cluster_are_judged_as_documents_are() {
        let spec = "url: https://h/o/r, secretRef: {name: s}";
        let manifests = [
            mirror("one", spec),
            "apiVersion: v1\nkind: Secret\nmetadata: {name: s, labels: {tarn.dev/credentials: 'true'}, \
             annotations: {tarn.dev/hosts: h}}\nstringData: {bearerToken: t}\n"
                .to_owned(),
        ];
        let object = |text: &String| {
            let manifest = read(text).remove(0).unwrap();
            let file = format!("{}/{}", manifest.kind(), manifest.name());
            Source { file, content: Content::Object(Box::new(manifest)) }
        };
        let rules = Rules { in_cluster: true, ..Rules::default() };
        let objects: Vec<Source> = manifests.iter().map(object).collect();
        let mut previous = BTreeMap::new();
        let out = desired(&[], &objects, &mut previous, rules);
        let access = out.mirrors.first().map(|found| found.access);
        assert_eq!((access, out.stalled.len(), out.rejected.len()), (Some(Access::Rbac), 0, 0));
        // While something it needs is being asked for, it goes on as it was; nobody is blamed.
        let pending = Source { file: "GitMirror/one".into(), content: Content::Pending };
        let waits = desired(&[], &[pending], &mut previous, rules);
        assert_eq!(waits, Desired { pending: 1, ..out });
        let content = Content::Unreadable("cannot be read: for reasons".into());
        let denied = [objects[0].clone(), Source { file: "Secret/s".into(), content }];
        let stalled = desired(&[], &denied, &mut BTreeMap::new(), rules).stalled.remove(0);
        assert_eq!(stalled.message, "the Secret s cannot be read: for reasons");
        let foreign = desired(&[], objects.get(..1).unwrap(), &mut BTreeMap::new(), rules);
        assert_eq!(foreign.stalled.first().unwrap().reason, Reason::SecretNotFound);
    }

    #[test]
    fn what_needs_a_flag_or_a_cluster_says_so() {
        let file = run(&[source("a.yaml", &mirror("one", "url: 'file:///srv/r.git'"))]);
        assert!(file.rejected.first().unwrap().reason.contains("--allow-file-upstreams"));
        for spec in ["url: https://h/o/r, access: RBAC", "url: https://h/o/r, secretRef: {name: s}"] {
            let rbac = run(&[source("a.yaml", &mirror("one", spec))]);
            let rejected = rbac.rejected.first().unwrap();
            assert_eq!(rejected.field, "spec.access");
            assert!(rejected.reason.contains("needs a Kubernetes cluster"), "{}", rejected.reason);
        }
        let tokens = source("a.yaml", &mirror("one", "url: https://h/o/r, access: Authenticated"));
        let out = run(std::slice::from_ref(&tokens));
        let stalled = out.stalled.first().unwrap();
        assert_eq!(stalled.reason, Reason::AccessUnsupported);
        assert!(stalled.message.contains("--tokens"), "{}", stalled.message);
        let rules = Rules { tokens: true, ..Rules::default() };
        assert_eq!(desired(&[], &[tokens], &mut BTreeMap::new(), rules).mirrors.len(), 1);
    }

    #[test]
    fn a_secret_is_used_only_for_the_hosts_it_lists() {
        let spec = "url: https://h/o/r, access: Anonymous, secretRef: {name: s}";
        let secret = |metadata: &str| {
            format!(
                "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s{metadata}}}\nstringData: {{bearerToken: canary}}\n"
            )
        };
        let try_with = |text: String| run(&[source("a.yaml", &(mirror("one", spec) + &text))]);
        let label = ", labels: {tarn.dev/credentials: 'true'}";
        for (text, reason) in [
            (String::new(), Reason::SecretNotFound),
            (secret(""), Reason::SecretNotAllowed),
            (secret(label), Reason::SecretNotAllowed),
            (secret(&format!("{label}, annotations: {{tarn.dev/hosts: 'x,y'}}")), Reason::SecretNotAllowed),
        ] {
            assert_eq!(try_with(text).stalled.first().unwrap().reason, reason);
        }
        let out = try_with(secret(&format!("{label}, annotations: {{tarn.dev/hosts: 'x, h'}}")));
        assert_eq!(
            out.mirrors.first().unwrap().credentials.authorization().unwrap().expose(),
            "Bearer canary"
        );
    }
}
