//! `git tarn credential`, a credential helper: it answers with a token, of a file or of kubectl, when git asks for Tarn, and with
//! nothing when git asks for any other host. And `git tarn login` and `logout`, which tell git to ask it, and no longer.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use url::Url;

use crate::cli::{CredentialArgs, LogoutArgs, TokenArgs};
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
    let token = Origin::find(&args.token, &git, &server).await.ok_or(TokenError::Unknown)?.token().await?;
    let mut out = io::stdout().lock();
    writeln!(out, "username={USER}\npassword={}", token.expose())?;
    Ok(())
}

/// Whether git asks for this server: the same protocol, host and port, as texts. A host is not parsed: what one reader takes for the
/// end of a name, another may not.
fn is_about(question: &str, server: &Url) -> bool {
    let value = |key: &str| question.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let (Some(protocol), Some(asked), Some(host)) = (value("protocol"), value("host"), server.host_str())
    else {
        return false;
    };
    let with_port = server.port_or_known_default().map(|port| format!("{host}:{port}"));
    // A default port is one whether or not it is written.
    let without = server.port().is_none().then_some(host);
    let known =
        [without, with_port.as_deref()].into_iter().flatten().any(|own| asked.eq_ignore_ascii_case(own));
    protocol == server.scheme() && known
}

/// Tells git to ask this helper for Tarn, in the user's configuration. The token stays in its file, or is made anew each time.
///
/// # Errors
/// There is no server, no token, or the configuration cannot be written.
pub async fn login(args: &TokenArgs) -> Result<String, CredentialError> {
    let git = Git::default();
    let server = Server::find(args.server.as_ref(), &git).await?;
    let origin = Origin::find(args, &git, &server).await.ok_or(TokenError::Unknown)?;
    // What does not work now would only be told by a clone that fails.
    origin.token().await?;
    let helper = helper(&server, &origin)?;
    let [helpers, by_path] = scoped(&server);
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
            (AUDIENCE_KEY, audience.clone()),
        ],
    };
    let all = [
        ("tarn.url", Some(server.url().to_string())),
        (&*helpers, Some(helper)),
        // Behind Tarn's one host are many upstreams: what other helpers keep, they keep for one of them.
        (&*by_path, Some("true".to_owned())),
    ];
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

/// What git is told of this server's credentials: the helper, and that they are kept by path.
fn scoped(server: &Server) -> [String; 2] {
    ["helper", "useHttpPath"].map(|key| format!("credential.{}.{key}", server.scope()))
}

/// Takes back what [`login`] wrote into the user's configuration.
///
/// # Errors
/// There is no server, or the configuration cannot be written.
pub async fn logout(args: &LogoutArgs) -> Result<String, CredentialError> {
    let git = Git::default();
    let server = Server::find(args.server.as_ref(), &git).await?;
    let scoped = scoped(&server);
    let others = ["tarn.url", TOKEN_FILE, SERVICE_ACCOUNT, NAMESPACE, AUDIENCE_KEY];
    for key in scoped.iter().map(String::as_str).chain(others) {
        set(&git, key, None).await?;
    }
    Ok(format!("git no longer proves itself to {}", server.url()))
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
            flags.extend(audience.clone().map(|audience| ("--audience", audience)));
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
        assert!(about("protocol=http\nhost=TARN.ci\n", "http://tarn.ci/"));
        assert!(about("protocol=https\nhost=[::1]:8443\n", "https://[::1]:8443"));
        assert!(!about("protocol=https\nhost=t\n", "https://t:8443"));
        for question in [
            "",
            "protocol=https\nhost=tarn.ci\n",
            "protocol=http\nhost=tarn.ci.example.org\n",
            "protocol=http\nhost=tarn.ci:8080\n",
            "protocol=http\nhost=x@tarn.ci\n",
            "protocol=http\nhost=tarn.ci/.evil.example\n",
            "protocol=http\nhost=tarn.ci?x\n",
            "protocol=http\nhost=tarn.ci#.evil.example\n",
            "protocol=http\nhost=tarn.ci\\.evil.example\n",
            "protocol=http\nhost=tar\tn.ci\n",
            "protocol=http\nhost=tarn.ci \n",
            "protocol=http\nhost=tarn%2Eci\n",
            "protocol=http\nhost=tarn.ci:080\n",
            "protocol=http\nhost=tarn.ci.\n",
            "protocol=http\nhost=\u{ff54}arn.ci\n",
            "protocol=http\n",
            "host=tarn.ci\n",
        ] {
            assert!(!about(question, "http://tarn.ci/"), "{question:?}");
        }
    }
}
