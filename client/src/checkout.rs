//! What is to be checked out, and the steps that lead there from a repository whose remote branches are up to date.

use std::path::Path;

use crate::cli::{CloneArgs, CommitId};
use crate::git::{Git, GitError};

/// What the user asked for; nothing stands for the upstream's HEAD.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    reference: Option<String>,
    commit: Option<CommitId>,
}

/// What HEAD stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The commit; none in a repository without any.
    pub commit: Option<String>,
    /// The branch; none where HEAD is detached.
    pub branch: Option<String>,
}

/// What could not be checked out.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// A git command failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Neither a branch nor a tag of that name.
    #[error("there is no branch or tag {0:?}")]
    NoRef(String),
}

/// Where HEAD is to stand.
enum Target {
    Branch(String),
    Detached(String),
}

impl Wanted {
    /// What the flags ask for.
    pub fn new(args: &CloneArgs) -> Self {
        let reference = args.reference.clone().filter(|name| name != "HEAD");
        Self { reference, commit: args.commit.clone() }
    }

    /// Whether it is more than the upstream's HEAD.
    pub fn is_special(&self) -> bool {
        self.reference.is_some() || self.commit.is_some()
    }

    /// The commit asked for.
    pub fn commit(&self) -> Option<&CommitId> {
        self.commit.as_ref()
    }

    /// The full names that the ref asked for may have.
    pub fn names(&self) -> Vec<String> {
        match self.reference.as_deref() {
            None => Vec::new(),
            Some(full) if full.starts_with("refs/") => vec![full.to_owned()],
            Some(short) => vec![format!("refs/heads/{short}"), format!("refs/tags/{short}")],
        }
    }
}

/// Reads HEAD.
///
/// # Errors
/// Git cannot be run.
pub async fn head(git: &Git, dir: &Path) -> Result<Head, GitError> {
    let quiet = |result: Result<String, GitError>| match result {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(GitError::Failed { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let commit = git.within(dir).args(["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).run().await;
    let branch = git.within(dir).args(["symbolic-ref", "--quiet", "--short", "HEAD"]).run().await;
    Ok(Head { commit: quiet(commit)?, branch: quiet(branch)? })
}

/// A repository that has the remote's branches and tags.
#[derive(Debug)]
pub struct Repository<'a> {
    /// Git.
    pub git: &'a Git,
    /// Where it is.
    pub dir: &'a Path,
    /// Where more is fetched from.
    pub url: &'a str,
    /// What the upstream's HEAD stands for.
    pub upstream: &'a Head,
    /// What the worktree shows; none if there is none yet.
    pub shown: Option<Head>,
}

impl Repository<'_> {
    /// Checks out what is wanted, and leaves the local branches that `git clone` would leave.
    ///
    /// Where the worktree shows it already, no file is touched.
    ///
    /// # Errors
    /// It cannot be had, or git fails.
    pub async fn check_out(&self, wanted: &Wanted) -> Result<Head, CheckoutError> {
        let target = self.target(wanted).await?;
        let default = self.upstream.branch.as_deref();
        let before = head(self.git, self.dir).await?.branch;
        match &target {
            Target::Branch(name) => {
                let remote = format!("refs/remotes/origin/{name}");
                let tip = self.git(&["rev-parse", "--verify", &remote]).await?;
                let there = Head { commit: Some(tip), branch: Some(name.clone()) };
                if self.shown.as_ref() == Some(&there) {
                    self.git(&["config", &format!("branch.{name}.remote"), "origin"]).await?;
                    let merge = format!("refs/heads/{name}");
                    self.git(&["config", &format!("branch.{name}.merge"), &merge]).await?;
                } else {
                    self.git(&["checkout", "--quiet", "--force", "-B", name, "--track", &remote]).await?;
                }
            }
            Target::Detached(commit) => {
                self.git(&["checkout", "--quiet", "--force", "--detach", commit]).await?;
            }
        }
        let kept = match &target {
            Target::Branch(name) => Some(name.as_str()),
            Target::Detached(_) => default.filter(|_| wanted.reference.is_none()),
        };
        if let Some(old) = before.filter(|old| Some(old.as_str()) != kept) {
            self.git(&["update-ref", "-d", &format!("refs/heads/{old}")]).await?;
        }
        if let (Target::Detached(_), Some(name)) = (&target, kept) {
            let remote = format!("refs/remotes/origin/{name}");
            self.git(&["branch", "--quiet", "--force", "--track", name, &remote]).await?;
        }
        Ok(head(self.git, self.dir).await?)
    }

    async fn target(&self, wanted: &Wanted) -> Result<Target, CheckoutError> {
        if let Some(commit) = &wanted.commit {
            let commit = commit.as_str();
            let object = format!("{commit}^{{commit}}");
            if self.git(&["cat-file", "-e", &object]).await.is_err() {
                self.fetch(commit).await?;
            }
            return Ok(Target::Detached(commit.to_owned()));
        }
        let Some(reference) = &wanted.reference else {
            return match (&self.upstream.branch, &self.upstream.commit) {
                (Some(branch), _) => Ok(Target::Branch(branch.clone())),
                (None, Some(commit)) => {
                    self.fetch(commit).await?;
                    Ok(Target::Detached(commit.clone()))
                }
                (None, None) => Err(CheckoutError::NoRef("HEAD".into())),
            };
        };
        for name in wanted.names() {
            if let Some(branch) = name.strip_prefix("refs/heads/") {
                if self.resolve(&format!("refs/remotes/origin/{branch}")).await.is_some() {
                    return Ok(Target::Branch(branch.to_owned()));
                }
            } else if let Some(commit) = self.resolve(&name).await {
                return Ok(Target::Detached(commit));
            } else if !name.starts_with("refs/tags/") {
                // A ref that clones do not have, such as that of a merge request.
                self.git(&["fetch", "--quiet", "--no-tags", self.url, &name]).await?;
                let commit = self.resolve("FETCH_HEAD").await;
                return commit.map(Target::Detached).ok_or_else(|| CheckoutError::NoRef(reference.clone()));
            }
        }
        Err(CheckoutError::NoRef(reference.clone()))
    }

    async fn resolve(&self, name: &str) -> Option<String> {
        self.git(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]).await.ok()
    }

    async fn fetch(&self, commit: &str) -> Result<(), GitError> {
        self.git(&["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.url, commit])
            .await
            .map(drop)
    }

    async fn git(&self, args: &[&str]) -> Result<String, GitError> {
        self.git.within(self.dir).args(args).run().await
    }
}
