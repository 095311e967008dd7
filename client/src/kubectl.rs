//! kubectl as a child process: has the cluster of the user's own kubeconfig make a token of a service account, for Tarn alone and
//! for a short time. No argument of kubectl's is a secret; the token comes on its standard output.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process;

use crate::cli::is_name;
use crate::git::{gather, telling_line};

/// How long a token is good. The API server makes none for less than ten minutes; a long download begins requests with the same
/// one.
const GOOD_FOR: &str = "1h";

/// How long kubectl may take: it may log in by way of a browser first.
const LIMIT: Duration = Duration::from_secs(120);

/// Why kubectl brought no token.
#[derive(Debug, thiserror::Error)]
pub enum KubectlError {
    /// There is no such program.
    #[error(
        "kubectl, which --service-account needs, is not on PATH: install it, or give --token-file FILE instead"
    )]
    Missing,
    /// It might be taken for a flag.
    #[error("{0:?} is not the name of a service account: those are small letters, digits, - and .")]
    Name(String),
    /// Nobody said whom the token is to be for.
    #[error(
        "whom is the token for? give --audience NAME.NAMESPACE.tarn.dev, after Tarn's GitCache, or what its spec.auth.audiences lists"
    )]
    Audience,
    /// It cannot be run or talked to.
    #[error("cannot run kubectl: {0}")]
    Run(#[from] io::Error),
    /// It ended with an error.
    #[error(
        "kubectl makes no token of the service account {account}: {message}; does `kubectl auth can-i create serviceaccounts/token{within}` say yes?"
    )]
    Failed {
        /// The account.
        account: String,
        /// Its last words.
        message: String,
        /// The flag that names the namespace, if one was named.
        within: String,
    },
    /// It took too long and was ended.
    #[error("kubectl took longer than {}s to make a token; does `kubectl cluster-info` answer?", LIMIT.as_secs())]
    TimedOut,
}

/// A service account, and whom its tokens are to be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its name.
    pub name: String,
    /// Its namespace; without one, that of kubectl's context.
    pub namespace: Option<String>,
    /// One of the GitCache's audiences, if it is known.
    pub audience: Option<String>,
}

impl ServiceAccount {
    /// Has a token made; what kubectl printed.
    ///
    /// Dropped early, kubectl is killed.
    ///
    /// # Errors
    /// There is no audience, there is no kubectl, or it fails or takes too long.
    pub async fn request_token(&self) -> Result<String, KubectlError> {
        if !is_name(&self.name) {
            return Err(KubectlError::Name(self.name.clone()));
        }
        let audience = self.audience.as_ref().ok_or(KubectlError::Audience)?;
        let within = self.namespace.as_ref().map(|namespace| format!("--namespace={namespace}"));
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts kubectl")]
        let mut kubectl = process::Command::new("kubectl");
        // Not behind "--": there kubectl does not see it.
        kubectl.args(["create", "token", &self.name]).args(&within);
        kubectl.arg(format!("--audience={audience}")).arg(format!("--duration={GOOD_FOR}"));
        kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = kubectl.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KubectlError::Missing,
            _ => KubectlError::Run(error),
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (said, complained) = tokio::try_join!(gather(stdout, false), gather(stderr, false))?;
            Ok::<_, io::Error>((child.wait().await?, said, complained))
        };
        let done = tokio::time::timeout(LIMIT, work).await.map_err(|_| KubectlError::TimedOut)?;
        let (status, said, complained) = done?;
        if !status.success() {
            return Err(KubectlError::Failed {
                account: self.name.clone(),
                message: telling_line(&complained).unwrap_or_else(|| status.to_string()),
                within: within.map(|flag| format!(" {flag}")).unwrap_or_default(),
            });
        }
        Ok(said)
    }
}
