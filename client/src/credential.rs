//! `git tarn credential`, a credential helper: it answers with a token, of a file or of kubectl, when git asks for Tarn, and with
//! nothing when git asks for any other host. And `git tarn login`, which tells git to ask it.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use url::Url;

use crate::cli::{CredentialArgs, TokenArgs};
use crate::exit::Exit;
use crate::git::{Git, GitError};
use crate::kubectl::ServiceAccount;
use crate::server::{Server, ServerError};
use crate::token::{AUDIENCE_KEY, NAMESPACE, Origin, SERVICE_ACCOUNT, TOKEN_FILE, TokenError};

/// The longest question that is read; git's are a few lines.
const MAX_QUESTION: u64 = 64 * 1024;

/// The user that is told to git. Tarn reads the password alone.
const USER: &str = "tarn";

/// Why git gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The path of the file or of this program does not fit into git's configuration.
    #[error("{0} cannot be written into git's configuration")]
    Path(&'static str),
    /// Git's configuration.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The question or the answer.
    #[error("cannot talk to git: {0}")]
    Io(#[from] io::Error),
}

impl CredentialError {
    /// How the program ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Server(_) | Self::Token(TokenError::Unknown) | Self::Path(_) => Exit::Usage,
            Self::Token(_) | Self::Git(_) | Self::Io(_) => Exit::Failed,
        }
    }
}

/// Answers git's question.
///
/// # Errors
/// It is about Tarn, and there is no token.
pub async fn answer(args: &CredentialArgs) -> Result<(), CredentialError> {
    // Nothing is kept here that could be stored or erased.
    if args.action != "get" {
        return Ok(());
    }
    let git = Git::default();
    let server = Server::find(args.token.server.as_ref(), &git).await?;
    let mut question = String::new();
    io::stdin().lock().take(MAX_QUESTION).read_to_string(&mut question)?;
    if !is_about(&question, server.url()) {
        return Ok(());
    }
    let token = Origin::find(&args.token, &git).await.ok_or(TokenError::Unknown)?.token().await?;
    let mut out = io::stdout().lock();
    writeln!(out, "username={USER}\npassword={}", token.expose())?;
    Ok(())
}

/// Whether git asks for this server: the same protocol, host and port.
fn is_about(question: &str, server: &Url) -> bool {
    let value = |key: &str| question.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let (Some(protocol), Some(host)) = (value("protocol"), value("host")) else { return false };
    // Parsed as the server was, so that a default port is one whether or not it is written.
    let asked = Url::parse(&format!("{protocol}://{host}/"));
    asked.is_ok_and(|asked| {
        asked.scheme() == server.scheme()
            && asked.host_str() == server.host_str()
            && asked.port_or_known_default() == server.port_or_known_default()
            && asked.username().is_empty()
            && asked.password().is_none()
    })
}

/// Tells git to ask this helper for Tarn, in the user's configuration. The token stays in its file, or is made anew each time.
///
/// # Errors
/// There is no server, no token, or the configuration cannot be written.
pub async fn login(args: &TokenArgs) -> Result<String, CredentialError> {
    let git = Git::default();
    let server = Server::find(args.server.as_ref(), &git).await?;
    let origin = Origin::find(args, &git).await.ok_or(TokenError::Unknown)?;
    // What does not work now would only be told by a clone that fails.
    origin.token().await?;
    let helper = helper(&server, &origin)?;
    let helpers = format!("credential.{}.helper", server.scope());
    let whose = match &origin {
        Origin::File(file) => [
            (TOKEN_FILE, Some(absolute(file)?)),
            (SERVICE_ACCOUNT, None),
            (NAMESPACE, None),
            (AUDIENCE_KEY, None),
        ],
        Origin::Account(ServiceAccount { name, namespace, audience }) => [
            (TOKEN_FILE, None),
            (SERVICE_ACCOUNT, Some(name.clone())),
            (NAMESPACE, namespace.clone()),
            (AUDIENCE_KEY, Some(audience.clone())),
        ],
    };
    let all = [("tarn.url", Some(server.url().to_string())), (&*helpers, Some(helper))];
    for (key, value) in all.into_iter().chain(whose) {
        set(&git, key, value.as_deref()).await?;
    }
    Ok(match &origin {
        Origin::File(file) => {
            format!("git proves itself to {} with the token of {}", server.url(), absolute(file)?)
        }
        Origin::Account(account) => format!(
            "git proves itself to {} with tokens of the service account {}, which kubectl has made when they are needed",
            server.url(),
            account.name
        ),
    })
}

/// Gives the key this one value in the user's configuration, or takes it away.
async fn set(git: &Git, key: &str, value: Option<&str>) -> Result<(), GitError> {
    let global = || git.anywhere().args(["config", "--global"]);
    if let Some(value) = value {
        global().args(["--replace-all", key, value]).run().await?;
    } else if global().args(["--get-all", key]).run().await.is_ok() {
        global().args(["--unset-all", key]).run().await?;
    }
    Ok(())
}

/// The helper as git runs it: this very program, for this server and this origin of tokens.
///
/// # Errors
/// A path that a shell would not understand.
pub fn helper(server: &Server, origin: &Origin) -> Result<String, CredentialError> {
    let own = std::env::current_exe()?;
    let own = own.to_str().ok_or(CredentialError::Path("the path of this program"))?;
    let mut flags = vec![("--server", server.url().to_string())];
    match origin {
        Origin::File(file) => flags.push(("--token-file", absolute(file)?)),
        Origin::Account(ServiceAccount { name, namespace, audience }) => {
            flags.push(("--service-account", name.clone()));
            flags.extend(namespace.clone().map(|namespace| ("--namespace", namespace)));
            flags.push(("--audience", audience.clone()));
        }
    }
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let flags: String = flags.iter().map(|(flag, value)| format!(" {flag} {}", quoted(value))).collect();
    Ok(format!("!{} credential{flags}", quoted(own)))
}

/// The path as git is to keep it: a helper runs anywhere.
fn absolute(file: &Path) -> Result<String, CredentialError> {
    let file = std::path::absolute(file)?;
    file.into_os_string().into_string().map_err(|_| CredentialError::Path("the path of the token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_about_tarn_are_answered() {
        let about = |question: &str, server: &str| is_about(question, &Url::parse(server).unwrap());
        assert!(about("protocol=http\nhost=tarn.ci\n", "http://tarn.ci/"));
        assert!(about("protocol=http\nhost=tarn.ci:80\npath=git/x\n", "http://tarn.ci"));
        assert!(about("capability[]=authtype\nprotocol=https\nhost=t:8443\n", "https://t:8443/x/"));
        for question in [
            "",
            "protocol=https\nhost=tarn.ci\n",
            "protocol=http\nhost=tarn.ci.example.org\n",
            "protocol=http\nhost=tarn.ci:8080\n",
            "protocol=http\nhost=x@tarn.ci\n",
            "protocol=http\n",
            "host=tarn.ci\n",
        ] {
            assert!(!about(question, "http://tarn.ci/"), "{question:?}");
        }
    }
}
