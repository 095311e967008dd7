//! `git tarn credential`, a credential helper: it answers with the token of a file when git asks for Tarn, and with nothing
//! when git asks for any other host. And `git tarn login`, which tells git to ask it.

use std::io::{self, Read as _, Write as _};

use url::Url;

use crate::cli::{CredentialArgs, TokenArgs};
use crate::exit::Exit;
use crate::git::{Git, GitError};
use crate::server::{Server, ServerError};
use crate::token::{self, Token, TokenError};

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
    let file = token::file(args.token.token_file.as_deref(), &git).await.ok_or(TokenError::Unknown)?;
    let token = Token::read(&file)?;
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

/// Tells git to ask this helper for Tarn, in the user's configuration. The token stays in its file.
///
/// # Errors
/// There is no server, no token, or the configuration cannot be written.
pub async fn login(args: &TokenArgs) -> Result<String, CredentialError> {
    let git = Git::default();
    let server = Server::find(args.server.as_ref(), &git).await?;
    let file = token::file(args.token_file.as_deref(), &git).await.ok_or(TokenError::Unknown)?;
    Token::read(&file)?;
    let file = std::path::absolute(&file)?;
    let file = file.to_str().ok_or(CredentialError::Path("the path of the token"))?;
    let key = format!("credential.{}.helper", server.scope());
    let helper = helper(&server, file)?;
    for pair in [["tarn.url", server.url().as_str()], ["tarn.tokenFile", file], [&key, &helper]] {
        git.anywhere().args(["config", "--global", "--replace-all"]).args(pair).run().await?;
    }
    Ok(format!("git proves itself to {} with the token of {file}", server.url()))
}

/// The helper as git runs it: this very program, for this server and this file.
///
/// # Errors
/// A path that a shell would not understand.
pub fn helper(server: &Server, file: &str) -> Result<String, CredentialError> {
    let own = std::env::current_exe()?;
    let own = own.to_str().ok_or(CredentialError::Path("the path of this program"))?;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let (own, url, file) = (quoted(own), quoted(server.url().as_str()), quoted(file));
    Ok(format!("!{own} credential --server {url} --token-file {file}"))
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
