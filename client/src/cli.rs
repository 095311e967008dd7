//! Flags, parsed into types.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

/// The command line of `git-tarn`, which git runs for `git tarn`.
#[derive(Debug, Parser)]
#[command(name = "git tarn", bin_name = "git tarn", version, about = "Clones git repositories through Tarn")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Clone a repository, starting from Tarn's snapshot of it.
    Clone(CloneArgs),
    /// Answer git's question for credentials, for Tarn alone; git runs this, as `git tarn login` tells it to.
    Credential(CredentialArgs),
    /// Have git prove itself to Tarn from now on, with a token of a file or of a service account.
    Login(TokenArgs),
    /// Have git forget what `git tarn login` told it.
    Logout(LogoutArgs),
}

/// Which Tarn.
#[derive(Clone, Debug, Args)]
pub struct LogoutArgs {
    /// Tarn's URL; else `git config tarn.url`.
    #[arg(long, value_name = "URL", env = "TARN_URL")]
    pub server: Option<GivenUrl>,
}

/// Which Tarn, and what proves oneself to it.
#[derive(Clone, Debug, Args)]
pub struct TokenArgs {
    /// Tarn's URL; else `git config tarn.url`.
    #[arg(long, value_name = "URL", env = "TARN_URL")]
    pub server: Option<GivenUrl>,
    /// File with a token for Tarn; else `git config tarn.tokenFile`, else where a pod has it.
    #[arg(long, value_name = "FILE", env = "TARN_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Have kubectl make a short-lived token of this service account whenever one is needed, instead of reading a file.
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    pub service_account: Option<String>,
    /// The service account's namespace; else that of kubectl's context.
    #[arg(long, value_name = "NAMESPACE", requires = "service_account", value_parser = object_name)]
    pub namespace: Option<String>,
    /// Whom that token is for: one of the audiences of Tarn's GitCache; else the one that a Service's name in Tarn's URL tells.
    #[arg(long, value_name = "AUDIENCE", requires = "service_account", value_parser = audience)]
    pub audience: Option<String>,
}

/// What git asks.
#[derive(Clone, Debug, Args)]
pub struct CredentialArgs {
    /// Which Tarn, and the token.
    #[command(flatten)]
    pub token: TokenArgs,
    /// get, store or erase, as git says it; what is asked comes on standard input.
    pub action: String,
}

/// How to clone.
#[derive(Clone, Debug, Args)]
pub struct CloneArgs {
    /// The upstream's URL, as for `git clone`.
    pub url: GivenUrl,
    /// The directory to make; by default the last part of the URL.
    pub dir: Option<PathBuf>,
    /// Check out this branch or tag instead of the upstream's HEAD.
    #[arg(long = "ref", value_name = "REF", value_parser = parse_ref)]
    pub reference: Option<String>,
    /// Check out this commit, by its full hash, detached.
    #[arg(long, value_name = "SHA")]
    pub commit: Option<CommitId>,
    /// Which Tarn, and the token.
    #[command(flatten)]
    pub token: TokenArgs,
    /// Connections to download with.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub jobs: u8,
    /// Hash every object and file of the snapshot; without a flag, where Tarn's URL is http and not of this machine.
    #[arg(long, overrides_with = "no_verify")]
    pub verify: bool,
    /// Trust the snapshot as the server sends it.
    #[arg(long, overrides_with = "verify")]
    pub no_verify: bool,
    /// Fail where the snapshot cannot be used, instead of cloning with git.
    #[arg(long)]
    pub no_fallback: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Show neither progress nor the reasons of fallbacks.
    #[arg(short, long)]
    pub quiet: bool,
}

/// A URL as it was typed. It may hold a password, so it cannot be printed.
#[derive(Clone)]
pub struct GivenUrl(String);

impl GivenUrl {
    /// The text, for parsers that take the password out.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for GivenUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GivenUrl(…)")
    }
}

impl From<String> for GivenUrl {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The full hash of a commit, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitId(String);

impl CommitId {
    /// The hash in hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name git has for the format of such hashes.
    pub fn object_format(&self) -> &'static str {
        if self.0.len() == 64 { "sha256" } else { "sha1" }
    }
}

impl FromStr for CommitId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex || !matches!(text.len(), 40 | 64) {
            return Err("must be the full hash of a commit: 40 or 64 hexadecimal digits");
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// Refuses what git would take for an option, a pattern or a range; git itself judges the rest.
fn parse_ref(text: &str) -> Result<String, &'static str> {
    let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    if text.is_empty() || text.starts_with('-') || text.contains("..") || text.contains(odd) {
        return Err("must be the name of a branch or a tag");
    }
    Ok(text.to_owned())
}

/// The name of a Kubernetes object, which kubectl takes for nothing else.
fn object_name(text: &str) -> Result<String, &'static str> {
    if !is_name(text) {
        return Err("must be a name as Kubernetes has them: lower-case letters, digits, dashes and dots");
    }
    Ok(text.to_owned())
}

/// Whether the API server could have an object of this name: one that begins like a flag, it could not.
pub fn is_name(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    text.len() <= 253
        && text.bytes().all(known)
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn audience(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.len() > 253 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be one word, such as default.ci.tarn.dev");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_flags() {
        for name in ["ci", "team-a.builder", "0"] {
            assert!(is_name(name), "{name}");
        }
        for text in ["", "-f", "--as=admin", "CI", "a b", "a/b"] {
            assert!(!is_name(text), "{text}");
        }
    }

    fn parse(args: &[&str]) -> Result<CloneArgs, String> {
        let all = ["git-tarn", "clone"].iter().chain(args);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Clone(parsed) => Ok(parsed),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_commit_is_named_in_full_and_a_ref_is_a_name() {
        let sha = "ABCDEF0123456789abcdef0123456789abcdef01";
        let parsed = parse(&["https://h/a", "--commit", sha, "--ref", "main"]).unwrap();
        assert_eq!(parsed.commit.unwrap().as_str(), sha.to_lowercase());
        for wrong in
            [&["--commit", "abc"][..], &["--ref=--upload-pack=x"], &["--ref", "a..b"], &["--jobs", "0"]]
        {
            let args: Vec<&str> = ["https://h/a"].iter().chain(wrong).copied().collect();
            assert!(parse(&args).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_service_account_is_named_as_kubernetes_names_things() {
        let url = "https://h/a";
        let account = parse(&[url, "--service-account", "ci", "--namespace", "builds"]).unwrap().token;
        assert_eq!((account.service_account.as_deref(), account.audience), (Some("ci"), None));
        for wrong in [
            &["--service-account=--kubeconfig=x"][..],
            &["--service-account", "a/b"],
            &["--service-account", "ci", "--namespace", "a b"],
            &["--service-account", "ci", "--audience", ""],
            &["--namespace", "builds"],
            &["--audience", "git"],
        ] {
            let args: Vec<&str> = [url].iter().chain(wrong).copied().collect();
            assert!(parse(&args).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let parsed = parse(&["https://u:canary@h/a", "--server", "http://u:canary@t"]).unwrap();
        assert!(!format!("{parsed:?}").contains("canary"));
    }
}
