//! What one file, or one object of an API server, declares. Each is judged alone.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use tarn_crds::{
    allowed_hosts::AllowedHosts,
    manifest::{Manifest, read},
    repo::{RepoId, RepoIdError, Scheme, UpstreamUrl},
    v1alpha1::{Access, GitMirror, GitMirrorSpec, Quantity, conditions::Reason},
};

use super::{Rejected, Rules};
use crate::{
    mirror::{CheckpointSettings, MissingCredentials, Settings, SnapshotSettings},
    upstream::Credentials,
};

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
    /// A Secret that the API server has not answered for yet.
    Awaited,
}

/// Creation time of the object, if it has one, and the source's name. Of two declarations of one repository the
/// smaller has it.
pub type Age = (Option<Timestamp>, String);

/// A document of a source, counted from 1.
pub type Position = (Age, usize);

/// What is known of a Secret.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Known {
    Present(Box<Secret>),
    Unreadable(String),
    Awaited,
}

/// What a GitMirror says.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its spec.
    pub spec: GitMirrorSpec,
}

/// A GitMirror whose URL names a repository.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    pub(super) declared: Arc<Declared>,
    pub(super) url: UpstreamUrl,
    /// Why it cannot be followed here, if so.
    pub(super) refused: Option<Reason>,
}

/// A source after its checks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) claims: Vec<(usize, Claim)>,
    pub(super) secrets: Vec<(usize, String, Known)>,
    pub(super) rejected: Vec<Rejected>,
    /// What is rejected, as far as it can be told.
    pub(super) spoilt: Vec<Spoilt>,
}

/// A document that is no valid declaration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spoilt {
    /// The object's name; without one it may be any.
    name: Option<String>,
    /// Who may read the mirror, if that much can be read.
    access: Option<Access>,
}

/// Documents kept of an earlier reading are counted from here, where no reading counts.
const KEPT: usize = 1 << 20;

impl Parsed {
    pub(super) fn of(source: Source, rules: &Rules) -> Self {
        let Source { file, content } = source;
        let secret = file.strip_prefix("Secret/").map(str::to_owned);
        let mut parsed = Self::default();
        match content {
            Content::Awaited => parsed.secrets.extend(secret.map(|name| (1, name, Known::Awaited))),
            Content::Unreadable(reason) => {
                let known = Known::Unreadable(reason.clone());
                parsed.secrets.extend(secret.map(|name| (1, name, known)));
                parsed.spoilt.push(Spoilt { name: None, access: None });
                parsed.rejected.push(Rejected { file, document: 1, field: String::new(), reason });
            }
            Content::Object(manifest) => parsed.add(&file, 1, *manifest, rules),
            Content::Text(text) => {
                for (manifest, document) in read(&text).into_iter().zip(1..) {
                    match manifest {
                        Ok(manifest) => parsed.add(&file, document, manifest, rules),
                        Err(errors) => {
                            let first = errors.first();
                            parsed.spoilt.extend(
                                first.map(|error| Spoilt { name: error.name.clone(), access: error.access }),
                            );
                            parsed.rejected.extend(errors.into_iter().map(|error| Rejected {
                                file: file.clone(),
                                document: error.document,
                                field: error.field,
                                reason: error.reason,
                            }));
                        }
                    }
                }
            }
        }
        parsed
    }

    /// The same, with what an earlier reading of the source had in the place of what is spoilt now. Nobody gains by that: where the
    /// spoilt document lets in others than before, or may, nobody is let in.
    pub(super) fn keeping(mut self, earlier: &Self) -> Self {
        let position = |document: usize| if document < KEPT { document + KEPT } else { document };
        for (document, claim) in &earlier.claims {
            let Some(spoilt) = self.spoilt.iter().find(|spoilt| spoilt.may_be(claim.name())) else {
                continue;
            };
            let of_name = self.claims.iter().find(|(_, new)| new.name() == claim.name());
            // The same repository, which cannot be mirrored as it is declared now; or nothing is wrong with it.
            if of_name.is_some_and(|(_, new)| new.refused.is_none() || new.repo() == claim.repo()) {
                continue;
            }
            let same = spoilt.name.is_none() || spoilt.access == Some(claim.declared.spec.effective_access());
            let refused = claim.refused.or((!same).then_some(Reason::AccessUnsupported));
            self.claims.push((position(*document), Claim { refused, ..claim.clone() }));
        }
        for (document, name, known) in &earlier.secrets {
            let here = self.secrets.iter().any(|(_, new, _)| new == name);
            if !here && self.spoilt.iter().any(|spoilt| spoilt.may_be(name)) {
                self.secrets.push((position(*document), name.clone(), known.clone()));
            }
        }
        self
    }

    fn add(&mut self, file: &str, document: usize, manifest: Manifest, rules: &Rules) {
        match manifest {
            Manifest::GitMirror(mirror) => {
                let GitMirror { metadata, spec, status: _ } = *mirror;
                let declared = Declared { name: metadata.name.unwrap_or_default(), spec };
                let (name, access) = (declared.name.clone(), declared.spec.effective_access());
                let (claim, wrong) = Claim::of(Arc::new(declared), rules);
                if wrong.is_some() {
                    self.spoilt.push(Spoilt { name: Some(name), access: Some(access) });
                }
                self.claims.extend(claim.map(|claim| (document, claim)));
                self.rejected.extend(wrong.map(|(field, reason)| Rejected {
                    file: file.to_owned(),
                    document,
                    field: field.to_owned(),
                    reason,
                }));
            }
            Manifest::Secret(secret) => {
                let name = secret.metadata.name.clone().unwrap_or_default();
                self.secrets.push((document, name, Known::Present(secret)));
            }
            // A GitCache says how a cluster runs agents; this one runs already.
            Manifest::GitCache(_) => {}
        }
    }
}

impl Spoilt {
    fn may_be(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|own| own == name)
    }
}

impl Claim {
    /// The claim, if the URL names a repository, and what is wrong: the field, and why.
    fn of(declared: Arc<Declared>, rules: &Rules) -> (Option<Self>, Option<(&'static str, String)>) {
        let url = match UpstreamUrl::parse(&declared.spec.url) {
            Ok(url) => url,
            Err(error) => return (None, Some(("spec.url", error.to_string()))),
        };
        let wrong = check(&declared.spec, &url, rules).err();
        let refused = wrong.as_ref().map(|(field, _)| match *field {
            "spec.access" => Reason::AccessUnsupported,
            _ => Reason::InvalidUrl,
        });
        (Some(Self { declared, url, refused }), wrong)
    }

    /// The mirror that a flag declares by nothing but its URL.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub(super) fn of_url(url: &str, rules: &Rules) -> Result<Self, String> {
        let parsed = UpstreamUrl::parse(url).map_err(|error: RepoIdError| error.to_string())?;
        let declared = Declared { name: parsed.id().to_string(), spec: GitMirrorSpec::for_url(url) };
        match Self::of(Arc::new(declared), rules) {
            (Some(claim), None) => Ok(claim),
            (_, wrong) => Err(wrong.map(|(_, reason)| reason).unwrap_or_default()),
        }
    }

    /// The claim, if nothing is wrong with it here.
    pub(super) fn checked(declared: Arc<Declared>, rules: &Rules) -> Option<Self> {
        let (claim, wrong) = Self::of(declared, rules);
        claim.filter(|_| wrong.is_none())
    }

    pub(super) fn name(&self) -> &str {
        &self.declared.name
    }

    pub(super) fn repo(&self) -> &RepoId {
        self.url.id()
    }

    /// The Secret that it names.
    pub(super) fn secret(&self) -> Option<&str> {
        self.declared.spec.secret_ref.as_ref().map(|secret| secret.name.as_str())
    }

    /// Why it is not followed by this agent, though nothing is wrong with it.
    pub(super) fn unsupported(&self, rules: &Rules) -> Option<(Reason, String)> {
        if !rules.allowed.admits(&self.url) {
            let message = format!("spec.url {}", AllowedHosts::refusal(&self.url));
            return Some((Reason::UpstreamNotAllowed, message));
        }
        let message = "access Authenticated needs tokens to compare with: give the agent --tokens FILE, or the GitCache \
                       spec.auth.tokensSecretRef";
        let lacks = self.declared.spec.effective_access() == Access::Authenticated && !rules.tokens;
        lacks.then(|| (Reason::AccessUnsupported, message.to_owned()))
    }

    /// The settings of the mirror, with these credentials.
    pub(super) fn settings(
        &self,
        credentials: Result<Credentials, MissingCredentials>,
        rules: &Rules,
    ) -> Settings {
        let spec = &self.declared.spec;
        Settings {
            name: self.name().to_owned(),
            url: self.url.clone(),
            interval: spec.interval.get(),
            timeout: spec.timeout.get(),
            suspend: spec.suspend,
            refs: spec.refs.clone(),
            max_staleness: spec.freshness.max_staleness.get(),
            look_timeout: spec.freshness.look_timeout.get(),
            on_upstream_failure: spec.freshness.on_upstream_failure,
            on_upstream_refusal: spec.freshness.on_upstream_refusal,
            access: spec.effective_access(),
            prewarm: spec.prewarm,
            secret: self.secret().map(str::to_owned),
            credentials,
            max_bytes: spec.limits.max_bytes.as_ref().map(Quantity::value).or(rules.max_bytes),
            snapshot: SnapshotSettings {
                suspend: spec.snapshot.suspend,
                interval: spec.snapshot.interval.get(),
                max_age: spec.snapshot.max_age.get(),
            },
            checkpoint: CheckpointSettings {
                interval: spec.checkpoint.interval.get(),
                keep: usize::try_from(spec.checkpoint.keep).unwrap_or(1).max(1),
            },
        }
    }
}

fn check(spec: &GitMirrorSpec, url: &UpstreamUrl, rules: &Rules) -> Result<(), (&'static str, String)> {
    if url.scheme() == Scheme::File && !rules.allow_file {
        let reason = "is a file:// URL: start the agent with --allow-file-upstreams to admit those";
        return Err(("spec.url", reason.into()));
    }
    if spec.effective_access() == Access::Rbac && !rules.in_cluster {
        let why = if spec.access.is_some() { "RBAC" } else { "RBAC, the default with a secretRef," };
        let reason = format!("{why} needs a Kubernetes cluster: set Anonymous, Authenticated or Upstream");
        return Err(("spec.access", reason));
    }
    Ok(())
}
