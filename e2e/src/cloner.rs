//! Pods that clone through Tarn without end, each attempt a line of their log: what users go through meanwhile.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{LogParams, PostParams};
use serde_json::json;

use crate::scene::{PATIENCE, Scene, until};
use crate::settings;

/// What a cloner does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Clones; an attempt that fails is a failure.
    Clone,
    /// Clones, and tries again up to four times, a second apart, as CI systems do.
    Retry,
    /// Pushes to the upstream before each clone, which must then have that commit.
    PushAndClone,
}

/// A pod that clones.
pub struct Cloner {
    scene: Scene,
    name: String,
}

/// A line of a cloner's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it ended, in Unix time.
    pub seconds: u64,
    /// How.
    pub outcome: Outcome,
    /// The commit, or git's message.
    pub text: String,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a clone.
    Ok,
    /// With an error, upon which it was tried again.
    Broken,
    /// With an error, or an old state.
    Failed,
}

impl Cloner {
    /// Starts cloning a mirror, and waits for the first clone.
    pub async fn start(scene: &Scene, name: &str, mirror: &str, habit: Habit) -> Result<Self> {
        let (repository, tag) = settings::image();
        let (attempts, pause) = match habit {
            Habit::Clone => ("1", "0.2"),
            Habit::Retry => ("5", "0.2"),
            Habit::PushAndClone => ("1", "1"),
        };
        let push_to = if habit == Habit::PushAndClone { scene.upstream_url(mirror) } else { String::new() };
        let identity = json!([
            {"name": "GIT_AUTHOR_NAME", "value": "Ada Author"},
            {"name": "GIT_AUTHOR_EMAIL", "value": "ada@example.com"},
            {"name": "GIT_COMMITTER_NAME", "value": "Carl Committer"},
            {"name": "GIT_COMMITTER_EMAIL", "value": "carl@example.com"},
            {"name": "URL", "value": scene.tarn_url(mirror)},
            {"name": "PUSH_TO", "value": push_to},
            {"name": "ATTEMPTS", "value": attempts},
            {"name": "PAUSE", "value": pause},
        ]);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "cloner",
                    "image": format!("{repository}:{tag}"),
                    "command": ["sh", "-c", include_str!("../fixtures/cloner.sh")],
                    "env": identity,
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        }))?;
        scene.api::<Pod>().create(&PostParams::default(), &pod).await?;
        let cloner = Self { scene: scene.clone(), name: name.to_owned() };
        cloner.until_more(1).await?;
        Ok(cloner)
    }

    /// All attempts so far.
    pub async fn attempts(&self) -> Result<Vec<Attempt>> {
        let log = self.scene.api::<Pod>().logs(&self.name, &LogParams::default()).await?;
        // What git says on standard error, if anything, is no attempt.
        Ok(log.lines().filter_map(|line| parse(line).ok()).collect())
    }

    /// Waits until so many more clones have succeeded.
    pub async fn until_more(&self, clones: usize) -> Result<()> {
        let succeeded = async || {
            let all = self.attempts().await?;
            anyhow::Ok(all.iter().filter(|attempt| attempt.outcome == Outcome::Ok).count())
        };
        // A pod that has not started has no log.
        let wanted = succeeded().await.unwrap_or(0) + clones;
        until(PATIENCE, "clones to succeed", async || {
            let now = succeeded().await?;
            ensure!(now >= wanted, "{now} of {wanted}; last: {:?}", self.attempts().await?.last());
            Ok(())
        })
        .await
    }

    /// All attempts, of which at least one must have succeeded and none may have failed.
    pub async fn without_failure(&self) -> Result<Vec<Attempt>> {
        let all = self.attempts().await?;
        let failed: Vec<_> = all.iter().filter(|attempt| attempt.outcome == Outcome::Failed).collect();
        ensure!(failed.is_empty(), "{} of {} clones failed: {failed:?}", failed.len(), all.len());
        ensure!(!all.is_empty(), "there was no clone");
        Ok(all)
    }
}

/// Now, in Unix time.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn parse(line: &str) -> Result<Attempt> {
    let mut words = line.splitn(3, ' ');
    let seconds = words.next().unwrap_or_default().parse().context("no time")?;
    let outcome = match words.next().unwrap_or_default().trim_end_matches(':') {
        "ok" => Outcome::Ok,
        "broken" => Outcome::Broken,
        "failed" => Outcome::Failed,
        other => anyhow::bail!("{other} is no outcome"),
    };
    Ok(Attempt { seconds, outcome, text: words.next().unwrap_or_default().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_an_attempt() {
        let told = |line| parse(line).map(|Attempt { seconds, outcome, text }| (seconds, outcome, text));
        assert_eq!(told("17 ok 99f1").unwrap(), (17, Outcome::Ok, "99f1".into()));
        assert_eq!(
            told("18 failed: a instead of b").unwrap(),
            (18, Outcome::Failed, "a instead of b".into())
        );
        assert_eq!(told("19 broken fatal: x").unwrap(), (19, Outcome::Broken, "fatal: x".into()));
        told("fatal: x").unwrap_err();
    }
}
