//! From declarations to what to run, one repository at a time: what changes is decided anew, and nothing else is
//! touched. No clock, no network, no disk.
//!
//! GitMirrors and their Secrets come from files or from an API server; the same rules hold for both. What is wrong with
//! one declaration never disturbs another, and takes away nothing that ran: in the place of a document that is spoilt stays
//! what its own source had there before. All else is followed at once, what was taken away above all.

mod secrets;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Instant,
};

use tarn_crds::{
    allowed_hosts::AllowedHosts,
    repo::{RepoId, UpstreamUrl},
    v1alpha1::conditions::Reason,
};

use crate::{
    mirror::{MissingCredentials, Settings},
    upstream::Credentials,
};
use secrets::{NoCredentials, credentials};
pub use source::{Age, Content, Declared, Position, Source};
use source::{Claim, Known, Parsed};

/// A mirror that is declared well, but cannot be set up as declared.
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

/// What is declared but cannot be followed, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Mirrors that cannot be set up as declared; those that ran go on with what they have.
    pub stalled: Vec<Stalled>,
    /// Documents that are no valid declarations.
    pub rejected: Vec<Rejected>,
}

/// What the agent is told on its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Which hosts upstreams may be on.
    pub allowed: Arc<AllowedHosts>,
    /// Admit file:// upstreams.
    pub allow_file: bool,
    /// There is a cluster, which can tell who its users are.
    pub in_cluster: bool,
    /// There are tokens of callers to compare with.
    pub tokens: bool,
    /// The most bytes of a mirror that declares no limit of its own.
    pub max_bytes: Option<u64>,
}

/// A mirror declared on the command line by nothing but its URL.
#[derive(Clone, Debug)]
pub struct Flag(Claim);

impl Flag {
    /// Checks the URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str, rules: &Rules) -> Result<Self, String> {
        Claim::of_url(url, rules).map(Self)
    }
}

/// What becomes of one repository.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It is mirrored so.
    Runs(Box<Settings>),
    /// It is declared, and cannot be mirrored now.
    Refused(Reason),
    /// Nobody declares it.
    Undeclared,
}

/// What has changed since the last one was taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// The repositories that change, each once.
    pub changes: Vec<(RepoId, Standing)>,
    /// All that is refused, if that has changed.
    pub refused: Option<Arc<Refused>>,
    /// What is refused now and was not before.
    pub news: Refused,
    /// Of each declaration that can be read it is known whether it can be followed.
    pub complete: bool,
}

/// A declaration that was followed, for the next process.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Where it stood.
    pub position: Position,
    /// The declaration.
    pub declared: Arc<Declared>,
}

/// A repository that is mirrored, or was by an earlier process.
#[derive(Clone, Debug)]
struct Run {
    position: Position,
    declared: Arc<Declared>,
    settings: Settings,
    /// In this process.
    live: bool,
}

/// A repository with a declaration that cannot be followed as it stands.
#[derive(Clone, Debug, PartialEq)]
struct Refusal {
    reason: Reason,
    stalled: Vec<Stalled>,
}

/// See the module.
pub struct Declarations {
    rules: Rules,
    sources: BTreeMap<Age, Parsed>,
    claims: BTreeMap<RepoId, BTreeMap<Position, Claim>>,
    secrets: BTreeMap<String, BTreeMap<Position, Known>>,
    /// Who names a Secret.
    users: BTreeMap<String, BTreeSet<(RepoId, Position)>>,
    runs: BTreeMap<RepoId, Run>,
    refusals: BTreeMap<RepoId, Refusal>,
    /// Sources with something that is no valid declaration.
    bad: BTreeSet<Age>,
    /// Repositories that wait for a Secret that is still being asked for.
    pending: BTreeSet<RepoId>,
    /// Whoever is asked for Secrets does not answer.
    alone: bool,
    dirty: BTreeSet<RepoId>,
    dirty_secrets: BTreeSet<String>,
    news: Refused,
    refused_anew: bool,
    followed_anew: bool,
}

impl Declarations {
    /// What `flags` declare, which come before all else.
    pub fn new(flags: Vec<Flag>, rules: Rules) -> Self {
        let mut new = Self {
            rules,
            sources: BTreeMap::new(),
            claims: BTreeMap::new(),
            secrets: BTreeMap::new(),
            users: BTreeMap::new(),
            runs: BTreeMap::new(),
            refusals: BTreeMap::new(),
            bad: BTreeSet::new(),
            pending: BTreeSet::new(),
            alone: false,
            dirty: BTreeSet::new(),
            dirty_secrets: BTreeSet::new(),
            news: Refused::default(),
            refused_anew: true,
            followed_anew: false,
        };
        let claims = flags.into_iter().enumerate().map(|(at, Flag(claim))| (at, claim)).collect();
        new.put(Age::default(), Some(Parsed { claims, ..Parsed::default() }));
        new
    }

    /// Takes up what an earlier process followed. It counts as if it ran, until its source says something else.
    pub fn resume(&mut self, followed: Vec<Followed>) {
        let mut sources: BTreeMap<Age, Parsed> = BTreeMap::new();
        for Followed { position, declared } in followed {
            let Some(claim) = Claim::checked(declared, &self.rules) else { continue };
            let credentials = match claim.secret() {
                None => Ok(Credentials::default()),
                Some(name) => Err(MissingCredentials {
                    reason: Reason::Pending,
                    message: format!("the Secret {name} has not been read since the agent started"),
                    since: None,
                }),
            };
            let (settings, declared) = (claim.settings(credentials, &self.rules), claim.declared.clone());
            let run = Run { position: position.clone(), declared, settings, live: false };
            self.remember(claim.repo().clone(), Some(run));
            let (age, document) = position;
            sources.entry(age).or_default().claims.push((document, claim));
        }
        for (age, parsed) in sources {
            self.put(age, Some(parsed));
        }
        self.followed_anew = false;
    }

    /// Nobody answers: what an earlier process followed is not kept waiting for its Secrets.
    pub fn be_alone(&mut self) {
        self.alone = true;
        self.dirty.extend(self.pending.iter().cloned());
    }

    /// All sources but the flags.
    pub fn ages(&self) -> impl Iterator<Item = &Age> {
        self.sources.keys().filter(|age| **age != Age::default())
    }

    /// Puts a source in the place of what was of that age.
    pub fn set(&mut self, age: Age, source: Source) {
        let parsed = Parsed::of(source, &self.rules);
        self.put(age, Some(parsed));
    }

    /// Takes a source away.
    pub fn remove(&mut self, age: &Age) {
        self.put(age.clone(), None);
    }

    /// Secrets that have been named, or are named no more, since this was asked last.
    pub fn take_named(&mut self) -> Vec<(String, bool)> {
        let names = mem::take(&mut self.dirty_secrets).into_iter();
        names.map(|name| (name.clone(), self.users.contains_key(&name))).collect()
    }

    /// All that is followed, if that has changed since this was asked last.
    pub fn take_followed(&mut self) -> Option<Vec<Followed>> {
        let all = || {
            let runs = self.runs.values().filter(|run| run.position.0 != Age::default());
            runs.map(|run| Followed { position: run.position.clone(), declared: run.declared.clone() })
                .collect()
        };
        mem::take(&mut self.followed_anew).then(all)
    }

    /// Decides what has changed.
    pub fn delta(&mut self, now: Instant) -> Delta {
        let dirty = mem::take(&mut self.dirty);
        let changes = dirty.into_iter().filter_map(|repo| self.settle(repo, now)).collect();
        let refused = mem::take(&mut self.refused_anew).then(|| {
            let stalled = self.refusals.values().flat_map(|refusal| &refusal.stalled);
            let rejected = self.bad.iter().filter_map(|age| self.sources.get(age));
            Arc::new(Refused {
                stalled: stalled.cloned().collect(),
                rejected: rejected.flat_map(|parsed| &parsed.rejected).cloned().collect(),
            })
        });
        // Not so is what was spoilt before this agent first read it: a mirror too many is brought again, if it is one.
        let complete = self.pending.is_empty();
        Delta { changes, refused, news: mem::take(&mut self.news), complete }
    }

    fn put(&mut self, age: Age, new: Option<Parsed>) {
        let known = self.sources.remove(&age);
        let new = match (new, &known) {
            (Some(new), Some(known)) => Some(new.keeping(known)),
            (new, _) => new,
        };
        if known == new {
            self.sources.extend(known.map(|known| (age, known)));
            return;
        }
        let old = known.unwrap_or_default();
        for (document, claim) in &old.claims {
            self.unclaim((age.clone(), *document), claim);
        }
        for (document, name, _) in &old.secrets {
            if let Some(known) = self.secrets.get_mut(name) {
                known.remove(&(age.clone(), *document));
            }
            self.secret_changed(name);
        }
        let new = new.unwrap_or_default();
        for (document, claim) in &new.claims {
            self.claim((age.clone(), *document), claim);
        }
        for (document, name, known) in &new.secrets {
            self.secrets.entry(name.clone()).or_default().insert((age.clone(), *document), known.clone());
            self.secret_changed(name);
        }
        if old.rejected != new.rejected {
            self.refused_anew = true;
            let news = new.rejected.iter().filter(|rejected| !old.rejected.contains(rejected));
            self.news.rejected.extend(news.cloned());
        }
        if new.rejected.is_empty() {
            self.bad.remove(&age)
        } else {
            self.bad.insert(age.clone())
        };
        if new != Parsed::default() {
            self.sources.insert(age, new);
        }
    }

    fn claim(&mut self, position: Position, claim: &Claim) {
        let repo = claim.repo().clone();
        if let Some(name) = claim.secret() {
            self.users.entry(name.to_owned()).or_default().insert((repo.clone(), position.clone()));
            self.dirty_secrets.insert(name.to_owned());
        }
        self.claims.entry(repo.clone()).or_default().insert(position, claim.clone());
        self.dirty.insert(repo);
    }

    fn unclaim(&mut self, position: Position, claim: &Claim) {
        let repo = claim.repo().clone();
        if let Some(claims) = self.claims.get_mut(&repo) {
            claims.remove(&position);
            if claims.is_empty() {
                self.claims.remove(&repo);
            }
        }
        if let Some((name, users)) = claim.secret().and_then(|name| Some((name, self.users.get_mut(name)?))) {
            users.remove(&(repo.clone(), position));
            if users.is_empty() {
                self.users.remove(name);
            }
            self.dirty_secrets.insert(name.to_owned());
        }
        self.dirty.insert(repo);
    }

    fn secret_changed(&mut self, name: &str) {
        if self.secrets.get(name).is_some_and(BTreeMap::is_empty) {
            self.secrets.remove(name);
        }
        self.dirty.extend(self.users.get(name).into_iter().flatten().map(|(repo, _)| repo.clone()));
    }

    /// Decides about a repository, and says what that changes.
    fn settle(&mut self, repo: RepoId, now: Instant) -> Option<(RepoId, Standing)> {
        let (run, refusal) = self.decide(&repo, now);
        let waits =
            refusal.as_ref().is_some_and(|refusal| refusal.reason == Reason::Pending) && run.is_none();
        if waits {
            self.pending.insert(repo.clone())
        } else {
            self.pending.remove(&repo)
        };
        let standing = match (&run, &refusal) {
            (Some(run), _) => Standing::Runs(Box::new(run.settings.clone())),
            (None, Some(refusal)) => Standing::Refused(refusal.reason),
            (None, None) => Standing::Undeclared,
        };
        let former = self.refusals.remove(&repo);
        let same = match (&run, self.runs.get(&repo)) {
            (Some(run), Some(former)) => former.live && former.settings == run.settings,
            (None, None) => former == refusal,
            _ => false,
        };
        if former != refusal {
            let old = former.map(|former| former.stalled).unwrap_or_default();
            let new = refusal.iter().flat_map(|refusal| &refusal.stalled);
            self.news.stalled.extend(new.filter(|stalled| !old.contains(stalled)).cloned());
            self.refused_anew = true;
        }
        self.refusals.extend(refusal.map(|refusal| (repo.clone(), refusal)));
        // What an earlier process followed is known until it is clear what becomes of it.
        if !(waits && self.runs.get(&repo).is_some_and(|run| !run.live)) {
            self.remember(repo.clone(), run);
        }
        (!same).then_some((repo, standing))
    }

    /// What is to run of a repository, and what of it cannot be followed.
    fn decide(&self, repo: &RepoId, now: Instant) -> (Option<Run>, Option<Refusal>) {
        let before = self.runs.get(repo);
        let (mut run, mut stalled, mut refused): (Option<Run>, Vec<Stalled>, Option<Reason>) =
            Default::default();
        for (position, claim) in self.claims.get(repo).into_iter().flatten() {
            if let Some(reason) = claim.refused {
                refused.get_or_insert(reason);
                continue;
            }
            if let Some(owner) = &run {
                let owner = &owner.settings.name;
                let message =
                    format!("GitMirror {owner} mirrors the same repository, {repo}: remove one of the two");
                stalled.push(stall(claim, Reason::DuplicateUrl, message));
                continue;
            }
            let runs = |credentials| Run {
                position: position.clone(),
                declared: claim.declared.clone(),
                settings: claim.settings(credentials, &self.rules),
                live: true,
            };
            let ran = before.filter(|before| before.settings.name == claim.name());
            let ran_without = ran.and_then(|ran| ran.settings.credentials.as_ref().err());
            let known = ran_without.and_then(|missing| missing.since);
            let (reason, message, since) = match (claim.unsupported(&self.rules), self.credentials(claim)) {
                (Some((reason, message)), _) => (reason, message, known),
                (None, Ok(credentials)) => {
                    run = Some(runs(Ok(credentials)));
                    continue;
                }
                (None, Err(NoCredentials::Awaited)) => {
                    match ran.filter(|ran| ran.live || self.alone) {
                        Some(ran) => run = Some(runs(ran.settings.credentials.clone())),
                        None => drop(refused.get_or_insert(Reason::Pending)),
                    }
                    continue;
                }
                (None, Err(NoCredentials::Unreadable(message))) => (Reason::SecretNotFound, message, known),
                (None, Err(NoCredentials::Wrong(reason, message))) => {
                    (reason, message, Some(known.unwrap_or(now)))
                }
            };
            refused.get_or_insert(reason);
            stalled.push(stall(claim, reason, message.clone()));
            // What is here was fetched by this very declaration: those who might read it then may read it still.
            let same_access = ran.filter(|ran| ran.settings.access == claim.declared.spec.effective_access());
            let unasked = matches!(reason, Reason::AccessUnsupported | Reason::UpstreamNotAllowed);
            if same_access.is_some_and(|_| !unasked) {
                run = Some(runs(Err(MissingCredentials { reason, message, since })));
            }
        }
        let reason = refused.or_else(|| stalled.first().map(|stalled| stalled.reason));
        (run, reason.map(|reason| Refusal { reason, stalled }))
    }

    fn credentials(&self, claim: &Claim) -> Result<Credentials, NoCredentials> {
        let Some(name) = claim.secret() else { return Ok(Credentials::default()) };
        let known = self.secrets.get(name).and_then(|known| known.values().next_back());
        credentials(name, known, &claim.url)
    }

    fn remember(&mut self, repo: RepoId, run: Option<Run>) {
        let place = |run: &Run| (run.position.clone(), run.declared.clone());
        let before = self.runs.remove(&repo);
        self.followed_anew |= before.as_ref().map(place) != run.as_ref().map(place);
        if let Some(run) = run {
            self.runs.insert(repo, run);
        }
    }
}

fn stall(claim: &Claim, reason: Reason, message: String) -> Stalled {
    let (name, repo, url) = (claim.name().to_owned(), claim.repo().clone(), claim.url.clone());
    Stalled { name, repo, url, reason, message }
}

#[cfg(test)]
mod tests;
