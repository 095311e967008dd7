//! Stops parts of the cluster itself, which only the node of `e2e/node` lets us do.

use std::path::PathBuf;

use anyhow::Result;

use crate::{settings, tool};

/// An API server that answers nobody, until [`Stopped::resume`] or until this value goes away.
#[derive(Debug)]
pub struct Stopped {
    script: PathBuf,
    resumed: bool,
}

/// Stops the API server where it can be stopped; `None` on a cluster that is not ours.
pub async fn stop_api_server() -> Result<Option<Stopped>> {
    let Some(node) = settings::node() else { return Ok(None) };
    let script = node.join("signal.sh");
    tool::output(&script, ["STOP", "kube-apiserver"], "").await?;
    Ok(Some(Stopped { script, resumed: false }))
}

impl Stopped {
    /// Lets it go on.
    pub async fn resume(mut self) -> Result<()> {
        tool::output(&self.script, ["CONT", "kube-apiserver"], "").await?;
        self.resumed = true;
        Ok(())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.resumed {
            // A test that failed in between must leave an API server that tells why.
            let mut script = tarn_testkit::process::command(&self.script);
            let _ = script.args(["CONT", "kube-apiserver"]).status();
        }
    }
}
