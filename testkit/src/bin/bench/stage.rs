//! What a scenario needs besides the two servers that all share: a repository to push to, an upstream far away,
//! a web server. It is set up before the scenario's first round and gone after its last.

mod after_push;
mod disk_use;
mod far_look;
mod full_after_push;
mod relay;
mod storm;
mod stream;

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

use self::after_push::AfterPush;
use self::far_look::FarLook;
use self::full_after_push::FullAfterPush;
use self::storm::Storm;
use self::stream::Stream;
use crate::repository::Repository;
use crate::scenario::{Sample, Scenario, Streamed, Turn, Work};
use crate::side::{Side, SideName};
use crate::truth::Truth;

/// The commit whose fetch is streamed lies so far behind HEAD: no ref names it.
const STREAMED: usize = 20;

/// What all scenarios share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) repository: Repository,
    pub(crate) truth: Truth,
    pub(crate) baseline: Side,
    /// None when nothing chosen needs it.
    pub(crate) tarn: Option<Side>,
    /// The agent's binary; none when only the baseline is wanted.
    pub(crate) agent: Option<PathBuf>,
    pub(crate) work: TempDir,
}

impl Shared {
    fn side(&self, name: SideName) -> Result<&Side> {
        let side = if name == SideName::Baseline { Some(&self.baseline) } else { self.tarn.as_ref() };
        side.with_context(|| format!("{name:?} does not run"))
    }
}

/// A scenario that is ready to be measured.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The shared servers are all it needs.
    Bare,
    AfterPush(AfterPush),
    FarLook(FarLook),
    Stream(Stream),
    Storm(Storm),
    FullAfterPush(FullAfterPush),
}

impl Stage {
    /// Sets up what the scenario needs; or says why it cannot be had.
    pub(crate) async fn set(scenario: &Scenario, shared: &Shared) -> Result<Result<Self, String>> {
        let work = shared.work.path().join(scenario.name);
        let special =
            !matches!(scenario.work, Work::Clones { .. } | Work::Listings { .. } | Work::Hits { .. });
        let Some(agent) = shared.agent.as_deref().filter(|_| special) else {
            return Ok(if special { Err("it needs Tarn".to_owned()) } else { Ok(Self::Bare) });
        };
        std::fs::create_dir(&work)?;
        Ok(Ok(match scenario.work {
            Work::Clones { .. } | Work::Listings { .. } | Work::Hits { .. } => Self::Bare,
            Work::AfterPush => Self::AfterPush(AfterPush::set(agent, &shared.repository, &work).await?),
            Work::FarLook { prefixes } => {
                Self::FarLook(FarLook::set(agent, &shared.baseline, prefixes, scenario.name, &work).await?)
            }
            Work::Stream { of, sendfile } => {
                let Some(nginx) = tarn_testkit::nginx::find() else {
                    return Ok(Err("nginx is not installed (Debian package nginx-light)".to_owned()));
                };
                let wants = match of {
                    Streamed::Clone => None,
                    Streamed::Commit => {
                        Some(shared.repository.ancestors(STREAMED).await?.pop().into_iter().collect())
                    }
                };
                let tarn = shared.side(SideName::Tarn)?;
                Self::Stream(Stream::set(&nginx, sendfile, wants, tarn, &work).await?)
            }
            Work::Storm { depth } => Self::Storm(Storm::set(agent, &shared.repository, depth, &work).await?),
            Work::FullAfterPush { ahead } => {
                Self::FullAfterPush(FullAfterPush::set(agent, &shared.repository, ahead, &work).await?)
            }
        }))
    }

    /// Makes ready for the next round.
    pub(crate) async fn begin_round(&mut self, turn: Turn) -> Result<()> {
        match self {
            Self::AfterPush(stage) => stage.push(turn).await,
            Self::FullAfterPush(stage) => stage.push(turn).await,
            Self::Bare | Self::FarLook(_) | Self::Stream(_) | Self::Storm(_) => Ok(()),
        }
    }

    /// Does the work once on one side.
    pub(crate) async fn measure(
        &self,
        scenario: &Scenario,
        name: SideName,
        shared: &Shared,
        turn: Turn,
    ) -> Result<Sample> {
        match self {
            Self::Bare => scenario.measure(shared.side(name)?, &shared.truth, turn).await,
            Self::AfterPush(stage) => stage.measure(name).await,
            Self::FarLook(stage) => stage.measure(name, shared, turn).await,
            Self::Stream(stage) => stage.measure(name, shared.side(SideName::Tarn)?).await,
            Self::Storm(stage) => stage.measure(name, &shared.baseline, turn).await,
            Self::FullAfterPush(stage) => stage.measure(name).await,
        }
    }
}
