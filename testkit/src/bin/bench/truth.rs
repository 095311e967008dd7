//! What every answer must agree with, and whether the repository is dear enough to compare with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::load::{Ask, Check, Client, Clones, Depth, RefSet, clones};

use crate::side::{Side, Staleness};

/// A clone costs at least so many lists of one ref, which are hardly more than the start of two processes. With less, starts
/// and noise decide, and ratios flatter whoever starts fewer processes. A ratio, since seconds depend on the machine.
const LEAST_LISTS: f64 = 200.0;
/// Lists that are measured together.
const LISTS: u32 = 100;

/// What a one-branch fetch asks for.
pub(crate) const ONE_BRANCH: [&str; 1] = ["refs/heads/main"];

/// Whether a server may have the answer already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nobody has asked for just this: a full clone leaves out one branch, another each time, and a depth-1
    /// clone takes another commit before HEAD's.
    Never,
    /// The same clone was made before.
    Before,
}

/// What every answer must agree with: what git http-backend answers.
#[derive(Debug)]
pub(crate) struct Truth {
    /// The list that a clone is shown.
    refs: Arc<RefSet>,
    one_branch: String,
    full_objects: u32,
    shallow_objects: u32,
    /// Commits before HEAD's, youngest first.
    ancestors: Vec<String>,
}

impl Truth {
    /// Learns the truth from the baseline, and what a clone costs there once its files are in memory.
    pub(crate) async fn establish(baseline: &Side, ancestors: Vec<String>) -> Result<(Self, Floor)> {
        let mut truth = Self::ask(baseline, Staleness::None).await?;
        truth.ancestors = ancestors;
        let cost = async |depth| {
            let ask = truth.ask_for(depth, Asked::Before, 0)?;
            let work = clones(baseline.url(Staleness::None), 1, &ask);
            let (clones, usage) = baseline.server.measure(work).await?;
            truth.check(&clones, &ask)?;
            anyhow::Ok(usage.cpu)
        };
        let (full, shallow) = (cost(Depth::Full).await?, cost(Depth::One).await?);
        let lists = async {
            let mut client = Client::new(baseline.url(Staleness::None))?;
            for _ in 0..LISTS {
                client.ls_refs(&ONE_BRANCH).await?;
            }
            anyhow::Ok(())
        };
        let (_, usage) = baseline.server.measure(lists).await?;
        Ok((truth, Floor { full, shallow, list: usage.cpu / LISTS }))
    }

    /// Checks that a side answers the same, with a hash over every byte of its packs; warms it up, too.
    pub(crate) async fn holds_for(&self, side: &Side) -> Result<()> {
        for staleness in [Staleness::None, Staleness::TenSeconds] {
            let other = Self::ask(side, staleness).await?;
            let facts = |truth: &Self| {
                let Self { refs, one_branch, full_objects, shallow_objects, ancestors: _ } = truth;
                format!(
                    "refs {}, branch {one_branch}, {full_objects} and {shallow_objects} objects",
                    refs.digest
                )
            };
            ensure!(
                facts(self) == facts(&other),
                "{:?} has {}, not {}",
                side.name,
                facts(&other),
                facts(self)
            );
        }
        Ok(())
    }

    /// Makes both kinds of clone, hashing every byte.
    async fn ask(side: &Side, staleness: Staleness) -> Result<Self> {
        let mut client = Client::new(side.url(staleness))?;
        let ask = |depth| Ask { depth, check: Check::Trailer, wants: None };
        let (listed, full) = client.clone(&ask(Depth::Full)).await?;
        let (_, shallow) = client.clone(&ask(Depth::One)).await?;
        let one_branch = client.ls_refs(&ONE_BRANCH).await?;
        Ok(Self {
            refs: listed.set,
            one_branch: one_branch.set.digest.clone(),
            full_objects: full.received.objects,
            shallow_objects: shallow.received.objects,
            ancestors: Vec::new(),
        })
    }

    /// The digest that a list with these prefixes has.
    pub(crate) fn digest(&self, prefixes: &[&str]) -> &str {
        if prefixes == ONE_BRANCH { &self.one_branch } else { &self.refs.digest }
    }

    /// The clone that a turn makes.
    pub(crate) fn ask_for(&self, depth: Depth, asked: Asked, turn: usize) -> Result<Ask> {
        let wants: Option<Vec<String>> = match (asked, depth) {
            (Asked::Before, _) => None,
            (Asked::Never, Depth::Full) => {
                let head = self.refs.head();
                let branches = self.refs.refs.iter().filter(|line| line.name.starts_with("refs/heads/"));
                let left_out =
                    branches.map(|line| &line.oid).filter(|oid| Some(oid.as_str()) != head).nth(turn);
                let left_out = left_out.context("not enough branches for so many rounds")?;
                Some(self.refs.wants().into_iter().filter(|want| want != left_out).collect())
            }
            (Asked::Never, Depth::One) => {
                let commit = self.ancestors.get(turn).context("not enough commits for so many rounds")?;
                Some(vec![commit.clone()])
            }
        };
        Ok(Ask { depth, check: Check::Shape, wants: wants.map(Into::into) })
    }

    /// Checks what a crowd of clones got; gives the number of objects.
    pub(crate) fn check(&self, clones: &Clones, ask: &Ask) -> Result<u32> {
        let known = if ask.depth == Depth::Full { self.full_objects } else { self.shallow_objects };
        let first = clones.each.first().map(|(_, fetched)| fetched.received.objects);
        let objects = if ask.wants.is_some() { first.unwrap_or_default() } else { known };
        for (listed, fetched) in &clones.each {
            ensure!(listed.set.digest == self.refs.digest, "a clone was shown other refs");
            let got = fetched.received.objects;
            ensure!(answers(got, objects), "a clone got {got} objects, not {objects}");
        }
        Ok(objects)
    }
}

/// Whether an answer of so many objects may be one to a request for `exact` objects: Tarn sends up to 1.3 times as many, and never
/// less.
pub(crate) fn answers(sent: u32, exact: u32) -> bool {
    (exact..=exact.saturating_add(exact / 10 * 3)).contains(&sent)
}

/// CPU that git http-backend pays for one clone, and for a list of one ref.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    pub(crate) full: Duration,
    pub(crate) shallow: Duration,
    pub(crate) list: Duration,
}

impl Floor {
    /// Says why the repository is too small for a comparison, if it is.
    pub(crate) fn holds(&self) -> Result<(), String> {
        for (what, paid) in [("full", self.full), ("depth-1", self.shallow)] {
            let lists = paid.as_secs_f64() / self.list.as_secs_f64();
            if lists < LEAST_LISTS {
                let paid = paid.as_secs_f64();
                return Err(format!(
                    "git http-backend pays {paid:.2} s of CPU for a {what} clone, as for {lists:.0} lists of one ref: \
                     less than {LEAST_LISTS}"
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { full, shallow, list } = self;
        write!(
            f,
            "{:.2} s of CPU for a full and {:.2} s for a depth-1 clone, {:.2} ms for a list of one ref",
            full.as_secs_f64(),
            shallow.as_secs_f64(),
            list.as_secs_f64() * 1e3
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cheap_repository_is_refused() {
        let floor = |full, shallow| Floor {
            full: Duration::from_millis(full),
            shallow: Duration::from_millis(shallow),
            list: Duration::from_millis(2),
        };
        assert_eq!(floor(400, 400).holds(), Ok(()));
        assert!(floor(399, 9_000).holds().unwrap_err().contains("full"));
        assert!(floor(9_000, 399).holds().unwrap_err().contains("depth-1"));
    }
}
